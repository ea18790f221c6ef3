"""Some rows of a large table by their keys: of its shards only the row groups that hold them are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import ContractError, CorruptError, NotFoundError
from .objects import Store
from .shards import TODO, Shard
from .tables import Table

__all__ = ["pick_rows"]


def pick_rows(table: Table, row_keys: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Rows by key, with columns that may be large: nothing of them stays in memory but what is returned.

    Args:
        table: Any table.
        row_keys: Which rows; one may be asked for several times.
        columns: Which columns.

    Returns:
        One row for each key, in their order.

    Raises:
        ContractError: No key at all, or a shard without one of the columns.
        CorruptError: A shard is missing or was changed (page checksums).
        NotFoundError: Some rows were never committed.
    """
    if not row_keys:
        raise ContractError("rows of a table", expected="at least one row key", found="none")
    places = table.locate(row_keys)
    wanted: dict[Shard, set[int]] = {}
    for shard, row in places:
        wanted.setdefault(shard, set()).add(row)
    parts: list[pa.Table] = []
    at: dict[tuple[Shard, int], int] = {}
    for shard, rows in wanted.items():
        for found, part in _row_groups(table.store, shard, sorted(rows), columns):
            for row in found:
                at[shard, row] = len(at)
            parts.append(part)
    return pa.concat_tables(parts).take(pa.array([at[place] for place in places], pa.int64()))


def _row_groups(
    store: Store, shard: Shard, rows: list[int], columns: Sequence[str]
) -> Iterator[tuple[list[int], pa.Table]]:
    """Of each row group that holds some of the rows (ascending): these rows, and their columns."""
    try:
        with store.open_input(shard.key) as file:
            reader: Any = pq.ParquetFile(file, page_checksum_verification=True)
            absent = [name for name in columns if name not in reader.schema_arrow.names]
            if absent:
                raise ContractError("a column is missing", expected=absent, where=store.url(shard.key))
            start = 0
            for number in range(reader.num_row_groups):
                end = start + int(reader.metadata.row_group(number).num_rows)
                here = [row for row in rows if start <= row < end]
                if here:
                    group = reader.read_row_group(number, columns=list(columns), use_threads=False)
                    yield here, group.take(pa.array([row - start for row in here], pa.int64()))
                start = end
    except NotFoundError as error:
        raise CorruptError("a shard is missing", where=store.url(shard.key), todo=TODO) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptError(
            "a shard cannot be read", found=error, where=store.url(shard.key), todo=TODO
        ) from error
