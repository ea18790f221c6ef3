"""Bytes of awkward and hostile pictures, made from a given one: uint8 [H, W, 3]; nobody real is in them."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Pixels = NDArray[np.uint8]
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def encoded(picture: Any, kind: str, mode: str = "", **options: Any) -> bytes:
    """A picture (array or PIL) in a format, converted to `mode` first."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    out = io.BytesIO()
    (image.convert(mode) if mode else image).save(out, kind, **options)
    return out.getvalue()


def jpeg(picture: Any, **options: Any) -> bytes:
    """An ordinary JPEG."""
    options.setdefault("quality", 95)
    return encoded(picture, "JPEG", **options)


def png(picture: Any, **options: Any) -> bytes:
    """An ordinary PNG."""
    return encoded(picture, "PNG", **options)


def frames(picture: Pixels, kind: str) -> bytes:
    """Two pictures in one file: an animation, or a TIFF of two pages."""
    other = Image.fromarray(np.ascontiguousarray(picture[:, ::-1]))
    return encoded(picture, kind, save_all=True, append_images=[other], duration=200)


# -- PNG by hand


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk with its length and check sum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks put right behind its header."""
    return data[:33] + b"".join(chunks) + data[33:]


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG of unfiltered rows as they are given, also of sizes that the rows do not fill."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return PNG_MAGIC + body


def png_16_bit_rgb(picture: Pixels) -> bytes:
    """Samples 0, 257, ... 65535."""
    wide = (picture.astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    return raw_png(picture.shape[1], picture.shape[0], 16, 2, rows)


def text_bomb(kind: bytes, unpacked_bytes: int) -> bytes:
    """A text chunk of about a thousandth of what it unpacks to."""
    packed = zlib.compress(bytes(unpacked_bytes), 9)
    if kind == b"iTXt":
        return chunk(kind, b"Comment\0\1\0\0\0" + packed)
    return chunk(kind, b"Comment\0\0" + packed)


# -- JPEG by hand


def segment(marker: int, body: bytes) -> bytes:
    """A JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segments(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments put right behind its start."""
    return data[:2] + b"".join(segments) + data[2:]


def jpeg_size(data: bytes, width: int, height: int) -> bytes:
    """The same JPEG, its header telling another size."""
    at = re.search(rb"\xff[\xc0-\xc2]\0\x11\x08", data)
    assert at is not None
    return data[: at.end()] + struct.pack(">HH", height, width) + data[at.end() + 4 :]


def jpeg_of_many_scans(picture: Pixels, scans: int) -> bytes:
    """A progressive JPEG with one of its scans repeated."""
    data = jpeg(picture, progressive=True)
    starts = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    return data[: starts[2]] + data[starts[1] : starts[2]] * scans + data[starts[2] :]


def adobe_ycck(picture: Pixels) -> bytes:
    """Four channels with the first three as YCbCr, as Photoshop writes them for print."""
    c, m, y, k = Image.fromarray(picture).convert("CMYK").split()
    planes = Image.merge("RGB", (c, m, y)).convert("YCbCr").split()
    turned = [plane.point(lambda v: 255 - v) for plane in planes]  # Pillow stores four channels inverted
    data = encoded(Image.merge("CMYK", (*turned, k)), "JPEG", quality=95, subsampling=0)
    at = data.index(b"Adobe\0") + 11
    assert data[at] == 0
    return data[:at] + b"\2" + data[at + 1 :]


# -- metadata


def exif(tags: dict[int, Any], folder: dict[int, Any] | None = None) -> bytes:
    """An EXIF block; `folder` is its GPS part."""
    block = Image.Exif()
    for tag, value in tags.items():
        block[tag] = value
    if folder:
        block.get_ifd(0x8825).update(folder)
    return block.tobytes()


def stored_turned(picture: Pixels, orientation: int) -> Pixels:
    """Pixels as a camera stores them that notes this orientation; applying it gives the picture back."""
    stored = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, 1),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture, -1),
    }[orientation]
    return np.ascontiguousarray(stored)


def exif_bomb() -> bytes:
    """65,535 entries that each claim two thousand million values, and a next block that is itself."""
    entry = struct.pack("<HHII", 0x9286, 7, 2_000_000_000, 8)
    return b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + entry * 5_000 + struct.pack("<I", 8)


def wide_gamut_profile() -> bytes:
    """The sRGB profile with the red and green of Adobe RGB."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for tag, xyz in ((b"rXYZ", (0.60974, 0.31111, 0.01947)), (b"gXYZ", (0.20528, 0.62567, 0.06087))):
        at = bytes(profile).index(tag)
        (offset,) = struct.unpack_from(">I", profile, at + 4)
        struct.pack_into(">3i", profile, offset + 8, *(round(value * 65536) for value in xyz))
    return bytes(profile)


# -- other containers


def gif_size(data: bytes, width: int, height: int) -> bytes:
    """The same GIF on a larger canvas."""
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def webp_header(width: int, height: int) -> bytes:
    """A WebP of nothing but its canvas."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + sides + bytes(40)


def tiff_with(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF whose first page has one 16-bit tag more (it must sort behind the others)."""
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    page = data[at + 2 : at + 2 + 12 * count] + struct.pack("<HHIHH", tag, 3, 1, value, 0)
    # appended at the end, where nothing that offsets point to has to move
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + struct.pack("<H", count + 1) + page + bytes(4)


def scaled(picture: Pixels, side: int) -> Pixels:
    """The picture at another size."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def on_canvas(picture: Pixels, width: int, height: int, left: int, top: int) -> Pixels:
    """The picture on grey; what lies outside the canvas is cut off."""
    canvas = Image.new("RGB", (width, height), (128, 128, 128))
    canvas.paste(Image.fromarray(picture), (left, top))
    return np.asarray(canvas)
