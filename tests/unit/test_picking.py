"""Rows by key from large shards: the right ones in the order asked for, and no more read than needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdflow_core.records.errors import ContractError, CorruptError, NotFoundError
from sdflow_core.records.picking import pick_rows
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table, wplus_column, wplus_numpy


def key(number: int) -> str:
    return f"{number:064x}"


@pytest.fixture
def table(store: Store) -> Table:
    """Two shards of 600 and 40 rows; code n holds the number n."""
    made = Table(store, "people", "latents")
    for first, count in ((0, 600), (600, 40)):
        numbers = range(first, first + count)
        codes = np.stack([np.full((2, 3), n, np.float32) for n in numbers])
        columns = {
            "row_key": pa.array(map(key, numbers)),
            "recipe": pa.array(["r"] * count),
            "status": pa.array(["kept"] * count),
            "w_plus": wplus_column(codes),
        }
        made.commit(pa.table(columns), run="run")
    return made


def test_rows_come_in_the_order_of_the_keys(table: Table) -> None:
    numbers = [639, 3, 599, 3, 255, 256, 600, 0]
    found = pick_rows(table, [key(n) for n in numbers], ["w_plus", "row_key"])
    assert found["row_key"].to_pylist() == [key(n) for n in numbers]
    assert wplus_numpy(found, "w_plus")[:, 1, 2].tolist() == numbers


def test_only_the_row_groups_of_the_rows_are_read(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: Any, number: int, **options: Any) -> Any:
        read.append(number)
        return original(self, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    pick_rows(table, [key(300), key(310)], ["w_plus"])
    assert read == [1]


def test_what_is_not_there_is_named(table: Table, store: Store) -> None:
    with pytest.raises(NotFoundError):
        pick_rows(table, [key(1), key(9999)], ["w_plus"])
    with pytest.raises(ContractError):
        pick_rows(table, [], ["w_plus"])
    with pytest.raises(ContractError, match="column"):
        pick_rows(table, [key(1)], ["psnr"])
    (large, *_) = [found for found, _ in table.locate([key(1)])]
    store.delete(large.key)
    with pytest.raises(CorruptError):
        pick_rows(table, [key(1)], ["w_plus"])
