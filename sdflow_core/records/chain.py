"""The entries of one journal as this process knows them, and how they are read: snapshots, then files.

Entries never change, so each is read once a process and parsed when somebody asks for it. Opening reads the
newest snapshot and the files after it; older entries are read when they are wanted, block by block. Every
line is vouched for by the hash that its follower names, up to an entry that was read from its own file.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import chain, count, islice
from typing import Any, cast

from .ahead import ahead
from .entries import FIRST_PREVIOUS, TODO, Entry, decode, parse
from .errors import ContractError, CorruptError, NotFoundError, TransientError
from .keys import canonical_json, sha256_hex
from .objects import Store
from .snapshots import ENTRIES, Snapshot, listed, read_snapshot, write_snapshot

__all__ = ["Chain", "Known", "View", "read_hint", "write_hint"]


class View:
    """Entries as of one moment; what is added later does not show. Numbers start at 1."""

    def __init__(self, base: int, lines: list[bytes], hashes: list[str], parsed: list[Entry | None]) -> None:
        self._base = base
        self._lines = lines
        self._hashes = hashes
        self._parsed = parsed
        self.count = base + len(lines)

    def entry(self, number: int) -> Entry:
        """One entry; parsed at the first call."""
        at = number - self._base - 1
        found = self._parsed[at]
        if found is None:
            found = self._parsed[at] = parse(self._lines[at], self._hashes[at])
        return found

    def since(self, number: int) -> Iterator[Entry]:
        """Entries with this number or a higher one, in order."""
        for at in range(max(number, 1), self.count + 1):
            yield self.entry(at)


class Known:
    """What this process has read of one journal, shared by all its `Journal`s of that address.

    Attributes:
        base: How many entries at the beginning are not loaded; a multiple of 256.
        anchor: Hash that entry `base` must have.
        lines: Bytes of the entries after `base`; only ever appended to.
        hashes: SHA-256 of each.
        parsed: Each as an object, where somebody asked for it.
        etag: Of the last entry's file.
        unsealed: Last numbers of complete blocks that lack a snapshot; True: there is one, and it is wrong.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.forget()

    def forget(self) -> None:
        """Starts afresh. The lists are new ones: views of the old ones stay as they are."""
        self.base = 0
        self.anchor = FIRST_PREVIOUS
        self.lines: list[bytes] = []
        self.hashes: list[str] = []
        self.parsed: list[Entry | None] = []
        self.etag = ""
        self.unsealed: dict[int, bool] = {}

    @property
    def count(self) -> int:
        """How many entries there are."""
        return self.base + len(self.lines)

    @property
    def last_sha256(self) -> str:
        """What the next entry is written after."""
        return self.hashes[-1] if self.hashes else self.anchor

    def add(self, data: bytes, entry: Entry) -> None:
        """The next entry, read from its file."""
        self.lines.append(data)
        self.hashes.append(entry.sha256)
        self.parsed.append(entry)

    def put_before(self, lines: list[bytes], hashes: list[str], anchor: str) -> None:
        """The block of entries before those that are loaded."""
        self.lines = lines + self.lines
        self.hashes = hashes + self.hashes
        self.parsed = [None] * len(lines) + self.parsed
        self.base -= len(lines)
        self.anchor = anchor

    def view(self) -> View:
        """The entries of this moment."""
        return View(self.base, self.lines, self.hashes, self.parsed)


