"""Photographs of a phone in: several faces, FFHQ's square, and recipes that use neither stay as they were."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sdflow_core.faces import ffhq
from sdflow_core.faces.align import GRID_OFFSET, crop, points_in_crop, quad_from_points
from sdflow_core.faces.decode import Rejected
from sdflow_core.faces.detect import Face
from sdflow_core.faces.ingestion import IngestConfig, align_bytes, align_faces, judge_faces, judge_source
from sdflow_core.records.config import as_recipe
from sdflow_core.records.errors import ContractError
from tests.photographs import background

pytestmark = pytest.mark.weights

POINTS = np.array([[-33.0, -18], [33, -18], [0, 20], [-28, 57], [28, 57]])


def face(x: float, y: float, times: float = 1.0) -> Face:
    box = np.array([x - 60 * times, y - 60 * times, 120 * times, 150 * times])
    return Face(box, times * POINTS + [x, y], 0.9)


LARGE, MIDDLE, SMALL, OVER = face(300, 250, 1.6), face(700, 250, 0.9), face(900, 400, 0.1), face(5, 200, 1.0)
PICTURE = background(1000, 500)


def test_the_policy_says_what_becomes_of_several_faces() -> None:
    found = [LARGE, MIDDLE, SMALL, OVER]
    with pytest.raises(Rejected, match="4 faces found"):
        align_faces(PICTURE, lambda _: found, IngestConfig(resolution=32))
    (largest,) = align_faces(PICTURE, lambda _: found, IngestConfig(resolution=32, faces="largest"))
    alone = align_faces(PICTURE, lambda _: [LARGE], IngestConfig(resolution=32))[0]
    assert np.array_equal(largest.crop, alone.crop) and np.array_equal(largest.quad, alone.quad)
    every = align_faces(PICTURE, lambda _: found, IngestConfig(resolution=32, faces="all"))
    assert [a.quad.tolist() for a in every] == [quad_from_points(f.points).tolist() for f in (LARGE, MIDDLE)]


@pytest.mark.parametrize("policy", ["largest", "all"])
@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([], "no face found"),
        ([OVER], "cut off"),
        ([SMALL, SMALL], "too small"),
        ([replace(LARGE, turned=True)], "turn the picture"),
    ],
)
def test_a_picture_without_a_fit_face_is_rejected_in_words(
    policy: str, found: list[Face], reason: str
) -> None:
    with pytest.raises(Rejected, match=reason):
        align_faces(PICTURE, lambda _: found, IngestConfig.model_validate({"faces": policy}))


def test_the_largest_is_not_replaced_by_one_that_fits_better() -> None:
    """Who is meant must not hang on who is cut off."""
    with pytest.raises(Rejected, match="cut off"):
        align_faces(PICTURE, lambda _: [OVER, MIDDLE], IngestConfig(faces="largest"))


def test_a_verdict_names_every_face_and_why_some_are_left_out() -> None:
    out = io.BytesIO()
    Image.fromarray(PICTURE).save(out, "PNG")
    with pytest.raises(ContractError, match="one face"):
        align_bytes(out.getvalue(), lambda _: [LARGE], IngestConfig(faces="all"))
    verdict = judge_source(out.getvalue, lambda _: [LARGE, MIDDLE], IngestConfig(faces="largest"))
    assert verdict.status == "kept" and [face.number for face in verdict.faces] == [0]
    found = [OVER, LARGE, SMALL, MIDDLE]
    verdict = judge_source(out.getvalue, lambda _: found, IngestConfig(resolution=32, faces="all"))
    assert [face.number for face in verdict.faces] == [0, 1, 2, 3]
    assert [bool(face.aligned) for face in verdict.faces] == [False, True, False, True]
    assert "cut off" in verdict.faces[0].reason and "too small" in verdict.faces[2].reason
    assert verdict.face is verdict.faces[1].aligned


def test_options_that_came_later_leave_old_recipes_alone() -> None:
    plain = as_recipe(IngestConfig())
    assert sorted(plain) == ["max_pixels", "min_eye_distance_px", "resolution", "template_scale"]
    assert as_recipe(IngestConfig(faces="reject", framing="five_points")) == plain
    other = as_recipe(IngestConfig(faces="largest", framing="ffhq"))
    assert other == {**plain, "faces": "largest", "framing": "ffhq"}
    for config in (plain, other):
        assert as_recipe(IngestConfig.model_validate(config)) == config


# FFHQ's square


def turned(points: np.ndarray, degrees: float, times: float) -> np.ndarray:
    a = np.radians(degrees)
    return times * points @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


@pytest.mark.parametrize("degrees", [0, 30, -100])
def test_the_corrected_square_moves_turns_and_grows_with_the_face(degrees: float) -> None:
    points = POINTS + np.array([3, -2])
    move = np.array([40, 60])
    expected = turned(ffhq.ffhq_quad(points), degrees, 2.5) + move
    assert np.allclose(ffhq.ffhq_quad(turned(points, degrees, 2.5) + move), expected)
    quad = ffhq.ffhq_quad(points)
    sides = np.hypot(*(np.roll(quad, -1, axis=0) - quad).T)
    assert np.allclose(sides, sides[0])
    small = ffhq.ffhq_quad(points, 0.7)
    assert np.allclose(small - quad.mean(0), 0.7 * (quad - quad.mean(0)))


def test_the_corrected_square_is_the_mirrored_one_of_a_mirrored_face() -> None:
    points = POINTS + np.random.default_rng(0).normal(0, 4, (5, 2))
    mirrored = (points * [-1, 1])[[1, 0, 2, 4, 3]]
    expected = (ffhq.ffhq_quad(points) * [-1, 1])[[3, 2, 1, 0]]
    assert np.allclose(ffhq.ffhq_quad(mirrored), expected)


def test_the_square_of_68_points_is_the_published_formula() -> None:
    """Written out as FFHQ's alignment is described: eyes, mouth, flips and all."""
    p = np.random.default_rng(1).normal(0, 1, (68, 2))
    p[36:42] += [-33, -18]
    p[42:48] += [33, -18]
    p[48] += [-28, 57]
    p[54] += [28, 57]
    left, right = p[36:42].mean(0), p[42:48].mean(0)
    eye, mouth = (left + right) * 0.5, (p[48] + p[54]) * 0.5
    to_eye, to_mouth = right - left, mouth - eye
    x = to_eye - np.flipud(to_mouth) * [-1, 1]
    x /= np.hypot(*x)
    x *= max(np.hypot(*to_eye) * 2.0, np.hypot(*to_mouth) * 1.8)
    y = np.flipud(x) * [-1, 1]
    c = eye + to_mouth * 0.1
    expected = np.stack([c - x - y, c - x + y, c + x + y, c + x - y])
    assert np.allclose(ffhq.ffhq_quad_of_68(p), expected)
    with pytest.raises(ContractError):
        ffhq.ffhq_quad_of_68(p[:5])


