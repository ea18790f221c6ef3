"""From the bytes of an untrusted file to pixels, or to a reason in words.

Only six decoders can ever run (the file's first bytes choose one), the size is read from the header before
memory is taken, and whatever a decoder raises or warns ends as `Rejected`.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

MAX_PIXELS = 50_000_000
MAX_SIDE_PX = 32_000  # OpenCV's warps address pixels with 16 bit
MAX_SCANS = 100  # cameras and converters write 10; 97 bytes make one that takes 3 ms for 50 million pixels
_MAX_SEGMENTS = 20_000
_STRIP_PIXELS = 1_000_000  # colours are converted in strips: a conversion of the whole needs 1 GB more
# rows of [H, W, 3] that is stored with this orientation -> upright
_TURNS: dict[object, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x[::-1].transpose(1, 0, 2),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x[:, ::-1].transpose(1, 0, 2),
}
_ORIENTATION_TAG, _SUBFILE_TAG, _DNG_TAG = 0x0112, 0x00FE, 0xC612
_COLOURS = frozenset(("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"))
# The classes are used directly, not Image.open: a phone's JPEG with a second picture behind it then stays a
# plain JPEG, and no other format can be reached.
_FORMATS: tuple[tuple[bytes, str, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", "JPEG", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", "PNG", PngImagePlugin.PngImageFile),
    (b"GIF87a", "GIF", GifImagePlugin.GifImageFile),
    (b"GIF89a", "GIF", GifImagePlugin.GifImageFile),
    (b"BM", "BMP", BmpImagePlugin.BmpImageFile),
    (b"II*\0", "TIFF", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", "TIFF", TiffImagePlugin.TiffImageFile),
    (b"RIFF", "WebP", WebPImagePlugin.WebPImageFile),
)
_KNOWN = "send PNG, JPEG, WebP, GIF, BMP or TIFF"
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"8BPS", "Photoshop files"),
    (b"\0\0\1\0", "icons"),
    (b"PK\3\4", "ZIP archives"),
    (b"II+\0", "BigTIFF files"),
    (b"MM\0+", "BigTIFF files"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000 files"),
    (b"\0\0\0\x0cJXL ", "JPEG XL files"),
    (b"\xff\x0a", "JPEG XL files"),
)
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)


class Rejected(Exception):
    """A file that yields no picture. `reason` is one line for people; it quotes nothing of the file."""

    def __init__(self, reason: str) -> None:
        """Keep the reason."""
        super().__init__(reason)
        self.reason = reason


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode a PNG, JPEG, WebP, GIF, BMP or TIFF picture.

    The EXIF orientation is applied (an unreadable one is ignored), colour profiles are ignored, transparency
    is laid over white, 16-bit samples are scaled to 8.

    Args:
        data: the whole file.
        max_pixels: largest width x height; refused from the header, before any pixel is decoded.

    Returns:
        [H, W, 3] uint8 RGB, upright.

    Raises:
        Rejected: no picture can be had from these bytes; says why. Nothing else is raised and nothing is
            warned.

    Example:
        >>> decode(b"hello")
        Traceback (most recent call last):
        ...
        sdflow_core.faces.decode.Rejected: not a picture in a known format (PNG, JPEG, WebP, GIF, BMP or TIFF)
    """
    name, opener = _choose(data)
    if name == "WebP":
        _check_size(*_webp_size(data), max_pixels)  # its decoder takes memory for the canvas when it opens
    if name == "JPEG":
        _check_scans(data)
    with _quiet():
        try:
            return _decode(name, opener, data, max_pixels)
        except Rejected:
            raise
        except MemoryError:
            raise Rejected(f"the {name} asks for more memory than a picture of its size needs") from None
        except Exception as error:  # hostile bytes make decoders raise anything
            raise Rejected(f"damaged or incomplete {name}{_why(error)}") from None


def header_pixels(data: bytes) -> int:
    """Width x height as the header says, so that large pictures are not decoded side by side.

    Args:
        data: the whole file.

    Returns:
        0 for what `decode` refuses without a look; `MAX_PIXELS` where the header does not say.

    Example:
        >>> header_pixels(b"hello")
        0
    """
    try:
        name, opener = _choose(data)
        if name == "WebP":  # its decoder takes memory for the canvas when it opens
            width, height = _webp_size(data)
        else:
            with _quiet(), opener(io.BytesIO(data)) as picture:
                width, height = picture.size
    except Rejected:
        return 0
    except Exception:  # hostile bytes make decoders raise anything; some of these pictures are good
        return MAX_PIXELS
    return width * height


