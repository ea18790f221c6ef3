"""Row keys of many shards in one object: a table of a thousand shards opens with a few requests.

A block is a cache. Its keys are compared with the digest that the journal's entry names, exactly as those of
a shard are, and a block that is missing, broken or out of date only costs time: the shards are asked instead.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .errors import ContractError, CorruptError, NotFoundError, TransientError
from .keys import canonical_json
from .objects import LocalStore, Store
from .row_keys import Keys, digest_of, encode, from_bytes, sorted_order
from .shards import TODO, Shard, load_columns

__all__ = ["ShardKeys", "check_keys", "keys_of_shards", "readers"]

BLOCK_SHARDS = 64  # so many new shards are worth a block
_MOST_BLOCKS = 8  # more of them are written anew as one
_FORMAT = 1


@dataclass(frozen=True)
class ShardKeys:
    """What the index keeps of one shard.

    Attributes:
        keys: Of its rows, in their order.
        odd: Those that are no SHA-256, see `row_keys.encode`.
        failed: [N] bool.
        read: Whether it was read from the shard itself, not from a block.
    """

    keys: Keys
    odd: dict[bytes, str]
    failed: npt.NDArray[np.bool_]
    read: bool


def readers(store: Store) -> int:
    """How many shards are read at a time: a folder answers at once, an object store after a while."""
    return 1 if isinstance(store, LocalStore) else 16


def check_keys(shard: Shard, row_keys_digest: str, keys: Keys, odd: dict[bytes, str]) -> None:
    """Raises CorruptError unless these are the rows that the shard's entry names."""
    ordered = keys.take(sorted_order(keys))
    # In a merged shard a key may be there twice: a failure, and the row that made it good.
    first = np.ones(len(keys), np.bool_)
    first[1:] = ordered.head[1:] != ordered.head[:-1]
    first[1:] |= np.any(ordered.rest[1:] != ordered.rest[:-1], axis=1)
    if len(keys) != shard.rows or digest_of(ordered.take(first), odd) != row_keys_digest:
        raise CorruptError("a shard does not hold the rows of its journal entry", where=shard.key, todo=TODO)


def keys_of_shards(store: Store, wanted: Sequence[tuple[Shard, str]]) -> Iterator[ShardKeys]:
    """Keys of each shard with its `row_keys_digest`, in this order; the shards of one table.

    Raises:
        CorruptError: A shard does not hold what its entry says.
    """
    if not wanted:
        return
    root = f"{wanted[0][0].key.rpartition('/shards/')[0]}/keys/"
    many = len(wanted) >= BLOCK_SHARDS
    blocks = _Blocks(store, root) if many else None

    def one(of: tuple[Shard, str]) -> ShardKeys:
        shard, digest = of
        known = blocks.get(shard, digest) if blocks else None
        return known or _from_shard(store, shard, digest)

    fresh: list[tuple[Shard, ShardKeys]] = []
    with ThreadPoolExecutor(readers(store)) as pool:
        for start in range(0, len(wanted), BLOCK_SHARDS):  # bounds what is read ahead
            part = wanted[start : start + BLOCK_SHARDS]
            found = pool.map(one, part) if readers(store) > 1 else map(one, part)
            for (shard, _), keys in zip(part, found, strict=True):
                if keys.read and not keys.odd:
                    fresh.append((shard, keys))
                yield keys
    if blocks is not None and len(fresh) >= BLOCK_SHARDS:
        blocks.add(fresh, [shard.key for shard, _ in wanted])


def _from_shard(store: Store, shard: Shard, digest: str) -> ShardKeys:
    part = load_columns(store, shard, ["row_key", "status"], keep=False)
    keys, odd = encode(part.column("row_key"))
    check_keys(shard, digest, keys, odd)
    statuses = cast("list[str]", part.column("status").to_pylist())
    failed = np.fromiter((status == "failed" for status in statuses), np.bool_, len(statuses))
    return ShardKeys(keys, odd, failed, True)


class _Blocks:
    """The blocks of one table. Bodies stay bytes; nothing is parsed before it is asked for."""

    def __init__(self, store: Store, root: str) -> None:
        self._store = store
        self._root = root
        self._names: list[str] = []
        self._place: dict[str, tuple[bytes, int, int]] = {}
        try:
            for name in list(store.list(root)):
                self._read(name)
        except (TransientError, ContractError):
            return

    def _read(self, name: str) -> None:
        try:
            head, _, body = self._store.read(name).partition(b"\n")
            said = cast("dict[str, Any]", json.loads(head))
            whole = said["format"] == _FORMAT and hashlib.sha256(body).hexdigest() == said["sha256"]
            shards = cast("list[tuple[str, int]]", said["shards"]) if whole else []
        except (NotFoundError, ValueError, KeyError, TypeError):
            return
        self._names.append(name)
        at = 0
        for key, rows in shards:
            self._place[key] = (body, at, rows)
            at += rows * 33

    def get(self, shard: Shard, digest: str) -> ShardKeys | None:
        """What a block says of this shard, if it is what the journal says; None otherwise."""
        if shard.key not in self._place:
            return None
        body, at, rows = self._place[shard.key]
        raw = np.frombuffer(body, np.uint8, rows * 32, at).reshape(rows, 32)
        failed = np.frombuffer(body, np.uint8, rows, at + rows * 32)
        keys = from_bytes(raw)
        try:
            check_keys(shard, digest, keys, {})
        except CorruptError:
            return None
        return ShardKeys(keys, {}, failed.astype(np.bool_), False)

    def add(self, fresh: Sequence[tuple[Shard, ShardKeys]], current: Sequence[str]) -> None:
        """Writes what had to be read from shards; a cache: the next one tries again when it fails."""
        said: list[tuple[str, int]] = []
        parts: list[bytes] = []
        replaced: list[str] = []
        if len(self._names) >= _MOST_BLOCKS:
            replaced = self._names
            for key in current:
                if key in self._place:
                    body, at, rows = self._place[key]
                    said.append((key, rows))
                    parts.append(body[at : at + rows * 33])
        for shard, found in fresh:
            said.append((shard.key, shard.rows))
            parts += [found.keys.raw().tobytes(), found.failed.astype(np.uint8).tobytes()]
        body = b"".join(parts)
        head = {"format": _FORMAT, "shards": said, "sha256": hashlib.sha256(body).hexdigest()}
        try:
            data = canonical_json(head) + b"\n" + body
            self._store.put(f"{self._root}{uuid.uuid4().hex}.bin", data, durable=False)
            for name in replaced:
                self._store.delete(name)
        except (TransientError, ContractError):
            return
