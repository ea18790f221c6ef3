"""What is known of a million addresses, and looked up a thousand at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sdflow_core.records.sources import SourceItem
from sdflow_core.records.tables import Table

__all__ = ["GONE", "Now", "Verdicts"]

GONE = "gone"  # the version of a file that was never read and is there no more
# Held for all rows; what only a planned item needs is read for these alone.
_COLUMNS = ("row_key", "uri", "version", "size_bytes", "mtime_ns", "status", "consent")
_WHOLE = ("uri", "version", "size_bytes", "mtime_ns", "image_id", "face_id", "consent", "status", "reason")


@dataclass(frozen=True)
class Now:
    """The verdicts in force of some addresses, in their order.

    Attributes:
        place: Of each in the records; None where nothing is known of it.
        version: And the others: as the row says; of an unknown one they mean nothing.
    """

    place: list[int | None]
    version: list[str]
    size_bytes: list[int]
    mtime_ns: list[int]
    status: list[str]
    consent: list[str]

    def same(self, number: int, item: SourceItem) -> bool:
        """Whether an address holds what its verdict is about: by the server's tag, else by size and time."""
        if self.place[number] is None or self.status[number] == "failed":
            return False
        if item.etag:
            return item.etag == self.version[number]
        unchanged = (self.size_bytes[number], self.mtime_ns[number]) == (item.size_bytes, item.mtime_ns or 0)
        return unchanged and self.version[number] != GONE


class Verdicts:
    """The verdict in force of every address of a table: the row committed last.

    About 300 bytes an address: a few columns as they lie in the shards, and a sorted hash of the address.
    """

    def __init__(self, table: Table, recipe: str) -> None:
        self._table = table
        known = recipe in table.recipes()
        rows = (
            table.read(recipe=recipe, latest_by="uri", columns=_COLUMNS)
            if known
            else pa.table({name: pa.array([], pa.string()) for name in _COLUMNS})
        )
        self._rows = rows.combine_chunks()
        del rows
        hashes = np.empty(len(self), np.int64)
        at = 0
        for batch in self._rows.select(["uri"]).to_batches(max_chunksize=8192):
            texts = batch.column(0).to_pylist()
            hashes[at : at + len(texts)] = np.fromiter(map(hash, texts), np.int64, len(texts))
            at += len(texts)
        self._order = np.argsort(hashes).astype(np.uint32)
        self._hashes = hashes[self._order]
        self._listed = np.zeros(len(self), np.bool_)

    def __len__(self) -> int:
        return self._rows.num_rows

    def of(self, uris: Sequence[str]) -> Now:
        """The verdicts of these addresses, which count as listed from now on."""
        place = self._find(uris)
        there = place[place >= 0]
        self._listed[there] = True
        taken = self._rows.take(pa.array(np.maximum(place, 0))) if len(there) else None

        def column(name: str) -> list[Any]:
            return taken.column(name).to_pylist() if taken is not None else [None] * len(uris)

        return Now(
            [None if at < 0 else at for at in place.tolist()],
            *(column(name) for name in ("version", "size_bytes", "mtime_ns", "status", "consent")),
        )

    def _find(self, uris: Sequence[str]) -> npt.NDArray[np.int64]:
        """Place of each address; -1 where nothing is known of it."""
        found = np.full(len(uris), -1, np.int64)
        wanted = np.fromiter(map(hash, uris), np.int64, len(uris))
        at = np.searchsorted(self._hashes, wanted)
        left = np.flatnonzero(at < len(self))
        while len(left):  # once, and again where two addresses have one hash
            left = left[self._hashes[at[left]] == wanted[left]]
            if not len(left):
                break
            place = self._order[at[left]].astype(np.int64)
            texts = self._rows.column("uri").take(pa.array(place)).to_pylist()
            same = np.fromiter(
                (text == uris[number] for text, number in zip(texts, left.tolist(), strict=True)),
                np.bool_,
                len(left),
            )
            found[left[same]] = place[same]
            left = left[~same]
            at[left] += 1
            left = left[at[left] < len(self)]
        return found

    def whole(self, places: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Place -> all that is known there."""
        if not places:
            return {}
        keys = self._rows.column("row_key").take(pa.array(places, pa.int64()))
        rows = self._table.read(columns=["row_key", *_WHOLE], row_keys=keys).to_pylist()
        by_key = {row["row_key"]: row for row in rows}
        return {place: by_key[key] for place, key in zip(places, keys.to_pylist(), strict=True)}

    def unlisted(self, folder: str) -> Iterator[int]:
        """Places of the kept and failed addresses in a folder that `of` was not asked about, in order."""
        left = np.flatnonzero(~self._listed)
        for start in range(0, len(left), 8192):
            part = left[start : start + 8192]
            rows = self._rows.select(["uri", "status"]).take(pa.array(part)).to_pydict()
            for place, uri, status in zip(part.tolist(), rows["uri"], rows["status"], strict=True):
                if status in ("kept", "failed") and uri.startswith(folder):
                    yield place
