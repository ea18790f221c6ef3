"""What happens to a folder between listing and reading, while a file is read, and by the next night."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.hostile import NO_PERMISSION
from tests.hostile_files import People
from tests.hostile_pictures import encoded, jpeg, png

CHANGED = "the file changed between listing and reading"
CHANGING = "the file changed while it was read"
VANISHED = "the file vanished between listing and reading"
GONE = "it could not be read, and is not in its folder any more"
Change = Callable[[Path, People], None]


@dataclass(frozen=True)
class Race:
    """One file that does not lie still.

    Attributes:
        name: Relative path, and its name in the records.
        status: In the night of the race.
        reason: The whole reason.
        later: Status in the next night, when nothing moves any more.
        later_reason: Its whole reason.
        before: Makes the file; nothing: it appears later.
        between: What happens after listing.
        during: What happens when half of the file was read.
    """

    name: str
    status: str
    reason: str
    later: str = "kept"
    later_reason: str = ""
    before: Change | None = lambda at, people: _write(at, jpeg(people[0]))
    between: Change | None = None
    during: Change | None = None


def _write(at: Path, data: bytes) -> None:
    at.write_bytes(data)


def _append(at: Path, people: People) -> None:
    with at.open("ab") as file:
        file.write(bytes(1000))


def _later(at: Path, ahead_seconds: int = 10) -> None:
    """Another time, whatever the clock of the file system resolves."""
    found = at.stat()
    ahead_ns = ahead_seconds * 10**9
    os.utime(at, ns=(found.st_atime_ns + ahead_ns, found.st_mtime_ns + ahead_ns))


def _other_same_size(at: Path, people: People) -> None:
    size = at.stat().st_size
    _write(at, encoded(people[1], "BMP"))
    assert at.stat().st_size == size
    _later(at)


def _other_same_size_and_time(at: Path, people: People) -> None:
    found = at.stat()
    other = at.with_name("other")
    _write(other, encoded(people[1], "BMP"))
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.replace(at)
    assert (at.stat().st_size, at.stat().st_mtime_ns) == (found.st_size, found.st_mtime_ns)


def _into(kind: Callable[[Path], None]) -> Change:
    def change(at: Path, _: People) -> None:
        at.unlink()
        kind(at)

    return change


def _replaced(at: Path, people: People) -> None:
    _write(at.with_name("other"), png(people[1]))
    at.with_name("other").replace(at)


def _no_disk(at: Path, _: People) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(at))


def _bmp(at: Path, people: People) -> None:
    _write(at, encoded(people[0], "BMP"))


RACES = (
    Race("rewritten.jpg", "failed", CHANGED, between=lambda at, p: _write(at, png(p[1]))),
    Race("rewritten in its size.bmp", "failed", CHANGED, before=_bmp, between=_other_same_size),
    Race("in its size and time.bmp", "kept", "", before=_bmp, between=_other_same_size_and_time),
    Race("touched.jpg", "failed", CHANGED, between=lambda at, _: _later(at)),
    Race("grown.jpg", "failed", CHANGED, between=_append),
    Race("emptied.jpg", "failed", CHANGED, "dropped", "empty file", between=lambda at, _: _write(at, b"")),
    Race(
        "half there.jpg",
        "failed",
        CHANGED,
        before=lambda at, p: _write(at, jpeg(p[0])[:9000]),
        between=lambda at, p: _write(at, jpeg(p[0])),
    ),
    Race("vanished.jpg", "failed", VANISHED, "dropped", GONE, between=lambda at, _: at.unlink()),
    Race(
        "folder/vanished with its folder.jpg",
        "failed",
        VANISHED,
        "dropped",
        GONE,
        between=lambda at, _: shutil.rmtree(at.parent),
    ),
    Race(
        "moved.jpg",
        "failed",
        VANISHED,
        "dropped",
        GONE,
        between=lambda at, _: _ignored(at.rename(at.with_name("moved here.jpg"))),
    ),
    Race("moved here.jpg", "absent", "", before=None),
    Race("new.jpg", "absent", "", before=None, between=lambda at, p: _write(at, jpeg(p[2]))),
    Race("now a folder.jpg", "failed", CHANGED, "dropped", GONE, between=_into(lambda at: at.mkdir())),
    Race(
        "now a pipe.jpg",
        "dropped",
        "a pipe, not a file",
        "dropped",
        "a pipe, not a file",
        between=_into(os.mkfifo),
    ),
    Race(
        "now a circle.jpg",
        "dropped",
        "the link leads in a circle",
        "dropped",
        "the link leads in a circle",
        between=_into(lambda at: at.symlink_to(at.name)),
    ),
    Race(
        "now dangling.jpg",
        "failed",
        "the link leads to no file",
        "failed",
        "the link leads to no file",
        between=_into(lambda at: at.symlink_to("nothing.jpg")),
    ),
    Race("closed.jpg", "failed", NO_PERMISSION, "failed", NO_PERMISSION, between=lambda at, _: at.chmod(0)),
    Race("growing.jpg", "failed", CHANGING, during=_append),
    Race(
        "shrinking.jpg",
        "failed",
        CHANGING,
        "dropped",
        "damaged or incomplete JPEG: the file ends too early",
        during=lambda at, _: os.truncate(at, 9000),
    ),
    Race("rewritten while read.bmp", "failed", CHANGING, before=_bmp, during=_other_same_size),
    Race("replaced while read.jpg", "kept", "", during=_replaced),
    Race("deleted while read.jpg", "kept", "", during=lambda at, _: at.unlink()),
    Race("broken disk.jpg", "failed", "the disk reported an error when the file was read", during=_no_disk),
)


def _ignored(_: object) -> None:
    return None


def reading_with(people: People, fill: Callable[[BinaryIO, int], bytes]) -> Callable[[BinaryIO, int], bytes]:
    """`fill` of `sdflow_core.records.sources`, with each race's change in the middle of its file."""
    changes = {race.name: race.during for race in RACES if race.during is not None}

    def read(file: BinaryIO, size: int) -> bytes:
        at = Path(os.readlink(f"/proc/self/fd/{file.fileno()}"))
        change = changes.pop(at.name, None)
        if change is None:
            return fill(file, size)
        begin = file.read(size // 2)
        change(at, people)
        return begin + fill(file, size - len(begin))

    return read
