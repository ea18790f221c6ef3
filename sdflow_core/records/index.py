"""Which shards a journal names for a table, and where each row lies in them.

An entry of kind `rows` names one shard. An entry of kind `compact` says that neighbouring shards of one
recipe lie together in a larger one from now on: nothing new is recorded, the rows keep their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

from .entries import Entry
from .errors import CorruptError
from .journal import COMPACT
from .keys import dataset_digest, digest_of_sorted
from .objects import Store
from .shards import TODO, Shard, load_columns

__all__ = ["Index", "Named", "Names", "is_compact", "is_rows", "names", "table_names"]


def is_rows(entry: Entry, table: str) -> bool:
    """Whether an entry commits rows of this table."""
    return entry.kind == "rows" and entry.payload.get("table") == table


def is_compact(entry: Entry, table: str) -> bool:
    """Whether an entry says where rows of this table lie now."""
    return entry.kind == COMPACT and entry.payload.get("table") == table


def table_names(entries: Iterable[Entry]) -> list[str]:
    """Tables that a journal has rows of, in the order of their first commit."""
    return list(dict.fromkeys(str(entry.payload["table"]) for entry in entries if entry.kind == "rows"))


@dataclass(frozen=True)
class Named:
    """A shard as an entry names it.

    Attributes:
        shard: Its file.
        sha256: Of the file.
        row_keys_digest: Of its rows.
        time: Of the entry.
        parts: Keys of the shards that it replaces, in their order; none in an entry of rows.
    """

    shard: Shard
    sha256: str
    row_keys_digest: str
    time: str
    parts: tuple[str, ...] = ()


@dataclass
class Names:
    """All shards of a table that the journal names.

    Attributes:
        named: Every one that any entry names, by key.
        by: Key of a shard that was replaced -> key of the one that replaced it.
        first: Keys that entries of rows name, in order.
    """

    named: dict[str, Named] = field(default_factory=dict[str, Named])
    by: dict[str, str] = field(default_factory=dict[str, str])
    first: list[str] = field(default_factory=list[str])

    def current(self) -> list[Named]:
        """Shards to read now, in the order of their rows' commits."""
        return [self.named[key] for key in dict.fromkeys(map(self._now, self.first))]

    def _now(self, key: str) -> str:
        while key in self.by:
            key = self.by[key]
        return key

    def leaves(self, key: str) -> list[Named]:
        """What was committed into a shard: the shards of the entries of rows, in order."""
        named = self.named[key]
        if not named.parts:
            return [named]
        return [leaf for part in named.parts for leaf in self.leaves(part)]


def _named(said: dict[str, Any], time: str) -> Named:
    shard = Shard(str(said["shard"]), str(said["recipe"]), int(said["rows"]))
    parts = tuple(str(key) for key in cast("list[str]", said.get("replaces", [])))
    return Named(shard, str(said["sha256"]), str(said["row_keys_digest"]), time, parts)


def names(entries: Iterable[Entry], table: str) -> Names:
    """Reads what a journal says about one table's shards; no shard is opened."""
    found = Names()
    for entry in entries:
        if is_rows(entry, table):
            named = _named(entry.payload, entry.time)
            found.named[named.shard.key] = named
            found.first.append(named.shard.key)
        elif is_compact(entry, table):
            for said in cast("list[dict[str, Any]]", entry.payload["shards"]):
                named = _named(said, entry.time)
                found.named[named.shard.key] = named
                found.by.update(dict.fromkeys(named.parts, named.shard.key))
    return found


class Index:
    """What this process knows of one table, grown entry by entry under the journal's lock."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Starts afresh."""
        self.seen = 0
        self.last_sha256 = ""
        self.shards: list[Shard] = []
        self.place: dict[str, tuple[int, int]] = {}
        self.failed: set[str] = set()
        self.recipes: dict[str, dict[str, None]] = {}
        self._held: dict[str | None, dict[str, None]] = {}
        self._sorted: dict[str | None, list[str]] = {}
        self._digests: dict[str | None, str] = {}

    def held(self, recipe: str | None = None) -> Set[str]:
        """Row keys that need not be computed again; of one recipe when given. A view: copy it to keep it."""
        return self._held.get(recipe, {}).keys()

    def digest(self, recipe: str | None = None) -> str:
        """Digest of what is held."""
        if recipe not in self._digests:
            # What is held only grows: sort what is new, and let two sorted runs be merged.
            held, ordered = self._held.get(recipe, {}), self._sorted.setdefault(recipe, [])
            ordered += sorted(islice(held, len(ordered), None))
            ordered.sort()
            self._digests[recipe] = digest_of_sorted(ordered)
        return self._digests[recipe]

    def follow(self, store: Store, table: str, new: Iterator[Entry]) -> bool:
        """Takes in entries from number `seen` on (from 1, when nothing was seen).

        Returns:
            False when they cannot be added to what is known: the history is another one, or rows lie
            elsewhere now. The index is empty then, and wants all entries.

        Raises:
            CorruptError: A shard does not hold what its entry says.
        """
        if self.seen:
            last = next(new, None)
            if last is None or (last.number, last.sha256) != (self.seen, self.last_sha256):
                self.clear()  # another history under the same address: the store was made anew
                return False
        entries = list(new)
        moved = any(is_compact(entry, table) for entry in entries)
        if moved and self.seen:
            self.clear()
            return False
        try:
            for named in names(entries, table).current():
                self._add(store, named)
        except BaseException:
            self.clear()
            raise
        if entries:
            self.seen, self.last_sha256 = entries[-1].number, entries[-1].sha256
        return True

    def _add(self, store: Store, named: Named) -> None:
        shard = named.shard
        part = load_columns(store, shard, ["row_key", "status"])
        keys = cast("list[str]", part.column("row_key").to_pylist())
        if len(keys) != shard.rows or dataset_digest(keys) != named.row_keys_digest:
            raise CorruptError(
                "a shard does not hold the rows of its journal entry", where=shard.key, todo=TODO
            )
        self.shards.append(shard)
        number = len(self.shards) - 1
        of_recipe = self.recipes.setdefault(shard.recipe, {})
        held = self._held.setdefault(None, {})
        held_of_recipe = self._held.setdefault(shard.recipe, {})
        for row, (key, status) in enumerate(zip(keys, part.column("status").to_pylist(), strict=True)):
            if status == "failed" and key in self.place and key not in self.failed:
                continue
            if status == "failed":
                self.failed.add(key)
            else:
                self.failed.discard(key)
                held[key] = held_of_recipe[key] = None
            self.place[key] = (number, row)
            of_recipe[key] = None
        self._digests.clear()
