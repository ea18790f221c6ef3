"""One entry of a journal: its bytes, its hash, and how to tell that it is not what was written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from .errors import ContractError, CorruptError
from .keys import canonical_json, sha256_hex

__all__ = ["FIRST_PREVIOUS", "FORMAT", "TODO", "Entry", "decode", "encode", "parse", "previous_of"]

FORMAT = 1
FIRST_PREVIOUS = "0" * 64
TODO = "restore this file from a backup of the store; nothing after it can be trusted until then"
_PREVIOUS = b'"prev_sha256":"'


@dataclass(frozen=True)
class Entry:
    """One entry. `sha256` is the hash of the file's bytes; `prev_sha256` that of the entry before."""

    number: int
    sha256: str
    kind: str
    payload: dict[str, Any]
    time: str
    run: str | None
    token: str
    prev_sha256: str


def encode(
    number: int, kind: str, payload: dict[str, Any], run: str | None, token: str, previous: str
) -> bytes:
    """The bytes of an entry that is written now. One line: canonical JSON has no line break.

    Raises:
        ContractError: The payload is no JSON.
    """
    body: dict[str, Any] = {
        "format": FORMAT,
        "number": number,
        "kind": kind,
        "payload": payload,
        "time": datetime.now(UTC).isoformat(timespec="microseconds"),
        "run": run,
        "token": token,
        "prev_sha256": previous,
    }
    # The chain only shows that *some* neighbour was changed; the checksum names the very file.
    body["checksum"] = sha256_hex(canonical_json(body))
    return canonical_json(body)


def decode(data: bytes, number: int, where: str) -> Entry:
    """Reads an entry that nothing is known of yet.

    Raises:
        CorruptError: It cannot be read, was changed, or stands under another number.
        ContractError: A later version wrote it.
    """
    try:
        body = cast(dict[str, Any], json.loads(data))
        checksum = body.pop("checksum")
        intact = checksum == sha256_hex(canonical_json(body))
        entry = _entry(body, sha256_hex(data))
        version = body["format"]
    except (ValueError, KeyError, TypeError, AttributeError, ContractError) as error:
        raise CorruptError(f"journal entry {number} cannot be read", where=where, todo=TODO) from error
    if not intact:
        raise CorruptError(f"journal entry {number} was changed", where=where, todo=TODO)
    if version != FORMAT:
        raise ContractError(
            "a journal entry has another format",
            expected=FORMAT,
            found=version,
            where=where,
            todo="update sdflow",
        )
    if entry.number != number:
        raise CorruptError(
            f"journal entry {number} was inserted",
            expected=number,
            found=entry.number,
            where=where,
            todo=TODO,
        )
    return entry


def parse(data: bytes, sha256: str) -> Entry:
    """Reads an entry whose hash the chain has vouched for: it is what was written, and nothing is checked."""
    return _entry(cast(dict[str, Any], json.loads(data)), sha256)


def previous_of(data: bytes) -> str:
    """The hash of the entry before, without parsing; empty when there is none.

    The last occurrence is the entry's own: in canonical JSON only run, time and token follow it, and inside
    a text the quotes would be escaped.
    """
    at = data.rfind(_PREVIOUS)
    if at < 0:
        return ""
    start = at + len(_PREVIOUS)
    return data[start : start + 64].decode("ascii", "replace")


def _entry(body: dict[str, Any], sha256: str) -> Entry:
    return Entry(
        number=body["number"],
        sha256=sha256,
        kind=body["kind"],
        payload=body["payload"],
        time=body["time"],
        run=body["run"],
        token=body["token"],
        prev_sha256=body["prev_sha256"],
    )
