"""An append-only sequence of entries: the one mechanism for what must not be lost or rewritten.

Entry n is the object `<root>/000000000n.json`, made with create-only semantics and never touched again. It
holds the hash of the entry before it, so a changed, missing or inserted entry is noticed and named. `HEAD`
beside the entries is a hint that may lag or be deleted. What a chain alone cannot notice is a cut tail with
its HEAD gone: export the head.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from .errors import ContractError, CorruptError, NotFoundError, TransientError
from .keys import canonical_json, sha256_hex
from .objects import Store

__all__ = ["Entry", "Journal", "Rebase"]

FORMAT = 1
_FIRST_PREVIOUS = "0" * 64
_ATTEMPTS = 3
_TODO = "restore this file from a backup of the store; nothing after it can be trusted until then"
# In an entry of rows these say where the bytes lie, not what was recorded; two equal runs differ in them.
_PLACES = frozenset({"shard", "sha256"})


@dataclass(frozen=True)
class Entry:
    """One entry. `sha256` is the hash of the file's bytes; `prev_sha256` that of the entry before."""

    number: int
    sha256: str
    kind: str
    payload: dict[str, Any]
    time: str
    run: str | None
    token: str
    prev_sha256: str


Rebase = Callable[[list[Entry], dict[str, Any]], dict[str, Any] | None]


