"""What `gc` may remove, and above all what it never does."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sdflow_core.records import journal as journal_module
from sdflow_core.records.compaction import compact
from sdflow_core.records.digests import canonical_digests
from sdflow_core.records.errors import ContractError, CorruptError
from sdflow_core.records.gc import Collected, collect
from sdflow_core.records.index import names
from sdflow_core.records.keys import canonical_json
from sdflow_core.records.leases import lease
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.objects import TEMPORARY
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table
from sdflow_core.records.verification import verify_store
from tests.edited import Edited, make_edits

OLD = timedelta(hours=25)
PICTURES = ("crops", "edits", "pasted")
LEFT = {
    "private/datasets/people/faces/shards/0-orphan.parquet": "shards",
    "private/plans/deadrun/plan-invert-00000.json": "plans",
    "private/crops/0123/orphan-0.png": "crops",
    "private/edits/ab/orphan.png": "edits",
    "private/edits/ab/orphan-before.png": "edits",
    "private/pasted/ab/orphan.png": "pasted",
    "tmp/probe-1": "temporary",
    f"private/edits/ab/{TEMPORARY}1": "temporary",
    f"{TEMPORARY}2": "temporary",
    "leases/deadrun.json": "leases",
}


def age(store: Store, by: timedelta = OLD) -> None:
    """Everything in the store was written so long ago."""
    when = (datetime.now(UTC) - by).timestamp()
    for path in Path(store.uri).rglob("*"):
        if path.is_file():
            os.utime(path, (when, when))


def leave(store: Store) -> None:
    for key in LEFT:
        path = Path(store.uri) / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left")


def there(store: Store) -> set[str]:
    root = Path(store.uri)
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def found(result: Collected) -> dict[str, str]:
    return {item.key: item.kind for item in result.found}


@pytest.fixture
def made(store: Store) -> Edited:
    done = make_edits(store)
    Table(store, "people", "faces").commit(
        pa.table(
            {"row_key": ["k"], "recipe": ["r"], "status": ["kept"], "crop": ["private/crops/9/named-0.png"]}
        ),
        run="x",
    )
    store.create("private/crops/9/named-0.png", b"picture")
    return done


def test_a_dry_run_says_what_a_real_one_removes(made: Edited, store: Store) -> None:
    leave(store)
    age(store)
    before = there(store)
    dry = collect(store)
    assert found(dry) == LEFT
    assert (dry.removed, there(store)) == (0, before)
    assert dry.by_kind()["edits"] == {"count": 2, "bytes": 8}
    done = collect(store, delete=True)
    assert (found(done), done.removed) == (LEFT, len(LEFT))
    assert there(store) == before - set(LEFT)
    assert found(collect(store)) == {}
    assert not any(item.wrong for item in verify_store(store))


def test_what_is_young_stays(made: Edited, store: Store) -> None:
    leave(store)
    age(store, timedelta(hours=23))
    assert found(collect(store, delete=True)) == {}
    assert found(collect(store, older_than_hours=22)) == LEFT
    assert found(collect(store, now=datetime.now(UTC) + timedelta(hours=2))) == LEFT
    with pytest.raises(ContractError, match="negative"):
        collect(store, older_than_hours=-1)


def test_what_any_row_names_stays_also_a_superseded_one(made: Edited, store: Store) -> None:
    table = Table(store, "people", "edits")
    for status, output in (("failed", "private/edits/first.png"), ("waiting", "private/edits/second.png")):
        row: dict[str, Any] = {"row_key": ["again"], "recipe": ["r"], "status": [status]}
        table.commit(pa.table({**row, "output": [output]}), run="x")
        store.create(output, b"picture")
    # In a column that nobody has heard of, too.
    store.create("private/edits/third.png", b"picture")
    Table(store, "people", "canary").commit(
        pa.table(
            {"row_key": ["c"], "recipe": ["r"], "status": ["kept"], "picture": ["private/edits/third.png"]}
        ),
        run="x",
    )
    age(store)
    before = there(store)
    assert collect(store, delete=True).removed == 0
    compact(store, "people")
    age(store, timedelta(0))
    collect(store, delete=True)
    assert before <= there(store)


def test_replaced_shards_go_when_the_replacement_is_old(made: Edited, store: Store) -> None:
    for number in range(3):
        row = {"row_key": [f"n{number}"], "recipe": ["r"], "status": ["kept"]}
        Table(store, "people", "labels").commit(pa.table(row), run="x")
    before = canonical_digests(store, "people")
    compact(store, "people")
    age(store)
    assert canonical_digests(store, "people") == before
    entries = list(Table(store, "people", "labels").journal.entries())
    replaced = {key for table in ("labels", "sources", "faces") for key in names(entries, table).by}
    assert len(replaced) >= 3
    assert found(collect(store)) == {}, "the entry that replaces them is young"
    later = datetime.now(UTC) + timedelta(hours=25)
    assert found(collect(store, delete=True, now=later)) == dict.fromkeys(replaced, "replaced shards")
    assert not replaced & there(store)
    journal_module._known.clear()
    assert canonical_digests(store, "people") == before
    assert not any(item.wrong for item in verify_store(store))


def test_a_living_run_keeps_pictures_its_plans_and_whatever_is_younger(made: Edited, store: Store) -> None:
    leave(store)
    for run, parent in (("planner", "edit"), ("edit", "nightly"), ("nightly", None), ("deadrun", "gone")):
        Lineage(store).emit(
            "START", run=run, job="j", parent=parent, inputs=[], outputs=[], recipe=None, bundle=None,
            config=None,
        )  # fmt: skip
    store.create("private/plans/planner/plan-edit-00000.json", b"[]")
    age(store)
    with lease(store, "nightly"):
        young = "private/plans/deadrun/another.json"
        store.create(young, b"[]")
        time.sleep(0.01)
        result = collect(store, delete=True, older_than_hours=0)
        assert found(result) == {key: kind for key, kind in LEFT.items() if kind not in PICTURES}
        assert (result.alive, result.held_back) == (["nightly"], [*PICTURES])
        assert young in there(store)
        assert "private/plans/planner/plan-edit-00000.json" in there(store)
        assert "private/edits/ab/orphan.png" in there(store)
    left = found(collect(store, delete=True, older_than_hours=0))
    assert left == {
        "private/plans/planner/plan-edit-00000.json": "plans",
        young: "plans",
        **{key: kind for key, kind in LEFT.items() if kind in PICTURES},
    }


def test_a_run_that_begins_while_gc_works_keeps_its_pictures(
    made: Edited, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sdflow_core.records.gc as module

    leave(store)
    age(store)
    remove = module._remove
    with monkeypatch.context() as patch:

        def late(opened: Store, result: Collected) -> None:
            with lease(opened, "late"):
                remove(opened, result)

        patch.setattr(module, "_remove", late)
        result = collect(store, delete=True)
    assert (result.alive, result.held_back) == (["late"], [*PICTURES])
    assert {key for key, kind in LEFT.items() if kind in PICTURES} <= there(store)


def test_a_compaction_under_way_keeps_what_it_has_written(
    made: Edited, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(store, "people", "labels")
    for number in range(3):
        table.commit(pa.table({"row_key": [f"n{number}"], "recipe": ["r"], "status": ["kept"]}), run="x")
    before = canonical_digests(store, "people")
    append, collected = journal_module.Journal.append, []

    def late(self: Any, kind: str, payload: dict[str, Any], **more: Any) -> Any:
        if kind == "compact":
            collected.append(collect(store, delete=True, older_than_hours=0).removed)
        return append(self, kind, payload, **more)

    monkeypatch.setattr(journal_module.Journal, "append", late)
    compact(store, "people")
    assert collected and sum(collected) == 0
    assert not any(item.wrong for item in verify_store(store))
    assert canonical_digests(store, "people") == before


def test_a_checkpoint_goes_when_its_editor_is_there(made: Edited, store: Store) -> None:
    (key,) = Table(store, "people", "editors").held()
    store.put(f"private/training/{key}/checkpoint.bin", b"state")
    store.put("private/training/other/checkpoint.bin", b"state")
    age(store)
    assert found(collect(store)) == {f"private/training/{key}/checkpoint.bin": "checkpoints"}


@pytest.mark.parametrize("damage", ["entry", "tail", "journal", "shard"])
def test_broken_records_stop_everything(made: Edited, store: Store, damage: str) -> None:
    leave(store)
    root = "private/datasets/people/journal"
    entries = [key for key in store.list(root) if key.endswith(".json")]
    if damage == "entry":
        store.put(entries[1], b"{}")
    elif damage == "tail":
        for key in [*entries[3:], f"{root}/HEAD"]:
            store.delete(key)
    elif damage == "journal":
        for key in list(store.list(root)):
            store.delete(key)
    else:
        (key, *_) = [key for key in store.list("private/datasets/people/edits/") if "orphan" not in key]
        store.put(key, b"no parquet")
    age(store)
    before = there(store)
    with pytest.raises(CorruptError):
        collect(store, delete=True)
    assert there(store) == before


def test_a_dataset_without_a_journal_is_not_judged(store: Store) -> None:
    store.create("private/datasets/old/faces/shards/x.parquet", b"x")
    age(store)
    assert found(collect(store)) == {}


def test_a_remote_store_is_tidied_too(tmp_path: Path) -> None:
    store = open_store(f"memory://{tmp_path.name}/store")
    make_edits(store)
    store.create("private/edits/orphan.png", b"x")
    later = datetime.now(UTC) + OLD
    assert found(collect(store, delete=True, now=later)) == {"private/edits/orphan.png": "edits"}
    assert not store.exists("private/edits/orphan.png")


def test_a_store_whose_clock_is_behind_keeps_what_a_living_run_has_just_written(tmp_path: Path) -> None:
    store = open_store(f"memory://{tmp_path.name}/late")
    make_edits(store)
    shard = "private/datasets/people/edits/shards/fresh.parquet"
    # the objects are dated by a clock that is five minutes behind that of the run, and of this machine
    ahead_of_store = datetime.now(UTC) + timedelta(minutes=5)
    store.create(shard, b"not committed yet")
    with lease(store, "run") as mine:
        key = "leases/run.json"
        said = json.loads(store.read(key))
        assert said["taken"] == mine.taken
        late = ahead_of_store.isoformat()
        store.put(key, canonical_json({**said, "taken": late, "renewed": late}))
        left = collect(store, delete=True, older_than_hours=0, now=ahead_of_store)
        assert left.alive == ["run"] and shard not in {item.key for item in left.found}
        assert store.exists(shard)
    later = ahead_of_store + timedelta(hours=1)
    assert shard in {item.key for item in collect(store, older_than_hours=0, now=later).found}
