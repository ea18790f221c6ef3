"""One bucket: s3fs asks, lists and deletes; obstore moves bytes, where it is installed.

Both share one set of credentials and settings, those of s3fs, which are the usual chain of AWS. Built at
first use, once a process and bucket, never carried over a fork.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, cast

from .errors import ContractError, NotFoundError
from .remote_errors import Doing, error_of, fault_of
from .retrying import FIRST, STEADY, Failed, Fault, retrying
from .s3_clients import bulk_client, s3fs_client

__all__ = ["Bucket", "Found", "bucket_of"]

T = TypeVar("T")

_ASK_SECONDS = 9.0  # for the very first answer, whatever the address does
LARGE_BYTES = 32 * 2**20  # written in parts
# What obstore would change on its way: it folds empty parts, refuses dots and control characters.
_PLAIN = re.compile(r"(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f\\]+(?:/(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f\\]+)*")


@dataclass(frozen=True)
class Found:
    """What a server said of an object.

    Attributes:
        size_bytes: Its size.
        etag: Its tag, without quotes.
        version: The id of this version, where the bucket keeps versions; empty elsewhere.
        mtime_ns: When it was written.
    """

    size_bytes: int
    etag: str
    version: str
    mtime_ns: int | None


class Bucket:
    """One bucket as this process reaches it; safe for many threads.

    Raises (all methods):
        UnavailableError: It does not answer, or not as asked, after the retries of `retrying`.
        AccessError: Credentials, clock, bucket or endpoint are wrong.
        ContractError: No permission for this request, no room.
        NotFoundError: There is no such object.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._s3: Any = None
        self.fast: Any = None  # obstore, where it serves
        self._answered = False
        self._lock = threading.Lock()

    # -- requests

    def get(self, key: str, where: str | None, version: str = "") -> tuple[bytes, Found]:
        """All bytes of one object, and what they are a version of. A body that was cut is asked for again."""

        def ask() -> tuple[bytes, Found]:
            if self.fast is not None and _PLAIN.fullmatch(key):
                answer = self.fast.get(key, options={"version": version} if version else None)
                found = _found(answer.meta)
                return _whole(cast(bytes, answer.bytes().to_bytes()), found.size_bytes), found
            return self._slow_get(key, {"VersionId": version} if version else {})

        return self._call(ask, "read", where, key)

    def tail(self, key: str, where: str, size: int) -> tuple[bytes, Found]:
        """The last bytes of one object, as many as there are; `size_bytes` is that of the whole."""
        self._greet(where)
        try:
            return retrying(lambda: self._get_part(key, None, size, ""), fault_of, STEADY)
        except Failed as failed:
            fault = failed.fault
        if fault.kind == "range":  # of nothing there is no last byte
            return b"", self.head(key, where)
        raise self._error(fault, "read", where, key)

    def part(self, key: str, where: str, start: int, end: int, etag: str) -> bytes:
        """Bytes `start..end` (exclusive) of the version with this tag."""
        return self._call(lambda: self._get_part(key, start, end, etag)[0], "read", where, key)

    def put(self, key: str, data: bytes, where: str) -> None:
        """Writes or replaces."""

        def ask() -> None:
            if self.fast is not None and len(data) <= LARGE_BYTES and _PLAIN.fullmatch(key):
                self.fast.put(key, data, use_multipart=False)
            else:
                self._s3.pipe_file(f"{self.name}/{key}", data)

        self._call(ask, "write", where, key)

    def create(self, key: str, data: bytes, where: str) -> bool:
        """Writes unless the key is taken, by `If-None-Match: *`. A write whose answer was lost is ours.

        Through obstore's own `put`, not the `pipe_file` of its fsspec face: that one overwrites.
        """

        self._greet(where)
        fast = self.fast is not None and len(data) <= LARGE_BYTES and bool(_PLAIN.fullmatch(key))
        token = {"sdflow-write": uuid.uuid4().hex}

        def ask() -> None:
            if fast:
                self.fast.put(key, data, mode="create", use_multipart=False)
            else:
                self._s3.pipe_file(f"{self.name}/{key}", data, mode="create", Metadata=token)

        try:
            retrying(ask, fault_of, STEADY)
            return True
        except Failed as failed:
            lost = failed
        if lost.fault.kind != "taken":
            raise self._error(lost.fault, "write", where, key)
        # An attempt that seemed to fail may have been the one that took the key. aiohttp below s3fs, unlike
        # obstore, sends a PUT again by itself when its connection breaks, so that there every one is looked
        # at. Equal bytes are as good as ours: whoever must tell winners apart writes a token.
        if not fast:
            return self._written_with(key, token, where)
        return lost.happened and self.get(key, where)[0] == data

    def _written_with(self, key: str, token: dict[str, str], where: str) -> bool:
        try:
            said = self.call("head_object", "read", where, Key=key)
        except NotFoundError:
            return False
        return cast("dict[str, str]", said.get("Metadata", {})) == token

    def head(self, key: str, where: str | None) -> Found:
        """Size and version."""

        def ask() -> Found:
            if self.fast is not None and _PLAIN.fullmatch(key):
                return _found(self.fast.head(key))
            return _said(cast("dict[str, Any]", self._s3.call_s3("head_object", Bucket=self.name, Key=key)))

        return self._call(ask, "read", where, key)

    def delete(self, key: str, where: str) -> None:
        """Removes; nothing happens when there is nothing."""
        self.call("delete_object", "delete", where, Key=key)

    def call(self, operation: str, doing: Doing, where: str | None, **arguments: Any) -> dict[str, Any]:
        """Any other operation of S3, by its name in botocore."""

        def ask() -> dict[str, Any]:
            return cast("dict[str, Any]", self._s3.call_s3(operation, Bucket=self.name, **arguments))

        return self._call(ask, doing, where, "")

    def check(self, where: str | None, prefix: str = "") -> None:
        """Asks for one name, once a process: the answer tells whether anything is wrong, and clearly what."""
        self._greet(where, prefix)

    # -- inside

    def _call(self, ask: Callable[[], T], doing: Doing, where: str | None, key: str) -> T:
        self._greet(where)
        try:
            return retrying(ask, fault_of, STEADY)
        except Failed as failed:
            fault = failed.fault
        raise self._error(fault, doing, where, key)

    def _error(self, fault: Fault, doing: Doing, where: str | None, key: str) -> Exception:
        if fault.kind == "refused" and key:
            # Answers to HEAD have no body: a question whose answer has one says what is wrong.
            again = self._ask_again(key)
            if again is None:
                fault = Fault("permission", fault.code, fault.status)
            elif again.kind == "permission":
                doing, fault = "list", again  # who may not list is not told that an object is missing either
            else:
                fault = again
        if fault.kind == "taken":
            fault = Fault("changed", fault.code, fault.status)
        return error_of(fault, doing, where)

    def _ask_again(self, key: str) -> Fault | None:
        try:
            retrying(lambda: self._list_one(key), fault_of, FIRST)
        except Failed as failed:
            return failed.fault
        return None

    def asked(self, where: str | None) -> None:
        """Whether the server answers at all just now; a refusal is an answer.

        Raises:
            UnavailableError: It does not, after the retries.
        """
        with suppress(ContractError, NotFoundError):
            self.call("list_objects_v2", "list", where, MaxKeys=1)

    def _list_one(self, prefix: str) -> dict[str, Any]:
        asked: dict[str, Any] = {"Bucket": self.name, "Prefix": prefix, "MaxKeys": 1}
        return cast("dict[str, Any]", self._s3.call_s3("list_objects_v2", timeout=_ASK_SECONDS, **asked))

    def _greet(self, where: str | None, prefix: str = "") -> None:
        """Builds the clients and asks the first question, with little patience; later calls pass at once."""
        if self._answered:
            return
        with self._lock:
            if self._answered:
                return
            try:
                said = retrying(lambda: self._open(prefix), fault_of, FIRST)
                # A login page or an empty answer is read as a listing without anything; a real one says of
                # what it is one.
                real = bool({"Name", "KeyCount", "MaxKeys", "IsTruncated"} & set(said))
                fault = None if real else Fault("stranger")
            except Failed as failed:
                fault = failed.fault
            # An S3 server names the bucket it misses, and what troubles it; of a page that is no XML botocore
            # makes a bare 500.
            bare = fault is not None and not fault.code and fault.status == 500
            if fault is not None and (fault.kind == "missing" or bare):
                fault = Fault("stranger", fault.code, 0 if bare else fault.status)
            # Who may not list may still read or write: the request itself will tell.
            if fault is not None and fault.kind != "permission":
                raise error_of(fault, "list", where)
            self.fast = None if _bulk_is_lost else bulk_client(self._s3, self.name)
            self._answered = True

    def _open(self, prefix: str) -> dict[str, Any]:
        if self._s3 is None:
            made = s3fs_client()
            made.connect(timeout=_ASK_SECONDS)
            self._s3 = made
        return self._list_one(prefix)

    def _get_part(self, key: str, start: int | None, end: int, etag: str) -> tuple[bytes, Found]:
        if self.fast is None or not _PLAIN.fullmatch(key):
            asked = {"Range": f"bytes=-{end}" if start is None else f"bytes={start}-{end - 1}"}
            if etag:
                asked["IfMatch"] = f'"{etag}"'
            return self._slow_get(key, asked)
        options: dict[str, Any] = {"range": {"suffix": end} if start is None else (start, end)}
        if etag:
            options["if_match"] = f'"{etag}"'
        answer = self.fast.get(key, options=options)
        first, last = cast("tuple[int, int]", answer.range)
        return _whole(cast(bytes, answer.bytes().to_bytes()), last - first), _found(answer.meta)

    def _slow_get(self, key: str, asked: dict[str, str]) -> tuple[bytes, Found]:
        from fsspec.asyn import sync

        said = cast("dict[str, Any]", self._s3.call_s3("get_object", Bucket=self.name, Key=key, **asked))
        body: Any = said["Body"]
        try:
            data = cast(bytes, cast("Any", sync)(self._s3.loop, body.read))
        finally:
            body.close()
        found = _said(said)
        whole = str(said.get("ContentRange", "")).rpartition("/")[2]
        if whole.isdigit():
            found = Found(int(whole), found.etag, found.version, found.mtime_ns)
        return _whole(data, int(said["ContentLength"])), found


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ConnectionResetError("fewer bytes came than were announced")
    return data


