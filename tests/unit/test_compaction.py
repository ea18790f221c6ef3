"""Compaction moves rows and records nothing: the same rows, in the same order, under the same digests."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdflow_core.records import journal as journal_module
from sdflow_core.records import tables as tables_module
from sdflow_core.records.compaction import compact, compact_table
from sdflow_core.records.errors import CorruptError, NotFoundError
from sdflow_core.records.index import names
from sdflow_core.records.journal import Journal
from sdflow_core.records.keys import dataset_digest
from sdflow_core.records.objects import LocalStore
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import STATUSES, Table, wplus_column, wplus_numpy


def rows(*keys: str, status: str = "kept", recipe: str = "r1", **columns: Any) -> pa.Table:
    count = len(keys)
    return pa.table(
        {"row_key": list(keys), "recipe": [recipe] * count, "status": [status] * count, **columns}
    )


def forget() -> None:
    tables_module._indexes.clear()
    journal_module._known.clear()


def seen(table: Table) -> dict[str, Any]:
    """All that a reader can ask."""
    return {
        "rows": table.read().to_pylist(),
        "recipes": table.recipes(),
        "of recipes": {recipe: table.read(recipe=recipe).to_pylist() for recipe in table.recipes()},
        "latest": table.read(latest_by="run").to_pylist(),
        "kept": table.read(statuses=["kept"], columns=["row_key"]).to_pylist(),
        "held": {recipe: table.held(recipe) for recipe in (None, *table.recipes())},
        "digest": table.canonical_digest(),
        "recorded": table.journal.canonical_digest(),
        "found": [table.find(str(row["row_key"])) for row in table.read().to_pylist()],
    }


def shards(table: Table) -> list[str]:
    return list(table.store.list(f"{table.root}/shards/"))


@pytest.fixture
def table(store: Store) -> Table:
    made = Table(store, "d", "t")
    made.commit(rows("a", "b", source=["x", "y"]), run="1")
    made.commit(rows("c", status="failed", source=["z"]), run="2")
    made.commit(rows("d", recipe="r2", source=["x"]), run="3")
    made.commit(rows("c", source=["z"]), run="4")
    made.commit(rows("e", status="dropped", source=["y"]), run="1")
    made.commit(rows("f", source=["q"]), run="5")
    return made


def test_nothing_changes_for_readers(table: Table) -> None:
    before = seen(table)
    assert compact_table(table) == (6, 3)
    assert seen(table) == before
    forget()
    again = Table(table.store, "d", "t")
    assert seen(again) == before
    assert again.verify() == 3


def test_twice_is_once_and_more_can_be_added(table: Table) -> None:
    compact_table(table)
    entries = len(list(table.journal.entries()))
    assert compact_table(table) == (3, 3)
    assert len(list(table.journal.entries())) == entries
    table.commit(rows("g"), run="6")
    table.commit(rows("a", "h"), run="7")
    before = seen(table)
    assert compact(table.store, "d").tables == {"t": (5, 4)}
    assert seen(table) == before
    assert table.verify() == 4


def test_the_old_shards_may_go(table: Table) -> None:
    before = seen(table)
    compact_table(table)
    for key in names(table.journal.entries(), "t").by:
        table.store.delete(key)
    forget()
    again = Table(table.store, "d", "t")
    assert seen(again) == before
    assert again.verify() == 3
    assert len(shards(again)) == 3


def test_every_entry_stays_and_is_held_against_the_new_file(table: Table) -> None:
    said = [(entry.kind, entry.payload) for entry in table.journal.entries()]
    compact_table(table)
    after = [(entry.kind, entry.payload) for entry in table.journal.entries()]
    assert after[:-1] == said
    kind, payload = after[-1]
    assert kind == "compact"
    # A forged entry: the file is what it says, but not what was committed.
    shard = payload["shards"][0]
    other = Table(table.store, "other", "t")
    other.commit(rows("a", "x", "c"), run="1")
    (key,) = shards(other)
    forged = {**shard, "shard": key, "sha256": next(other.journal.entries()).payload["sha256"],
              "row_keys_digest": dataset_digest(["a", "x", "c"]), "rows": 3}  # fmt: skip
    forget()
    table.store.delete(table.journal._chain.key(len(after)))
    table.store.delete(f"{table.journal.root}/HEAD")
    table.journal.append("compact", {"table": "t", "shards": [forged]})
    with pytest.raises(CorruptError, match="does not hold the rows of an entry"):
        table.verify()


@pytest.mark.parametrize("new", [True, False])
def test_a_damaged_shard_is_never_merged(table: Table, new: bool) -> None:
    key = str(next(table.journal.entries()).payload["shard"])
    if new:
        compact_table(table)
        key = names(table.journal.entries(), "t").by[key]
    path = Path(table.store.url(key))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    forget()
    again = Table(table.store, "d", "t")
    with pytest.raises(CorruptError, match="shard was changed"):
        again.verify()
    if not new:
        with pytest.raises(CorruptError, match="shard was changed"):
            compact_table(again)
        assert all(entry.kind == "rows" for entry in again.journal.entries())


def test_large_shards_and_other_columns_stay_apart(store: Store) -> None:
    table = Table(store, "d", "t")
    codes = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    codes[0, 0, 0] = math.nan
    for number in range(3):
        table.commit(rows(f"a{number}", w=wplus_column(codes[number : number + 1])), run="1")
    table.commit(rows("b0", note=["x"]), run="1")
    table.commit(rows("b1", note=["y"]), run="1")
    size = store.stat(shards(table)[0]).size_bytes
    assert compact_table(table, target_bytes=size) == (5, 5)
    assert compact_table(table) == (5, 2)
    back = wplus_numpy(table.read(columns=["w"]).slice(0, 3), "w")
    assert back.tobytes() == codes[:3].tobytes()
    assert table.read(columns=["note"]).column("note").to_pylist() == [None] * 3 + ["x", "y"]


def test_two_at_once_merge_once(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    before = seen(table)
    append = Journal.append
    inside: list[tuple[int, int]] = []

    def late(self: Journal, kind: str, payload: dict[str, Any], **more: Any) -> Any:
        if kind == "compact" and not inside:
            inside.append((0, 0))
            inside[0] = compact_table(Table(table.store, "d", "t"))
        return append(self, kind, payload, **more)

    monkeypatch.setattr(Journal, "append", late)
    assert compact_table(table) == (6, 3)
    assert inside == [(6, 3)]
    assert [entry.kind for entry in table.journal.entries()].count("compact") == 1
    assert seen(table) == before
    assert set(shards(table)) == set(names(table.journal.entries(), "t").named)


def test_commits_and_reads_go_on_meanwhile(store: Store) -> None:
    table = Table(store, "d", "t")
    failures: list[BaseException] = []
    done = threading.Event()

    def guarded(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    def write(seed: int) -> None:
        keys = [f"row-{number}" for number in range(40)]
        random.Random(seed).shuffle(keys)
        for key in keys:
            table.commit(rows(key), run=f"run-{seed}")

    def read() -> None:
        last = 0
        while not done.is_set():
            found = table.read(columns=["row_key"]).num_rows
            assert found >= last
            last = found

    def merge() -> None:
        while not done.is_set():
            if table.recipes():
                compact_table(Table(store, "d", "t"))

    writers = [threading.Thread(target=guarded, args=(lambda seed=seed: write(seed),)) for seed in range(3)]
    others = [threading.Thread(target=guarded, args=(work,)) for work in (read, merge)]
    for thread in [*writers, *others]:
        thread.start()
    for thread in writers:
        thread.join(timeout=120)
    done.set()
    for thread in others:
        thread.join(timeout=120)
    assert not failures
    assert table.held() == {f"row-{number}" for number in range(40)}
    assert table.read().num_rows == 40
    forget()
    assert Table(store, "d", "t").held() == table.held()
    table.verify()


class PlugPulled(BaseException):
    pass


class Dying(LocalStore):
    left = -1

    def create(self, key: str, data: bytes) -> bool:
        done = super().create(key, data)
        self.left -= 1
        if self.left == 0:
            raise PlugPulled
        return done


@pytest.mark.parametrize("write", [1, 2])
def test_killed_while_merging_and_started_again(tmp_path: Path, write: int) -> None:
    store = Dying(str(tmp_path))
    table = Table(store, "d", "t")
    for key in "abcd":
        table.commit(rows(key), run="1")
    before = seen(table)
    store.left = write
    with pytest.raises(PlugPulled):
        compact_table(table)
    forget()
    table = Table(store, "d", "t")
    assert seen(table) == before
    compact_table(table)
    assert seen(table) == before
    assert table.verify() == 1


def test_an_unknown_dataset_is_refused(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no such dataset"):
        compact(store, "nothing")


batches = st.lists(
    st.tuples(
        st.sampled_from(["r1", "r2"]),
        st.dictionaries(st.text("abc", min_size=1, max_size=1), st.sampled_from(STATUSES), max_size=3),
        st.booleans(),
    ),
    max_size=8,
)


@given(batches)
@settings(max_examples=40)
def test_compacting_at_any_time_is_never_seen(commits: list[tuple[str, dict[str, str], bool]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        plain, small = Table(open_store(one), "d", "t"), Table(open_store(two), "d", "t")
        for number, (recipe, said, merge) in enumerate(commits):
            for table in (plain, small):
                keys = [f"{recipe}-{key}" for key in said]
                batch = rows(*keys, recipe=recipe) if keys else None
                if batch is not None:
                    at = batch.column_names.index("status")
                    batch = batch.set_column(at, "status", pa.array(list(said.values())))
                    table.commit(batch, run=str(number))
            if merge:
                compact_table(small)
        for fresh in (False, True):
            if fresh:
                forget()
            assert seen(small) == seen(plain) if plain.recipes() else small.recipes() == []
        plain.verify()
        small.verify()


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    forget()
    yield
