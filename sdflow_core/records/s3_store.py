"""A store in a bucket of S3, or of any server that speaks its language."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from .errors import ContractError, NotFoundError
from .objects import Stat, Store, checked_key
from .s3_bucket import Bucket, bucket_of
from .s3_listing import objects

__all__ = ["S3Store", "parted"]

_AHEAD_BYTES = 256 * 1024  # a piece that is fetched at once where less was asked for


def parted(uri: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`, as they stand: keys of S3 know no escapes."""
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    return bucket, prefix


class S3Store(Store):
    """Objects under a prefix of a bucket. All methods may be called from many threads at once.

    Pictures and records take the same way: `create` is one request, a PUT with `If-None-Match: *`.
    """

    def __init__(self, uri: str) -> None:
        bucket, prefix = parted(uri)
        prefix = prefix.strip("/")
        self.uri = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._name = bucket
        self._at = f"{prefix}/" if prefix else ""
        self._known: tuple[int, Bucket] | None = None

    @property
    def _bucket(self) -> Bucket:
        if self._known is None or self._known[0] != os.getpid():
            self._known = os.getpid(), bucket_of(self._name)
        return self._known[1]

    def _key(self, key: str) -> str:
        return self._at + checked_key(key)

    def url(self, key: str) -> str:
        return f"{self.uri}/{checked_key(key)}"

    def read(self, key: str) -> bytes:
        return self._bucket.get(self._key(key), self.url(key))[0]

    def create(self, key: str, data: bytes) -> bool:
        return self._bucket.create(self._key(key), data, self.url(key))

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        self._bucket.put(self._key(key), data, self.url(key))

    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except NotFoundError:
            return False
        return True

    def stat(self, key: str) -> Stat:
        found = self._bucket.head(self._key(key), self.url(key))
        return Stat(found.size_bytes, found.mtime_ns, found.version or found.etag)

    def list(self, prefix: str = "") -> Iterator[str]:
        folder = prefix.rpartition("/")[0]
        if folder:
            checked_key(folder)
        start = len(self._at)
        for item in objects(self._bucket, self._at + prefix, self.uri):
            if not item.key.endswith("/"):  # a mark that some programs leave for a folder
                yield item.key[start:]

    def delete(self, key: str) -> None:
        self._bucket.delete(self._key(key), self.url(key))

    def open_input(self, key: str) -> BinaryIO:
        return cast(BinaryIO, _Input(self._bucket, self._key(key), self.url(key)))

    def check(self) -> None:
        self._bucket.check(self.uri, self._at)

    def check_writable(self) -> None:
        self.check()
        key = f"tmp/probe-{uuid.uuid4().hex}"
        self.create(key, b"probe")
        self.delete(key)


class _Input(io.RawIOBase):
    """One object, read piece by piece; every piece is of the version that was opened."""

    def __init__(self, bucket: Bucket, key: str, where: str) -> None:
        super().__init__()
        self._bucket, self._key, self._where = bucket, key, where
        self._at = 0
        # What knows tables begins at their end.
        self._piece, found = bucket.tail(key, where, _AHEAD_BYTES)
        self._size, self._etag = found.size_bytes, found.etag
        self._start = self._size - len(self._piece)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if self._at < 0:
            raise ContractError("a place before the beginning of an object", where=self._where)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self._at, 0)
        size = left if size is None or size < 0 else min(size, left)
        if not size:
            return b""
        first = self._at - self._start
        if first < 0 or first + size > len(self._piece):
            end = min(self._at + max(size, _AHEAD_BYTES), self._size)
            self._piece = self._bucket.part(self._key, self._where, self._at, end, self._etag)
            self._start, first = self._at, 0
        self._at += size
        return self._piece[first : first + size]

    def readall(self) -> bytes:
        return self.read()
