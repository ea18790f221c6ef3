"""The command line: exit codes, one JSON object, one clear message, nothing loaded before it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cli.main as command
from cli.output import State, progress
from sdflow_core.faces.pixels import png_bytes, read_text
from sdflow_core.records.store import Store
from sdflow_core.weights.model_store import Bundle, ModelStore
from tests.edited import Edited, make_edits, picture

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def made(store: Store, monkeypatch: pytest.MonkeyPatch) -> Edited:
    """A finished edit run in the store that the command uses."""
    monkeypatch.setenv("SDFLOW_STORE", store.uri)
    return make_edits(store)


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    code = command.app([*words, "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, json.loads(out.splitlines()[-1]), err


def _in_a_process(code: str) -> str:
    """What a fresh process prints that runs this code from the root of the repository."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or done.stderr


def test_importing_loads_nothing_heavy() -> None:
    heavy = ("torch", "prefect", "pandas", "pyarrow", "numpy")
    code = f"import sys, cli.main, cli.output; print([name for name in {heavy} if name in sys.modules])"
    assert _in_a_process(code) == "[]"


def test_a_paste_is_checked_before_prefect_takes_its_settings(tmp_path: Path) -> None:
    """Imported too early it starts a server of its own, and its log and tracebacks reach the screen."""
    words = ["--store", str(tmp_path / "store"), "paste", "0" * 64]
    code = f"import sys, cli.main; print(cli.main.app({words}), 'prefect' in sys.modules)"
    assert _in_a_process(code) == "2 False"


