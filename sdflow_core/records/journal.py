"""An append-only sequence of entries: the one mechanism for what must not be lost or rewritten.

Entry n is the object `<root>/000000000n.json`, made with create-only semantics and never touched again. It
holds the hash of the entry before it, so a changed, missing or inserted entry is noticed and named. Three
more things know how long the journal is: `HEAD` beside the entries, the snapshots (256 entries in one object,
a cache that makes opening quick), and a witness under `heads/` in another folder of the store. All three
may lag or be deleted; `verify` asks each.

What no journal can notice from inside: a tail that was cut off together with its HEAD, its snapshots and its
witness, or a whole store that was put back to an earlier day. For that, keep the head elsewhere: `sdflow
verify --json` prints it, `sdflow verify --heads FILE` compares.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from .chain import Chain, Known, read_hint, write_hint
from .entries import FIRST_PREVIOUS, TODO, Entry, encode
from .errors import CorruptError, TransientError
from .keys import canonical_json, sha256_hex
from .objects import Store
from .snapshots import ENTRIES, FOLDER, listed, read_snapshot, snapshot_key

__all__ = ["COMPACT", "Entry", "Journal", "Rebase", "witness_key"]

_ATTEMPTS = 3
# In an entry of rows these say where the bytes lie, not what was recorded; two equal runs differ in them.
_PLACES = frozenset({"shard", "sha256"})
# The kind of entry that only says where bytes lie now, and records nothing.
COMPACT = "compact"
_TODO_CUT = "restore the journal from a backup; if it was removed on purpose, remove this witness too"

Rebase = Callable[[list[Entry], dict[str, Any]], dict[str, Any] | None]

_known: dict[tuple[str, str], Known] = {}
_known_lock = threading.Lock()


def witness_key(root: str) -> str:
    """Where the head of a journal is written down a second time, away from the journal."""
    return f"heads/{root}.json"


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
            known = _known.setdefault((store.uri, self.root), Known())
        self._chain = Chain(store, self.root, known)
        # Shared by all journals of this address in this process; who builds on entries may hold it too.
        self.lock = known.lock

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
        chain, known = self._chain, self._chain.known
        with known.lock:
            chain.refresh()
            based = known.count if after is None else after
            while True:
                if rebase is not None and known.count > based:
                    changed = rebase(list(chain.load(based + 1).since(based + 1)), payload)
                    if changed is None:
                        return None
                    payload = changed
                based = known.count
                number = based + 1
                data = encode(number, kind, payload, run, token, known.last_sha256)
                failed: TransientError | None = None
                try:
                    created = self.store.create(chain.key(number), data)
                except TransientError as error:
                    # The write may have happened all the same: look, and try again a few times.
                    attempts, failed, created = attempts + 1, error, False
                chain.refresh(written=data if created else None)
                entry = chain.load(number).entry(number) if known.count >= number else None
                if entry is not None and entry.token == token:
                    # Ours, perhaps by a lost acknowledgement.
                    write_hint(self.store, f"{self.root}/HEAD", entry)
                    write_hint(self.store, witness_key(self.root), entry)
                    chain.seal(number)
                    return entry
                if failed is not None and attempts >= _ATTEMPTS:
                    raise failed

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """Entries with a number >= start, in order, as of this call. Entry 1 is the first.

        Raises:
            CorruptError: The chain is broken.
        """
        with self.lock:
            self._chain.refresh()
            view = self._chain.load(start)
        yield from view.since(start)

    def head(self) -> Entry | None:
        """The last entry, or None. Reads the HEAD hint, then probes forward."""
        known = self._chain.known
        with known.lock:
            if not known.count:
                hint = read_hint(self.store, f"{self.root}/HEAD")
                if hint is not None:
                    entry = self._chain.at_hint(hint)
                    while (following := self._chain.following(entry)) is not None:
                        entry = following
                    return entry
            self._chain.refresh()
            return known.view().entry(known.count) if known.count else None

    def verify(self) -> int:
        """Reads every entry again from its own file and checks the chain, the hints and the snapshots.

        Returns:
            How many entries there are.

        Raises:
            CorruptError: Names the first changed, missing, inserted or cut-off entry. Not noticed: see the
                top of this module.
        """
        with self.lock:
            self._chain.read_all()
            view = self._chain.known.view()
            self._check_files(view.count)
            for last in listed(self.store, self.root):
                self._check_snapshot(last)
            hint = read_hint(self.store, f"{self.root}/HEAD")
            if hint is not None:
                self._chain.at_hint(hint)
            self._check_witness(read_hint(self.store, witness_key(self.root)))
        return view.count

    def compact(self) -> int:
        """Makes every snapshot that is missing or wrong. Nothing that is recorded changes.

        Returns:
            How many were written.

        Raises:
            CorruptError: The chain is broken; nothing was written.
            ContractError: The store cannot be written.
        """
        with self.lock:
            count = self.verify()
            lasts = range(ENTRIES, count + 1, ENTRIES)
            written = sum(self._chain.write_snapshot(last, replace=True) for last in lasts)
            self._chain.known.unsealed.clear()
        return written

    def canonical_digest(self) -> str:
        """Digest of what was recorded, in order: without time, token, run, chain and the places of bytes."""
        said = [
            [entry.kind, {key: value for key, value in entry.payload.items() if key not in _PLACES}]
            for entry in self.entries()
            if entry.kind != COMPACT
        ]
        return sha256_hex(canonical_json(said))

    # -- inside

    def _check_files(self, count: int) -> None:
        """Every file is an entry that was read, or one of ours beside them."""
        for key in self.store.list(f"{self.root}/"):
            name = key.removeprefix(f"{self.root}/")
            if name == "HEAD":
                continue
            where = self.store.url(key)
            stem, _, suffix = name.rpartition("/")[2].partition(".")
            number = int(stem) if stem.isascii() and stem.isdigit() else 0
            if key == snapshot_key(self.root, number) and number > 0 and number % ENTRIES == 0:
                continue
            if suffix != "json" or number < 1 or key != self._chain.key(number):
                raise CorruptError(
                    "a file was inserted into the journal", where=where, todo="remove this file"
                )
            if number > count:
                if self._grew(count):
                    break
                self._cut(count + 1, f"entry {number} is there")

    def _check_snapshot(self, last: int) -> None:
        """A snapshot that is whole remembers what the entries were; a broken one is only a bad cache."""
        view = self._chain.known.view()
        if last > view.count:
            if not self._grew(view.count):
                where = self.store.url(f"{self.root}/{FOLDER}")
                self._cut(view.count + 1, f"a snapshot of entry {last} in {where}")
            return
        snapshot = read_snapshot(self.store, self.root, last)
        first = last - ENTRIES + 1
        if snapshot is None or (first == 1 and snapshot.previous != FIRST_PREVIOUS):
            self._chain.known.unsealed[last] = True
            return
        for number, sha256 in enumerate(snapshot.hashes, start=first):
            if view.entry(number).sha256 != sha256:
                raise CorruptError(
                    f"journal entry {number} was changed, with all that follow it",
                    expected=f"sha256 {sha256}, as the snapshot {snapshot_key(self.root, last)} remembers",
                    found=f"sha256 {view.entry(number).sha256}",
                    where=self.store.url(self._chain.key(number)),
                    todo=f"{TODO}; if only the snapshot is wrong, remove it",
                )

    def _check_witness(self, hint: tuple[int, str] | None) -> None:
        if hint is None:
            return
        number, sha256 = hint
        view = self._chain.known.view()
        where = self.store.url(witness_key(self.root))
        if number > view.count:
            if not self._grew(view.count):
                self._cut(view.count + 1, f"the witness {where} has seen entry {number}", _TODO_CUT)
        elif number > 0 and view.entry(number).sha256 != sha256:
            raise CorruptError(
                f"journal entry {number} was changed",
                expected=f"sha256 {sha256}, as the witness {where} remembers",
                found=f"sha256 {view.entry(number).sha256}",
                where=self.store.url(self._chain.key(number)),
                todo=TODO,
            )

    def _grew(self, count: int) -> bool:
        # Others may have appended while we were reading.
        return self.store.exists(self._chain.key(count + 1))

    def _cut(self, number: int, found: str, todo: str = TODO) -> None:
        raise CorruptError(
            f"journal entry {number} is missing",
            found=f"nothing from there on, but {found}",
            where=self.store.url(self._chain.key(number)),
            todo=todo,
        )