def _decode(
    name: str, opener: Callable[[io.BytesIO], ImageFile.ImageFile], data: bytes, max_pixels: int
) -> NDArray[np.uint8]:
    try:
        with opener(io.BytesIO(data)) as picture:
            _check_size(*picture.size, max_pixels)
            if getattr(picture, "is_animated", False):
                raise Rejected("several pages in one TIFF" if name == "TIFF" else "animated image")
            if name == "TIFF":
                _check_raw(picture)
            picture.load()
            pixels, turn = _to_rgb(picture), _TURNS.get(_orientation(picture))
    except ValueError:
        # Pillow refuses text or a colour profile that unpacks to very much: the pixels may still be good
        if name != "PNG" or len(plain := _without_text(data)) == len(data):
            raise
        return _decode(name, opener, plain, max_pixels)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _choose(data: bytes) -> tuple[str, Callable[[io.BytesIO], ImageFile.ImageFile]]:
    if not data:
        raise Rejected("empty file")
    for magic, name, opener in _FORMATS:
        if data.startswith(magic) and (name != "WebP" or data[8:12] == b"WEBP"):
            return name, opener
    head = data[:4096]
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if data[4:8] == b"ftyp":
        family = (
            "AVIF"
            if data[8:11] == b"avi"
            else "HEIC"
            if data[8:11] in (b"hei", b"hev", b"mif", b"msf")
            else "video"
        )
        raise Rejected(f"{family} files are not read: {_KNOWN}")
    if start.startswith(b"%pdf"):
        raise Rejected(f"PDF files are not read: {_KNOWN}")
    xml = start.startswith((b"<?xml", b"<!--", b"<!doctype svg"))
    if start.startswith(b"<svg") or (xml and b"<svg" in head):
        raise Rejected(f"SVG drawings are not read: {_KNOWN}")
    if start.startswith((b"<!doctype html", b"<html")):
        raise Rejected(f"HTML pages are not read: {_KNOWN}")
    for magic, kind in _OTHERS:
        if data.startswith(magic):
            raise Rejected(f"{kind} are not read: {_KNOWN}")
    raise Rejected("not a picture in a known format (PNG, JPEG, WebP, GIF, BMP or TIFF)")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise Rejected("the header gives no size")
    if width * height > max_pixels:
        raise Rejected(f"too large: {width} x {height} px, the limit is {max_pixels:,} pixels")
    if max(width, height) > MAX_SIDE_PX:
        raise Rejected(f"too long: {width} x {height} px, the limit is {MAX_SIDE_PX:,} px a side")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk (RFC 9649, sections 2.5 to 2.7)."""
    try:
        if data[12:16] == b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        if data[12:16] == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    except struct.error:
        raise Rejected("damaged or incomplete WebP") from None


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG whose scans (passes over all pixels) were multiplied to keep a decoder busy for hours."""
    at, scans = 2, 0
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, at)
        if marker is None or marker[1] == b"\xd9":  # nothing behind the end is ever decoded
            return
        at = marker.end()
        scans += marker[1] == b"\xda"
        if scans > MAX_SCANS:
            break
        if marker[1] not in b"\x01\xd8":  # these have no length
            at += int.from_bytes(data[at : at + 2], "big")
    raise Rejected(f"a JPEG of more than {MAX_SCANS} scans or {_MAX_SEGMENTS:,} segments takes too long")


def _check_raw(picture: Image.Image) -> None:
    """A camera's raw file is a TIFF whose first page is a thumbnail."""
    tags = getattr(picture, "tag_v2", {})
    if tags.get(_DNG_TAG) is not None or int(tags.get(_SUBFILE_TAG, 0)) & 1:
        raise Rejected(f"camera raw files are not read: {_KNOWN}")


def _without_text(data: bytes) -> bytes:
    """A PNG without its text and colour profile; other bytes as they are."""
    parts, at = [data[:8]], 8
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            parts.append(data[at:end])
        at = end
    return b"".join(parts)


def _orientation(picture: Image.Image) -> object:
    try:
        found = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # broken metadata does not spoil good pixels
        return 1
    return found if isinstance(found, int) else 1


def _to_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """All pixels as [H, W, 3], strip by strip: the copies that a conversion takes stay small."""
    width, height = picture.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = _strip_to_rgb(picture.crop((0, top, width, bottom)))
    return pixels


def _strip_to_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    mode = picture.mode
    if mode == "F":
        raise Rejected("floating-point samples have no defined white")
    if mode.startswith("I"):
        samples = np.asarray(picture).astype(np.int64)
        if mode == "I" and (samples.min() < 0 or samples.max() > 65535):
            raise Rejected("32-bit samples have no defined white")
        grey = ((samples + 128) // 257).astype(np.uint8)  # 65535 / 257 = 255, rounded
        return np.repeat(grey[:, :, None], 3, axis=2)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layered = picture if mode == "RGBA" else picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, layered)
    elif mode not in _COLOURS:
        raise Rejected(f"colours of the kind {mode} are not read: send RGB, grey or CMYK")
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _why(error: Exception) -> str:
    """Pillow's words for the most common cause; other messages may quote the file and are left out."""
    text = str(error).lower()
    return ": the file ends too early" if "truncated" in text or "end of file" in text else ""


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_filters: warnings.catch_warnings[None] | None = None


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Silence Pillow's warnings (broken metadata and the like) while any thread decodes.

    `warnings.catch_warnings` alone is unsafe with threads: the last to leave could restore another's filters.
    Here the first to come sets the filter and the last to go removes it. Warnings of other modules pass.
    """
    global _quiet_users, _quiet_filters
    with _quiet_lock:
        _quiet_users += 1
        if _quiet_users == 1:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0 and _quiet_filters is not None:
                _quiet_filters.__exit__(None, None, None)
                _quiet_filters = None