class _Known:
    """What this process has read of one journal. Entries never change, so they are parsed once."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.etag = ""
        self.lock = threading.RLock()


_known: dict[tuple[str, str], _Known] = {}
_known_lock = threading.Lock()


class Journal:
    """The journal under `root` of a store. Any number of processes may append at once.

    Args:
        store: Where it lies.
        root: Key of its folder.

    Example:
        >>> from sdflow_core.records.store import open_store
        >>> import tempfile
        >>> journal = Journal(open_store(tempfile.mkdtemp()), "journal")
        >>> journal.append("note", {"text": "hello"}).number
        1
        >>> [entry.payload["text"] for entry in journal.entries()]
        ['hello']
    """

    def __init__(self, store: Store, root: str) -> None:
        self.store = store
        self.root = root.strip("/")
        with _known_lock:
            self._cache = _known.setdefault((store.uri, self.root), _Known())
        # Shared by all journals of this address in this process; who builds on entries may hold it too.
        self.lock = self._cache.lock

    def _key(self, number: int) -> str:
        return f"{self.root}/{number:010d}.json"

    def append(
        self,
        kind: str,
        payload: dict[str, Any],
        *,
        run: str | None = None,
        rebase: Rebase | None = None,
        after: int | None = None,
    ) -> Entry | None:
        """Adds one entry; when this returns, it is durable.

        Args:
            kind: What kind of entry.
            payload: Plain JSON values; no personal data.
            run: The run that says so.
            rebase: Called with entries that others added meanwhile and the payload; returns the payload that
                still holds, or None when nothing is left to do. It may raise to report a conflict. Without it
                the payload is taken to hold whatever others add.
            after: Number of the last entry that the payload takes into account; default: the head at this
                call.

        Returns:
            The entry, or None when `rebase` left nothing to do.

        Raises:
            CorruptError: The chain is broken.
            ContractError: The store cannot be written, or the payload is no JSON.
            TransientError: The store did not answer.
        """
        token = uuid.uuid4().hex
        attempts = 0
        with self._cache.lock:
            seen = self._refresh()
            based = len(seen) if after is None else after
            while True:
                if rebase is not None and len(seen) > based:
                    changed = rebase(seen[based:], payload)
                    if changed is None:
                        return None
                    payload = changed
                based = len(seen)
                previous = seen[-1].sha256 if seen else _FIRST_PREVIOUS
                number = based + 1
                data = _encode(number, kind, payload, run, token, previous)
                try:
                    created = self.store.create(self._key(number), data)
                except TransientError:
                    # The write may have happened all the same: look, and try again a few times.
                    attempts += 1
                    if attempts >= _ATTEMPTS:
                        raise
                    created = False
                seen = self._refresh(written=data if created else None)
                if len(seen) >= number and seen[number - 1].token == token:
                    # Ours, perhaps by a lost acknowledgement.
                    self._hint(seen[number - 1])
                    return seen[number - 1]

    def _hint(self, entry: Entry) -> None:
        hint = canonical_json({"number": entry.number, "sha256": entry.sha256})
        try:
            self.store.put(f"{self.root}/HEAD", hint, durable=False)
        except TransientError:
            return  # only a hint, and the entry itself is safe

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """Entries with a number >= start, in order, as of this call. Entry 1 is the first.

        Raises:
            CorruptError: The chain is broken.
        """
        yield from self._refresh()[max(start - 1, 0) :]

    def head(self) -> Entry | None:
        """The last entry, or None. Reads the HEAD hint, then probes forward."""
        known = self._cache
        with known.lock:
            if not known.entries:
                hint = self._read_hint()
                if hint is not None:
                    entry = self._at_hint(hint)
                    while (following := self._read(entry.number + 1, entry.sha256)) is not None:
                        entry = following
                    return entry
            entries = self._refresh()
        return entries[-1] if entries else None

    def _read_hint(self) -> tuple[int, str] | None:
        try:
            hint = json.loads(self.store.read(f"{self.root}/HEAD"))
            return int(hint["number"]), str(hint["sha256"])
        except (NotFoundError, ValueError, KeyError, TypeError):
            return None  # no hint, or a broken one: it is a cache

    def _at_hint(self, hint: tuple[int, str]) -> Entry:
        number, sha256 = hint
        key = self._key(number)
        try:
            data = self.store.read(key)
        except NotFoundError as error:
            where = self.store.url(key)
            raise CorruptError(f"journal entry {number} is missing", where=where, todo=_TODO) from error
        entry = _decode(data, number, self.store.url(key))
        if entry.sha256 != sha256:
            raise CorruptError(f"journal entry {number} was changed", where=self.store.url(key), todo=_TODO)
        return entry

    def verify(self) -> int:
        """Reads everything again and checks the whole chain.

        Returns:
            How many entries there are.

        Raises:
            CorruptError: Names the first changed, missing or inserted entry.
        """
        with self._cache.lock:
            self._cache.entries = []
            count = len(self._refresh())
        for key in self.store.list(f"{self.root}/"):
            name = key.removeprefix(f"{self.root}/")
            if name == "HEAD":
                continue
            stem, _, suffix = name.partition(".")
            number = int(stem) if stem.isascii() and stem.isdigit() else 0
            where = self.store.url(key)
            if suffix != "json" or number < 1 or key != self._key(number):
                raise CorruptError(
                    "a file was inserted into the journal", where=where, todo="remove this file"
                )
            if number > count:
                missing = self._key(count + 1)
                if self.store.exists(missing):
                    break  # others appended while we were reading
                raise CorruptError(
                    f"journal entry {count + 1} is missing", where=self.store.url(missing), todo=_TODO
                )
        hint = self._read_hint()
        if hint is not None:
            self._at_hint(hint)
        return count

    def canonical_digest(self) -> str:
        """Digest of what was recorded, in order: without time, token, run, chain and the places of bytes."""
        said = [
            [entry.kind, {key: value for key, value in entry.payload.items() if key not in _PLACES}]
            for entry in self.entries()
        ]
        return sha256_hex(canonical_json(said))

    def _refresh(self, written: bytes | None = None) -> list[Entry]:
        """Reads what was added since the last look. The list that is returned is never changed afterwards.

        `written` is the entry that this process itself has just created after the last known one.
        """
        known = self._cache
        with known.lock:
            entries = known.entries
            if entries and written is None and not self._still_there(entries[-1], known.etag):
                entries = []
            entries = list(entries)
            before = len(entries)
            if written is not None:
                entries.append(_decode(written, before + 1, self.store.url(self._key(before + 1))))
            while True:
                previous = entries[-1].sha256 if entries else _FIRST_PREVIOUS
                entry = self._read(len(entries) + 1, previous)
                if entry is None:
                    break
                entries.append(entry)
            if before == 0 and written is None:
                self._check_tail(entries)
            if entries != known.entries:
                known.etag = self.store.stat(self._key(len(entries))).etag if entries else ""
                known.entries = entries
            return known.entries

    def _still_there(self, entry: Entry, etag: str) -> bool:
        # One cheap look: a store that was removed or restored under a running process starts afresh.
        try:
            return self.store.stat(self._key(entry.number)).etag == etag
        except NotFoundError:
            return False

    def _check_tail(self, entries: list[Entry]) -> None:
        """A hole in the middle looks like an end; the hint knows better. Only at a first reading."""
        hint = self._read_hint()
        if hint is None:
            return
        if hint[0] > len(entries):
            missing = self._key(len(entries) + 1)
            if not self.store.exists(missing):
                raise CorruptError(
                    f"journal entry {len(entries) + 1} is missing", where=self.store.url(missing), todo=_TODO
                )
        elif hint[0] > 0 and entries[hint[0] - 1].sha256 != hint[1]:
            where = self.store.url(self._key(hint[0]))
            raise CorruptError(f"journal entry {hint[0]} was changed", where=where, todo=_TODO)

    def _read(self, number: int, previous: str) -> Entry | None:
        key = self._key(number)
        try:
            data = self.store.read(key)
        except NotFoundError:
            return None
        where = self.store.url(key)
        entry = _decode(data, number, where)
        if entry.prev_sha256 != previous:
            if number == 1:
                raise CorruptError("journal entry 1 is not a first entry", where=where, todo=_TODO)
            raise CorruptError(
                f"journal entry {number - 1} was changed or inserted",
                expected=f"sha256 {entry.prev_sha256}, which entry {number} was written after",
                found=f"sha256 {previous}",
                where=self.store.url(self._key(number - 1)),
                todo=_TODO,
            )
        return entry


def _encode(
    number: int, kind: str, payload: dict[str, Any], run: str | None, token: str, previous: str
) -> bytes:
    body: dict[str, Any] = {
        "format": FORMAT,
        "number": number,
        "kind": kind,
        "payload": payload,
        "time": datetime.now(UTC).isoformat(timespec="microseconds"),
        "run": run,
        "token": token,
        "prev_sha256": previous,
    }
    # The chain only shows that *some* neighbour was changed; the checksum names the very file.
    body["checksum"] = sha256_hex(canonical_json(body))
    return canonical_json(body)


def _decode(data: bytes, number: int, where: str) -> Entry:
    try:
        body = cast(dict[str, Any], json.loads(data))
        checksum = body.pop("checksum")
        intact = checksum == sha256_hex(canonical_json(body))
        entry = Entry(
            number=body["number"],
            sha256=sha256_hex(data),
            kind=body["kind"],
            payload=body["payload"],
            time=body["time"],
            run=body["run"],
            token=body["token"],
            prev_sha256=body["prev_sha256"],
        )
        version = body["format"]
    except (ValueError, KeyError, TypeError, AttributeError, ContractError) as error:
        raise CorruptError(f"journal entry {number} cannot be read", where=where, todo=_TODO) from error
    if not intact:
        raise CorruptError(f"journal entry {number} was changed", where=where, todo=_TODO)
    if version != FORMAT:
        raise ContractError(
            "a journal entry has another format",
            expected=FORMAT,
            found=version,
            where=where,
            todo="update sdflow",
        )
    if entry.number != number:
        raise CorruptError(
            f"journal entry {number} was inserted",
            expected=number,
            found=entry.number,
            where=where,
            todo=_TODO,
        )
    return entry
