"""Any fsspec file system that is neither a folder of this machine nor S3."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from .errors import ContractError, NotFoundError
from .objects import Stat, Store, checked_key, read_error, write_error


def filesystem(uri: str) -> Any:
    """The fsspec file system of an address."""
    import fsspec

    scheme = uri.partition("://")[0]
    try:
        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        raise ContractError(
            "this kind of store is not available",
            found=f"{scheme}:// ({error})",
            todo="install the fsspec client of this scheme",
        ) from error


class RemoteStore(Store):
    """Objects of a file system; built lazily and once a process: clients are not fork-safe."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._root = self.uri.partition("://")[2]
        self._built: tuple[int, Any] | None = None

    @property
    def _fs(self) -> Any:
        if self._built is None or self._built[0] != os.getpid():
            self._built = (os.getpid(), filesystem(self.uri))
        return self._built[1]

    def _path(self, key: str) -> str:
        return f"{self._root}/{checked_key(key)}"

    def url(self, key: str) -> str:
        return f"{self.uri}/{checked_key(key)}"

    def read(self, key: str) -> bytes:
        try:
            return cast(bytes, self._fs.cat_file(self._path(key)))
        except OSError as error:
            raise read_error(error, self.url(key)) from error

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._fs.pipe_file(self._path(key), data, mode="create")
            return True
        except FileExistsError:
            return False
        except OSError as error:
            # Some clients turn "the key is taken" into EINVAL.
            if error.errno == errno.EINVAL and self.exists(key):
                return False
            raise write_error(error, self.url(key)) from error

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        try:
            self._fs.pipe_file(self._path(key), data)
        except OSError as error:
            raise write_error(error, self.url(key)) from error

    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except NotFoundError:
            return False
        return True

    def stat(self, key: str) -> Stat:
        try:
            info = cast(dict[str, Any], self._fs.info(self._path(key)))
        except OSError as error:
            raise read_error(error, self.url(key)) from error
        if info.get("type") == "directory":
            raise NotFoundError("there is no such object in the store", where=self.url(key))
        modified: Any = info.get("LastModified") or info.get("created") or info.get("mtime")
        seconds = modified.timestamp() if hasattr(modified, "timestamp") else modified
        mtime_ns = int(float(seconds) * 1e9) if seconds is not None else None
        size_bytes = int(info.get("size") or 0)
        return Stat(size_bytes, mtime_ns, str(info.get("ETag") or f"{mtime_ns}-{size_bytes}").strip('"'))

    def list(self, prefix: str = "") -> Iterator[str]:
        folder = prefix.rpartition("/")[0]
        at = f"{self._root}/{checked_key(folder)}" if folder else self._root
        try:
            paths = cast("list[str]", self._fs.find(at))
        except FileNotFoundError:
            return
        except OSError as error:
            raise read_error(error, self.uri) from error
        start = self._root.strip("/") + "/"
        for path in sorted(path.lstrip("/") for path in paths):
            key = path.removeprefix(start)
            if key.startswith(prefix):
                yield key

    def delete(self, key: str) -> None:
        try:
            self._fs.rm_file(self._path(key))
        except FileNotFoundError:
            return
        except OSError as error:
            raise write_error(error, self.url(key)) from error

    def open_input(self, key: str) -> BinaryIO:
        try:
            # Readers of tables ask for ranges that they have joined: read-ahead would fetch whole files.
            return cast(BinaryIO, self._fs.open(self._path(key), "rb", cache_type="none"))
        except OSError as error:
            raise read_error(error, self.url(key)) from error