def _found(meta: Any) -> Found:
    """What obstore says."""
    return Found(
        int(meta["size"]),
        _tag(meta.get("e_tag")),
        _version(meta.get("version")),
        _ns(meta.get("last_modified")),
    )


def _said(answer: dict[str, Any]) -> Found:
    """What botocore says."""
    return Found(
        int(answer.get("ContentLength") or 0),
        _tag(answer.get("ETag")),
        _version(answer.get("VersionId")),
        _ns(answer.get("LastModified")),
    )


def _tag(said: Any) -> str:
    return str(said or "").removeprefix("W/").strip('"')


def _version(said: Any) -> str:
    # "null" is what was written before the bucket kept versions
    return "" if said in (None, "null") else str(said)


def _ns(said: Any) -> int | None:
    return int(said.timestamp()) * 10**9 if isinstance(said, datetime) else None


# -- one a process

_buckets: dict[tuple[str, str], Bucket] = {}
_buckets_lock = threading.Lock()
_of_parents: list[dict[tuple[str, str], Bucket]] = []
_bulk_is_lost = False


def _after_fork() -> None:
    """A child has none of its parent's threads: new clients, and not the one with threads of its own.

    Those of the parent are kept: to close them here would take the parent's sockets off the list of what its
    event loop waits for, which the two share, and the parent would wait for ever.
    """
    global _buckets, _buckets_lock, _bulk_is_lost
    _bulk_is_lost = _bulk_is_lost or any(bucket.fast is not None for bucket in _buckets.values())
    _of_parents.append(_buckets)
    _buckets = {}
    _buckets_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def bucket_of(name: str) -> Bucket:
    """The clients of a bucket, shared by all stores and sources of this process with the same settings."""
    if not name:
        raise ContractError("the address names no bucket", expected="s3://bucket/prefix")
    settings = sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "SDFLOW_S3_")))
    print_ = hashlib.sha256(repr(settings).encode()).hexdigest()
    with _buckets_lock:
        return _buckets.setdefault((print_, name), Bucket(name))
