"""`sdflow paste` on a real Prefect server: what it says, what it copies, and what the records know of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.testing.utilities import prefect_test_harness

import cli.main as command
from sdflow_core.records.gc import collect
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table
from sdflow_core.records.verification import verify_store
from tests.pasted import World, make

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def world(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("SDFLOW_STORE", store.uri)
    return make(store, tmp_path / "photos")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = command.app([*words, "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, json.loads(out.splitlines()[-1])


def test_edits_are_pasted_told_and_copied_once(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "ann.png"
    code, said = run(capsys, "paste", *world.edits, "--out", str(out))
    row = Table(world.store, "people", "pasted").find(said["pasted"])
    assert code == 0 and row is not None and not said["reused"]
    assert (said["dataset"], said["width"], said["height"]) == ("people", 700, 500)
    assert [edit["edit_id"] for edit in said["edits"]] == sorted(world.edits)
    assert all(len(edit["box"]) == 4 and edit["status"] == "waiting" for edit in said["edits"])
    assert said["picture"] == world.store.url(row["output"]) and row["output"].startswith("private/pasted/")
    assert out.read_bytes() == world.store.read(row["output"]) and len(out.read_bytes()) == said["bytes"]
    assert out.stat().st_mode & 0o077 == 0, "it shows people"
    assert [path.name for path in out.parent.iterdir()] == ["ann.png"], "nothing half-written is left"
    code, again = run(capsys, "paste", *(edit[:12] for edit in world.edits[::-1]), "--dataset", "people")
    assert code == 0 and again == {**said, "reused": True, "out": ""}
    code, one = run(capsys, "paste", world.edits[0], "--blend", "replace", "--region", "crop")
    assert code == 0 and one["pasted"] != said["pasted"] and len(one["edits"]) == 1
    assert command.app(["paste", *world.edits]) == 0
    text = capsys.readouterr().out
    assert said["picture"] in text and "private" in text and "it was there already" in text


def test_what_cannot_be_pasted_is_one_line(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken.png"
    taken.write_bytes(b"mine")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    inside = str(Path(world.store.uri) / "x.png")
    for words, said in {
        ("0" * 64,): "no such edit",
        ("0" * 64, "--dataset", "nobody"): "no such edit",
        ("abc",): "8 to 64 hexadecimal digits",
        (world.edits[0], world.edits[0][:20]): "named twice",
        (world.outputs[2],): "no smile",
        (world.edits[0], "--blend", "mix"): "blend",
        (world.edits[0], "--border", "0.9"): "mask.border",
        (world.edits[0], "--out", str(taken)): "not touched",
        (world.edits[0], "--out", str(tmp_path / "dangling.png")): "not touched",
        (world.edits[0], "--out", inside): "inside the store",
    }.items():
        code, found = run(capsys, "paste", *words)
        assert code == 2 and said in found["error"]["message"], (words, found)
        assert "\n" not in found["error"]["message"]
    assert taken.read_bytes() == b"mine" and not (tmp_path / "nowhere.png").exists()
    assert not Table(world.store, "people", "pasted").recipes()
    world.consent_again(consent="")
    code, found = run(capsys, "paste", world.edits[0])
    assert code == 3 and "no consent" in found["error"]["message"]


def test_the_records_know_a_pasted_photograph(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ann.png"
    _, said = run(capsys, "paste", *world.edits, "--out", str(out))
    code, told = run(capsys, "why", said["pasted"][:16])
    assert code == 0 and (told["table"], told["step"]) == ("pasted", "paste")
    assert [item["is"] for item in told["inputs"]] == ["row of edits"] * 2
    code, told = run(capsys, "why", "ann.jpg")
    assert code == 0 and f"private/pasted/{said['pasted'][:2]}/{said['pasted']}.png" in told["text"]
    for query in (str(out), said["pasted"], said["file_sha256"]):
        code, told = run(capsys, "audit", query)
        assert code == 2 and "pasted into" in told["error"]["message"]
        assert all(edit in told["error"]["message"] for edit in world.edits)
    assert f"{Table(world.store, 'people', 'pasted').root}" in {f.name for f in verify_store(world.store)}
    orphan = f"private/pasted/00/{'0' * 64}.png"
    world.store.create(orphan, b"left by a run that was killed")
    found = collect(world.store, delete=True, older_than_hours=0)
    assert [item.key for item in found.found if item.kind == "pasted"] == [orphan]
    assert world.store.exists(f"private/pasted/{said['pasted'][:2]}/{said['pasted']}.png")
