"""A customer's prefix in a bucket: its objects, their names and versions, and the bytes of one version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from .errors import ContractError, NotFoundError, TransientError, UnavailableError
from .objects import Store
from .s3_bucket import Bucket, Found, bucket_of
from .s3_listing import Listed, objects
from .s3_store import S3Store, parted

__all__ = ["CHANGED", "bytes_of", "files_below", "tag_of"]

CHANGED = "the file changed between listing and reading"


def files_below(uri: str, store: Store | None) -> Iterator[tuple[str, Listed]]:
    """Objects below a prefix, or the one of this very name, sorted by name; each with its name in there.

    Not listed: marks of folders (empty, their names end with `/`), and what lies in the store, should that
    lie below the prefix.

    Raises:
        NotFoundError: There is nothing.
    """
    name, prefix = parted(uri)
    prefix = prefix.strip("/")
    bucket, at = bucket_of(name), f"{prefix}/" if prefix else ""
    bucket.check(uri, at)
    own = _own_prefix(name, at, store)
    empty = True
    for item in objects(bucket, at, uri, versions=True):
        empty = False
        is_mark = item.key.endswith("/") and not item.size_bytes
        if not is_mark and not (own and item.key.startswith(own)):
            yield item.key[len(at) :], item
    if not empty:
        return
    found = None
    if prefix:
        with suppress(NotFoundError):
            found = bucket.head(prefix, uri)
    if found is None:
        raise NotFoundError("there is nothing under this prefix", where=uri, todo="check the address")
    last = prefix.rpartition("/")[2]
    yield last, Listed(prefix, found.size_bytes, found.etag, found.version, found.mtime_ns)


def _own_prefix(bucket: str, at: str, store: Store | None) -> str:
    """Where the store lies below a source; empty where it does not."""
    if not isinstance(store, S3Store):
        return ""
    name, prefix = parted(store.uri)
    if name == bucket and (f"{prefix}/" if prefix else "") == at:
        raise ContractError(
            "the source is the store itself",
            where=store.uri,
            expected="pictures elsewhere, or below a prefix of their own in the store",
            todo="name the prefix of the pictures",
        )
    return f"{prefix}/" if name == bucket and prefix and prefix.startswith(at) else ""


def tag_of(item: Listed) -> str | None:
    """The server's name of a version: its tag, and the version's id where the bucket keeps versions."""
    if not item.version:
        return item.etag or None
    return f"{item.etag}@{item.version}"


def _once_more(
    bucket: Bucket, key: str, version: str, first: UnavailableError
) -> tuple[bytes | None, Found | None]:
    """After all retries: a server that answers other questions and not this one has lost this object.

    Raises:
        UnavailableError: The server does not answer at all.
        TransientError: It does, but not for this object.
    """
    bucket.asked(None)
    try:
        return bucket.get(key, None, version)
    except NotFoundError:
        return None, None
    except UnavailableError:
        said = f" ({first.found})" if first.found else ""
        raise TransientError(f"the object store answers, but does not give this object{said}") from None


def bytes_of(path: str, tag: str | None, size_bytes: int) -> bytes:
    """The bytes of one version.

    Args:
        path: `bucket/key`.
        tag: As `tag_of` made it; None: any version.
        size_bytes: As it was listed; 0: any.

    Raises:
        NotFoundError: It is gone.
        TransientError: Something else lies there now.
        ContractError: No permission. AccessError, UnavailableError: no matter of this object.
    """
    name, _, key = path.partition("/")
    etag, _, version = (tag or "").partition("@")
    bucket = bucket_of(name)
    try:
        data, found = bucket.get(key, None, version)
    except NotFoundError:
        data, found = None, None
    except UnavailableError as error:
        data, found = _once_more(bucket, key, version, error)
    if data is None or found is None:
        raise NotFoundError("the file vanished between listing and reading")
    # The answer names the version whose bytes it carries: nothing has to be asked again or hashed.
    if (etag and found.etag != etag) or (size_bytes and len(data) != size_bytes):
        raise TransientError(CHANGED)
    return data
