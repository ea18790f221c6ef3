"""What lies in a bucket, page by page, sorted by code point; never more than a bounded number held.

S3 lists by the bytes of the whole key, and so do most servers. SeaweedFS goes through its folders: `a/b`
comes before `a-b`. Then names are held back until no smaller one can follow, on disk where they are many.
"""

from __future__ import annotations

import heapq
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from typing import IO, Any, cast

from .errors import AccessError, ContractError, NotFoundError
from .s3_bucket import Bucket, Found

__all__ = ["Listed", "in_order", "objects"]

_HELD = 20_000  # names in memory, some 8 MB
_HEADS = 16  # questions at a time where a listing does not tell versions
_BLOCK = 16 * 1024  # of each sorted run, in memory


@dataclass(frozen=True, slots=True, order=True)
class Listed:
    """One object of a listing.

    Attributes:
        key: Its key in the bucket.
        size_bytes: Its size.
        etag: Its tag, without quotes.
        version: The id of its version; empty where the bucket keeps none, or does not tell.
        mtime_ns: When it was written.
    """

    key: str
    size_bytes: int
    etag: str
    version: str
    mtime_ns: int | None


def objects(bucket: Bucket, prefix: str, where: str, *, versions: bool = False) -> Iterator[Listed]:
    """Objects whose keys start with a prefix, sorted by code point, streaming.

    A page that fails is asked for again; nothing is yielded twice and nothing left out. What is written or
    removed while this runs may be seen or not.

    Args:
        bucket: Where.
        prefix: How the keys begin.
        where: The address, for people.
        versions: Tell the version of each object, where the bucket keeps versions and may be asked.

    Raises:
        ContractError: It may not be listed, or comes in no order that is known.
        UnavailableError: It does not answer.
    """
    keeps, server = _versioning(bucket, where) if versions else (False, "")
    pages = _Pages(bucket, prefix, where, server)
    # SeaweedFS leaves out objects where pages of versions meet: there each object is asked for its own.
    listing = pages.with_versions() if keeps and not pages.by_folders else pages.plain()
    first = next(listing, [])
    found = _chained(first, listing)
    ordered = in_order(found, prefix) if pages.by_folders else _checked(found, where)
    if keeps and pages.by_folders:
        yield from _asked(bucket, ordered)
    else:
        yield from ordered


def in_order(found: Iterable[Listed], prefix: str, *, held: int = _HELD) -> Iterator[Listed]:
    """Sorts what comes folder by folder; holds back only what a later name may precede.

    Of siblings, only those that begin with the name of an earlier one can precede what lies in it: `a-b` is
    smaller than `a/b`, but comes after the whole folder `a`.

    Args:
        found: Objects, each folder's names in order.
        prefix: How all keys begin.
        held: So many are held in memory; more go to a temporary file.
    """
    start = len(prefix.rpartition("/")[0]) + 1 if "/" in prefix else 0
    waiting: list[Listed] = []
    first = ""
    spool: _Spool | None = None
    try:
        for item in found:
            name = item.key[start:].partition("/")[0]
            if waiting or spool is not None:
                if not name.startswith(first):
                    yield from _merged(waiting, spool)
                    waiting, spool, first = [], _closed(spool), name
            else:
                first = name
            waiting.append(item)
            if len(waiting) >= held:
                spool = spool or _Spool()
                spool.add(sorted(waiting))
                waiting = []
        yield from _merged(waiting, spool)
    finally:
        _closed(spool)


def _merged(waiting: list[Listed], spool: _Spool | None) -> Iterator[Listed]:
    waiting.sort()
    yield from waiting if spool is None else heapq.merge(waiting, *spool.runs())


def _closed(spool: _Spool | None) -> None:
    if spool is not None:
        spool.close()