class Chain:
    """Reads one journal into what is known of it."""

    def __init__(self, store: Store, root: str, known: Known) -> None:
        self.store = store
        self.root = root
        self.known = known

    def key(self, number: int) -> str:
        """Where an entry lies."""
        return f"{self.root}/{number:010d}.json"

    def refresh(self, written: bytes | None = None) -> None:
        """Reads what was added since the last look.

        Args:
            written: The entry that this process itself has just created after the last known one.

        Raises:
            CorruptError: The chain is broken.
        """
        known = self.known
        with known.lock, self._whole_or_nothing():
            soon: bytes | None = b""
            if known.count and written is None:
                there, soon = self._look()
                if not there:
                    known.forget()
                    soon = b""
            opening = known.count == 0 and written is None
            newest, sealed = self._open() if opening else (0, 0)
            hint = self._hint() if opening else (0, "")
            before = known.count if not opening else -1
            if written is not None:
                number = known.count + 1
                known.add(written, decode(written, number, self.store.url(self.key(number))))
            if soon is not None:
                self._read_on(hint[0], soon)
            if opening:
                self._check_tail(hint, newest)
                for last in range(sealed + ENTRIES, known.count + 1, ENTRIES):
                    known.unsealed.setdefault(last, False)
            if known.count != before:
                known.etag = self.store.stat(self.key(known.count)).etag if known.count else ""

    def load(self, number: int) -> View:
        """The entries from this number on (at least), as they are known now."""
        with self.known.lock, self._whole_or_nothing():
            while self.known.base >= max(number, 1):
                self._load_block()
            return self.known.view()

    def read_all(self) -> None:
        """Reads every entry from its own file, whatever snapshots say."""
        with self.known.lock, self._whole_or_nothing():
            self.known.forget()
            self._read_on(self._hint()[0])
            if self.known.count:
                self.known.etag = self.store.stat(self.key(self.known.count)).etag
            there = set(listed(self.store, self.root))
            for last in range(ENTRIES, self.known.count + 1, ENTRIES):
                if last not in there:
                    self.known.unsealed[last] = False

    def seal(self, number: int) -> None:
        """After entry `number` was appended here: snapshots for the complete blocks that lack one."""
        with self.known.lock:
            if number % ENTRIES == 0:
                self.known.unsealed.setdefault(number, False)
            for last, replace in list(self.known.unsealed.items()):
                try:
                    self.write_snapshot(last, replace=replace)
                except (ContractError, TransientError):
                    continue  # a cache; the next one who appends tries again
                del self.known.unsealed[last]

    def write_snapshot(self, last: int, *, replace: bool) -> bool:
        """Packs the block that ends with this entry; says whether anything was written."""
        view = self.load(last - ENTRIES + 1)
        start = last - ENTRIES - self.known.base
        if start < 0 or last > view.count:
            return False
        lines = self.known.lines[start : start + ENTRIES]
        return write_snapshot(self.store, self.root, last, lines, replace=replace)

    # -- inside

    @contextmanager
    def _whole_or_nothing(self) -> Generator[None]:
        try:
            yield
        except BaseException:
            self.known.forget()
            raise

    def _look(self) -> tuple[bool, bytes | None]:
        """Whether the last entry is still there, and the one after it: asked side by side."""
        number = self.known.count + 1

        def following() -> bytes | None:
            try:
                return self.store.read(self.key(number))
            except NotFoundError:
                return None

        asks: tuple[Callable[[], Any], ...] = (self._still_there, following)
        there, soon = ahead(self.store, lambda ask: cast(Any, ask()), asks)
        return there, soon

    def _still_there(self) -> bool:
        # One cheap look: a store that was removed or restored under a running process starts afresh.
        try:
            return self.store.stat(self.key(self.known.count)).etag == self.known.etag
        except NotFoundError:
            return False

    def _open(self) -> tuple[int, int]:
        """Starts from the newest snapshot that the entries confirm; gives the newest listed, and that one."""
        known = self.known
        numbers = listed(self.store, self.root)
        for last in reversed(numbers):
            snapshot = self._good(last)
            if snapshot is not None and self._confirmed(snapshot):
                known.base = last
                known.put_before(snapshot.lines, snapshot.hashes, snapshot.previous)
                return numbers[-1], last
            known.unsealed[last] = True
        return numbers[-1] if numbers else 0, 0

    def _good(self, last: int) -> Snapshot | None:
        snapshot = read_snapshot(self.store, self.root, last)
        if snapshot is not None and last == ENTRIES and snapshot.previous != FIRST_PREVIOUS:
            return None
        return snapshot

    def _confirmed(self, snapshot: Snapshot) -> bool:
        try:
            return sha256_hex(self.store.read(self.key(snapshot.last))) == snapshot.hashes[-1]
        except NotFoundError:
            return False

    def _load_block(self) -> None:
        """The 256 entries before those that are loaded: from their snapshot, or file by file."""
        known = self.known
        last = known.base
        snapshot = self._good(last)
        if snapshot is not None and snapshot.hashes[-1] == known.anchor:
            known.put_before(snapshot.lines, snapshot.hashes, snapshot.previous)
            return
        known.unsealed[last] = True
        lines: list[bytes] = []
        hashes: list[str] = []
        anchor = FIRST_PREVIOUS if last == ENTRIES else None
        numbers = range(last - ENTRIES + 1, last + 1)
        for number, data in zip(numbers, ahead(self.store, self._file, numbers), strict=True):
            entry = decode(data, number, self.store.url(self.key(number)))
            if anchor is None:
                anchor = entry.prev_sha256  # the block before must end with it
            self._follows(entry, hashes[-1] if hashes else anchor)
            lines.append(data)
            hashes.append(entry.sha256)
        if hashes[-1] != known.anchor:
            raise _changed(last, known.anchor, hashes[-1], self.store.url(self.key(last)))
        known.put_before(lines, hashes, anchor or FIRST_PREVIOUS)

    def _file(self, number: int) -> bytes:
        try:
            return self.store.read(self.key(number))
        except NotFoundError as error:
            raise _missing(number, self.store.url(self.key(number))) from error

    def _read_on(self, expected: int = 0, read: bytes = b"") -> None:
        """Reads file after file until there is none.

        Args:
            expected: Number of an entry that is probably there: up to it, files are read side by side.
            read: The next file, if it was read already.
        """
        known = self.known
        given = [read] if read else []
        keys = (self.key(number) for number in count(known.count + len(given) + 1))
        soon = ahead(self.store, self.store.read, islice(keys, max(expected - known.count, 0)))
        try:
            for data in chain(given, soon, map(self.store.read, keys)):
                number = known.count + 1
                entry = decode(data, number, self.store.url(self.key(number)))
                self._follows(entry, known.last_sha256)
                known.add(data, entry)
        except NotFoundError:
            return

    def following(self, entry: Entry) -> Entry | None:
        """The entry after this one, or None.

        Raises:
            CorruptError: It was not written after this one.
        """
        try:
            data = self.store.read(self.key(entry.number + 1))
        except NotFoundError:
            return None
        found = decode(data, entry.number + 1, self.store.url(self.key(entry.number + 1)))
        self._follows(found, entry.sha256)
        return found

    def _follows(self, entry: Entry, previous: str) -> None:
        if entry.prev_sha256 == previous:
            return
        if entry.number == 1:
            where = self.store.url(self.key(1))
            raise CorruptError("journal entry 1 is not a first entry", where=where, todo=TODO)
        before = entry.number - 1
        raise _changed(before, entry.prev_sha256, previous, self.store.url(self.key(before)))

    def at_hint(self, hint: tuple[int, str]) -> Entry:
        """The entry that a hint names.

        Raises:
            CorruptError: It is missing or another one.
        """
        number, sha256 = hint
        where = self.store.url(self.key(number))
        try:
            data = self.store.read(self.key(number))
        except NotFoundError as error:
            raise _missing(number, where) from error
        entry = decode(data, number, where)
        if entry.sha256 != sha256:
            raise CorruptError(f"journal entry {number} was changed", where=where, todo=TODO)
        return entry

    def _hint(self) -> tuple[int, str]:
        return read_hint(self.store, f"{self.root}/HEAD") or (0, "")

    def _check_tail(self, hint: tuple[int, str], newest: int) -> None:
        """A hole in the middle looks like an end; the hint and the snapshots know better."""
        known = self.known
        number, sha256 = hint
        if max(number, newest) > known.count:
            key = self.key(known.count + 1)
            if not self.store.exists(key):
                raise _missing(known.count + 1, self.store.url(key))
        elif number > known.base and known.hashes[number - known.base - 1] != sha256:
            where = self.store.url(self.key(number))
            raise CorruptError(f"journal entry {number} was changed", where=where, todo=TODO)


def read_hint(store: Store, key: str) -> tuple[int, str] | None:
    """Number and hash of an entry that somebody wrote down; None when there is none, or a broken one."""
    try:
        hint = json.loads(store.read(key))
        return int(hint["number"]), str(hint["sha256"])
    except (NotFoundError, ValueError, KeyError, TypeError):
        return None


def write_hint(store: Store, key: str, entry: Entry) -> None:
    """Writes an entry's number and hash down. It may lag behind, and a failure is none: the entry is safe."""
    try:
        data = canonical_json({"number": entry.number, "sha256": entry.sha256})
        store.put(key, data, durable=False)
    except (TransientError, ContractError):
        return


def _missing(number: int, where: str) -> CorruptError:
    return CorruptError(f"journal entry {number} is missing", where=where, todo=TODO)


def _changed(number: int, expected: str, found: str, where: str) -> CorruptError:
    return CorruptError(
        f"journal entry {number} was changed or inserted",
        expected=f"sha256 {expected}, which entry {number + 1} was written after",
        found=f"sha256 {found}",
        where=where,
        todo=TODO,
    )
