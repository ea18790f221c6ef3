"""decode: every file ends as upright RGB pixels or as Rejected with a reason; nothing else, and quietly."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from sdflow_core.faces.decode import MAX_SIDE_PX, Rejected, decode
from tests.hostile_pictures import jpeg_of_many_scans, text_bomb, tiff_with, with_chunks

RNG = np.random.default_rng(3)
PICTURE = np.kron(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))  # 48 x 64


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, format=kind, **options)
    return out.getvalue()


def reason(data: bytes, **options: int) -> str:
    with pytest.raises(Rejected) as caught:
        decode(data, **options)
    assert caught.value.reason and "\n" not in caught.value.reason
    return caught.value.reason


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_come_back_exactly(kind: str, options: dict[str, object]) -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(PICTURE), kind, **options)), PICTURE)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "comment": b"x" * 500}])
def test_jpeg(options: dict[str, object]) -> None:
    got = decode(encoded(Image.fromarray(PICTURE), "JPEG", quality=95, **options))
    assert got.shape == PICTURE.shape and got.dtype == np.uint8
    assert np.abs(got.astype(int) - PICTURE).mean() < 16


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000), (MAX_SIDE_PX, 2)])
def test_odd_shapes(size: tuple[int, int]) -> None:
    assert decode(encoded(Image.new("RGB", size, (9, 8, 7)), "PNG")).shape == (size[1], size[0], 3)


def test_grey_palette_and_bilevel() -> None:
    grey = Image.fromarray(PICTURE[:, :, 0])
    assert np.array_equal(decode(encoded(grey, "PNG")), np.repeat(PICTURE[:, :, :1], 3, axis=2))
    palette = Image.fromarray(PICTURE).quantize(16)
    assert np.array_equal(decode(encoded(palette, "GIF")), np.asarray(palette.convert("RGB")))
    assert set(np.unique(decode(encoded(grey.convert("1"), "PNG")))) <= {0, 255}


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((1, 1), (0, 0, 255, 255))
    clear.putpixel((2, 2), (0, 0, 0, 128))
    got = decode(encoded(clear, "PNG"))
    assert got[0, 0].tolist() == [255, 255, 255] and got[1, 1].tolist() == [0, 0, 255]
    assert abs(int(got[2, 2, 0]) - 127) <= 1
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 1), 1)
    for transparency in (0, b"\x00\xff"):
        got = decode(encoded(palette, "PNG", transparency=transparency))
        assert got[0, 0].tolist() == [255, 255, 255] and got[1, 1].tolist() == [200, 100, 50]
    grey = decode(encoded(Image.new("L", (2, 2), 7), "PNG", transparency=7))
    assert grey.min() == 255
    assert decode(encoded(Image.new("LA", (2, 2), (0, 0)), "PNG")).min() == 255


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_is_scaled_not_cut(kind: str) -> None:
    samples = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    assert decode(encoded(Image.fromarray(samples), kind))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_samples_without_a_white_are_rejected() -> None:
    assert "white" in reason(encoded(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"))
    assert "white" in reason(encoded(Image.fromarray(np.full((3, 3), 1 << 20, np.int32)), "TIFF"))


def test_cmyk() -> None:
    flat = Image.new("RGB", (16, 16), (200, 40, 60)).convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        got = decode(encoded(flat, kind)).reshape(-1, 3).mean(axis=0)
        assert np.abs(got - [200, 40, 60]).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.transpose(1, 0, 2),
        6: np.rot90(PICTURE, -1),
        7: PICTURE[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PICTURE),
    }[orientation]
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    got = decode(encoded(Image.fromarray(PICTURE), kind, exif=exif(orientation), **options))
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).mean() < (16 if kind == "JPEG" else 0.01)


@pytest.mark.parametrize(
    "bad", [b"Exif\0\0II*\0", b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0"]
)
def test_broken_exif_is_ignored(bad: bytes) -> None:
    for cut in (len(bad), 12):
        assert decode(encoded(Image.fromarray(PICTURE), "JPEG", exif=bad[:cut])).shape == PICTURE.shape
    good = exif(6)
    for at in range(8, len(good)):  # every byte of a real block broken in turn
        broken = good[:at] + b"\xff" + good[at + 1 :]
        assert decode(encoded(Image.fromarray(PICTURE), "JPEG", exif=broken)).size == PICTURE.size


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"hello, I am text", "known format"),
        (b"\xff\xd8\xff", "JPEG"),
        (b"<svg xmlns='x'></svg>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg/>", "SVG"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
        (b"RIFF\0\0\0\0WEBP", "WebP"),
        (b"RIFF\0\0\0\0WAVEfmt ", "known format"),
        (b"BM", "BMP"),
        (b"GIF89a", "GIF"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "known format"),
    ],
)
def test_what_is_no_picture_says_so(data: bytes, word: str) -> None:
    assert word in reason(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_cut_and_broken_files_never_escape(kind: str) -> None:
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)), kind)
    reason(whole[: len(whole) // 2])
    for _ in range(150):
        broken = bytearray(whole[: int(RNG.integers(1, len(whole) + 1))])
        for at in RNG.integers(0, min(len(broken), 300), 3):
            broken[at] = int(RNG.integers(0, 256))
        try:
            got = decode(bytes(broken), max_pixels=1_000_000)
        except Rejected as rejected:
            assert rejected.reason
        else:
            assert got.dtype == np.uint8 and got.shape[2] == 3


def test_truncated_jpeg_is_never_half_a_picture() -> None:
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    for share in (0.3, 0.6, 0.9):
        assert "ends too early" in reason(whole[: int(len(whole) * share)])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_rejected(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (k * 60, 0, 0)) for k in range(3)]
    assert reason(encoded(frames[0], kind, save_all=True, append_images=frames[1:])) == "animated image"


def test_pages_of_a_tiff_are_rejected() -> None:
    frames = [Image.new("RGB", (8, 8), (k * 60, 0, 0)) for k in range(2)]
    assert "pages" in reason(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))


def test_a_phones_jpeg_with_a_second_picture_is_one_picture() -> None:
    frames = [Image.fromarray(PICTURE), Image.fromarray(PICTURE[:8, :8])]
    assert decode(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])).shape == PICTURE.shape


def webp_header(width: int, height: int) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + sides + bytes(40)


@pytest.mark.parametrize(
    "data", [png_header(30_000, 30_000), webp_header(16_000, 16_000)], ids=["png", "webp"]
)
def test_a_bomb_is_refused_from_its_header(data: bytes) -> None:
    tracemalloc.start()
    start = time.perf_counter()
    text = reason(data)
    seconds, peak_bytes = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "too large" in text and "0 x " in text
    assert seconds < 0.1 and peak_bytes < 2_000_000


def test_the_limits_are_exact() -> None:
    data = encoded(Image.new("RGB", (20, 10)), "PNG")
    assert decode(data, max_pixels=200).shape == (10, 20, 3)
    assert "too large" in reason(data, max_pixels=199)
    assert "too long" in reason(png_header(MAX_SIDE_PX + 1, 1))


def test_threads_leave_the_warning_filters_alone() -> None:
    before = list(warnings.filters)
    good, bad = encoded(Image.fromarray(PICTURE), "JPEG", exif=b"Exif\0\0II*\0"), b"BM"

    def work(k: int) -> int:
        try:
            return decode(good if k % 2 else bad).size
        except Rejected:
            return 0

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(200))) == {0, PICTURE.size}
    assert list(warnings.filters) == before


def test_metadata_that_unpacks_to_very_much_does_not_spoil_a_png() -> None:
    plain = encoded(Image.fromarray(PICTURE), "PNG")
    for kind in (b"zTXt", b"iTXt", b"iCCP"):
        assert np.array_equal(decode(with_chunks(plain, text_bomb(kind, 50_000_000))), PICTURE)
    broken = bytearray(with_chunks(plain, text_bomb(b"zTXt", 50_000_000)))
    broken[-30] ^= 0xFF
    assert "PNG" in reason(bytes(broken))


def test_a_jpeg_that_would_take_hours_is_refused() -> None:
    assert decode(jpeg_of_many_scans(PICTURE, 50)).shape == PICTURE.shape
    assert "scans" in reason(jpeg_of_many_scans(PICTURE, 200))
    for filler in (b"\xff\x01", b"\xff\xe1\0\0", b"\xff\xff"):  # nor do its markers
        assert "JPEG" in reason(b"\xff\xd8\xff\xe0\0\2" + filler * 1_000_000)


def test_what_lies_behind_a_jpeg_is_not_looked_at() -> None:
    whole = encoded(Image.fromarray(PICTURE), "JPEG")
    assert np.array_equal(decode(whole + b"\xff\xda\0\2" * 30_000), decode(whole))


def test_camera_raw_is_not_taken_for_its_thumbnail() -> None:
    tiff = encoded(Image.fromarray(PICTURE), "TIFF")
    assert decode(tiff_with(tiff, 0xC611, 1)).shape == PICTURE.shape
    assert "camera raw" in reason(tiff_with(tiff, 0xC612, 1))


def test_colours_do_not_change_at_the_edges_of_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(PICTURE).convert("RGBA"), "PNG")
    whole = decode(data)
    monkeypatch.setattr("sdflow_core.faces.decode._STRIP_PIXELS", 100)
    assert np.array_equal(decode(data), whole)