class _Spool:
    """Sorted runs in one temporary file without a name."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="sdflow-listing-")  # noqa: SIM115
        self._bounds = [0]

    def add(self, run: list[Listed]) -> None:
        self._file.writelines(json.dumps(astuple(item)).encode() + b"\n" for item in run)
        self._file.flush()
        self._bounds.append(self._file.tell())

    def runs(self) -> list[Iterator[Listed]]:
        return [self._run(start, end) for start, end in zip(self._bounds, self._bounds[1:], strict=False)]

    def _run(self, at: int, end: int) -> Iterator[Listed]:
        rest = b""
        while at < end:
            block = os.pread(self._file.fileno(), min(_BLOCK, end - at), at)
            at += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield Listed(*json.loads(line))

    def close(self) -> None:
        self._file.close()


def _checked(found: Iterable[Listed], where: str) -> Iterator[Listed]:
    last = ""
    for item in found:
        if item.key < last:
            raise ContractError(
                "the object store lists its keys in another order than S3",
                expected="sorted by the bytes of the key",
                where=where,
                todo="set SDFLOW_S3_LISTING=folders if it lists folder by folder; no other order is known",
            )
        last = item.key
        yield item


def _chained(first: list[Listed], pages: Iterator[list[Listed]]) -> Iterator[Listed]:
    yield from first
    for page in pages:
        yield from page


def _versioning(bucket: Bucket, where: str) -> tuple[bool, str]:
    """Whether a bucket keeps versions, as far as it may be asked, and what the server calls itself."""
    try:
        said = bucket.call("get_bucket_versioning", "list", where)
    except AccessError:
        raise
    except ContractError:
        return False, ""
    return said.get("Status") in ("Enabled", "Suspended"), _server(said)


def _server(said: dict[str, Any]) -> str:
    headers = cast("dict[str, Any]", said.get("ResponseMetadata", {}).get("HTTPHeaders", {}))
    return str(headers.get("server", ""))


class _Pages:
    """The pages of one listing. `by_folders` is known after the first."""

    def __init__(self, bucket: Bucket, prefix: str, where: str, server: str) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._where = where
        self.by_folders = False
        self._note(server)

    def _note(self, server: str) -> None:
        said = os.environ.get("SDFLOW_S3_LISTING", "")
        if said not in ("", "folders", "keys"):
            raise ContractError("the setting SDFLOW_S3_LISTING", expected="folders or keys", found=repr(said))
        self.by_folders = said == "folders" or (not said and "seaweedfs" in server.lower())

    def plain(self) -> Iterator[list[Listed]]:
        token = last = ""
        while True:
            page = self._page(token, last)
            self._note(_server(page))
            found = [_listed(one) for one in page.get("Contents", [])]
            yield found
            if not page.get("IsTruncated"):
                return
            token = str(page.get("NextContinuationToken") or "")
            last = found[-1].key if found else last

    def _page(self, token: str, last: str) -> dict[str, Any]:
        ask = self._bucket.call
        if not token:
            after = {"StartAfter": last} if last else {}
            return ask("list_objects_v2", "list", self._where, Prefix=self._prefix, **after)
        try:
            return ask("list_objects_v2", "list", self._where, Prefix=self._prefix, ContinuationToken=token)
        except AccessError:
            raise
        except ContractError:
            if not last:
                raise
            # the server has forgotten the token, as after a restart: go on behind the last name
            return ask("list_objects_v2", "list", self._where, Prefix=self._prefix, StartAfter=last)

    def with_versions(self) -> Iterator[list[Listed]]:
        at: dict[str, str] = {}
        while True:
            try:
                page = self._bucket.call(
                    "list_object_versions", "list", self._where, Prefix=self._prefix, **at
                )
            except AccessError:
                raise
            except ContractError:
                if at:
                    raise
                yield from self.plain()  # no permission for versions: the tag names what is there
                return
            yield [_listed(one) for one in page.get("Versions", []) if one.get("IsLatest")]
            if not page.get("IsTruncated"):
                return
            at = {"KeyMarker": str(page["NextKeyMarker"])}
            if page.get("NextVersionIdMarker"):
                at["VersionIdMarker"] = str(page["NextVersionIdMarker"])


def _listed(said: dict[str, Any]) -> Listed:
    version = said.get("VersionId")
    modified: Any = said.get("LastModified")
    return Listed(
        str(said["Key"]),
        int(said.get("Size") or 0),
        str(said.get("ETag") or "").strip('"'),
        "" if version in (None, "null") else str(version),
        int(modified.timestamp()) * 10**9 if modified is not None else None,
    )


def _asked(bucket: Bucket, found: Iterable[Listed]) -> Iterator[Listed]:
    """With the version that a HEAD tells, a few at a time."""

    def head(item: Listed) -> Found | None:
        try:
            return bucket.head(item.key, None)
        except NotFoundError:
            return None  # removed since

    def told(items: list[Listed]) -> Iterator[Listed]:
        for item, said in zip(items, pool.map(head, items), strict=True):
            if said is not None:
                yield Listed(item.key, said.size_bytes, said.etag, said.version, said.mtime_ns)

    with ThreadPoolExecutor(_HEADS, thread_name_prefix="sdflow-heads") as pool:
        batch: list[Listed] = []
        for item in found:
            batch.append(item)
            if len(batch) == 64 * _HEADS:
                yield from told(batch)
                batch = []
        yield from told(batch)
