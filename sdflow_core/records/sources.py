"""A customer's folder of files: listed and read, never written."""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from .errors import ContractError, NotFoundError, TransientError
from .objects import LocalStore, Store, filesystem

__all__ = ["SourceFolder", "SourceItem", "open_source"]

_STORE = "store:"


@dataclass(frozen=True)
class SourceItem:
    """One file as it was listed.

    Attributes:
        name: Relative to the folder, `/` between parts. Bytes that are no UTF-8 are written as `\\xNN`.
        uri: Where it lies; `store:<key>` inside the store itself, so that a store can be moved.
        size_bytes: Its size; 0 where it cannot be known.
        mtime_ns: Time of the last change, where known.
        etag: The server's name of this version, where there is one.
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
        if "://" in self.uri:
            yield from self._list_remote()
            return
        root = Path(self.uri)
        if not root.exists():
            raise NotFoundError("the source folder does not exist", where=root, todo="check the path")
        if root.is_file():
            yield self._item(root.name, root)
            return
        yield from self._list_local(root, "")

    def _list_local(self, folder: Path, at: str) -> Iterator[SourceItem]:
        try:
            with os.scandir(folder) as scan:
                entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan]
        except OSError:
            if not at:
                raise ContractError(
                    "the source folder cannot be opened", where=folder, todo="check its permissions"
                ) from None
            # What lies inside cannot be known; one row says so, instead of a silent hole.
            yield SourceItem(_printable(at), _printable(str(folder)), 0, None, None, str(folder))
            return
        for name, is_folder in sorted(entries, key=lambda item: item[0] + "/" if item[1] else item[0]):
            path = folder / name
            if not is_folder:
                yield self._item(at + name, path)
            elif not (isinstance(self._store, LocalStore) and path == self._store.root):
                # The store may lie inside the source folder; its own files are no sources.
                yield from self._list_local(path, f"{at}{name}/")

    def _item(self, name: str, path: Path) -> SourceItem:
        uri = _printable(str(path))
        if isinstance(self._store, LocalStore) and path.is_relative_to(self._store.root):
            uri = _STORE + _printable(path.relative_to(self._store.root).as_posix())
        try:
            found = path.stat()
        except OSError:
            return SourceItem(_printable(name), uri, 0, None, None, str(path))
        return SourceItem(_printable(name), uri, found.st_size, found.st_mtime_ns, None, str(path))

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
        """All bytes of one file.

        Raises:
            NotFoundError: It is gone.
            TransientError: It may work in a moment.
            ContractError: It cannot be read: no permission, not a regular file.
        """
        try:
            if "://" in self.uri:
                return cast(bytes, filesystem(self.uri).cat_file(item.path))
            # Opening a pipe or a device would wait for ever.
            if not stat_module.S_ISREG(os.stat(item.path).st_mode):
                if os.path.isdir(item.path):
                    raise ContractError("the folder cannot be opened")
                raise ContractError("not a regular file")
            return Path(item.path).read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError("the file is gone") from error
        except PermissionError as error:
            raise ContractError("no permission to read the file") from error
        except OSError as error:
            raise TransientError("the file could not be read", found=error.strerror or str(error)) from error


def _printable(name: str) -> str:
    """Names of files are bytes; what is no UTF-8 would break every table and journal."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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
    if "://" not in uri:
        uri = str(Path(uri).expanduser().absolute())
        if store is None or isinstance(store, LocalStore):
            return SourceFolder(uri, store)
        return SourceFolder(uri, None)
    return SourceFolder(uri, store if store is not None and "://" in store.uri else None)
