"""Tables: what is held is not computed again, what is read is what was committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdflow_core.records import tables as tables_module
from sdflow_core.records.errors import ContractError, CorruptError
from sdflow_core.records.keys import dataset_digest
from sdflow_core.records.objects import LocalStore
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import BASE_COLUMNS, Table, wplus_column, wplus_numpy


def rows(*keys: str, status: str = "kept", recipe: str = "r1", **columns: Any) -> pa.Table:
    base = {
        "row_key": pa.array(keys, pa.string()),
        "recipe": [recipe] * len(keys),
        "status": [status] * len(keys),
        "inputs": [[f"in-{key}"] for key in keys],
    }
    return pa.table({**base, **columns})


def keys_of(table: pa.Table) -> list[str]:
    return table.column("row_key").to_pylist()


@pytest.fixture
def table(store: Store) -> Table:
    return Table(store, "faces", "latents")


def test_commit_twice_is_commit_once(table: Table) -> None:
    first = table.commit(rows("a", "b"), run="1")
    assert table.commit(rows("a", "b"), run="2") == first
    assert (first.rows, first.version, first.digest) == (2, 1, dataset_digest(["a", "b"]))
    assert table.read().column("run").to_pylist() == ["1", "1"]


def test_only_new_rows_are_added(table: Table) -> None:
    table.commit(rows("a", "b"), run="1")
    table.commit(rows("b", "c"), run="2")
    assert keys_of(table.read()) == ["a", "b", "c"]
    assert table.held() == {"a", "b", "c"}


def test_digest_is_of_rows_not_of_batches(tmp_path: Path) -> None:
    one, two = (Table(open_store(str(tmp_path / name)), "d", "t") for name in "ab")
    one.commit(rows("a", "b", "c"), run="1")
    two.commit(rows("c"), run="2")
    two.commit(rows("b", "a"), run="3")
    assert one.canonical_digest() == two.canonical_digest()


def test_every_status_but_failed_is_held(table: Table) -> None:
    for status in ("kept", "dropped", "failed", "waiting", "gated"):
        table.commit(rows(status, status=status), run="1")
    assert table.held() == {"kept", "dropped", "waiting", "gated"}
    assert keys_of(table.read(statuses=["failed"])) == ["failed"]
    assert table.ref().rows == 4


def test_a_failure_is_recorded_and_made_good(table: Table) -> None:
    table.commit(rows("a", status="failed", reason=["timeout"]), run="1")
    table.commit(rows("a", status="kept"), run="2")
    table.commit(rows("a", status="failed"), run="3")
    found = table.read().to_pylist()
    assert [(row["status"], row["run"]) for row in found] == [("kept", "2")]


def test_of_failures_the_last_one_counts_also_for_who_reads_them_all_at_once(table: Table) -> None:
    for run in "123":
        table.commit(rows("a", "b", status="failed"), run=run)
    table.commit(rows("b"), run="4")
    known = [("a", "failed", "3"), ("b", "kept", "4")]
    for _ in range(2):
        found = table.read(columns=["row_key", "status", "run"]).to_pylist()
        assert [tuple(row.values()) for row in found] == known
        forget()
        table = Table(table.store, table.dataset, table.name)


def test_recipes_and_their_references(table: Table) -> None:
    table.commit(rows("a", "b"), run="1")
    table.commit(rows("c", recipe="r2"), run="2")
    assert table.recipes() == ["r1", "r2"]
    assert keys_of(table.read(recipe="r2")) == ["c"]
    assert table.held("r2") == {"c"} and table.held("r3") == set()
    assert table.ref("r2").digest == dataset_digest(["c"])
    assert table.ref("r1").digest != table.ref().digest


def test_latest_by_keeps_the_row_committed_last_before_statuses_are_looked_at(table: Table) -> None:
    table.commit(rows("a", "b", source_id=["x", "y"]), run="1")
    table.commit(rows("c", status="dropped", source_id=["x"]), run="2")
    assert keys_of(table.read(latest_by="source_id")) == ["b", "c"]
    assert keys_of(table.read(latest_by="source_id", statuses=["kept"])) == ["b"]
    with pytest.raises(ContractError, match="column is missing"):
        table.read(latest_by="nothing")


def test_columns(table: Table) -> None:
    table.commit(rows("a", score=[0.5]), run="1")
    table.commit(rows("b", note=["x"]), run="2")
    assert table.read().column_names == [*BASE_COLUMNS, "score", "note"]
    assert table.read(columns=["note", "row_key"]).to_pydict() == {"note": [None, "x"], "row_key": ["a", "b"]}
    with pytest.raises(ContractError, match="column is missing"):
        table.read(columns=["nothing"])


def test_rows_without_the_column_that_is_asked_for_are_still_rows(table: Table) -> None:
    table.commit(rows("a"), run="1")
    table.commit(rows("b", note=["x"]), run="2")
    assert table.read(columns=["note"]).to_pydict() == {"note": [None, "x"]}


def test_an_empty_table(table: Table) -> None:
    assert table.read().column_names == list(BASE_COLUMNS)
    assert (table.held(), table.recipes(), table.find("a"), table.ref().rows) == (set(), [], None, 0)
    assert table.commit(rows(), run="1").version == 0
    assert table.verify() == 0


def test_nothing_chosen_keeps_the_types(table: Table) -> None:
    table.commit(rows("a", w_plus=wplus_column(np.ones((1, 2, 3)))), run="1")
    none = table.read(statuses=["dropped"])
    assert wplus_numpy(none, "w_plus").shape == (0, 2, 3)


def test_find(table: Table) -> None:
    table.commit(rows("a", "b", score=[0.1, 0.2]), run="1")
    found = table.find("b")
    assert found is not None and (found["score"], found["inputs"]) == (0.2, ["in-b"])


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (rows("a", "a"), "twice"),
        (rows("a", status="fine"), "unknown status"),
        (rows("a", "b").set_column(1, "recipe", [["r1", "r2"]]), "one recipe"),
        (rows("a").drop_columns(["row_key"]), "base column"),
    ],
)
def test_bad_commits_are_refused_and_write_nothing(table: Table, bad: pa.Table, word: str) -> None:
    with pytest.raises(ContractError, match=word):
        table.commit(bad, run="1")
    assert list(table.store.list()) == []


def test_tables_of_a_dataset_share_a_journal_and_nothing_else(store: Store) -> None:
    one, two = Table(store, "d", "latents"), Table(store, "d", "labels")
    one.commit(rows("a"), run="1")
    two.commit(rows("b"), run="1")
    assert (one.held(), two.held()) == ({"a"}, {"b"})
    assert [entry.payload["table"] for entry in one.journal.entries()] == ["latents", "labels"]


@pytest.mark.parametrize("name", ["", "a/b"])
def test_names_are_checked(store: Store, name: str) -> None:
    with pytest.raises(ContractError):
        Table(store, "d", name)
    with pytest.raises(ContractError):
        Table(store, "../d", "t")


def test_wplus_goes_through_bit_for_bit_and_lies_as_promised(table: Table) -> None:
    codes = np.random.default_rng(0).normal(size=(600, 4, 8)).astype(np.float32)
    codes[0, 0, :3] = [np.inf, -0.0, 1e-42]
    table.commit(rows(*map(str, range(600)), w_plus=wplus_column(codes)), run="1")
    assert wplus_numpy(table.read(), "w_plus").tobytes() == codes.tobytes()
    (key,) = [key for key in table.store.list() if key.endswith(".parquet")]
    meta = pq.read_metadata(table.store.url(key))
    assert meta.num_row_groups == 3
    columns = {
        meta.row_group(0).column(i).path_in_schema: meta.row_group(0).column(i)
        for i in range(meta.num_columns)
    }
    assert "BYTE_STREAM_SPLIT" in columns["w_plus.list.element"].encodings
    assert columns["w_plus.list.element"].compression == "ZSTD"
    table.commit(rows("more", w_plus=wplus_column(codes[:1] + 1)), run="2")
    assert wplus_numpy(table.read(), "w_plus").shape == (601, 4, 8)


def test_wplus_refuses_other_shapes(table: Table) -> None:
    with pytest.raises(ContractError, match="shape"):
        wplus_column(np.zeros((2, 3)))
    table.commit(rows("a", w_plus=wplus_column(np.zeros((1, 2, 3)))), run="1")
    table.commit(rows("b", status="dropped"), run="1")
    with pytest.raises(ContractError, match="no W"):
        wplus_numpy(table.read(), "w_plus")
    assert wplus_numpy(table.read(statuses=["kept"]), "w_plus").shape == (1, 2, 3)
    with pytest.raises(ContractError):
        wplus_numpy(table.read(), "status")
    with pytest.raises(ContractError):
        wplus_numpy(table.read(), "nothing")


def test_pandas_reads_a_shard_as_it_lies(table: Table) -> None:
    table.commit(rows("a", w_plus=wplus_column(np.ones((1, 2, 3)))), run="1")
    (key,) = [key for key in table.store.list() if key.endswith(".parquet")]
    frame = pq.read_table(table.store.url(key)).to_pandas()
    assert frame["row_key"].tolist() == ["a"]


class Counting(LocalStore):
    opened = 0

    def open_input(self, key: str) -> Any:
        self.opened += 1
        return super().open_input(key)

    def read(self, key: str) -> bytes:
        self.opened += 1
        return super().read(key)


def test_what_was_read_once_is_not_read_again(tmp_path: Path) -> None:
    store = Counting(str(tmp_path))
    table = Table(store, "d", "t")
    for number in range(20):
        table.commit(rows(str(number)), run="1")
    table.read()
    store.opened = 0
    for _ in range(10):
        table.read()
        table.held()
        Table(store, "d", "t").ref()
    # One look for a following entry a call, and nothing else.
    assert store.opened == 30


def forget() -> None:
    """As if another process looked."""
    tables_module._indexes.clear()
    from sdflow_core.records import journal, shards

    journal._known.clear()
    shards._cache = shards._Columns()


@pytest.mark.parametrize("damage", ["removed", "cut", "changed"])
def test_a_damaged_shard_is_named(table: Table, damage: str) -> None:
    table.commit(
        rows("a", "b", w_plus=wplus_column(np.random.default_rng(0).normal(size=(2, 8, 64)))), run="1"
    )
    (key,) = [key for key in table.store.list() if key.endswith(".parquet")]
    path = Path(table.store.url(key))
    data = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    else:
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data if damage == "changed" else data[:100])
    with pytest.raises(CorruptError, match="shard"):
        table.verify()
    forget()
    with pytest.raises(CorruptError, match=r"shard.*\.parquet.*What to do"):
        Table(table.store, "faces", "latents").read()


class PlugPulled(BaseException):
    pass


class Dying(LocalStore):
    """Dies before or after its n-th write, as a killed process would."""

    left = -1
    after = False

    def _count(self) -> bool:
        self.left -= 1
        return self.left == 0

    def create(self, key: str, data: bytes) -> bool:
        dies = self._count()
        if dies and not self.after:
            raise PlugPulled
        done = super().create(key, data)
        if dies:
            raise PlugPulled
        return done

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        dies = self._count()
        if dies and not self.after:
            raise PlugPulled
        super().put(key, data, durable=durable)
        if dies:
            raise PlugPulled


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("write", range(1, 9))
def test_killed_at_every_write_and_started_again(tmp_path: Path, write: int, after: bool) -> None:
    store = Dying(str(tmp_path / "s"))
    store.left, store.after = write, after

    def story() -> str:
        table = Table(store, "d", "t")
        for batch in (["a", "b"], ["c"]):
            missing = [key for key in batch if key not in table.held()]
            if missing:
                table.commit(rows(*missing), run="1")
        return table.canonical_digest()

    with pytest.raises(PlugPulled):
        story()
    forget()
    assert story() == dataset_digest(["a", "b", "c"])
    forget()
    table = Table(store, "d", "t")
    assert sum(entry.payload["rows"] for entry in table.journal.entries()) == 3
    assert table.verify() == 2


def test_a_store_made_anew_starts_afresh(table: Table) -> None:
    table.commit(rows("a", "b"), run="1")
    for key in list(table.store.list()):
        table.store.delete(key)
    assert table.held() == set()
    assert table.commit(rows("a"), run="2").rows == 1
    assert keys_of(table.read()) == ["a"]
