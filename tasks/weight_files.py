"""Weight files from where they lie: a folder, a bucket, a web server; brought here as files, bounded."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit, urlunsplit

from sdflow_core.records.addresses import checked_address
from sdflow_core.records.errors import ContractError, NotFoundError, SDFlowError
from sdflow_core.records.store import open_store

__all__ = ["LIMIT_BYTES", "public_address", "weight_file"]

LIMIT_BYTES = 8 * 2**30
_PIECE = 8 * 2**20
_WAIT_SECONDS = 30.0
_OK, _NOT_FOUND = 200, 404
_PASS_DIGEST = "pass --sha256 with the digest that its publisher names"


@contextmanager
def weight_file(
    uri: str, sha256: str | None = None, progress: Callable[[int], None] | None = None
) -> Generator[Path]:
    """A weight file as a path of this machine; what was fetched is removed afterwards.

    Args:
        uri: Path, `file://`, `s3://` or `https://`. `http://` only with a digest.
        sha256: What its bytes must have.
        progress: Called with the bytes fetched so far.

    Raises:
        NotFoundError: There is no such file.
        ContractError: Another scheme, more than 8 GiB, another digest, or a server that refuses.
    """
    if not uri.startswith(("https://", "http://")):  # of these, `public_address` is all that is kept
        checked_address(uri, "weight file")
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        path = Path(rest if separator else uri).expanduser()
        if path.is_dir():
            raise ContractError(
                "a weight file is wanted", found="a folder", where=str(path), todo="name one file in it"
            )
        if not path.is_file():
            raise NotFoundError("there is no such weight file", where=str(path))
        with path.open("rb") as stream:
            _check(sha256, hashlib.file_digest(stream, "sha256").hexdigest() if sha256 else None, uri)
        yield path
        return
    if scheme not in ("s3", "https", "http"):
        raise ContractError(
            "address of a weight file",
            expected="a path, file://, s3:// or https://",
            found=f"{scheme}://",
            todo="copy the file to this machine first",
        )
    if scheme == "http" and sha256 is None:
        raise ContractError(
            "a weight file by an unprotected connection",
            expected="https://, or a digest to check it by",
            found=public_address(uri),
            todo=_PASS_DIGEST,
        )
    with tempfile.TemporaryDirectory(prefix="sdflow-weights-") as folder:
        path = Path(folder) / "weights"
        pieces = _of_bucket(uri) if scheme == "s3" else _of_web(uri)
        with path.open("wb") as out:
            found = _written(pieces, out, uri, progress)
        _check(sha256, found, uri)
        try:
            yield path
        except SDFlowError as error:
            if error.where == str(path):  # the reader knows the address, and the copy is gone
                error.where = public_address(uri)
            raise


def public_address(uri: str) -> str:
    """An address as it may be recorded: without user, password and query, which often holds a signature.

    Example:
        >>> public_address("https://me:secret@example.org/a/net.pt?signature=x")
        'https://example.org/a/net.pt'
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return uri
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((parts.scheme, host + port, parts.path, "", ""))


def _written(pieces: Iterator[bytes], out: BinaryIO, uri: str, progress: Callable[[int], None] | None) -> str:
    digest, count = hashlib.sha256(), 0
    for piece in pieces:
        count += len(piece)
        if count > LIMIT_BYTES:
            raise ContractError(
                "a weight file that is too large",
                expected=f"at most {LIMIT_BYTES:,} bytes",
                where=public_address(uri),
            )
        digest.update(piece)
        out.write(piece)
        if progress is not None:
            progress(count)
    return digest.hexdigest()


def _of_bucket(uri: str) -> Iterator[bytes]:
    folder, _, name = uri.rpartition("/")
    if folder in ("s3:/", "s3:") or not name:
        raise ContractError("address of a weight file", expected="s3://bucket/key", found=uri)
    with open_store(folder).open_input(name) as stream:
        while piece := stream.read(_PIECE):
            yield piece


def _of_web(uri: str) -> Iterator[bytes]:
    import httpx

    where = public_address(uri)
    try:
        with httpx.stream("GET", uri, follow_redirects=True, timeout=_WAIT_SECONDS) as answer:
            if answer.url.scheme != "https" and uri.startswith("https"):
                raise ContractError("a redirect to an unprotected connection", found=where)
            if answer.status_code == _NOT_FOUND:
                raise NotFoundError("there is no such weight file", where=where)
            if answer.status_code != _OK:
                raise ContractError(
                    "the server does not give the file",
                    expected="HTTP 200",
                    found=f"HTTP {answer.status_code}",
                    where=where,
                )
            yield from answer.iter_raw(_PIECE)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ContractError(
            "the file could not be fetched",
            found=type(error).__name__,
            where=where,
            todo="check the address and the connection",
        ) from error


def _check(wanted: str | None, found: str | None, uri: str) -> None:
    if wanted is not None and found != wanted.lower():
        raise ContractError(
            "another file than was asked for",
            expected=f"sha256 {wanted}",
            found=f"sha256 {found}",
            where=public_address(uri),
            todo="fetch it again from its publisher; nothing was imported",
        )