def test_from_decision_to_audit(
    made: Edited, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = _run(capsys, "decide", made.edit_run, "--approve", "all", "--by", "ann", "--note", "fine")
    assert (code, said["approved"], said["rejected"], said["identity"]) == (0, 2, 0, "asserted")
    from sdflow_core.records.releases import release

    path = Path(release(store, made.edit_run, str(tmp_path / "out"), "run").outputs[0].uri)
    code, said, _ = _run(capsys, "audit", str(path))
    assert code == 0
    assert {"source", "steps", "consent", "decision", "release"} <= set(said)
    image = picture(0)
    image[0, 0] ^= 1
    path.write_bytes(png_bytes(image, read_text(path.read_bytes())))
    code, said, err = _run(capsys, "audit", str(path))
    assert code == 3
    assert "was changed" in err
    assert said["error"]["kind"] == "ApprovalError"


def test_the_same_for_people(made: Edited, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["decide", made.edit_run, "--approve", made.edit_ids[0], "--reject", made.edit_ids[1], "--by", "ann"],
        ["audit", made.edit_ids[0]],
        ["why", made.edit_ids[0][:10]],
        ["models", "list"],
    ):
        assert command.app(words) == 0
        out, err = capsys.readouterr()
        assert out.strip()
        assert err == ""
    command.app(["audit", made.edit_ids[0]])
    assert made.edit_ids[0] in capsys.readouterr().out


@pytest.mark.parametrize("place", ["before", "after", "equals"])
def test_shared_options_stand_anywhere(
    made: Edited, store: Store, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "before": ["--store", store.uri, "--json", "why", made.edit_ids[0]],
        "after": ["why", made.edit_ids[0], "--json", "--store", store.uri],
        "equals": ["why", f"--store={store.uri}", "--json", made.edit_ids[0]],
    }[place]
    assert command.app(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["table"] == "edits"


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["audit", "ffffffffff"], 2, "known here"),
        (["why", "ffffffffff"], 2, "not known"),
        (["decide", "ffffffffff", "--approve", "all", "--by", "ann"], 2, "no such edit run"),
        (["models", "show", "ffffffffff"], 2, "no such model"),
        (["models", "rollback", "--by", "ann"], 2, "no earlier bundle"),
        (["models", "rollback"], 2, "needs a name"),
        (["models", "accept-licence", "other", "--by", "ann"], 2, "no model has this licence"),
        (["audit"], 2, "Missing argument"),
        (["nosuch"], 2, "No such command"),
        (["why", "--nosuch", "x"], 2, "No such option"),
    ],
)
def test_one_clear_message(
    made: Edited, words: list[str], code: int, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, said, err = _run(capsys, *words)
    assert (got, said["error"]["exit_code"]) == (code, code)
    assert part.lower() in said["error"]["message"].lower()
    assert len(err.strip().splitlines()) == 1


def test_a_gated_edit_needs_a_person(made: Edited, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = _run(capsys, "decide", made.edit_run, "--approve", made.edit_ids[-1], "--by", "ann")
    assert (code, said["error"]["kind"]) == (3, "QualityGateError")


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    import sdflow_core.records.why as module

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "why", fail)


def test_interruption(
    made: Edited, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _failing(monkeypatch, KeyboardInterrupt())
    assert command.app(["why", "x"]) == 130


@pytest.mark.parametrize("writable", [True, False])
def test_the_unexpected_leaves_one_line_and_a_log(
    writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    if not writable:
        place.write_text("a file where the store should be")
    _failing(monkeypatch, ZeroDivisionError("surprise"))
    code, said, err = _run(capsys, "why", "x", "--store", str(place))
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    log = Path(said["error"]["log"])
    assert "Traceback" in log.read_text()
    assert log.is_relative_to(place) == writable
    if not writable:
        log.unlink()


def test_models_are_listed_promoted_and_rolled_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDFLOW_STORE", store.uri)
    from sdflow_core.weights.model_store import Bundles

    models = ModelStore(store)
    encoder = models.add("encoder", b"encoder", {"licence_id": "research"})
    editor = models.add("editor", b"editor", {"encoder": encoder})
    alien = models.add("editor", b"alien", {"encoder": "f" * 64})
    base = Bundle(encoder=encoder, template_scale=0.7, resolution=64, attributes=("smiling",))
    Bundles(store).promote(base, "ann", "first")
    code, said, _ = _run(capsys, "models", "promote", editor[:10], "--by", "ann")
    assert (code, said["editor"]) == (0, editor)
    code, said, _ = _run(capsys, "models", "promote", alien, "--by", "ann")
    assert (code, "another encoder" in said["error"]["message"]) == (2, True)
    code, said, _ = _run(capsys, "models", "rollback", "--by", "ann")
    assert (code, said["bundle"]) == (0, base.digest)
    code, said, _ = _run(capsys, "models", "show", base.digest[:8])
    assert said["encoder"] == encoder
    assert _run(capsys, "models", "accept-licence", "research", "--by", "ann")[0] == 0
    code, said, _ = _run(capsys, "models", "list")
    assert {item["kind"]: item["accepted"] for item in said["models"]}["encoder"]
    assert len(said["promotions"]) == 3


def test_doctor_finds_what_is_broken(
    made: Edited, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cli.doctor as module

    # Importing Prefect takes seconds and is shown by every other test of flows.
    monkeypatch.setattr(module, "_prefect", lambda _: iter(()))
    code, said, _ = _run(capsys, "doctor", "--deep")
    assert (code, said["ok"]) == (0, True), said
    key = "private/datasets/people/journal/0000000001.json"
    store.put(key, store.read(key).replace(b"sources", b"sourceX"))
    code, said, _ = _run(capsys, "doctor")
    assert code == 2
    wrong = [check for check in said["checks"] if not check["ok"]]
    assert any("journal" in check["name"] and "0000000001.json" in check["todo"] for check in wrong)


def test_doctor_says_that_a_store_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cli.doctor as module

    monkeypatch.setattr(module, "_prefect", lambda _: iter(()))
    (tmp_path / "file").write_text("")
    code, said, _ = _run(capsys, "doctor", "--store", str(tmp_path / "file"))
    assert code == 2
    assert any(not check["ok"] and "store" in check["found"] for check in said["checks"])


def test_progress_is_silent_outside_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(State("x"), "working", 3) as bar:
        bar.advance(2)
        bar.advance()
    assert bar.done == 3
    assert capsys.readouterr() == ("", "")


def test_cells_of_tables_are_words() -> None:
    from cli.output import in_words

    found = in_words({"smiling": {"n": 6, "tries": None}, "young": {"n": 1}})
    assert found == "smiling (n: 6, tries: -), young (n: 1)"
    assert in_words(["a.png", "b.png"]) == "a.png\nb.png" and in_words({"gated": 6}) == "gated: 6"
