"""What a store is, and the store that is a folder of this machine.

Keys are relative, with `/` between parts. `create` is the only write that records use: it is atomic and never
replaces. Local stores use a temporary file and `os.link`, S3 `If-None-Match: *`, all others fsspec's
`mode="create"`.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import ContractError, NotFoundError, SDFlowError, TransientError

__all__ = ["TEMPORARY", "LocalStore", "Stat", "Store", "open_store"]

TEMPORARY = ".tmp-"  # how names of half-written files begin; `list` passes over them
_TODO_WRITE = "choose a store that can be written with --store or SDFLOW_STORE, or change its permissions"
# Errors that say "the disk or the network had a bad moment"; everything else will not get better by itself.
_TRANSIENT = {errno.EINTR, errno.EAGAIN, errno.EIO, errno.ETIMEDOUT, errno.EBUSY, errno.ESTALE}


@dataclass(frozen=True)
class Stat:
    """What is known of an object without reading it. `etag` changes when the bytes do."""

    size_bytes: int
    mtime_ns: int | None
    etag: str


class Store(ABC):
    """Objects under keys. Values of this class can be pickled, and be used by many threads at once."""

    uri: str

    @abstractmethod
    def read(self, key: str) -> bytes:
        """All bytes. Raises NotFoundError."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Writes unless the key is taken. True: written, durable. False: it exists and was not touched."""

    @abstractmethod
    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """Writes or replaces, atomically. Only for what can be made again: caches and pictures.

        Without `durable` a power cut may lose or break it: for hints that are not trusted anyway.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is an object under this key."""

    @abstractmethod
    def stat(self, key: str) -> Stat:
        """Size and version. Raises NotFoundError."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys that start with the prefix, sorted by code point, streaming."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes the object; nothing happens when there is none."""

    @abstractmethod
    def url(self, key: str) -> str:
        """The full address, for people and other programs."""

    @abstractmethod
    def open_input(self, key: str) -> BinaryIO:
        """A seekable binary file to read from, for pyarrow. Raises NotFoundError."""

    def check(self) -> None:  # noqa: B027
        """Asks whether the store can be reached at all, before anything is begun; cheap, and soon at an end.

        Raises:
            AccessError: Credentials, clock, bucket or endpoint are wrong.
            UnavailableError: It does not answer.
        """

    def check_writable(self) -> None:
        """Writes and removes a small object, after `check`.

        Raises:
            ContractError: The store cannot be written.
            UnavailableError: It does not answer.
        """
        self.check()
        key = f"tmp/probe-{uuid.uuid4().hex}"
        self.create(key, b"probe")
        self.delete(key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return open_store, (self.uri,)


def open_store(uri: str) -> Store:
    """Opens a store; nothing is read or written yet.

    Args:
        uri: A plain path, `file://...`, or any other fsspec address such as `s3://bucket/prefix`.

    Raises:
        ContractError: The address is empty or of an unknown scheme.
    """
    if not uri:
        raise ContractError("the store has no address", todo="pass --store or set SDFLOW_STORE")
    if uri.startswith("file://"):
        return LocalStore(uri.removeprefix("file://"))
    if uri.startswith(("s3://", "s3a://")):
        from .s3_store import S3Store  # it builds on this module

        return S3Store(uri)
    if "://" in uri:
        from .remote import RemoteStore

        return RemoteStore(uri)
    return LocalStore(uri)


def checked_key(key: str) -> str:
    parts = key.split("/")
    if (
        not key
        or key.startswith("/")
        or "\\" in key
        or "\0" in key
        or any(p in ("", ".", "..") for p in parts)
    ):
        raise ContractError("a key does not name a place inside the store", expected="a/b/c", found=repr(key))
    if parts[-1].startswith(TEMPORARY):
        raise ContractError("a key has a name that is reserved", found=repr(key))
    return key


def write_error(error: OSError, where: str) -> SDFlowError:
    """The right kind of error for a failed write."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in _TRANSIENT or isinstance(error, ConnectionError | TimeoutError):
        return TransientError("writing to the store failed", found=reason, where=where)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    todo = "free some space, or choose another store" if full else _TODO_WRITE
    return ContractError("the store cannot be written", found=reason, where=where, todo=todo)


def read_error(error: OSError, where: str) -> SDFlowError:
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return NotFoundError("there is no such object in the store", where=where)
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in _TRANSIENT or isinstance(error, ConnectionError | TimeoutError):
        return TransientError("reading from the store failed", found=reason, where=where)
    return ContractError("an object cannot be read", found=reason, where=where, todo="check its permissions")


class LocalStore(Store):
    """A folder of this machine, or one mounted on it. Made at the first write."""

    def __init__(self, path: str) -> None:
        self.root = Path(path).expanduser().absolute()
        self.uri = str(self.root)

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def url(self, key: str) -> str:
        return str(self._path(key))

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except OSError as error:
            raise read_error(error, self.url(key)) from error

    def _temporary(self, path: Path, data: bytes, durable: bool = True) -> Path:
        """Writes the bytes beside their place, under a name that `list` passes over."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        # Key files are for their owner alone.
        mode = 0o600 if path.suffix == ".key" else 0o666
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        return temporary

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        try:
            if path.exists():
                return False
            temporary = self._temporary(path, data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)
            return True
        except OSError as error:
            raise write_error(error, str(path)) from error

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        path = self._path(key)
        try:
            os.replace(self._temporary(path, data, durable), path)
            if durable:
                _sync_folder(path.parent)
        except OSError as error:
            raise write_error(error, str(path)) from error

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def stat(self, key: str) -> Stat:
        try:
            found = self._path(key).stat()
        except OSError as error:
            raise read_error(error, self.url(key)) from error
        if not stat_module.S_ISREG(found.st_mode):
            raise NotFoundError("there is no such object in the store", where=self.url(key))
        return Stat(found.st_size, found.st_mtime_ns, f"{found.st_mtime_ns:x}-{found.st_size:x}")

    def list(self, prefix: str = "") -> Iterator[str]:
        folder = prefix.rpartition("/")[0]
        if folder:
            checked_key(folder)
        yield from _walk(self.root / folder, f"{folder}/" if folder else "", prefix)

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise write_error(error, self.url(key)) from error

    def open_input(self, key: str) -> BinaryIO:
        try:
            return self._path(key).open("rb")
        except OSError as error:
            raise read_error(error, self.url(key)) from error


def _sync_folder(folder: Path) -> None:
    """Makes a new name durable: without it a power cut may forget the name of a synced file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync folders; their rename is durable by itself.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _walk(folder: Path, at: str, prefix: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as scan:
            entries = [(entry.name, entry.is_dir()) for entry in scan if not entry.name.startswith(TEMPORARY)]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise read_error(error, str(folder)) from error
    # A folder sorts as "name/", so that the order is that of whole keys, as object stores list them.
    for name, is_folder in sorted(entries, key=lambda item: item[0] + "/" if item[1] else item[0]):
        key = at + name
        if is_folder:
            inside = key + "/"
            if inside.startswith(prefix) or prefix.startswith(inside):
                yield from _walk(folder / name, inside, prefix)
        elif key.startswith(prefix):
            yield key
