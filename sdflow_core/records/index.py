"""Which shards a journal names for a table, and where each row lies in them.

An entry of kind `rows` names one shard. An entry of kind `compact` says that neighbouring shards of one
recipe lie together in a larger one from now on: nothing new is recorded, the rows keep their order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .entries import Entry
from .journal import COMPACT
from .key_blocks import ShardKeys, keys_of_shards
from .objects import Store
from .row_keys import Column, Keys, Run, digest_of, encode, merged, sorted_order, texts
from .shards import Shard

_BATCH_SHARDS = 64  # taken in at a time: what is held while a table is opened stays small
# A shard and the rows of it that are meant, ascending; None: all of them.
Chosen = tuple[Shard, "npt.NDArray[np.int64] | None"]

__all__ = ["Chosen", "Index", "Named", "Names", "is_compact", "is_rows", "names", "table_names"]


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
    """What this process knows of one table, grown entry by entry under the journal's lock.

    Rows are numbered in the order of their commits. A key has one row: the last that is no failure, or else
    the last failure; all others are dead.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Starts afresh."""
        self.seen = 0
        self.last_sha256 = ""
        self.shards: list[Shard] = []
        self.recipes: dict[str, None] = {}
        self.unread: dict[str, str] = {}  # shards whose keys a block said -> digest of these keys
        self._starts: list[int] = []  # number of each shard's first row
        self._rows = 0
        self._dead: dict[int, npt.NDArray[np.bool_]] = {}  # shard -> which of its rows are dead
        self._runs: list[Run] = []  # large ones first; each key is in one of them
        self._odd: dict[bytes, str] = {}
        self._facts: dict[str | None, tuple[int, str]] = {}

    # -- what is held

    def holds(self, keys: Column | Keys, recipe: str | None = None) -> npt.NDArray[np.bool_]:
        """For each key whether it need not be computed again; of one recipe when given."""
        wanted = keys if isinstance(keys, Keys) else encode(keys)[0]
        mask = np.zeros(len(wanted), np.bool_)
        rows_of = self._rows_of(recipe)
        for run in self._runs:
            place = run.find(wanted)
            there = np.flatnonzero(place >= 0)
            place = place[there]
            good = ~run.failed[place]
            if rows_of is not None:
                good &= rows_of[run.at[place]]
            mask[there[good]] = True
        return mask

    def held(self, recipe: str | None = None) -> list[str]:
        """All keys that need not be computed again; of one recipe when given. Costs some 120 bytes each."""
        return texts(self._held(recipe), self._odd)

    def count(self, recipe: str | None = None) -> int:
        """How many are held."""
        return self._fact(recipe)[0]

    def digest(self, recipe: str | None = None) -> str:
        """Digest of what is held."""
        return self._fact(recipe)[1]

    def _fact(self, recipe: str | None) -> tuple[int, str]:
        if recipe not in self._facts:
            held = self._held(recipe)
            self._facts[recipe] = (len(held), digest_of(held, self._odd))
        return self._facts[recipe]

    def _held(self, recipe: str | None) -> Keys:
        """Sorted."""
        while len(self._runs) > 1:
            self._runs[-2:] = [merged(self._runs[-2], self._runs[-1])]
        if not self._runs:
            return encode([])[0]
        run = self._runs[0]
        good = ~run.failed
        rows_of = self._rows_of(recipe)
        if rows_of is not None:
            good &= rows_of[run.at]
        return run.keys if good.all() else run.keys.take(good)

    def _rows_of(self, recipe: str | None) -> npt.NDArray[np.bool_] | None:
        """By number of a row whether it is of this recipe; None when all are."""
        if recipe is None or (len(self.recipes) == 1 and recipe in self.recipes):
            return None
        mask = np.zeros(self._rows, np.bool_)
        for shard, start in zip(self.shards, self._starts, strict=True):
            if shard.recipe == recipe:
                mask[start : start + shard.rows] = True
        return mask

    # -- where rows lie

    def places(self, keys: Column | Keys) -> npt.NDArray[np.int64]:
        """Numbers of the rows of those keys that are there, ascending."""
        wanted = keys if isinstance(keys, Keys) else encode(keys)[0]
        found = [run.at[place[place >= 0]] for run in self._runs if len(place := run.find(wanted))]
        return np.unique(np.concatenate(found)).astype(np.int64) if found else np.zeros(0, np.int64)

    def place_of(self, keys: Sequence[str]) -> npt.NDArray[np.int64]:
        """Number of the row of each key, in their order; -1 where there is none."""
        wanted = encode(keys)[0]
        found = np.full(len(keys), -1, np.int64)
        for run in self._runs:
            place = run.find(wanted)
            there = place >= 0
            found[there] = run.at[place[there]]
        return found

    def at(self, numbers: npt.NDArray[np.int64]) -> list[tuple[Shard, int]]:
        """Shard of each numbered row, and its place there."""
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        rows = numbers - np.asarray(self._starts, np.int64)[shards]
        return [(self.shards[n], row) for n, row in zip(shards.tolist(), rows.tolist(), strict=True)]

    def split(self, numbers: npt.NDArray[np.int64], recipe: str | None = None) -> list[Chosen]:
        """Ascending numbers of rows, shard by shard; of one recipe when given."""
        ends = np.searchsorted(numbers, [*self._starts, self._rows])
        return [
            (shard, numbers[ends[n] : ends[n + 1]] - self._starts[n])
            for n, shard in enumerate(self.shards)
            if ends[n] < ends[n + 1] and recipe in (None, shard.recipe)
        ]

    def alive(self, recipe: str | None = None) -> list[Chosen]:
        """The row of each key, shard by shard: which rows, or None for all of them."""
        found: list[Chosen] = []
        for number, shard in enumerate(self.shards):
            if recipe not in (None, shard.recipe) or not shard.rows:
                continue
            dead = self._dead.get(number)
            rows = None if dead is None else np.flatnonzero(~dead)
            if rows is None or len(rows):
                found.append((shard, rows))
        return found

    # -- growing

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
            self._add(store, names(entries, table).current())
        except BaseException:
            self.clear()
            raise
        if entries:
            self.seen, self.last_sha256 = entries[-1].number, entries[-1].sha256
        return True

    def _add(self, store: Store, new: Sequence[Named]) -> None:
        """Shards in the order of their commits, a batch at a time."""
        found = keys_of_shards(store, [(named.shard, named.row_keys_digest) for named in new])
        for start in range(0, len(new), _BATCH_SHARDS):
            part = new[start : start + _BATCH_SHARDS]
            self._add_batch(part, list(islice(found, len(part))))
        next(found, None)  # lets it finish: it may have a block to write
        if new:
            self._facts.clear()

    def _add_batch(self, new: Sequence[Named], found: Sequence[ShardKeys]) -> None:
        first = self._rows
        for named, said in zip(new, found, strict=True):
            self.shards.append(named.shard)
            self.recipes.setdefault(named.shard.recipe)
            self._starts.append(self._rows)
            self._rows += named.shard.rows
            self._odd.update(said.odd)
            if not said.read:
                self.unread[named.shard.key] = named.row_keys_digest
        keys = Keys(
            np.concatenate([said.keys.head for said in found]),
            np.concatenate([said.keys.rest for said in found]),
        )
        failed = np.concatenate([said.failed for said in found])
        order = self._winners(keys, failed, first)
        # numpy has no place for more rows than 2**32 here; neither has a table
        run = Run(keys.take(order), (order + first).astype(np.uint32), failed[order])
        for older in self._runs:
            run = self._settle(older, run)
        if not len(run):
            return
        self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs[-2:] = [merged(self._runs[-2], self._runs[-1])]

    def _winners(self, keys: Keys, failed: npt.NDArray[np.bool_], first: int) -> npt.NDArray[np.int64]:
        """Of each key the row that counts, sorted by key; the others of this batch are dead."""
        order = sorted_order(keys)
        head, rest = keys.head[order], keys.rest[order]
        again = (head[1:] == head[:-1]) & np.all(rest[1:] == rest[:-1], axis=1)
        if not again.any():
            return order
        # of equal keys the last one wins: successes after failures, and then in the order of commits
        group = np.concatenate([[0], np.cumsum(~again)])
        place = np.lexsort((order, ~failed[order], group))
        last = np.append(~again, True)
        self._bury(order[place[~last]] + first)
        return order[place[last]]

    def _settle(self, older: Run, run: Run) -> Run:
        """Rows whose key is in an older run take its place there, or give way; gives those that are new."""
        place = older.find(run.keys)
        known = place >= 0
        if not known.any():
            return run
        mine = np.flatnonzero(known)
        theirs = place[mine]
        stays = run.failed[mine] & ~older.failed[theirs]
        self._bury(run.at[mine[stays]])
        mine, theirs = mine[~stays], theirs[~stays]
        self._bury(older.at[theirs])
        older.at[theirs], older.failed[theirs] = run.at[mine], run.failed[mine]
        return Run(run.keys.take(~known), run.at[~known], run.failed[~known])

    def _bury(self, numbers: npt.NDArray[Any]) -> None:
        for number in numbers.tolist():
            shard = bisect_right(self._starts, number) - 1
            if shard not in self._dead:
                self._dead[shard] = np.zeros(self.shards[shard].rows, np.bool_)
            self._dead[shard][number - self._starts[shard]] = True
