"""The directory of a zip file, read and checked before anything is taken out of it.

torch.save stores its members without compression, so nothing is ever inflated for it: a member is a piece of
the mapped file. numpy may compress; then no more is inflated than was declared and allowed.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import dataclass
from typing import NoReturn

from sdflow_core.weights.bounds import Budget, refused, shown

__all__ = ["Archive", "Entry"]

_MOST_ENTRIES = 50_000
_TAIL = 65_557  # an end record and the longest comment
_END, _END64, _LOCATOR64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_CENTRAL, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """One member.

    Attributes:
        name: Its name.
        start: First byte of its data in the file.
        stored: Bytes of its data in the file.
        size: Bytes of its data once inflated.
        compressed: Whether they differ in kind.
    """

    name: str
    start: int
    stored: int
    size: int
    compressed: bool


class Archive:
    """A zip file.

    Args:
        data: The whole file.
        budget: Names the file.

    Raises:
        ContractError: Truncated or damaged; names that leave the folder, are absolute or come twice; members
            that overlap, are encrypted or reach outside of the file.
    """

    def __init__(self, data: memoryview, budget: Budget) -> None:
        self.data, self.budget = data, budget
        start, size, count = self._end()
        self.entries: dict[str, Entry] = {}
        spans: list[tuple[int, int]] = []
        at = start
        for _ in range(count):
            if at + _CENTRAL.size > start + size:
                self._refuse("the directory of the archive is shorter than it declares")
            entry, header, at = self._entry(at, start)
            if entry.name in self.entries:
                self._refuse(f"the archive has {shown(entry.name)} twice")
            self.entries[entry.name] = entry
            spans.append((header, entry.start + entry.stored))
        spans.sort()
        if any(before[1] > after[0] for before, after in itertools.pairwise(spans)):
            self._refuse("members of the archive lie on top of each other")

    def folder_of(self, name: str) -> str:
        """The folder that holds a file of this name, with its slash; torch gives all members one such folder.

        Raises:
            ContractError: None or several of them.
        """
        found = [entry for entry in self.entries if entry == name or entry.endswith(f"/{name}")]
        if len(found) != 1:
            self._refuse(f"the archive has {len(found)} files {name}")
        return found[0][: -len(name)]

    def stored(self, entry: Entry) -> memoryview:
        """The bytes of a member that is not compressed.

        Raises:
            ContractError: It is.
        """
        if entry.compressed:
            self._refuse(f"the member {shown(entry.name)} is compressed, which torch.save never does")
        return self.data[entry.start : entry.start + entry.stored]

    def opened(self, entry: Entry, most: int) -> memoryview:
        """The first bytes of a member, inflated if need be.

        Args:
            entry: The member.
            most: No more than so many bytes.

        Raises:
            ContractError: Its compressed data are damaged, or are not of the declared size.
        """
        piece = self.data[entry.start : entry.start + entry.stored]
        if not entry.compressed:
            return piece[:most]
        wanted = min(most, entry.size)
        made, inflater, at = bytearray(wanted), zlib.decompressobj(-15), 0
        rest: bytes | memoryview = piece[:0]
        position = 0
        try:
            while at < wanted:
                if not len(rest):
                    rest = piece[position : position + 2**16]
                    position += len(rest)
                if not len(rest):
                    break
                part = inflater.decompress(rest, min(wanted - at, 2**20))
                rest = inflater.unconsumed_tail
                made[at : at + len(part)] = part
                at += len(part)
        except zlib.error as error:
            raise refused(self.budget.where, f"the member {shown(entry.name)} is damaged: {error}") from error
        if at < wanted:
            self._refuse(f"the member {shown(entry.name)} is shorter than it declares")
        return memoryview(made)

    def _refuse(self, reason: str) -> NoReturn:
        raise refused(self.budget.where, reason, todo="fetch the file again if it should be sound")

    def _end(self) -> tuple[int, int, int]:
        """Start and size of the directory, and how many members it has."""
        base = max(len(self.data) - _TAIL, 0)
        tail = bytes(self.data[base:])
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + _END.size > len(tail):
            self._refuse("the archive has no end: the file is truncated")
        _, disk, _, _, count, size, start, _ = _END.unpack_from(tail, at)
        end = base + at
        if _FULL16 in (disk, count) or _FULL32 in (size, start):
            end, start, size, count = self._end64(end)
        elif disk:
            self._refuse("the archive is one of several volumes")
        if start + size > end:
            self._refuse("the directory of the archive reaches outside of the file")
        if count > _MOST_ENTRIES:
            self._refuse(f"the archive declares {count} members")
        return start, size, count

    def _end64(self, end: int) -> tuple[int, int, int, int]:
        at = end - _LOCATOR64.size
        if at < 0 or bytes(self.data[at : at + 4]) != b"PK\x06\x07":
            self._refuse("the archive has no 64-bit directory where it declares one")
        _, _, place, _ = _LOCATOR64.unpack_from(self.data, at)
        if place + _END64.size > at or bytes(self.data[place : place + 4]) != b"PK\x06\x06":
            self._refuse("the archive has no 64-bit directory where it declares one")
        _, _, _, _, _, _, _, count, size, start = _END64.unpack_from(self.data, place)
        return place, start, size, count

    def _entry(self, at: int, directory: int) -> tuple[Entry, int, int]:
        """A member, where its own header is, and where the next record of the directory is."""
        fields = _CENTRAL.unpack_from(self.data, at)
        signature, _, _, flags, method, _, _, _, stored, size, name_size, extra_size, note_size = fields[:13]
        header = fields[16]
        at += _CENTRAL.size
        if signature != b"PK\x01\x02":
            self._refuse("the directory of the archive is damaged")
        raw = bytes(self.data[at : at + name_size])
        extra = bytes(self.data[at + name_size : at + name_size + extra_size])
        at += name_size + extra_size + note_size
        name = self._name(raw)
        size, stored, header = self._sizes64(extra, size, stored, header, name)
        if flags & 1:
            self._refuse(f"the member {shown(name)} is encrypted")
        if method not in (0, 8) or (method == 0 and stored != size):
            self._refuse(f"the member {shown(name)} is packed in an unknown way")
        if header + _LOCAL.size > directory:
            self._refuse(f"the member {shown(name)} lies outside of the file")
        local = _LOCAL.unpack_from(self.data, header)
        start = header + _LOCAL.size + local[-2] + local[-1]
        named = bytes(self.data[header + _LOCAL.size : header + _LOCAL.size + local[-2]])
        if local[0] != b"PK\x03\x04" or named != raw:
            self._refuse(f"the member {shown(name)} has another name where its data lie")
        if start + stored > directory:
            self._refuse(f"the member {shown(name)} declares {stored} bytes, more than the file has")
        return Entry(name, start, stored, size, method == 8), header, at

    def _name(self, raw: bytes) -> str:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            self._refuse("a member of the archive has no readable name")
        parts = name.split("/")
        if not name or "\\" in name or "\0" in name or ":" in parts[0] or parts[0] == "" or ".." in parts:
            self._refuse(f"the member {shown(name)} would be written outside of its folder")
        return name

    def _sizes64(self, extra: bytes, size: int, stored: int, header: int, name: str) -> tuple[int, int, int]:
        """Sizes and place, taken from the 64-bit field where the short ones are full."""
        values = [size, stored, header]
        wide = [i for i, value in enumerate(values) if value == _FULL32]
        at = 0
        while wide and at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            at += 4
            if kind == 1:
                if length < 8 * len(wide) or at + length > len(extra):
                    break
                for j, i in enumerate(wide):
                    (values[i],) = struct.unpack_from("<Q", extra, at + 8 * j)
                return values[0], values[1], values[2]
            at += length
        if wide:
            self._refuse(f"the member {shown(name)} declares more than 4 GB without saying how many")
        return size, stored, header
