"""`sdflow verify`, `compact` and `gc`: exit codes, JSON, and text for people."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import cli.main as command
from sdflow_core.records import journal as journal_module
from sdflow_core.records.decisions import decide
from sdflow_core.records.digests import canonical_digests
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table
from sdflow_core.weights.model_store import Licences
from tests.edited import Edited, make_edits

JOURNAL = "private/datasets/people/journal"


@pytest.fixture
def made(store: Store, monkeypatch: pytest.MonkeyPatch) -> Edited:
    """A finished edit run, a decision and a licence, in the store that the command uses."""
    monkeypatch.setenv("SDFLOW_STORE", store.uri)
    done = make_edits(store)
    decide(store, done.edit_run, approve="all", who="ann")
    Licences(store).accept("research", "ann", "fine")
    return done


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = command.app([*words, "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, json.loads(out.splitlines()[-1])


def test_verify_reads_everything(made: Edited, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = _run(capsys, "verify")
    assert (code, said["ok"], said["wrong"]) == (0, True, [])
    assert set(said["heads"]) == {JOURNAL, f"decisions/{made.edit_run}", "models/licences"}
    assert said["shards"] == len(list(Table(store, "people", "edits").journal.entries()))
    code, said = _run(capsys, "verify", "people")
    assert (code, set(said["heads"])) == (0, {JOURNAL, f"decisions/{made.edit_run}"})
    code, said = _run(capsys, "verify", "nobody")
    assert (code, said["error"]["kind"]) == (2, "NotFoundError")


@pytest.mark.parametrize("root", [JOURNAL, "decisions/0123456789ab", "models/licences"])
def test_verify_names_what_is_wrong_and_goes_on(
    made: Edited, store: Store, root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put(f"{root}/0000000001.json", b"{}")
    code, said = _run(capsys, "verify")
    assert (code, said["ok"]) == (2, False)
    (wrong,) = [item for item in said["wrong"] if item["name"] == root]
    assert "entry 1" in wrong["found"] and "0000000001.json" in wrong["todo"]
    assert len(said["heads"]) == 2


def test_verify_names_a_shard_and_a_journal_that_is_gone(
    made: Edited, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    (key, *_) = store.list("private/datasets/people/edits/shards/")
    store.delete(key)
    store.delete("models/licences/0000000001.json")
    store.delete("models/licences/HEAD")
    code, said = _run(capsys, "verify")
    assert code == 2
    assert {item["name"] for item in said["wrong"]} == {"private/datasets/people/edits", "models/licences"}
    assert any(key in item["todo"] for item in said["wrong"])


def test_a_store_that_was_put_back_is_known_by_its_kept_heads(
    made: Edited, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "heads.json"
    command.app(["verify", "--json"])
    kept.write_text(capsys.readouterr().out)
    number = json.loads(kept.read_text())["heads"][JOURNAL]["number"]
    Table(store, "people", "labels").commit(
        pa.table({"row_key": ["new"], "recipe": ["r"], "status": ["kept"]}), run="x"
    )
    assert _run(capsys, "verify", "--heads", str(kept))[0] == 0
    # As a backup of an earlier day would have it: every file of ours knows nothing of the last entries.
    store.delete(f"{JOURNAL}/{number:010d}.json")
    store.delete(f"{JOURNAL}/{number + 1:010d}.json")
    store.delete(f"{JOURNAL}/HEAD")
    store.delete(f"heads/{JOURNAL}.json")
    journal_module._known.clear()
    assert not [item for item in _run(capsys, "verify")[1]["wrong"] if item["name"] == JOURNAL]
    code, said = _run(capsys, "verify", "--heads", str(kept))
    assert code == 2
    (wrong,) = [item for item in said["wrong"] if item["name"] == JOURNAL]
    assert f"entry {number} is missing" in wrong["found"]
    kept.write_text("no heads")
    assert _run(capsys, "verify", "--heads", str(kept))[0] == 2


def test_compact_then_gc(made: Edited, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        row = {"row_key": [f"n{number}"], "recipe": ["r"], "status": ["kept"]}
        Table(store, "people", "labels").commit(pa.table(row), run="x")
    digests = canonical_digests(store, "people")
    code, said = _run(capsys, "compact", "people")
    assert (code, said["tables"]["labels"], said["snapshots"]) == (0, {"before": 5, "after": 2}, 0)
    assert canonical_digests(store, "people") == digests
    assert _run(capsys, "verify")[0] == 0
    code, said = _run(capsys, "gc")
    assert (code, said["removed"], said["kinds"]) == (0, 0, {})
    code, said = _run(capsys, "gc", "--older-than-hours", "0")
    assert (said["deleted"], said["removed"]) == (False, 0)
    assert said["kinds"]["replaced shards"]["count"] >= 4
    left = set(os.listdir(Path(store.uri) / "private/datasets/people/labels/shards"))
    code, again = _run(capsys, "gc", "--older-than-hours", "0", "--delete")
    assert (code, again["deleted"], again["kinds"]) == (0, True, said["kinds"])
    assert len(left) - len(os.listdir(Path(store.uri) / "private/datasets/people/labels/shards")) == 4
    assert _run(capsys, "verify")[0] == 0
    assert canonical_digests(store, "people") == digests
    assert _run(capsys, "compact", "nobody")[0] == 2
    assert _run(capsys, "gc", "--older-than-hours", "-1")[0] == 2


def test_the_same_for_people(made: Edited, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.create("private/edits/orphan.png", b"left")
    for words, part in (
        (["verify"], "All records are as they were written."),
        (["compact", "people"], "snapshots written"),
        (["gc", "--older-than-hours", "0"], "private/edits/orphan.png"),
        (["gc", "--older-than-hours", "0", "--delete"], "objects removed"),
        (["gc"], "Nothing is left over."),
    ):
        assert command.app(words) == 0
        out, err = capsys.readouterr()
        assert part in out and err == ""
    store.put(f"{JOURNAL}/0000000001.json", b"{}")
    assert command.app(["verify"]) == 2
    assert "Something is wrong" in capsys.readouterr().out
