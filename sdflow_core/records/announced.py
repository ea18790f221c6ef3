"""The ids that edit runs announced, as numbers: the document of a large run is many megabytes of digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np

from .errors import CorruptError
from .keys import canonical_json
from .row_keys import Keys, digits, encode
from .store import Store

__all__ = ["Announced", "announced_runs", "announced_time", "spell_document", "spell_list"]

_RUNS = "private/edit_runs/"
_BEGIN = b'"edit_ids":['
_EACH = 67  # a quote, 64 digits, a quote, a comma


@dataclass(frozen=True)
class Announced:
    """One edit run.

    Attributes:
        edit_run: Its id.
        document: All that was written, but for the ids.
        keys: The ids.
    """

    edit_run: str
    document: dict[str, Any]
    keys: Keys


def announced_runs(store: Store) -> Iterator[Announced]:
    """All edit runs, sorted by id, one at a time.

    Raises:
        CorruptError: A record cannot be read.
    """
    for key in store.list(_RUNS):
        name = key.removeprefix(_RUNS)
        if not name.endswith(".json") or "/" in name:
            continue
        try:
            yield _parsed(store.read(key))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(
                "an edit run's record cannot be read", where=store.url(key), todo="restore it"
            ) from error


def _parsed(data: bytes) -> Announced:
    found = data.find(_BEGIN)
    start = found + len(_BEGIN)
    end = data.find(b"]", start)
    if found >= 0 and end > start and (end - start + 1) % _EACH == 0:
        rows = np.frombuffer(data, np.uint8, end - start + 1, start).reshape(-1, _EACH)
        as_written = np.all(rows[:, (0, 65)] == ord('"')) and np.all(rows[:-1, 66] == ord(","))
        keys = digits(rows[:, 1:65]) if as_written else None
        if keys is not None:
            document = cast("dict[str, Any]", json.loads(data[:start] + data[end:]))
            return Announced(str(document["edit_run"]), document, keys)
    document = cast("dict[str, Any]", json.loads(data))
    keys, _ = encode([str(key) for key in document["edit_ids"]])
    return Announced(str(document["edit_run"]), {**document, "edit_ids": []}, keys)


def announced_time(store: Store, run: Announced) -> str:
    """When an edit run was planned; runs of earlier versions do not say so, their file's time does."""
    said = run.document.get("time")
    if isinstance(said, str):
        return said
    changed = store.stat(f"{_RUNS}{run.edit_run}.json").mtime_ns or 0
    return datetime.fromtimestamp(changed / 1e9, UTC).isoformat(timespec="seconds")


def spell_list(keys: Keys) -> bytes:
    """The ids as the canonical JSON of a list of texts spells them."""
    return b"[" + b"".join(keys.spelled()) + b"]"


def spell_document(document: dict[str, Any], ids: bytes) -> bytes:
    """`canonical_json` of a document whose `edit_ids` is a list that is spelled already."""
    mark = hashlib.sha256(ids).hexdigest()
    text = canonical_json({**document, "edit_ids": mark})
    before, _, after = text.partition(f'"edit_ids":"{mark}"'.encode())
    return b"".join([before, b'"edit_ids":', ids, after])