def test_an_ffhq_crop_has_no_offset_and_a_compact_one_has() -> None:
    quad = quad_from_points(LARGE.points)
    ffhq_like, compact = IngestConfig(framing="ffhq", resolution=64), IngestConfig(resolution=64)
    assert (ffhq_like.grid_offset, compact.grid_offset) == (0.0, GRID_OFFSET)
    (cut,) = align_faces(PICTURE, lambda _: [LARGE], ffhq_like)
    expected = ffhq.ffhq_quad(LARGE.points)
    assert np.array_equal(cut.quad, expected)
    assert np.array_equal(cut.crop, crop(PICTURE, expected, 64, 0.0))
    assert np.array_equal(cut.crop, ffhq.ffhq_crop(PICTURE, LARGE.points, 64))
    assert np.allclose(cut.points, points_in_crop(LARGE.points, expected, 64, 0.0))
    exact, moved = (points_in_crop(LARGE.points, quad, 64, offset) for offset in (0.0, GRID_OFFSET))
    assert np.allclose(moved - exact, 64 * GRID_OFFSET)
    # without an offset, a point at a corner of the quad is at the corner of the crop
    corner = points_in_crop(np.vstack([quad, quad[:1]]), quad, 64, 0.0)
    assert np.allclose(corner[:4], [[-0.5, -0.5], [-0.5, 63.5], [63.5, 63.5], [63.5, -0.5]], atol=1e-3)


def test_a_face_is_compared_with_the_one_at_its_place() -> None:
    """A refresh compares people: the largest face of the picture need not be the one that was sampled."""
    from tasks.canary import _at_the_place

    config = IngestConfig(resolution=32, faces="all")
    judged = judge_faces(PICTURE, lambda _: [OVER, LARGE, MIDDLE], config)
    large, middle = (face.aligned for face in judged[1:])
    assert large is not None and middle is not None
    assert _at_the_place(judged, middle.quad + 5) is middle and _at_the_place(judged, large.quad) is large
    assert _at_the_place(judged, np.add(quad_from_points(SMALL.points), (90, 0))) is None
