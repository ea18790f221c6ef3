"""A customer's folder of files: listed and read, never written."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat as stat_module
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import quote_from_bytes, unquote_to_bytes

from .errors import ContractError, NotFoundError, SDFlowError, TransientError
from .objects import LocalStore, Store
from .remote import filesystem
from .s3_source import CHANGED as _CHANGED
from .s3_source import bytes_of, files_below, tag_of

__all__ = ["MAX_FILE_BYTES", "SourceFolder", "SourceItem", "UnfitError", "open_source"]

MAX_FILE_BYTES = 512 * 2**20  # 50 million pixels of 8 bytes, the largest that is decoded, and some more
_STORE = "store:"
_ESCAPE = re.compile(r"\\x[0-9a-f]{2}")
_KINDS = (
    (stat_module.S_ISFIFO, "a pipe, not a file"),
    (stat_module.S_ISSOCK, "a socket, not a file"),
    (stat_module.S_ISDIR, "a link to a folder; only folders themselves are looked into"),
)
_CHANGING = "the file changed while it was read"


class UnfitError(ContractError):
    """What was listed is no file that could be read, today or later: a pipe, a circle of links, too large."""


@dataclass(frozen=True)
class SourceItem:
    """One file as it was listed.

    Attributes:
        name: Relative to the folder, `/` between parts. Bytes that are no UTF-8 are written as `\\xNN`, and
            backslashes of such a name as two; all other names stand as they are.
        uri: Where it lies; `store:<key>` inside the store itself, so that a store can be moved.
        size_bytes: Its size; 0 where it cannot be known, and of what is no file.
        mtime_ns: Time of the last change, where known and of a file.
        etag: The server's name of this version, where there is one: its tag, and behind an `@` the version's
            id where the bucket keeps versions. Exactly that version is read.
        path: Where reading finds it, in characters that every record can hold: percent-encoded where local.
    """

    name: str
    uri: str
    size_bytes: int
    mtime_ns: int | None
    etag: str | None
    path: str = field(repr=False, default="")


class SourceFolder:
    """A folder, a prefix or a single file. See `open_source`."""

    def __init__(self, uri: str, store: Store | None = None) -> None:
        self.uri = uri
        self._store = store

    def list(self) -> Iterator[SourceItem]:
        """All files below the folder, sorted by name. Folders that cannot be opened are listed as one item.

        Raises:
            NotFoundError: There is no such folder.
        """
        if self.uri.startswith("s3://"):
            yield from self._list_s3()
            return
        if "://" in self.uri:
            yield from self._list_remote()
            return
        root = Path(self.uri)
        if not root.exists():
            raise NotFoundError(
                "the source folder does not exist", where=root, todo="check the path of the source"
            )
        if root.is_file():
            yield self._item(root.name, root)
            return
        yield from self._list_local(root)

    def _list_local(self, root: Path) -> Iterator[SourceItem]:
        # a list of what is left, not recursion: folders may lie a thousand deep
        left: list[tuple[str, Path, bool]] = [("", root, True)]
        while left:
            name, path, is_folder = left.pop()
            if not is_folder:
                yield self._item(name, path)
                continue
            if isinstance(self._store, LocalStore) and path == self._store.root and name:
                continue  # the store may lie inside the source folder; its own files are no sources
            at = f"{name}/" if name else ""
            try:
                with os.scandir(path) as scan:
                    inside = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan]
            except OSError:
                if not name:
                    raise ContractError(
                        "the source folder cannot be opened", where=path, todo="check its permissions"
                    ) from None
                # What lies inside cannot be known; one row says so, instead of a silent hole.
                yield SourceItem(_printable(at), self._uri(path), 0, None, None, _encoded(path))
                continue
            inside.sort(key=lambda found: found[0] + "/" if found[1] else found[0], reverse=True)
            left.extend((at + found, path / found, folder) for found, folder in inside)

    def _uri(self, path: Path) -> str:
        if isinstance(self._store, LocalStore) and path.is_relative_to(self._store.root):
            return _STORE + _printable(path.relative_to(self._store.root).as_posix())
        return _printable(str(path))

    def _item(self, name: str, path: Path) -> SourceItem:
        size, mtime = 0, None
        try:
            found = path.stat()
            if stat_module.S_ISREG(found.st_mode):
                size, mtime = found.st_size, found.st_mtime_ns
        except OSError:
            pass  # reading it will say why
        return SourceItem(_printable(name), self._uri(path), size, mtime, None, _encoded(path))

    def _list_s3(self) -> Iterator[SourceItem]:
        bucket = self.uri.removeprefix("s3://").partition("/")[0]
        own = f"{self._store.uri}/" if self._store is not None else None
        for name, found in files_below(self.uri, self._store):
            uri = f"s3://{bucket}/{found.key}"
            if own is not None and uri.startswith(own):
                uri = _STORE + uri.removeprefix(own)
            path = f"{bucket}/{found.key}"
            yield SourceItem(name, uri, found.size_bytes, found.mtime_ns, tag_of(found), path)

    def _list_remote(self) -> Iterator[SourceItem]:
        fs = filesystem(self.uri)
        root = self.uri.partition("://")[2].strip("/")
        scheme = self.uri.partition("://")[0]
        try:
            found = cast("dict[str, dict[str, Any]]", fs.find(root, detail=True))
        except FileNotFoundError:
            found = {}
        except (ConnectionError, TimeoutError) as error:
            raise TransientError("the source cannot be listed", found=error, where=self.uri) from error
        except OSError as error:
            raise ContractError("the source cannot be listed", found=error, where=self.uri) from error
        if not found:
            raise NotFoundError(
                "there is nothing under this prefix", where=self.uri, todo="check the address"
            )
        for path in sorted(found):
            info = found[path]
            plain = path.lstrip("/")
            name = plain.removeprefix(root).lstrip("/") or plain.rpartition("/")[2]
            uri = f"{scheme}://{plain}"
            if self._store is not None and uri.startswith(self._store.uri + "/"):
                uri = _STORE + uri.removeprefix(self._store.uri + "/")
            modified: Any = info.get("LastModified")
            mtime_ns = int(modified.timestamp() * 1e9) if hasattr(modified, "timestamp") else None
            etag = str(info["ETag"]).strip('"') if info.get("ETag") else None
            yield SourceItem(name, uri, int(info.get("size") or 0), mtime_ns, etag, path)

    def read(self, item: SourceItem) -> bytes:
        """All bytes of one file, as it was listed. May be called from many threads at once.

        Raises:
            AccessError, UnavailableError: No matter of this file: credentials, or the server as a whole.
            NotFoundError: It is gone, or the link leads nowhere.
            TransientError: It may work later: it changed meanwhile, the disk or the network has a problem.
            ContractError: No permission.
            UnfitError: It cannot be a picture: no file, a circle of links, larger than `MAX_FILE_BYTES`.
        """
        if item.size_bytes > MAX_FILE_BYTES:
            raise _too_large(item.size_bytes)
        if self.uri.startswith("s3://"):
            return bytes_of(item.path, item.etag, item.size_bytes)
        try:
            return self._read_remote(item) if "://" in self.uri else _read_local(item, _decoded(item))
        except SDFlowError:
            raise
        except OSError as error:
            raise _in_words(error, item) from error

    def _read_remote(self, item: SourceItem) -> bytes:
        fs = filesystem(self.uri)
        data = cast(bytes, fs.cat_file(item.path))
        if item.size_bytes and len(data) != item.size_bytes:
            raise TransientError(_CHANGED)
        # The tag names the version in the records. That of a plain object is the MD5 of its bytes; others are
        # asked for again.
        if item.etag and item.etag != hashlib.md5(data, usedforsecurity=False).hexdigest():
            now = cast("dict[str, Any]", fs.info(item.path)).get("ETag")
            if str(now).strip('"') != item.etag:
                raise TransientError(_CHANGED)
        return data


def _read_local(item: SourceItem, path: bytes) -> bytes:
    if item.name.endswith("/"):
        os.scandir(path).close()
        raise TransientError("the folder could not be opened when it was listed")
    # Opening a device may do something, and opening a pipe waits for ever: asked for before and after.
    _check_regular(os.stat(path), path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with open(descriptor, "rb") as file:
        before = os.fstat(descriptor)
        _check_regular(before, path)
        if (before.st_size, before.st_mtime_ns) != (item.size_bytes, item.mtime_ns):
            raise TransientError(_CHANGED)
        data = _fill(file, before.st_size)
        after = os.fstat(descriptor)
    if (after.st_size, after.st_mtime_ns) != (len(data), before.st_mtime_ns):
        raise TransientError(_CHANGING)
    return data


def _fill(file: BinaryIO, size: int) -> bytes:
    """As many bytes as the file had, and one more if it grew."""
    return file.read(size + 1)


def _check_regular(found: os.stat_result, path: bytes) -> None:
    if stat_module.S_ISREG(found.st_mode):
        return
    if stat_module.S_ISDIR(found.st_mode) and not os.path.islink(path):
        raise TransientError(_CHANGED)
    for is_kind, words in _KINDS:
        if is_kind(found.st_mode):
            raise UnfitError(words)
    raise UnfitError("a device, not a file")


def _too_large(size: int) -> UnfitError:
    return UnfitError(
        f"too large a file: {size / 2**20:,.0f} MB, the limit is {MAX_FILE_BYTES // 2**20:,} MB"
    )


def _in_words(error: OSError, item: SourceItem) -> SDFlowError:
    """An error of the system as one of ours; its own words may hold the path."""
    kind = "folder" if item.name.endswith("/") else "file"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if os.path.islink(_decoded(item)):
            return NotFoundError("the link leads to no file")
        return NotFoundError(f"the {kind} vanished between listing and reading")
    if isinstance(error, PermissionError):
        return ContractError(f"no permission to {'open the folder' if kind == 'folder' else 'read the file'}")
    if error.errno == errno.ELOOP:
        return UnfitError("the link leads in a circle")
    if error.errno == errno.ENAMETOOLONG:
        return UnfitError("the path is longer than the system can open")
    if error.errno == errno.EIO:
        return TransientError(f"the disk reported an error when the {kind} was read")
    if error.errno in (errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH):
        return TransientError("the network drive did not answer")
    return TransientError(f"the {kind} could not be read")


def _encoded(path: Path) -> str:
    return quote_from_bytes(os.fsencode(path))


def _decoded(item: SourceItem) -> bytes:
    return unquote_to_bytes(item.path)


def _printable(name: str) -> str:
    """Names of files are bytes; what is no UTF-8 would break every table and journal.

    Two names never become one: a name that already holds such an escape has its backslashes doubled.
    """
    raw = os.fsencode(name)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return text.replace("\\", "\\\\") if _ESCAPE.search(text) else text


def open_source(uri: str, store: Store | None = None) -> SourceFolder:
    """Opens a folder to ingest from; nothing is read yet.

    Args:
        uri: A path, `file://...`, `store:<key>` or any fsspec address.
        store: The store, so that files inside it are named relative to it.

    Raises:
        ContractError: `store:` without a store.
    """
    if uri.startswith(_STORE):
        if store is None:
            raise ContractError("an address inside the store needs a store", found=uri)
        uri = f"{store.uri}/{uri.removeprefix(_STORE).strip('/')}".rstrip("/")
    uri = uri.removeprefix("file://")
    if not uri:
        raise ContractError("the source has no address", todo="name a folder or a prefix")
    if uri.startswith("s3a://"):
        uri = "s3" + uri.removeprefix("s3a")  # another spelling; one place has one uri
    if "://" not in uri:
        uri = os.path.abspath(Path(uri).expanduser())  # `a/../b` and `b` are one place, and one uri
        if store is None or isinstance(store, LocalStore):
            return SourceFolder(uri, store)
        return SourceFolder(uri, None)
    return SourceFolder(uri, store if store is not None and "://" in store.uri else None)
