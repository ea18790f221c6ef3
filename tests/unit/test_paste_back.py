"""Paste-back: nothing outside the mask, nothing for no change, the right place, and refusals in words."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdflow_core.faces.align import GRID_OFFSET, crop, points_in_crop, quad_from_points
from sdflow_core.faces.paste_back import EditedFace, PasteConfig, paste_back
from sdflow_core.faces.paste_mask import MaskConfig, box_of, crop_mask, picture_to_crop, warped_mask
from sdflow_core.records.errors import ContractError
from tests.pasting import mask_over, placed, random_face, smooth_picture
from tests.photographs import background

pytestmark = pytest.mark.weights

EVERY_WAY = [
    PasteConfig(),
    PasteConfig(fade_detail=0.0),
    PasteConfig(blend="replace"),
    PasteConfig(blend="replace", match_colour=False, keep_grain=False),
    PasteConfig(mask=MaskConfig(region="crop")),
]


# the mask


@pytest.mark.parametrize("region", ["face", "crop"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("degrees", "times"), [(0, 1.0), (33, 0.3), (-170, 2.4)])
def test_the_mask_is_between_0_and_1_and_0_where_the_crop_ends(
    region: str, known: bool, degrees: float, times: float
) -> None:
    points = placed(300, 250, degrees, times)
    quad = quad_from_points(points)
    shares = (points_in_crop(points, quad, 64) + 0.5) / 64 if known else None
    mask = crop_mask(shares, MaskConfig(region=region))
    assert mask.min() == 0 and 0.99 < mask.max() <= 1
    assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
    over = warped_mask(mask, quad, (0, 0, 700, 600))
    assert over.min() >= 0 and over.max() <= 1
    ys, xs = np.mgrid[0:600, 0:700]
    at = np.stack([xs, ys, np.ones_like(xs)], axis=-1) @ picture_to_crop(quad, 1).T
    outside = (np.abs(at[..., :2]) >= 0.5).any(axis=-1)  # pixel 0 of a crop of 1 px: -0.5 to 0.5
    assert not over[outside].any() and over[~outside].any()


def test_the_mask_covers_eyes_and_mouth_and_falls_without_a_step() -> None:
    points = placed(300, 300, 20, 2.0)
    quad = quad_from_points(points)
    mask = crop_mask((points_in_crop(points, quad, 64) + 0.5) / 64, MaskConfig())
    over = warped_mask(mask, quad, (0, 0, 600, 600))
    assert all(over[int(y), int(x)] > 0.95 for x, y in points)
    assert max(np.abs(np.diff(over, axis=axis)).max() for axis in (0, 1)) < 0.03


# what stays


@pytest.mark.parametrize("config", EVERY_WAY)
@pytest.mark.parametrize(("degrees", "times", "size"), [(0, 1.0, 32), (28, 0.5, 64), (-95, 0.08, 64)])
def test_outside_of_the_mask_nothing_changes(
    config: PasteConfig, degrees: float, times: float, size: int
) -> None:
    photograph = background(520, 400)
    kept = photograph.copy()
    face = random_face(placed(260, 200, degrees, times), size)
    pasted = paste_back(photograph, [face], config)
    mask = mask_over(face, config, photograph.shape)
    changed = (pasted.pixels != photograph).any(axis=2)
    assert not changed[mask == 0].any() and changed[mask > 0.5].mean() > 0.7
    left, top, right, bottom = pasted.boxes[0]
    changed[top:bottom, left:right] = False
    assert not changed.any()
    assert np.array_equal(photograph, kept)  # the argument is only read


@settings(max_examples=25, deadline=None)
@given(st.floats(-180, 180), st.floats(0.05, 3.0), st.floats(-100, 600), st.floats(-100, 500), st.booleans())
def test_an_unchanged_face_leaves_the_photograph_bit_for_bit(
    degrees: float, times: float, x: float, y: float, random: bool
) -> None:
    photograph = background(500, 400)
    points = placed(x, y, degrees, times)
    quad = quad_from_points(points)
    try:
        box_of(quad, photograph.shape)
    except ContractError:
        return  # outside, or below 4 px: refused, see below
    drawn = np.random.default_rng(0).uniform(-2, 2, (3, 24, 24)) if random else crop(photograph, quad, 24)
    face = EditedFace(quad, drawn, drawn.copy(), points_in_crop(points, quad, 24))
    assert np.array_equal(paste_back(photograph, [face]).pixels, photograph)


def test_no_face_is_the_photograph_and_in_place_needs_no_copy() -> None:
    photograph = background(200, 160)
    assert np.array_equal(paste_back(photograph, []).pixels, photograph)
    face = random_face(placed(100, 80, 0, 0.4), 32)
    expected = paste_back(photograph, [face]).pixels
    assert paste_back(photograph, [face], in_place=True).pixels is photograph
    assert np.array_equal(photograph, expected)
    photograph.flags.writeable = False
    with pytest.raises(ContractError, match="in place"):
        paste_back(photograph, [face], in_place=True)


def test_detail_stays_where_the_edit_changed_little() -> None:
    """Half of the crop is edited: pores of the other half are those of the photograph."""
    photograph = background(400, 400, 7)
    points = placed(200, 200)
    quad = quad_from_points(points)
    start = crop(photograph, quad, 32)
    edited = start.copy()
    edited[16:] = np.clip(edited[16:].astype(int) + 60, 0, 255)
    face = EditedFace(quad, edited, start, points_in_crop(points, quad, 32))
    pasted = paste_back(photograph, [face]).pixels
    far = int(quad[0, 1] + 0.32 * (quad[1, 1] - quad[0, 1]))
    assert np.array_equal(pasted[:far], photograph[:far])
    middle = slice(190, 210)
    rise = pasted[240, middle].astype(int) - photograph[240, middle]
    assert abs(float(rise.mean()) - 60) < 12
    # the grain is still there on what was drawn
    fine = [
        x[225:255, middle] - cv2.GaussianBlur(x, (0, 0), 3)[225:255, middle].astype(float)
        for x in (pasted, photograph)
    ]
    assert 0.6 < fine[0].std() / fine[1].std() < 1.4


# the right place


@pytest.mark.parametrize("size", [64, 300, 700])
@pytest.mark.parametrize("offset", [GRID_OFFSET, 0.0])
@pytest.mark.parametrize(("degrees", "times"), [(0, 1.0), (17, 0.6), (-60, 1.1), (180, 0.5)])
def test_align_and_paste_is_a_round_trip(size: int, offset: float, degrees: float, times: float) -> None:
    photograph = smooth_picture(640, 560)
    points = placed(320, 280, degrees, times)
    quad = quad_from_points(points)
    cut = crop(photograph, quad, size, offset)
    face = EditedFace(quad, cut, None, points_in_crop(points, quad, size, offset), offset)
    config = PasteConfig(blend="replace", match_colour=False, keep_grain=False)
    pasted = paste_back(photograph, [face], config).pixels
    error = np.abs(pasted.astype(float) - photograph)
    assert error.mean() < 0.25 and error.max() < 14
    # a crop of the pasted photograph is the crop; half a pixel beside it is not
    again = crop(pasted, quad, size, offset).astype(float)
    shifted = crop(pasted, quad + 0.5 * max(1.0, 270 * times / size), size, offset).astype(float)
    middle = slice(size // 3, 2 * size // 3)
    here, beside = (np.abs(x - cut)[middle, middle].mean() for x in (again, shifted))
    assert here < 0.35 * beside


@pytest.mark.parametrize("side", [60.0, 333.0, 900.0])
@pytest.mark.parametrize("size", [16, 128])
def test_a_spot_lands_where_the_crop_says(side: float, size: int) -> None:
    photograph = np.full((1000, 1000, 3), 100, np.uint8)
    angle = np.radians(25)
    along = side / 2 * np.array([np.cos(angle), np.sin(angle)])
    down = np.array([-along[1], along[0]])
    middle = np.array([480.0, 515.0])
    quad = np.stack(
        [middle - along - down, middle - along + down, middle + along + down, middle + along - down]
    )
    y, x = np.mgrid[0:size, 0:size]
    spot = np.array([0.58, 0.45]) * size - 0.5
    blob = 120 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (2 * (0.07 * size) ** 2))
    start = np.full((size, size, 3), 100, np.uint8)
    edited = np.rint(start + blob[..., None]).astype(np.uint8)
    config = PasteConfig(fade_detail=0, mask=MaskConfig(region="crop"))
    risen = paste_back(photograph, [EditedFace(quad, edited, start)], config).pixels[..., 0] - 100.0
    ys, xs = np.mgrid[0:1000, 0:1000]
    found = np.array([(risen * xs).sum(), (risen * ys).sum()]) / risen.sum()
    u, v = (spot + 0.5) / size - GRID_OFFSET
    expected = quad[0] + u * (quad[3] - quad[0]) + v * (quad[1] - quad[0])
    assert np.abs(found - expected).max() < 0.01 * side


# colours


def test_the_colour_cast_of_a_generator_is_not_pasted() -> None:
    photograph = smooth_picture(500, 500)
    points = placed(250, 250)
    quad = quad_from_points(points)
    cut = crop(photograph, quad, 64)
    cast = np.clip(cut + np.array([25, -10, 15]), 0, 255).astype(np.uint8)  # reconstruction and edit alike
    face = EditedFace(quad, cast, cast, points_in_crop(points, quad, 64))

    def moved(**options: object) -> float:
        pasted = paste_back(photograph, [face], PasteConfig(**options)).pixels  # type: ignore[arg-type]
        return float(np.abs(pasted.astype(float) - photograph)[200:300, 200:300].mean())

    assert moved() == 0
    assert moved(blend="replace") < 2 < 10 < moved(blend="replace", match_colour=False)
    bare = EditedFace(quad, cast, None, face.points)
    pasted = paste_back(photograph, [bare], PasteConfig(blend="replace")).pixels
    assert np.abs(pasted.astype(float) - photograph)[200:300, 200:300].mean() < 4


@pytest.mark.parametrize("config", EVERY_WAY)
def test_a_grey_photograph_stays_grey(config: PasteConfig) -> None:
    grey = np.repeat(background(300, 300)[:, :, :1], 3, axis=2)
    pasted = paste_back(grey, [random_face(placed(150, 150), 32)], config).pixels
    assert (pasted[..., 0] == pasted[..., 1]).all() and (pasted[..., 1] == pasted[..., 2]).all()
    assert (pasted != grey).any()


def test_levels_and_floats_paste_the_same() -> None:
    photograph = background(300, 260)
    face = random_face(placed(150, 130), 32)
    floats = [
        torch.from_numpy(np.asarray(x)).permute(2, 0, 1).float() / 127.5 - 1
        for x in (face.edited, face.reconstruction)
    ]
    other = EditedFace(face.quad, floats[0], floats[1].numpy(), face.points)
    a, b = (paste_back(photograph, [f]).pixels.astype(int) for f in (face, other))
    assert np.abs(a - b).max() <= 1


# several faces, borders, files


@pytest.mark.parametrize("config", EVERY_WAY)
def test_the_larger_of_two_faces_lies_on_top_whatever_their_order(config: PasteConfig) -> None:
    photograph = background(500, 400)
    large = random_face(placed(280, 200, 10, 0.9), 32, 1)
    small = random_face(placed(180, 190, -5, 0.5), 32, 2)
    one, other = (paste_back(photograph, faces, config) for faces in ([large, small], [small, large]))
    assert np.array_equal(one.pixels, other.pixels) and one.boxes == other.boxes[::-1]
    in_turn = paste_back(paste_back(photograph, [small], config).pixels, [large], config).pixels
    assert np.array_equal(one.pixels, in_turn)
    untouched = np.maximum(*(mask_over(f, config, photograph.shape) for f in (large, small))) == 0
    assert np.array_equal(one.pixels[untouched], photograph[untouched])


@pytest.mark.parametrize("config", EVERY_WAY)
@pytest.mark.parametrize(("x", "y"), [(0, 0), (300, 100), (150, 240), (-20, 120)])
def test_a_face_over_the_border_is_pasted_as_far_as_it_goes(config: PasteConfig, x: float, y: float) -> None:
    """As in a photograph that goes on behind the border: the same samples."""
    pad, photograph = 400, background(300, 240)
    wide = cv2.copyMakeBorder(photograph, pad, pad, pad, pad, cv2.BORDER_REFLECT_101)
    face = random_face(placed(x, y, 15), 32)
    moved = EditedFace(np.asarray(face.quad) + pad, face.edited, face.reconstruction, face.points)
    pasted = paste_back(photograph, [face], config).pixels
    expected = paste_back(np.asarray(wide), [moved], config).pixels[pad:-pad, pad:-pad]
    assert (pasted != photograph).any()
    assert np.abs(pasted.astype(int) - expected).max() <= 8 and (pasted != expected).mean() < 0.35


def test_strips_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    photograph, face = background(500, 500), random_face(placed(250, 250, 40, 1.2), 32)
    whole = paste_back(photograph, [face]).pixels
    monkeypatch.setattr("sdflow_core.faces.paste_back._STRIP_PIXELS", 3000)
    strips = paste_back(photograph, [face]).pixels
    assert np.abs(whole.astype(int) - strips).max() <= 1
