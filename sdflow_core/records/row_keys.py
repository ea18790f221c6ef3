"""Row keys as numbers: 37 bytes a row in sorted runs, where strings in dicts take several hundred.

A row key is a SHA-256 in hexadecimal digits, so 32 bytes hold it, and these sort as the digits do. Any other
text is held as its own SHA-256, with the text beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .keys import digest_of_sorted

__all__ = [
    "Column",
    "Keys",
    "Run",
    "digest_of",
    "digits",
    "encode",
    "from_bytes",
    "merged",
    "sorted_order",
    "texts",
]

_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
_NIBBLE = np.full(256, 255, np.uint8)
_NIBBLE[_DIGITS] = np.arange(16, dtype=np.uint8)
_PAIR = np.stack([np.repeat(_DIGITS, 16), np.tile(_DIGITS, 16)], axis=1)  # byte -> its two digits
_PART = 8192  # keys that are spelled out at a time: half a megabyte

Column = pa.ChunkedArray | pa.Array | Sequence[str]


@dataclass(frozen=True)
class Keys:
    """N keys as four numbers each, the first digits in the first number.

    Attributes:
        head: [N] uint64, the first 16 digits.
        rest: [N, 3] uint64, the others.
    """

    head: npt.NDArray[np.uint64]
    rest: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.head)

    def take(self, which: Any) -> Keys:
        """Some of them: positions, a mask or a slice."""
        return Keys(self.head[which], self.rest[which])

    def raw(self) -> npt.NDArray[np.uint8]:
        """[N, 32] uint8."""
        words = np.empty((len(self), 4), ">u8")
        words[:, 0], words[:, 1:] = self.head, self.rest
        return words.view(np.uint8).reshape(len(self), 32)

    def spelled(self) -> Iterator[bytes]:
        """Quoted, with commas between them, as canonical JSON has them; in parts of half a megabyte."""
        for start in range(0, len(self), _PART):
            raw = self.take(slice(start, start + _PART)).raw()
            text = np.empty((len(raw), 67), np.uint8)
            text[:, (0, 65)] = ord('"')
            text[:, 1:65] = _PAIR[raw].reshape(len(raw), 64)
            text[:, 66] = ord(",")
            last = start + _PART >= len(self)
            yield text.reshape(-1)[: -1 if last else None].tobytes()


def from_bytes(raw: npt.NDArray[np.uint8]) -> Keys:
    """Keys from [N, 32] uint8."""
    words = np.ascontiguousarray(raw).view(">u8").reshape(-1, 4)
    return Keys(words[:, 0].astype(np.uint64), words[:, 1:].astype(np.uint64))


def encode(column: Column) -> tuple[Keys, dict[bytes, str]]:
    """Texts as keys, in their order.

    Returns:
        The keys; and of those that are no 64 digits, 32 bytes -> text.
    """
    array: Any = column if isinstance(column, pa.ChunkedArray | pa.Array) else pa.array(column, pa.string())
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    parts: list[npt.NDArray[np.uint8]] = []
    odd: dict[bytes, str] = {}
    for chunk in chunks:
        for start in range(0, len(chunk), _PART):
            part = chunk.slice(start, _PART)
            raw = _from_digits(part)
            if raw is None:
                given = cast("list[str]", part.to_pylist())
                pairs = [_one(text) for text in given]
                both = zip(pairs, given, strict=True)
                odd.update((data, text) for (data, plain), text in both if not plain)
                raw = np.frombuffer(b"".join(data for data, _ in pairs), np.uint8).reshape(-1, 32)
            parts.append(raw)
    raw = np.concatenate(parts) if parts else np.zeros((0, 32), np.uint8)
    return from_bytes(raw), odd


def _from_digits(part: Any) -> npt.NDArray[np.uint8] | None:
    """[N, 32] bytes of an arrow array of texts, each of 64 lower-case digits; None when one is not."""
    if part.type != pa.string() or part.null_count:
        return None
    ends = np.frombuffer(part.buffers()[1], np.int32)[part.offset : part.offset + len(part) + 1]
    if np.any(np.diff(ends) != 64):
        return None
    letters = np.frombuffer(part.buffers()[2], np.uint8)[ends[0] : ends[-1]]
    return _bytes_of(letters)


def digits(letters: npt.NDArray[np.uint8]) -> Keys | None:
    """Keys from [N, 64] letters; None when one is no lower-case digit."""
    raw = np.empty((len(letters), 32), np.uint8)
    for start in range(0, len(letters), _PART):
        part = _bytes_of(letters[start : start + _PART].reshape(-1))
        if part is None:
            return None
        raw[start : start + _PART] = part
    return from_bytes(raw)


def _bytes_of(letters: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
    nibbles = _NIBBLE[letters].reshape(-1, 2)
    if np.any(nibbles == 255):
        return None
    return (nibbles[:, 0] * np.uint8(16) + nibbles[:, 1]).astype(np.uint8, copy=False).reshape(-1, 32)


def _one(text: str) -> tuple[bytes, bool]:
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return bytes.fromhex(text), True
    return hashlib.sha256(text.encode()).digest(), False


def texts(keys: Keys, odd: Mapping[bytes, str]) -> list[str]:
    """The keys as they were written."""
    found: list[str] = []
    for start in range(0, len(keys), _PART):
        raw = keys.take(slice(start, start + _PART)).raw()
        joined = _PAIR[raw].tobytes().decode("ascii")
        part = [joined[at : at + 64] for at in range(0, len(joined), 64)]
        if odd:
            part = [odd.get(bytes(data), text) for data, text in zip(raw, part, strict=True)]
        found += part
    return found


def digest_of(keys: Keys, odd: Mapping[bytes, str]) -> str:
    """`keys.dataset_digest` of sorted keys, each there once; no text is made of them."""
    if odd or not len(keys):
        return digest_of_sorted(sorted(texts(keys, odd)))
    digest = hashlib.sha256(b"[")
    for part in keys.spelled():
        digest.update(part)
    digest.update(b"]")
    return digest.hexdigest()


def sorted_order(keys: Keys) -> npt.NDArray[np.int64]:
    """Positions in the order of the keys; equal ones stay in theirs."""
    order = np.argsort(keys.head, kind="stable")
    head = keys.head[order]
    if np.any(head[1:] == head[:-1]):  # of two different keys this nearly never happens
        order = np.lexsort((keys.rest[:, 2], keys.rest[:, 1], keys.rest[:, 0], keys.head))
    return order


@dataclass
class Run:
    """Rows sorted by key, each key once.

    Attributes:
        keys: Sorted.
        at: [N] uint32, number of the row in the order of commits.
        failed: [N] bool, whether the row is a failure.
    """

    keys: Keys
    at: npt.NDArray[np.uint32]
    failed: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, wanted: Keys) -> npt.NDArray[np.int64]:
        """Position of each key in this run; -1 where it is not there."""
        if len(wanted) > _PART:  # what is compared at a time stays small
            starts = range(0, len(wanted), _PART)
            return np.concatenate([self.find(wanted.take(slice(at, at + _PART))) for at in starts])
        head, rest = self.keys.head, self.keys.rest
        place = np.searchsorted(head, wanted.head)
        found = np.full(len(wanted), -1, np.int64)
        left = np.flatnonzero(place < len(head))
        while len(left):  # once, and again for those whose first 16 digits are another key's too
            here = place[left]
            alike = head[here] == wanted.head[left]
            left, here = left[alike], here[alike]
            same = np.all(rest[here] == wanted.rest[left], axis=1)
            found[left[same]] = here[same]
            left = left[~same]
            place[left] += 1
            left = left[place[left] < len(head)]
        return found


def merged(one: Run, two: Run) -> Run:
    """Both runs as one; no key is in both."""
    # Column by column: no more than one of them is there twice at a time.
    head = np.concatenate([one.keys.head, two.keys.head])
    order = np.argsort(head, kind="stable")  # two sorted runs: one merge
    head = head[order]
    rest = np.concatenate([one.keys.rest, two.keys.rest])
    if np.any(head[1:] == head[:-1]):
        order = sorted_order(Keys(np.concatenate([one.keys.head, two.keys.head]), rest))
    rest = rest[order]
    at = np.concatenate([one.at, two.at])[order]
    return Run(Keys(head, rest), at, np.concatenate([one.failed, two.failed])[order])
