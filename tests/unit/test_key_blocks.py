"""Blocks of row keys: a cache that is only believed where the journal says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sdflow_core.records import journal as journal_module
from sdflow_core.records import key_blocks, shards
from sdflow_core.records import tables as tables_module
from sdflow_core.records.compaction import compact_table
from sdflow_core.records.errors import ContractError, CorruptError
from sdflow_core.records.keys import dataset_digest, sha256_hex
from sdflow_core.records.objects import LocalStore
from sdflow_core.records.tables import Table


class Counting(LocalStore):
    opened: list[str]

    def open_input(self, key: str) -> Any:
        self.opened.append(key)
        return super().open_input(key)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_blocks, "BLOCK_SHARDS", 4)


def key(number: int) -> str:
    return sha256_hex(f"{number}".encode())


def commit(table: Table, *numbers: int, status: str = "kept") -> None:
    keys = [key(number) for number in numbers]
    count = len(keys)
    columns = {"row_key": keys, "recipe": ["r"] * count, "status": [status] * count, "note": keys}
    table.commit(pa.table(columns), run="run")


def opened_anew(store: Counting) -> Table:
    """As another process sees it."""
    tables_module._indexes.clear()
    journal_module._known.clear()
    shards._cache = shards._Columns()
    store.opened = []
    return Table(store, "d", "t")


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    made = Counting(str(tmp_path / "store"))
    made.opened = []
    table = Table(made, "d", "t")
    for number in range(6):
        commit(table, 10 * number, 10 * number + 1)
    commit(table, 70, status="failed")
    return made


def blocks(store: Counting) -> list[str]:
    return list(store.list("private/datasets/d/t/keys/"))


def facts(table: Table) -> Any:
    return table.held(), table.ref(), table.read().to_pylist(), table.find(key(51)), table.find(key(70))


def test_the_second_process_opens_no_shard_and_knows_the_same(store: Counting) -> None:
    first = opened_anew(store)
    first.holds([])
    assert len(store.opened) == 7 and len(blocks(store)) == 1
    known = facts(first)
    again = opened_anew(store)
    assert again.holds([key(0), key(70), key(99)]).tolist() == [True, False, False]
    assert again.ref() == known[1] and store.opened == []
    assert facts(again) == known
    assert known[1].digest == dataset_digest(known[0]) and len(known[0]) == 12
    commit(again, 70)
    assert opened_anew(store).held_among([key(70), key(71)]) == {key(70)}


def test_given_rows_open_only_their_shards(store: Counting) -> None:
    opened_anew(store).holds([])
    table = opened_anew(store)
    found = table.read(columns=["note"], row_keys=[key(31), key(99), key(30), key(0)])
    assert found["note"].to_pylist() == [key(0), key(30), key(31)]
    assert len(set(store.opened)) == 2
    assert table.read(recipe="other", row_keys=[key(0)]).num_rows == 0
    assert table.read(statuses=["failed"], row_keys=[key(0), key(70)])["row_key"].to_pylist() == [key(70)]
    with pytest.raises(ContractError, match="not by both"):
        table.read(latest_by="note", row_keys=[key(0)])


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "no json"])
def test_a_broken_block_only_costs_time(store: Counting, damage: str) -> None:
    known = facts(opened_anew(store))
    (name,) = blocks(store)
    data = bytearray(store.read(name))
    data[-40] ^= 1
    broken = {"cut": bytes(data[:-70]), "changed": bytes(data), "emptied": b"", "no json": b"x\n"}
    store.put(name, broken[damage])
    again = opened_anew(store)
    again.holds([])
    assert len(store.opened) == 7
    assert facts(again) == known
    assert facts(opened_anew(store)) == known and len(store.opened) == 7  # to read its columns, each once


def test_a_block_that_lies_is_not_believed(store: Counting) -> None:
    known = facts(opened_anew(store))
    (name,) = blocks(store)
    head, _, body = store.read(name).partition(b"\n")
    wrong = bytes([body[0] ^ 1]) + body[1:]
    head = head.replace(key_blocks.hashlib.sha256(body).hexdigest().encode(),
                        key_blocks.hashlib.sha256(wrong).hexdigest().encode())  # fmt: skip
    store.put(name, head + b"\n" + wrong)
    again = opened_anew(store)
    again.holds([])
    assert len(store.opened) == 1  # the one shard of which it says something else
    assert facts(again) == known


def test_a_shard_whose_keys_a_block_told_is_checked_before_its_rows_are_handed_out(store: Counting) -> None:
    opened_anew(store).holds([])
    one, two, *_ = (path for path in store.list("private/datasets/d/t/shards/"))
    store.put(one, store.read(two))
    table = opened_anew(store)
    assert table.holds([key(number) for number in range(0, 60, 10)]).all()
    with pytest.raises(CorruptError, match="does not hold the rows"):
        table.read(columns=["note"])


def test_blocks_are_merged_and_follow_a_compaction(store: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_blocks, "_MOST_BLOCKS", 2)
    table = opened_anew(store)
    for start in range(100, 500, 100):
        for number in range(4):
            commit(table, start + number)
        table = opened_anew(store)
        table.holds([])
    assert len(blocks(store)) <= 3
    known = facts(table)
    assert facts(opened_anew(store)) == known
    compact_table(table)
    assert facts(opened_anew(store))[0] == known[0]
