"""Merges what is small: shards of a table into larger ones, entries of a journal into snapshots.

Nothing that is recorded changes. Neighbouring shards of one recipe are written once more as one file, row for
row in the same order, and one entry of kind `compact` says so; the entries that committed the rows stay, and
`Table.verify` holds every one of them against the file where its rows lie now. The old files stay readable
for whoever does not know the new entry yet, until `sdflow gc` removes them.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from .ahead import ahead
from .entries import Entry
from .errors import CorruptError, NotFoundError
from .index import Named, is_compact, names, table_names
from .journal import COMPACT, Journal
from .keys import dataset_digest, sha256_hex
from .leases import lease
from .objects import Store
from .shards import TODO, write_shard
from .tables import Table

__all__ = ["TARGET_BYTES", "Compacted", "compact", "compact_table"]

TARGET_BYTES = 64 * 2**20  # of a merged file; its rows are in memory while it is written


@dataclass(frozen=True)
class Compacted:
    """What was merged.

    Attributes:
        tables: Table -> number of shards before and after.
        snapshots: Snapshots of the journal that were written.
    """

    tables: dict[str, tuple[int, int]]
    snapshots: int


def compact(
    store: Store, dataset: str, *, run: str | None = None, target_bytes: int = TARGET_BYTES
) -> Compacted:
    """Merges the small shards of all tables of a dataset, and makes the missing snapshots of its journal.

    Others may read and commit meanwhile. Doing it twice is doing it once.

    Args:
        store: The store.
        dataset: Whose tables.
        run: The run that does it.
        target_bytes: How large a merged shard may become; larger ones are left alone.

    Returns:
        What was merged.

    Raises:
        NotFoundError: There is no such dataset.
        CorruptError: A shard or an entry is not what was written; nothing of that table was merged.
    """
    journal = Journal(store, f"private/datasets/{dataset}/journal")
    found = table_names(journal.entries())
    if not found:
        raise NotFoundError("there is no such dataset", found=dataset, where=store.uri)
    # A lease: until the entry that names it is written, a merged shard looks like an orphan to `gc`.
    with lease(store, uuid.uuid4().hex, "compact"):
        tables = {
            name: compact_table(Table(store, dataset, name), run=run, target_bytes=target_bytes)
            for name in found
        }
        return Compacted(tables, journal.compact())


def compact_table(
    table: Table, *, run: str | None = None, target_bytes: int = TARGET_BYTES
) -> tuple[int, int]:
    """Merges the small shards of one table; see `compact`.

    Returns:
        How many shards the table had, and has.
    """
    entries = list(table.journal.entries())
    current = names(entries, table.name).current()
    merged: list[dict[str, Any]] = []
    for group in _groups(table.store, current, target_bytes):
        merged += _merge(table, group)
    if not merged:
        return len(current), len(current)

    def rebase(new: list[Entry], payload: dict[str, Any]) -> dict[str, Any] | None:
        others = names([entry for entry in new if is_compact(entry, table.name)], table.name).by
        kept: list[dict[str, Any]] = []
        for said in cast("list[dict[str, Any]]", payload["shards"]):
            if any(key in others for key in said["replaces"]):
                # Somebody else merged these meanwhile. Ours was never named, so nobody reads it.
                table.store.delete(str(said["shard"]))
            else:
                kept.append(said)
        return {**payload, "shards": kept} if kept else None

    payload = {"table": table.name, "shards": merged}
    table.journal.append(COMPACT, payload, run=run, rebase=rebase, after=len(entries))
    return len(current), len(names(table.journal.entries(), table.name).current())


def _groups(store: Store, current: Sequence[Named], target_bytes: int) -> Iterator[list[Named]]:
    """Neighbours of one recipe that fit into one file. Only neighbours: their order is part of a table."""
    group: list[Named] = []
    size = 0
    sizes = ahead(store, lambda named: _size(store, named), current)
    for named, of_file in zip(current, sizes, strict=True):
        fits = group and named.shard.recipe == group[0].shard.recipe and size + of_file <= target_bytes
        if not fits:
            if len(group) > 1:
                yield group
            group, size = [], 0
        group.append(named)
        size += of_file
    if len(group) > 1:
        yield group


def _size(store: Store, named: Named) -> int:
    try:
        return store.stat(named.shard.key).size_bytes
    except NotFoundError as error:
        raise _wrong(store, named, "is missing") from error


def _merge(table: Table, group: Sequence[Named]) -> list[dict[str, Any]]:
    """Writes the rows of several shards as one; several where their columns differ."""
    said: list[dict[str, Any]] = []
    parts: list[tuple[Named, pa.Table]] = []
    for named in group:
        rows = _rows(table.store, named)
        if parts and not rows.schema.equals(parts[0][1].schema):
            said += _written(table, parts)
            parts = []
        parts.append((named, rows))
    return said + _written(table, parts)


def _rows(store: Store, named: Named) -> pa.Table:
    try:
        data = store.read(named.shard.key)
    except NotFoundError as error:
        raise _wrong(store, named, "is missing") from error
    if sha256_hex(data) != named.sha256:
        raise _wrong(store, named, "was changed")
    reader: Any = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    return cast(pa.Table, reader.read())


def _written(table: Table, parts: Sequence[tuple[Named, pa.Table]]) -> list[dict[str, Any]]:
    if len(parts) < 2:
        return []
    rows = pa.concat_tables([part for _, part in parts])
    recipe = parts[0][0].shard.recipe
    key, sha256 = write_shard(table.store, f"{table.root}/shards", recipe, rows)
    return [
        {
            "recipe": recipe,
            "shard": key,
            "rows": rows.num_rows,
            "row_keys_digest": dataset_digest(cast("list[str]", rows.column("row_key").to_pylist())),
            "sha256": sha256,
            "replaces": [named.shard.key for named, _ in parts],
        }
    ]


def _wrong(store: Store, named: Named, what: str) -> CorruptError:
    return CorruptError(f"a shard {what}", where=store.url(named.shard.key), todo=TODO)
