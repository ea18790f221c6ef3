"""Awkward and hostile files by what is in them: formats, damage, sizes, metadata. See `tests/hostile.py`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.hostile_pictures import (
    Pixels,
    adobe_ycck,
    chunk,
    encoded,
    exif,
    exif_bomb,
    frames,
    gif_size,
    jpeg,
    jpeg_of_many_scans,
    jpeg_size,
    on_canvas,
    png,
    png_16_bit_rgb,
    raw_png,
    scaled,
    segment,
    stored_turned,
    text_bomb,
    tiff_with,
    webp_header,
    wide_gamut_profile,
    with_chunks,
    with_segments,
)

People = Sequence[Pixels]
Write = Callable[[Path, People], None]

UNKNOWN = r"not a picture in a known format \(PNG, JPEG, WebP, GIF, BMP or TIFF\)"
NOBODY = "no face found"


@dataclass(frozen=True)
class Case:
    """One kind of input, and what must become of it.

    Attributes:
        path: Relative, as the file system has it.
        write: Makes it.
        status: kept, dropped (for good), failed (tried again the next night), or absent (no row).
        reason: Pattern that the whole reason matches.
        listed: Name in the records, where it is not the path as text; what begins like it where a * ends it.
        consent: Attributes of its line in the consent list; empty: no line.
        expires: Of that line.
    """

    path: bytes
    write: Write
    status: str
    reason: str = ""
    listed: str = ""
    consent: str = "*"
    expires: str = ""

    @property
    def name(self) -> str:
        """Its name in the records."""
        return self.listed or self.path.decode()

    def at(self, root: Path) -> Path:
        """Where it lies."""
        return root / os.fsdecode(self.path)


def file(
    path: str | bytes, make: Callable[[People], bytes], status: str, reason: str = "", **more: Any
) -> Case:
    raw = path.encode() if isinstance(path, str) else path
    return Case(raw, lambda at, people: _ignored(at.write_bytes(make(people))), status, reason, **more)


def _ignored(_: object) -> None:
    return None


def kept(path: str | bytes, make: Callable[[People], bytes] | None = None, **more: Any) -> Case:
    return file(path, make or (lambda people: jpeg(people[0])), "kept", **more)


def dropped(path: str, make: Callable[[People], bytes], reason: str, **more: Any) -> Case:
    return file(path, make, "dropped", reason, **more)


def _not_read(what: str) -> str:
    return f"{what} are not read: send PNG, JPEG, WebP, GIF, BMP or TIFF"


def _broken(kind: str, early: bool = False) -> str:
    return f"damaged or incomplete {kind}" + (": the file ends too early" if early else "")


def _cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def formats() -> list[Case]:
    """What is a picture, and what only looks like one."""
    zipped = b"PK\3\4" + bytes(26) + b"a.txtPK\5\6" + bytes(18)
    ftyp = b"\0\0\0\x18ftyp%s\0\0\0\0mif1%s" + bytes(200)
    return [
        kept("kinds/baseline.jpg"),
        kept("kinds/progressive.jpg", lambda p: jpeg(p[0], progressive=True)),
        kept("kinds/grey.jpg", lambda p: encoded(p[0], "JPEG", "L")),
        kept("kinds/print.jpg", lambda p: encoded(p[0], "JPEG", "CMYK", quality=95)),
        kept("kinds/photoshop print.jpg", lambda p: adobe_ycck(p[0])),
        kept("kinds/two in one.jpg", lambda p: frames(p[0], "MPO")),
        kept("kinds/with a film behind.jpg", lambda p: jpeg(p[0]) + ftyp % (b"mp42", b"isom") * 99),
        kept("kinds/garbage behind.jpg", lambda p: jpeg(p[0]) + bytes(range(256)) * 4000),
        kept("kinds/also a zip.jpg", lambda p: jpeg(p[0]) + zipped),
        kept("kinds/html in the comment.jpg", lambda p: jpeg(p[0], comment=b"<html><script>1</script>")),
        kept("kinds/also php.png", lambda p: png(p[0]) + b"<?php echo 1; ?>"),
        kept("kinds/palette.png", lambda p: png(Image.fromarray(p[0]).quantize(256))),
        kept(
            "kinds/palette with a hole.png",
            lambda p: encoded(
                Image.fromarray(p[0]).quantize(255), "PNG", transparency=bytes([0]) + b"\xff" * 254
            ),
        ),
        kept("kinds/alpha.png", lambda p: encoded(p[0], "PNG", "RGBA")),
        kept("kinds/grey with alpha.png", lambda p: encoded(p[0], "PNG", "LA")),
        kept("kinds/grey of 16 bit.png", lambda p: png(p[0][:, :, 1].astype(np.uint16) * 257)),
        kept("kinds/colour of 16 bit.png", lambda p: png_16_bit_rgb(p[0])),
        kept("kinds/black or white.png", lambda p: encoded(scaled(p[0], 900), "PNG", "1")),
        kept("kinds/plain.bmp", lambda p: encoded(p[0], "BMP")),
        kept("kinds/palette.bmp", lambda p: encoded(Image.fromarray(p[0]).quantize(256), "BMP")),
        kept("kinds/plain.tif", lambda p: encoded(p[0], "TIFF")),
        kept("kinds/packed.tif", lambda p: encoded(p[0], "TIFF", compression="tiff_lzw")),
        kept("kinds/jpeg inside.tif", lambda p: encoded(p[0], "TIFF", compression="jpeg", quality=95)),
        kept("kinds/grey of 16 bit.tif", lambda p: encoded(p[0][:, :, 1].astype(np.uint16) * 257, "TIFF")),
        kept("kinds/print.tif", lambda p: encoded(p[0], "TIFF", "CMYK")),
        kept("kinds/lossy.webp", lambda p: encoded(p[0], "WEBP", quality=90)),
        kept("kinds/lossless with alpha.webp", lambda p: encoded(p[0], "WEBP", "RGBA", lossless=True)),
        kept("kinds/still.gif", lambda p: encoded(p[0], "GIF")),
        kept("kinds/really a png.jpg", lambda p: png(p[0])),
        kept("kinds/really a jpeg.heic", lambda p: jpeg(p[0])),
        kept("kinds/no extension"),
        kept("kinds/LOUD.JPG"),
        dropped("kinds/moving.gif", lambda p: frames(p[0], "GIF"), "animated image"),
        dropped("kinds/moving.webp", lambda p: frames(p[0], "WEBP"), "animated image"),
        dropped("kinds/moving.png", lambda p: frames(p[0], "PNG"), "animated image"),
        dropped("kinds/pages.tif", lambda p: frames(p[0], "TIFF"), "several pages in one TIFF"),
        dropped(
            "kinds/float.tif",
            lambda p: encoded(p[0][:, :, 1].astype(np.float32), "TIFF"),
            "floating-point samples have no defined white",
        ),
        dropped(
            "kinds/32 bit.tif",
            lambda p: encoded(p[0][:, :, 1].astype(np.int32) << 16, "TIFF"),
            "32-bit samples have no defined white",
        ),
        dropped(
            "kinds/lab.tif",
            lambda p: encoded(Image.fromarray(p[0], mode="LAB"), "TIFF"),
            "colours of the kind LAB are not read: send RGB, grey or CMYK",
        ),
        dropped("kinds/big.tif", lambda p: encoded(p[0], "TIFF", big_tiff=True), _not_read("BigTIFF files")),
        dropped(
            "kinds/raw.dng",
            lambda p: tiff_with(encoded(p[0], "TIFF"), 0xC612, 1),
            _not_read("camera raw files"),
        ),
        dropped("kinds/empty.jpg", lambda p: b"", "empty file"),
        dropped("kinds/one byte.jpg", lambda p: b"\xff", UNKNOWN),
        dropped("kinds/only a magic.jpg", lambda p: b"\xff\xd8\xff", _broken("JPEG")),
        dropped("kinds/text.jpg", lambda p: b"this is no picture\n", UNKNOWN),
        dropped("kinds/noise.jpg", lambda p: np.random.default_rng(5).bytes(5000), UNKNOWN),
        dropped("kinds/page.jpg", lambda p: b"<!DOCTYPE html><html>", _not_read("HTML pages")),
        dropped("kinds/drawing.svg", lambda p: b"<svg onload='x()'></svg>", _not_read("SVG drawings")),
        dropped("kinds/paper.pdf", lambda p: b"%PDF-1.7\n" + jpeg(p[0]), _not_read("PDF files")),
        dropped("kinds/photos.zip", lambda p: zipped, _not_read("ZIP archives")),
        dropped("kinds/phone.heic", lambda p: ftyp % (b"heic", b"heic"), _not_read("HEIC files")),
        dropped("kinds/new.avif", lambda p: ftyp % (b"avif", b"avif"), _not_read("AVIF files")),
        dropped("kinds/film.mp4", lambda p: ftyp % (b"mp42", b"isom"), _not_read("video files")),
        dropped("kinds/site.ico", lambda p: encoded(scaled(p[0], 64), "ICO"), _not_read("icons")),
        dropped("kinds/layers.psd", lambda p: b"8BPS\0\1" + bytes(6), _not_read("Photoshop files")),
        dropped("kinds/new.jp2", lambda p: b"\0\0\0\x0cjP  \r\n\x87\n", _not_read("JPEG 2000 files")),
        dropped("kinds/new.jxl", lambda p: b"\0\0\0\x0cJXL \r\n\x87\n", _not_read("JPEG XL files")),
        dropped("kinds/print.eps", lambda p: b"%!PS-Adobe-3.0 EPSF-3.0\n", UNKNOWN),
        dropped("kinds/sound.webp", lambda p: b"RIFF\x24\0\0\0WAVEfmt ", UNKNOWN),
        dropped("kinds/script.gif", lambda p: b"GIF89a=1;alert(1)//", _broken("GIF")),
    ]


def damaged() -> list[Case]:
    """Cut off or altered."""
    early = _broken("JPEG", True)

    def flipped(data: bytes) -> bytes:
        at = data.index(b"IDAT") + 400
        return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]

    return [
        *(
            dropped(f"damaged/{percent} percent.jpg", lambda p, s=percent: _cut(jpeg(p[0]), s / 100), early)
            for percent in (1, 30, 99)
        ),
        dropped("damaged/progressive.jpg", lambda p: _cut(jpeg(p[0], progressive=True), 0.6), early),
        # nobody can tell it from one whose last rows are missing
        dropped("damaged/without its end.jpg", lambda p: jpeg(p[0])[:-2], early),
        dropped("damaged/half.png", lambda p: _cut(png(p[0]), 0.5), _broken("PNG", True)),
        dropped("damaged/header.png", lambda p: png(p[0])[:20], _broken("PNG", True)),
        kept("damaged/without its end.png", lambda p: png(p[0])[:-12]),
        dropped("damaged/flipped.png", lambda p: flipped(png(p[0])), _broken("PNG")),
        dropped("damaged/half.gif", lambda p: _cut(encoded(p[0], "GIF"), 0.5), _broken("GIF", True)),
        dropped("damaged/half.bmp", lambda p: _cut(encoded(p[0], "BMP"), 0.5), _broken("BMP", True)),
        dropped("damaged/half.tif", lambda p: _cut(encoded(p[0], "TIFF"), 0.5), _broken("TIFF", True)),
        dropped("damaged/half.webp", lambda p: _cut(encoded(p[0], "WEBP"), 0.5), _broken("WebP")),
    ]


def sizes() -> list[Case]:
    """Too small, too large, and lies about it."""

    def at_the_limit(p: People) -> bytes:
        return jpeg(on_canvas(scaled(p[0], 5000), 10_000, 5_000, 2500, 0), quality=40)

    return [
        dropped("sizes/1 x 1.png", lambda p: png(p[0][:1, :1]), NOBODY),
        dropped("sizes/one row.png", lambda p: png(Image.new("RGB", (20_000, 1), (90, 80, 70))), NOBODY),
        dropped("sizes/one column.png", lambda p: png(Image.new("RGB", (1, 20_000), (90, 80, 70))), NOBODY),
        kept("sizes/at the limit.jpg", at_the_limit),
        dropped(
            "sizes/over the limit.jpg",
            lambda p: jpeg(Image.new("L", (10_000, 5_001))),
            "too large: 10000 x 5001 px, the limit is 50,000,000 pixels",
        ),
        dropped(
            "sizes/bomb.png",
            lambda p: raw_png(30_000, 30_000, 8, 2, bytes(100_000)),
            "too large: 30000 x 30000 px, the limit is 50,000,000 pixels",
        ),
        dropped(
            "sizes/bomb.jpg",
            lambda p: jpeg_size(jpeg(p[0]), 65_500, 65_500),
            "too large: 65500 x 65500 px, .*",
        ),
        dropped(
            "sizes/bomb.gif", lambda p: gif_size(encoded(p[0], "GIF"), 65_535, 65_535), "too large: 65535 .*"
        ),
        dropped("sizes/bomb.webp", lambda p: webp_header(16_000, 16_000), "too large: 16000 x 16000 px, .*"),
        dropped(
            "sizes/much of nothing.webp",
            lambda p: encoded(Image.new("RGBA", (10_000, 5_000)), "WEBP", lossless=True, method=0),
            NOBODY,
        ),
        dropped("sizes/lie.jpg", lambda p: jpeg_size(jpeg(p[0]), 6000, 6000), NOBODY),
        dropped(
            "sizes/long.png",
            lambda p: raw_png(40_000, 2, 8, 0, bytes(80_002)),
            "too long: 40000 x 2 px, the limit is 32,000 px a side",
        ),
        dropped("sizes/nothing.png", lambda p: raw_png(0, 0, 8, 2, b""), _broken("PNG")),
        dropped(
            "sizes/scans.jpg",
            lambda p: jpeg_of_many_scans(p[0], 5_000),
            "a JPEG of more than 100 scans or 20,000 segments takes too long",
        ),
        dropped(
            "sizes/tiny face.png",
            lambda p: png(on_canvas(scaled(p[0], 40), 320, 320, 140, 140)),
            r"face too small: eyes \d+ px apart, at least 12 needed",
        ),
        kept("sizes/huge face.jpg", lambda p: jpeg(scaled(p[0][40:-40, 40:-40], 3000), quality=60)),
    ]


def metadata() -> list[Case]:
    """What lies around the pixels must neither spoil nor survive them."""

    def texts(*kinds: bytes, unpacked_bytes: int = 50_000_000) -> Callable[[People], bytes]:
        return lambda p: with_chunks(png(p[0]), *(text_bomb(kind, unpacked_bytes) for kind in kinds))

    gps = {1: "N", 2: (48.0, 8.0, 12.0), 3: "E", 4: (11.0, 34.0, 30.0)}
    return [
        *(
            kept(
                f"metadata/orientation {turn}.png",
                lambda p, turn=turn: png(stored_turned(p[0], turn), exif=exif({0x0112: turn})),
            )
            for turn in range(1, 9)
        ),
        kept("metadata/orientation 99.jpg", lambda p: jpeg(p[0], exif=exif({0x0112: 99}))),
        kept("metadata/corrupt exif.jpg", lambda p: jpeg(p[0], exif=b"Exif\0\0II*\0" + b"\xff" * 60)),
        kept("metadata/exif bomb.jpg", lambda p: with_segments(jpeg(p[0]), segment(0xE1, exif_bomb()))),
        kept(
            "metadata/corrupt exif.png",
            lambda p: with_chunks(png(p[0]), chunk(b"eXIf", b"II*\0" + b"\xff" * 60)),
        ),
        kept("metadata/where it was.jpg", lambda p: jpeg(p[0], exif=exif({0x010F: "A camera"}, gps))),
        kept("metadata/corrupt profile.jpg", lambda p: jpeg(p[0], icc_profile=b"\xff" * 3000)),
        kept(
            "metadata/corrupt profile.png",
            lambda p: with_chunks(png(p[0]), chunk(b"iCCP", b"x\0\0" + b"\xff" * 60)),
        ),
        kept("metadata/wide gamut.jpg", lambda p: jpeg(p[0], icc_profile=wide_gamut_profile())),
        kept("metadata/text bomb.png", texts(b"zTXt")),
        kept("metadata/international text bomb.png", texts(b"iTXt")),
        kept("metadata/many texts.png", texts(*[b"zTXt"] * 100, unpacked_bytes=1_000_000)),
        kept("metadata/profile bomb.png", texts(b"iCCP")),
        kept(
            "metadata/long comment.jpg",
            lambda p: with_segments(jpeg(p[0]), *[segment(0xFE, b"x" * 65_000)] * 40),
        ),
    ]
