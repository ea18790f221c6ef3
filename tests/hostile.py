"""A folder as bad as customers' folders get: awkward and hostile input, and what must become of it."""

from __future__ import annotations

import csv
import ctypes
import io
import os
import socket
import subprocess
import unicodedata
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from tests.hostile_files import (
    NOBODY,
    UNKNOWN,
    Case,
    People,
    damaged,
    dropped,
    formats,
    kept,
    metadata,
    sizes,
)
from tests.hostile_pictures import jpeg, on_canvas, png, scaled

NO_CONSENT = "no consent for this source"
NO_PERMISSION = "no permission to read the file"
_COLUMNS = ("source", "subject", "attributes", "expires", "evidence")


def names() -> list[Case]:
    """Good pictures under bad names."""
    plain = [
        "names/ spaces  around .jpg ",
        "names/-rf.jpg",
        "names/--help",
        "names/\"quoted\" and 'quoted'.jpg",
        "names/two\nlines.jpg",
        "names/tab\tand\x1b[31mred.jpg",
        "names/comma, semicolon; pipe | star.jpg",
        "names/100%25 %20 %s {0}.jpg",
        "names/back\\slash.jpg",
        "names/$(touch x) `id` && ls.jpg",
        "names/a[1].jpg",
        "names/what*ever?.jpg",
        "names/emoji 😀 👩‍👩‍👧.jpg",
        "names/right \u202egpj.exe",
        "names/" + unicodedata.normalize("NFC", "très joli é.jpg"),
        "names/" + unicodedata.normalize("NFD", "très joli é.jpg"),
        "names/Twins.jpg",
        "names/twins.jpg",
        "names/" + "é" * 125 + ".jpg",  # 254 bytes
        "names/" + "x" * 255,
        "names/.hidden.jpg",
        "names/CON.jpg",
        "names/http:/example.org/ann.jpg",
        "names/s3:bucket.jpg",
        "names/store:private",
        "names/~/ann.jpg",
        "names/.../ann.jpg",
        "names/" + "d/" * 1_100 + "deep.jpg",
        "names/journal/0000000001.json",
    ]
    return [
        *(kept(path) for path in plain),
        kept(b"names/bytes \xff\xfe.jpg", listed="names/bytes \\xff\\xfe.jpg"),
        kept("names/bytes \\xff\\xfe.jpg", listed="names/bytes \\\\xff\\\\xfe.jpg"),
        kept(b"names/half a pair \xed\xa0\x80.jpg", listed="names/half a pair \\xed\\xa0\\x80.jpg"),
        dropped("names/.DS_Store", lambda _: b"\0\0\0\1Bud1" + bytes(100), UNKNOWN),
        dropped("names/Thumbs.db", lambda _: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", UNKNOWN),
        dropped("names/._ann.jpg", lambda _: b"\0\5\x16\7\0\2\0\0Mac OS X", UNKNOWN),
    ]


def _sparse(size: int, begin: Callable[[People], bytes] = lambda _: b"") -> Callable[[Path, People], None]:
    def write(at: Path, people: People) -> None:
        at.write_bytes(begin(people))
        os.truncate(at, size)

    return write


def _socket(at: Path, _: People) -> None:
    folder = os.open(at.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{folder}/{at.name}")  # the address itself may have 108 bytes only
    os.close(folder)


def _link(target: str) -> Callable[[Path, People], None]:
    return lambda at, _: at.symlink_to(target)


def _outside(at: Path, people: People) -> None:
    target = at.parent.parent.parent / "outside.jpg"
    target.write_bytes(jpeg(people[0]))
    at.symlink_to(target)


def _too_deep(at: Path, people: People) -> None:
    at.mkdir()
    folder = os.open(at, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("y" * 250, dir_fd=folder)
        inner = os.open("y" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    descriptor = os.open("ann.jpg", os.O_WRONLY | os.O_CREAT, dir_fd=folder)
    os.write(descriptor, jpeg(people[0]))
    os.close(descriptor)
    os.close(folder)


def things() -> list[Case]:
    """What is no plain file, or only seems to be one."""
    circle = "the link leads in a circle"
    return [
        Case(b"things/pipe.jpg", lambda at, _: os.mkfifo(at), "dropped", "a pipe, not a file"),
        Case(b"things/socket.jpg", _socket, "dropped", "a socket, not a file"),
        Case(b"things/zero.jpg", _link("/dev/zero"), "dropped", "a device, not a file"),
        Case(b"things/link.jpg", _link("../kinds/baseline.jpg"), "kept"),
        Case(b"things/link to a link.jpg", _link("link.jpg"), "kept"),
        Case(b"things/outside.jpg", _outside, "kept"),
        Case(b"things/dangling.jpg", _link("nothing here.jpg"), "failed", "the link leads to no file"),
        Case(b"things/circle 1.jpg", _link("circle 2.jpg"), "dropped", circle),
        Case(b"things/circle 2.jpg", _link("circle 1.jpg"), "dropped", circle),
        Case(b"things/itself.jpg", _link("itself.jpg"), "dropped", circle),
        Case(
            b"things/up",
            _link(".."),
            "dropped",
            "a link to a folder; only folders themselves are looked into",
        ),
        Case(b"things/hard link.jpg", _hard_link, "kept"),
        Case(b"things/empty folder", lambda at, _: at.mkdir(), "absent"),
        Case(b"things/folder.jpg", lambda at, _: at.mkdir(), "absent"),
        Case(
            b"things/terabyte.jpg",
            _sparse(2**40),
            "dropped",
            "too large a file: 1,048,576 MB, the limit is 512 MB",
        ),
        Case(b"things/zeros.jpg", _sparse(512 * 2**20), "dropped", UNKNOWN),
        Case(b"things/mostly zeros.jpg", _sparse(500 * 2**20, lambda p: jpeg(p[1])), "kept"),
        Case(
            b"things/too deep",
            _too_deep,
            "dropped",
            "the path is longer than the system can open",
            listed="things/too deep/*",
        ),
    ]


def _hard_link(at: Path, people: People) -> None:
    (at.parent / "hard twin.jpg").write_bytes(jpeg(people[0]))
    os.link(at.parent / "hard twin.jpg", at)


def _closed(mode: int, inside: str = "") -> Callable[[Path, People], None]:
    def write(at: Path, people: People) -> None:
        if inside:
            at.mkdir(exist_ok=True)
        (at / inside).write_bytes(jpeg(people[0]))
        at.chmod(mode)

    return write


def permissions() -> list[Case]:
    """What may not be read: a person can mend that, so it is tried again."""
    folder = "no permission to open the folder"
    return [
        Case(b"closed/file.jpg", _closed(0), "failed", NO_PERMISSION),
        Case(b"closed/write only.jpg", _closed(0o222), "failed", NO_PERMISSION),
        Case(b"closed/cellar", _closed(0, "ann.jpg"), "failed", folder, listed="closed/cellar/"),
        Case(
            b"closed/names only",
            _closed(0o444, "ann.jpg"),
            "failed",
            NO_PERMISSION,
            listed="closed/names only/ann.jpg",
        ),
    ]


def contents() -> list[Case]:
    """Who is in the picture, and who allowed it."""
    today = datetime.now(UTC).date()
    ended, tomorrow = ((today + timedelta(days=days)).isoformat() for days in (-1, 1))
    ramp = np.tile(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], (256, 1, 3))

    turned = "the face is upside down or lies on its side: turn the picture"

    def half(p: People) -> bytes:
        return png(on_canvas(p[0], 288, 288, -144, 0))

    return [
        dropped("faces/nobody.png", lambda _: png(ramp), NOBODY),
        dropped("faces/black.png", lambda _: png(ramp * 0), NOBODY),
        dropped(
            "faces/two.png",
            lambda p: png(np.concatenate([p[0], p[1]], axis=1)),
            "2 faces found, expected one",
        ),
        dropped(
            "faces/crowd.png",
            lambda p: png(np.tile(scaled(p[0], 160), (3, 4, 1))),
            r"\d+ faces found, expected one",
        ),
        dropped("faces/half.png", half, "the face is cut off by the border of the picture"),
        dropped("faces/upside down.png", lambda p: png(np.rot90(p[0], 2).copy()), turned),
        dropped("faces/on its side.png", lambda p: png(np.rot90(p[0]).copy()), turned),
        kept("faces/mirrored.png", lambda p: png(p[0][:, ::-1].copy())),
        kept("faces/other pixels.jpg", lambda p: jpeg(p[1])),
        kept("faces/same bytes.jpg", lambda p: jpeg(p[0])),
        kept("faces/same pixels.png", lambda p: png(p[0])),
        kept("faces/same pixels, other bytes.png", lambda p: png(p[0], compress_level=1)),
        dropped("consent/missing.jpg", lambda p: jpeg(p[0]), NO_CONSENT, consent=""),
        dropped("consent/missing and no picture.jpg", lambda _: b"text", NO_CONSENT, consent=""),
        Case(
            b"consent/missing pipe.jpg",
            lambda at, _: os.mkfifo(at),
            "dropped",
            "a pipe, not a file",
            consent="",
        ),
        dropped("consent/ended.jpg", lambda p: jpeg(p[0]), f"consent ended on {ended}", expires=ended),
        kept("consent/until tomorrow.jpg", expires=tomorrow),
        kept("consent/by pattern/ann.jpg", consent=""),
        dropped(
            "consent/by pattern/ended.jpg", lambda p: jpeg(p[0]), f"consent ended on {ended}", expires=ended
        ),
        dropped("consent/Case.jpg", lambda p: jpeg(p[0]), NO_CONSENT, consent=""),
        kept("consent/case.jpg"),
    ]


PATTERNS = (("consent/by pattern/*", "smiling", ""),)
CASES: tuple[Case, ...] = (
    *formats(),
    *damaged(),
    *sizes(),
    *metadata(),
    *names(),
    *things(),
    *permissions(),
    *contents(),
)
BYSTANDERS = ("things/hard twin.jpg",)  # files that a case needs beside itself


def write_cases(root: Path, people: People, cases: tuple[Case, ...] = CASES) -> None:
    """Writes all of them into a new folder."""
    for case in cases:
        at = case.at(root)
        for folder in reversed(at.parents):  # mkdir(parents=True) recurses, too deep for one case
            folder.mkdir(exist_ok=True)
        case.write(at, people)


def consent_list(cases: tuple[Case, ...] = CASES) -> bytes:
    """A line for every case that has consent, and the patterns."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(_COLUMNS)
    # two spellings of one name are one line, see `sdflow_core.records.consent`
    lines = {unicodedata.normalize("NFC", case.name): case for case in cases if case.consent}
    for number, (name, case) in enumerate(lines.items()):
        writer.writerow([name, f"person-{number}", case.consent, case.expires, "form"])
    for name in BYSTANDERS:
        writer.writerow([name, "twin", "*", "", "form"])
    for pattern, attributes, expires in PATTERNS:
        writer.writerow([pattern, "many", attributes, expires, "form"])
    return out.getvalue().encode()


def remove(root: Path) -> None:
    """Takes the folder away again, which pytest cannot: it is too deep, and closed."""
    for folder in ("closed/cellar", "closed/names only"):
        (root / folder).chmod(0o700)
    subprocess.run(["rm", "-rf", str(root)], check=True)


@contextmanager
def bound_by_permissions() -> Generator[bool]:
    """Root reads everything; inside, this thread does not. Gives whether that worked."""
    if os.geteuid() != 0:
        yield True
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface, this thread
    before, without = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    if libc.capget(header, before) != 0:
        yield False
        return
    without[:] = before[:]
    without[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, of what is in force
    try:
        yield libc.capset(header, without) == 0
    finally:
        libc.capset(header, before)
