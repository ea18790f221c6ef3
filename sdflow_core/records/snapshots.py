"""Snapshots of a journal: 256 entries in one object, so that ten thousand are read in forty.

`<root>/snapshots/0000000512.jsonl` holds the very bytes of the entries 257..512, a line each. It is a cache:
it may be deleted at any time, and it is believed only where the hash of its last line is the one that the
chain of entries names. The chain of hashes inside it then vouches for every other line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .entries import previous_of
from .errors import NotFoundError
from .keys import sha256_hex
from .objects import Store

__all__ = ["ENTRIES", "FOLDER", "Snapshot", "listed", "read_snapshot", "snapshot_key", "write_snapshot"]

ENTRIES = 256  # of one snapshot
FOLDER = "snapshots"
_NAME = re.compile(r"(\d{10})\.jsonl")


@dataclass(frozen=True)
class Snapshot:
    """Entries `last - 255 .. last`: their bytes and hashes, chained to each other.

    Attributes:
        last: Number of the last entry.
        lines: Bytes of each entry.
        hashes: SHA-256 of each line.
        previous: What the first one was written after.
    """

    last: int
    lines: list[bytes]
    hashes: list[str]
    previous: str


def snapshot_key(root: str, last: int) -> str:
    """Where the snapshot lies that ends with this entry."""
    return f"{root}/{FOLDER}/{last:010d}.jsonl"


def listed(store: Store, root: str) -> list[int]:
    """Last numbers of all snapshots of a journal, ascending; what has no such name is passed over."""
    at = f"{root}/{FOLDER}/"
    found: list[int] = []
    for key in store.list(at):
        match = _NAME.fullmatch(key.removeprefix(at))
        if match and int(match[1]) > 0 and int(match[1]) % ENTRIES == 0:
            found.append(int(match[1]))
    return found


def read_snapshot(store: Store, root: str, last: int) -> Snapshot | None:
    """A snapshot whose lines follow each other; None when it is missing, cut or changed."""
    try:
        data = store.read(snapshot_key(root, last))
    except NotFoundError:
        return None
    lines = data.split(b"\n")
    if len(lines) != ENTRIES + 1 or lines.pop() != b"":
        return None
    hashes = [sha256_hex(line) for line in lines]
    previous = [previous_of(line) for line in lines]
    if hashes[:-1] != previous[1:]:
        return None
    return Snapshot(last, lines, hashes, previous[0])


def write_snapshot(store: Store, root: str, last: int, lines: Sequence[bytes], *, replace: bool) -> bool:
    """Keeps the bytes of 256 entries; says whether anything was written.

    Args:
        store: Where the journal lies.
        root: Of the journal.
        last: Number of the last of these entries.
        lines: Bytes of each.
        replace: Also when there is one already that holds something else.

    Raises:
        ContractError: The store cannot be written.
        TransientError: The store did not answer.
    """
    if len(lines) != ENTRIES or any(b"\n" in line for line in lines):
        return False  # not as we write entries: such a block is read file by file
    key = snapshot_key(root, last)
    data = b"\n".join(lines) + b"\n"
    if not replace:
        return store.create(key, data)
    try:
        if store.read(key) == data:
            return False
    except NotFoundError:
        pass
    store.put(key, data)
    return True
