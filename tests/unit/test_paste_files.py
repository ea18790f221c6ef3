"""Paste-back at its edges: files of every kind, the large writer, refusals, and how little is looked at."""

from __future__ import annotations

import io
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from sdflow_core.faces.align import quad_from_points
from sdflow_core.faces.decode import decode
from sdflow_core.faces.large_png import photograph_png
from sdflow_core.faces.paste_back import EditedFace, PasteConfig, paste_back
from sdflow_core.faces.paste_mask import box_of
from sdflow_core.faces.pixels import read_png
from sdflow_core.records.errors import ContractError
from tests.pasting import mask_over, placed, random_face
from tests.photographs import background

pytestmark = pytest.mark.weights


def file_of(picture: Image.Image, kind: str, orientation: int = 1) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    picture.save(out, kind, exif=exif) if orientation != 1 else picture.save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_faces_are_pasted_upright_whatever_the_orientation_of_the_file(orientation: int) -> None:
    upright = background(320, 240)
    undo = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: x.transpose(1, 0, 2)[::-1],
        7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    stored = Image.fromarray(np.ascontiguousarray(undo(upright)))
    decoded = decode(file_of(stored, "PNG", orientation))
    assert np.array_equal(decoded, upright)
    face = random_face(placed(160, 120, 0, 0.7), 32)
    assert np.array_equal(paste_back(decoded, [face]).pixels, paste_back(upright, [face]).pixels)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16", "P", "CMYK"])
def test_files_of_any_kind_of_colour_are_pasted_into_as_decoded(mode: str) -> None:
    rgb = Image.fromarray(background(260, 220))
    if mode == "I;16":
        wide = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
        data = file_of(Image.fromarray(wide), "PNG")
    else:
        data = file_of(rgb.convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    decoded = decode(data)
    face = random_face(placed(130, 110, 0, 0.6), 32)
    pasted = paste_back(decoded, [face]).pixels
    outside = mask_over(face, PasteConfig(), decoded.shape) == 0
    assert np.array_equal(pasted[outside], decoded[outside]) and (pasted != decoded).any()


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (1, 300), (400, 1), (321, 77)])
@pytest.mark.parametrize("strip", [1, 3000, 10**7])
def test_the_large_writer_loses_nothing(
    shape: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdflow_core.faces.large_png._STRIP_BYTES", strip)
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image[shape[0] // 2 :] //= 32
    data = photograph_png(image)
    assert np.array_equal(read_png(data), image) and np.array_equal(decode(data), image)
    assert data == photograph_png(image, threads=1)
    strided = np.repeat(image, 2, axis=1)[:, ::2]
    assert photograph_png(strided) == data


# refusals


def test_what_cannot_be_pasted_is_refused_before_anything_changes() -> None:
    photograph = background(200, 200)
    kept = photograph.copy()
    good = np.full((16, 16, 3), 90, np.uint8)
    floats = np.zeros((3, 16, 16), np.float32)
    square = np.array([[20.0, 20], [20, 160], [160, 160], [160, 20]])
    nan, infinite = floats.copy(), floats.copy()
    nan[1, 3, 3], infinite[0, 0, 0] = np.nan, np.inf
    dented = np.array([[20, 20], [100, 80], [160, 160], [160, 20]])
    points = np.full((5, 2), 8.0)
    wrong = {
        "no area": EditedFace(np.zeros((4, 2)), good, good),
        "no quad": EditedFace(square[:3], good, good),
        "No quad": EditedFace(square * np.nan, good, good),
        "no picture of a square": EditedFace(square[::-1], good, good),
        "No picture of a square": EditedFace(dented, good, good),
        "too small": EditedFace(square / 60, good, good),
        "outside": EditedFace(square + 500, good, good),
        "Outside": EditedFace(square - 300, good, good),
        "differ in size": EditedFace(square, good, good[:8, :8]),
        "without what it started from": EditedFace(square, good),
        "not finite": EditedFace(square, nan, floats),
        "Not finite": EditedFace(square, floats, infinite),
        "no picture of a face": EditedFace(square, good[:8], good[:8]),
        "No picture of a face": EditedFace(square, floats[0], floats[0]),
        "no Picture of a face": EditedFace(square, good.astype(np.int32), good),
        "no facial points": EditedFace(square, good, good, points[:4]),
        "points coincide": EditedFace(square, good, good, points),
        "offset": EditedFace(square, good, good, None, float("nan")),
    }
    first = random_face(placed(100, 100, 0, 0.4), 16)
    for reason, face in wrong.items():
        with pytest.raises(ContractError, match=f"(?i){reason}"):
            paste_back(photograph, [first, face], in_place=True)
    for bad in (photograph[:, :, 0], photograph.astype(np.float32), photograph[:0], photograph[..., :2]):
        with pytest.raises(ContractError, match="picture"):
            paste_back(bad, [first])  # type: ignore[arg-type]
    assert np.array_equal(photograph, kept)


def test_only_what_the_face_covers_is_looked_at() -> None:
    """1.2 GB of samples in 60 kB: all rows are one. Whoever copies the photograph is seen."""
    row = np.full((1, 20_000, 3), 128, np.uint8)
    endless = np.lib.stride_tricks.as_strided(row, (20_000, 20_000, 3), (0, 3, 1))
    face = random_face(placed(9_000, 15_000), 32)
    tracemalloc.start()
    try:
        (box,) = paste_back(endless, [face], in_place=True).boxes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 250 < box[2] - box[0] < 300 and 250 < box[3] - box[1] < 300
    assert (row[0, : box[0]] == 128).all() and (row[0, box[2] :] == 128).all()
    assert peak < 40_000_000


def test_larger_quads_give_larger_boxes() -> None:
    sides = [box_of(quad_from_points(placed(500, 500, 0, t)), (1000, 1000)) for t in (0.1, 0.5, 1.5)]
    assert all(b[0] < a[0] and b[1] < a[1] and b[2] > a[2] and b[3] > a[3] for a, b in pairwise(sides))
