"""Tables of rows under row keys: immutable Parquet shards, made real by one journal entry each.

A shard without an entry does not exist for any reader, so a killed writer leaves nothing half-written. A row
is *held* when it was committed with any status but `failed`: a permanent drop is held, a transient failure is
not. Journal entries and shards never change, so each process parses them once.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .config import DatasetRef
from .errors import ContractError, CorruptError, NotFoundError
from .index import Chosen, Index, Names, is_rows, names
from .journal import Entry, Journal
from .key_blocks import check_keys, readers
from .keys import dataset_digest
from .objects import Store
from .row_keys import Column, Keys, encode
from .selection import latest_rows, rows_with_status
from .shards import TODO, Shard, load_columns, shard_schema, wplus_column, wplus_numpy, write_shard

__all__ = ["BASE_COLUMNS", "STATUSES", "Table", "base_schema", "wplus_column", "wplus_numpy"]

_READ_BYTES = 8 * 2**20
STATUSES = ("kept", "dropped", "failed", "waiting", "gated")
BASE_COLUMNS = ("row_key", "recipe", "status", "reason", "inputs", "run")


def base_schema() -> pa.Schema:
    """Columns that every table has."""
    return pa.schema(
        [
            ("row_key", pa.string()),
            ("recipe", pa.string()),
            ("status", pa.string()),
            ("reason", pa.string()),
            ("inputs", pa.list_(pa.string())),
            ("run", pa.string()),
        ]
    )


_indexes: dict[tuple[str, str, str], Index] = {}
_indexes_lock = threading.Lock()


class Table:
    """One table of a dataset, under `private/datasets/<dataset>/<name>`.

    All tables of a dataset share one journal. Columns of every table: see `BASE_COLUMNS`.
    """

    def __init__(self, store: Store, dataset: str, name: str) -> None:
        if (
            not dataset
            or not name
            or "/" in name
            or any(part in ("", ".", "..") for part in dataset.split("/"))
        ):
            raise ContractError(
                "a dataset or table has no usable name",
                expected="a name, or several joined by /, none of them empty, . or ..",
                found=repr(dataset if name and "/" not in name else name),
                todo="choose another name",
            )
        self.store = store
        self.dataset = dataset
        self.name = name
        self.root = f"private/datasets/{dataset}/{name}"
        self.journal = Journal(store, f"private/datasets/{dataset}/journal")
        with _indexes_lock:
            self._index = _indexes.setdefault((store.uri, dataset, name), Index())

    # -- writing

    def commit(self, rows: pa.Table, *, run: str) -> DatasetRef:
        """Adds rows; those whose row_key is already held are left out. Doing it twice is doing it once.

        Args:
            rows: All base columns (`run`, `reason` and `inputs` may be absent) and any others; one recipe.
            run: The run that commits.

        Returns:
            The table's reference after the commit.

        Raises:
            ContractError: A base column is missing, an unknown status, a row_key twice, more than one recipe.
        """
        rows = _completed(rows, run)
        with self.journal.lock:
            index = self._refresh()
            based = index.seen
            rows = _without(rows, index)
        if rows.num_rows == 0:
            return self.ref()
        recipe = str(rows.column("recipe")[0].as_py())
        payload = self._write(rows, recipe)

        def rebase(new: list[Entry], payload: dict[str, Any]) -> dict[str, Any] | None:
            nonlocal rows
            mine = any(is_rows(entry, self.name) for entry in new)
            left = _without(rows, self._refresh()) if mine else rows
            if left.num_rows == rows.num_rows:
                return payload
            # Others committed some of these rows: this shard was never named by an entry, so nobody reads it.
            self.store.delete(str(payload["shard"]))
            rows = left
            return self._write(left, recipe) if left.num_rows else None

        self.journal.append("rows", payload, run=run, rebase=rebase, after=based)
        return self.ref()

    def _write(self, rows: pa.Table, recipe: str) -> dict[str, Any]:
        """Writes one shard and says what its entry will hold."""
        keys = cast("list[str]", rows.column("row_key").to_pylist())
        key, sha256 = write_shard(self.store, f"{self.root}/shards", recipe, rows)
        return {
            "table": self.name,
            "recipe": recipe,
            "shard": key,
            "rows": rows.num_rows,
            "row_keys_digest": dataset_digest(keys),
            "sha256": sha256,
        }

    # -- reading

    def held(self, recipe: str | None = None) -> set[str]:
        """Row keys that need not be computed again; of one recipe when given.

        A Python string for each: where there may be many, ask `holds` about those that matter.
        """
        with self.journal.lock:
            return set(self._refresh().held(recipe))

    def holds(self, keys: Column | Keys, recipe: str | None = None) -> npt.NDArray[np.bool_]:
        """Which of these row keys need not be computed again, as a mask [N] in their order.

        Args:
            keys: Row keys: a list; or a column of a table or what `row_keys.encode` gave, which cost less.
            recipe: Only what is held under this recipe counts.
        """
        with self.journal.lock:
            return self._refresh().holds(keys, recipe)

    def held_among(self, keys: Iterable[str], recipe: str | None = None) -> set[str]:
        """Those of these row keys that need not be computed again; of one recipe when given."""
        given = list(keys)
        return set(compress(given, self.holds(given, recipe).tolist()))

    def recipes(self) -> list[str]:
        """Recipes of this table, in the order of their first commit."""
        with self.journal.lock:
            return list(self._refresh().recipes)

    def ref(self, recipe: str | None = None) -> DatasetRef:
        """Reference to what is held now; of one recipe when given."""
        with self.journal.lock:
            index = self._refresh()
            rows = index.count(recipe)
            uri = self.store.url(self.root)
            return DatasetRef(uri=uri, version=index.seen, digest=index.digest(recipe), rows=rows)

    def canonical_digest(self) -> str:
        """What two runs are compared by: the digest of all held row keys."""
        return self.ref().digest

    def read(
        self,
        recipe: str | None = None,
        columns: Sequence[str] | None = None,
        statuses: Iterable[str] | None = None,
        latest_by: str | None = None,
        row_keys: Column | Keys | None = None,
        values: Sequence[str] | None = None,
    ) -> pa.Table:
        """Rows in the order of their commits, each row_key once: a later one wins unless it is a failure.

        Args:
            recipe: Only rows of this recipe.
            columns: Only these; default all.
            statuses: Only rows with one of these; applied last.
            latest_by: Keep only the row committed last for each value of this column.
            row_keys: Only these rows, where they are there; only the shards that hold them are opened.
            values: Only rows whose `latest_by` is one of these.

        Raises:
            ContractError: No shard has such a column; `latest_by` among given rows, which cannot know it.
            CorruptError: A shard is missing or was changed.
        """
        if latest_by is not None and row_keys is not None:
            raise ContractError("rows are chosen by their keys or by the latest of a value, not by both")
        with self.journal.lock:
            index = self._refresh()
            if row_keys is None:
                order = index.alive(recipe)
            else:
                order = index.split(index.places(row_keys), recipe)
            typed = order or index.alive(recipe)[:1]
        chosen = order
        if latest_by is not None:
            chosen = latest_rows(order, self._each(order, [latest_by]), latest_by, values)
        chosen = [(shard, rows) for shard, rows in chosen if rows is None or len(rows)]
        if statuses is not None:
            chosen = rows_with_status(chosen, self._each(chosen, ["status"]), statuses)
        some = [(shard, rows) for shard, rows in chosen if rows is None or len(rows)]
        parts = list(self._each(some, columns))
        if not parts:
            return self._empty(typed, columns)
        table = parts[0] if len(parts) == 1 else pa.concat_tables(parts, promote_options="default")
        wanted = columns if columns is not None else table.column_names
        absent = [name for name in wanted if name not in table.column_names]
        if absent:
            raise ContractError(
                "a column is missing", expected=absent, found=table.column_names, where=self.root
            )
        return table.select(list(wanted))

    def find(self, row_key: str) -> dict[str, Any] | None:
        """One row with all its columns, or None."""
        with self.journal.lock:
            index = self._refresh()
            chosen = index.split(index.places([row_key]))
        for part in self._each(chosen, None):
            return cast("list[dict[str, Any]]", part.to_pylist())[0]
        return None

    def locate(self, row_keys: Sequence[str]) -> list[tuple[Shard, int]]:
        """Shard of each row, and its place there; see `picking.pick_rows`.

        Raises:
            NotFoundError: Some of them were never committed.
        """
        with self.journal.lock:
            index = self._refresh()
            numbers = index.place_of(row_keys)
            absent = int((numbers < 0).sum())
            if absent:
                raise NotFoundError(
                    "rows are not in the table", where=self.root, expected=len(row_keys), found=absent
                )
            return index.at(numbers)

    def verify(self, *, verify_journal: bool = True) -> int:
        """Reads every shard again and compares it with the hash in its journal entry.

        Args:
            verify_journal: Verify the journal first; False when that was just done.

        Returns:
            How many shards there are; those that a compaction replaced do not count.

        Raises:
            CorruptError: Names the first shard that is missing or changed, or the journal entry that is.
        """
        if verify_journal:
            self.journal.verify()
        found = names(self.journal.entries(), self.name)
        current = found.current()
        for named in current:
            self._check(named.shard.key, named.sha256)
            if named.parts:
                self._check_parts(found, named.shard)
        for key in found.by:
            # What was replaced may have been removed; while it is there, it must be what it was.
            if self.store.exists(key):
                self._check(key, found.named[key].sha256)
        return len(current)

    def _check(self, key: str, sha256: str) -> None:
        digest = hashlib.sha256()
        try:
            with self.store.open_input(key) as file:
                while data := file.read(_READ_BYTES):  # large parts: each may be a request
                    digest.update(data)
        except NotFoundError as error:
            raise CorruptError("a shard is missing", where=self.store.url(key), todo=TODO) from error
        if digest.hexdigest() != sha256:
            raise CorruptError("a shard was changed", where=self.store.url(key), todo=TODO)

    def _check_parts(self, found: Names, shard: Shard) -> None:
        """A shard that replaced others holds the rows of each of their entries, in their order."""
        keys = cast("list[str]", load_columns(self.store, shard, ["row_key"]).column("row_key").to_pylist())
        for leaf in found.leaves(shard.key):
            part, keys = keys[: leaf.shard.rows], keys[leaf.shard.rows :]
            if dataset_digest(part) != leaf.row_keys_digest:
                raise CorruptError(
                    "a compacted shard does not hold the rows of an entry that it stands for",
                    expected=f"the rows of {leaf.shard.key}",
                    where=self.store.url(shard.key),
                    todo=TODO,
                )

    # -- inside

    def _refresh(self) -> Index:
        """Brings the index up to the journal; the caller holds the journal's lock while it uses the index."""
        index = self._index
        with self.journal.lock:
            while not index.follow(self.store, self.name, self.journal.entries(start=index.seen)):
                pass  # it is empty now and takes everything in
            return index

    def _each(self, chosen: Sequence[Chosen], columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """The chosen rows of each shard, in this order; several shards at a time where that helps."""

        def take(of: Chosen) -> pa.Table:
            shard, rows = of
            whole = self._load(shard, columns)
            if not whole.column_names:  # a shard that has none of the columns still has its rows
                whole = self._load(shard, ["row_key"])
            return whole if rows is None else whole.take(pa.array(rows, pa.int64()))

        count = min(readers(self.store), len(chosen))
        if count < 2:
            yield from map(take, chosen)
            return
        with ThreadPoolExecutor(count) as pool:
            yield from pool.map(take, chosen)

    def _load(self, shard: Shard, columns: Sequence[str] | None) -> pa.Table:
        digest = self._index.unread.get(shard.key)
        if digest is None:
            return load_columns(self.store, shard, columns)
        # Its keys came from a block: the shard itself must hold them too before anything of it is handed out.
        wanted = columns if columns is None or "row_key" in columns else ["row_key", *columns]
        whole = load_columns(self.store, shard, wanted)
        check_keys(shard, digest, *encode(whole.column("row_key")))
        self._index.unread.pop(shard.key, None)
        return whole if columns is None else whole.select([n for n in whole.column_names if n in columns])

    def _empty(self, order: Sequence[Chosen], columns: Sequence[str] | None) -> pa.Table:
        schema = shard_schema(self.store, order[0][0]) if order else base_schema()
        table = schema.empty_table()
        if columns is None:
            return table
        return table.select([name for name in columns if name in table.column_names])


def _completed(rows: pa.Table, run: str) -> pa.Table:
    """The rows with all base columns in front, checked."""
    columns: dict[str, Any] = {}
    for item in base_schema():
        if item.name == "run":
            columns["run"] = pa.array([run] * rows.num_rows, pa.string())
        elif item.name in rows.column_names:
            columns[item.name] = rows.column(item.name).cast(item.type)
        elif item.name == "reason":
            columns["reason"] = pa.array([""] * rows.num_rows, pa.string())
        elif item.name == "inputs":
            columns["inputs"] = pa.array([[] for _ in range(rows.num_rows)], item.type)
        else:
            raise ContractError("a base column is missing", expected=BASE_COLUMNS, found=rows.column_names)
    keys = columns["row_key"].to_pylist()
    if len(set(keys)) != len(keys) or None in keys:
        raise ContractError("a row_key is missing or given twice in one commit", expected="each once")
    recipes = set(columns["recipe"].to_pylist())
    if len(recipes) > 1 or None in recipes:
        raise ContractError("a commit holds one recipe", found=sorted(map(str, recipes)))
    unknown = set(columns["status"].to_pylist()) - set(STATUSES)
    if unknown:
        raise ContractError("unknown status", expected=STATUSES, found=sorted(map(str, unknown)))
    for name in rows.column_names:
        if name not in columns:
            columns[name] = rows.column(name)
    return pa.table(columns)


def _without(rows: pa.Table, index: Index) -> pa.Table:
    held = index.holds(rows.column("row_key"))
    return rows.take(pa.array(np.flatnonzero(~held))) if held.any() else rows
