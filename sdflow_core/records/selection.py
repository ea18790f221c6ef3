"""Which rows of a table's shards are meant: the latest of each value, those with a status."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .errors import ContractError
from .index import Chosen

__all__ = ["latest_rows", "rows_with_status"]

Mask = npt.NDArray[np.bool_]


def latest_rows(
    order: Sequence[Chosen], parts: Iterable[pa.Table], by: str, values: Sequence[str] | None = None
) -> list[Chosen]:
    """Of all rows with one value, the one committed last.

    Args:
        order: The shards, and the rows of them that count.
        parts: These rows of each shard, with the column.
        by: Name of the column.
        values: Only rows with one of these; None: with any.

    Raises:
        ContractError: A shard lacks the column.
    """
    compute: Any = None
    if values is not None:
        import pyarrow.compute as compute  # loading it takes longer than most commands read
    wanted = None if values is None else pa.array(values, pa.string())
    found: list[Chosen] = []
    columns: list[pa.Table] = []
    for (shard, rows), part in zip(order, parts, strict=True):
        if by not in part.column_names:
            raise ContractError("a column is missing", expected=by, where=shard.key)
        mine = part.select([by])
        if wanted is not None:
            mask = np.asarray(compute.is_in(mine.column(by), value_set=wanted).to_numpy(), np.bool_)
            if not mask.any():
                continue
            rows = _among(rows, mask)
            mine = mine.take(pa.array(np.flatnonzero(mask)))
        found.append((shard, rows))
        columns.append(mine)
    if not found:
        return []
    column: Any = pa.concat_tables(columns, promote_options="default").column(by).combine_chunks()
    count = len(column)
    encoded: Any = column.dictionary_encode(null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):  # so many letters that one array cannot hold them
        encoded = cast(Any, encoded.unify_dictionaries())
        codes = np.concatenate([np.asarray(chunk.indices) for chunk in encoded.chunks])
        distinct = len(encoded.chunk(0).dictionary)
    else:
        codes, distinct = np.asarray(encoded.indices), len(encoded.dictionary)
    last = np.zeros(distinct, np.int64)
    last[codes] = np.arange(count)  # of a place that is named several times, the last value stays
    latest = np.zeros(count, np.bool_)
    latest[last] = True
    ends = np.cumsum([part.num_rows for part in columns])
    return [
        (shard, _among(rows, mask))
        for (shard, rows), mask in zip(found, np.split(latest, ends[:-1]), strict=True)
    ]


def rows_with_status(
    order: Sequence[Chosen], parts: Iterable[pa.Table], statuses: Iterable[str]
) -> list[Chosen]:
    """The rows that have one of these statuses; `parts` are the rows of each shard, with that column."""
    wanted = set(statuses)
    found: list[Chosen] = []
    for (shard, rows), part in zip(order, parts, strict=True):
        given = cast("list[str]", part.column("status").to_pylist())
        mask = np.fromiter((status in wanted for status in given), np.bool_, len(given))
        found.append((shard, _among(rows, mask)))
    return found


def _among(rows: npt.NDArray[np.int64] | None, mask: Mask) -> npt.NDArray[np.int64] | None:
    """Those of the rows for which the mask is set; None: all rows of a shard."""
    if rows is not None:
        return rows[mask]
    return None if mask.all() else np.flatnonzero(mask)
