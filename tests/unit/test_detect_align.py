"""Detection and alignment: geometry, invariances, threads; faces are drawn, never photographed."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sdflow_core.faces.align import crop, points_in_crop, quad_from_points
from sdflow_core.faces.detect import Detector, default_detector
from sdflow_core.records.errors import ContractError

POINTS = np.array(
    [[95.0, 120], [161, 120], [128, 158], [100, 195], [156, 195]]
)  # of drawn_face, in px of 256


def drawn_face(side_px: int = 256) -> NDArray[np.uint8]:
    """A drawn face that YuNet takes for one; landmarks at POINTS (scaled)."""
    skin, dark = (214, 170, 140), (60, 40, 30)
    picture = np.full((256, 256, 3), (150, 170, 190), np.uint8)
    cv2.ellipse(picture, (128, 120), (98, 118), 0, 0, 360, dark, -1)
    cv2.ellipse(picture, (128, 140), (80, 104), 0, 0, 360, skin, -1)
    for x in (95, 161):
        cv2.ellipse(picture, (x, 120), (16, 9), 0, 0, 360, (250, 250, 250), -1)
        cv2.circle(picture, (x, 120), 8, dark, -1)
        cv2.ellipse(picture, (x, 100), (20, 6), 0, 180, 360, dark, 4)
    cv2.line(picture, (128, 125), (122, 160), (170, 130, 110), 4)
    cv2.line(picture, (122, 160), (134, 162), (170, 130, 110), 4)
    cv2.ellipse(picture, (128, 190), (30, 8), 0, 0, 180, (150, 40, 50), 5)
    picture = cv2.GaussianBlur(picture, (0, 0), 2)
    return np.asarray(cv2.resize(picture, (side_px, side_px), interpolation=cv2.INTER_AREA), np.uint8)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return default_detector()


def test_a_drawn_face_is_found_where_it_is(detector: Detector) -> None:
    canvas = np.full((420, 700, 3), 128, np.uint8)
    canvas[60:316, 300:556] = drawn_face()
    (face,) = detector.find(canvas)
    assert np.abs(face.points - (POINTS + np.array([300, 60]))).max() < 16
    assert 0.6 <= face.score <= 1 and face.box.shape == (4,)


@pytest.mark.parametrize("side_px", [420, 1600])
def test_a_turned_face_is_known(detector: Detector, side_px: int) -> None:
    canvas = np.full((420, 420, 3), 128, np.uint8)
    canvas[80:336, 80:336] = drawn_face()
    canvas = np.asarray(cv2.resize(canvas, (side_px, side_px)), np.uint8)
    (face,) = detector.find(canvas)
    assert not face.turned
    for turn in (1, 2, 3):
        assert all(face.turned for face in detector.find(np.rot90(canvas, turn).copy())), turn


@pytest.mark.parametrize("side_px", [64, 128, 640, 2000])
def test_any_resolution_gives_the_same_place(detector: Detector, side_px: int) -> None:
    canvas = np.full((400, 400, 3), 128, np.uint8)
    canvas[72:328, 72:328] = drawn_face()
    kind = cv2.INTER_AREA if side_px < 400 else cv2.INTER_CUBIC
    picture = np.asarray(cv2.resize(canvas, (side_px, side_px), interpolation=kind), np.uint8)
    faces = detector.find(picture)
    assert len(faces) == 1
    assert np.abs(faces[0].points * 400 / side_px - (POINTS + 72)).max() < 24


def test_largest_first(detector: Detector) -> None:
    canvas = np.full((420, 640, 3), 128, np.uint8)
    canvas[20:148, 20:148] = drawn_face(128)
    canvas[100:356, 300:556] = drawn_face()
    faces = detector.find(canvas)
    assert len(faces) == 2
    assert faces[0].points[:, 0].min() > 280 > faces[1].points[:, 0].max()


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (3000, 2), (200, 200)])
def test_no_face_is_no_error(detector: Detector, shape: tuple[int, int]) -> None:
    assert detector.find(np.full((*shape, 3), 90, np.uint8)) == []


def test_threads_and_processes_see_the_same(detector: Detector) -> None:
    pictures = [drawn_face(side) for side in (256, 300, 200, 420)] * 4
    alone = [detector.find(p)[0].points for p in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: detector.find(p)[0].points, pictures))
    copy = pickle.loads(pickle.dumps(detector))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert np.array_equal(copy.find(pictures[0])[0].points, alone[0]) and copy.digest == detector.digest


def test_the_digest_names_the_file_and_bytes_work_like_a_path(detector: Detector) -> None:
    assert detector.digest == "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10"
    other = Detector(detector.data)
    assert other.digest == detector.digest and len(other.find(drawn_face())) == 1


def test_bad_files_and_pictures_say_what_to_do() -> None:
    with pytest.raises(ContractError, match="cannot be read"):
        _ = Detector("no/such.onnx").digest
    with pytest.raises(ContractError, match="OpenCV"):
        Detector(b"this is no network").find(drawn_face())
    for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ContractError, match="picture"):
            default_detector().find(bad)  # type: ignore[arg-type]


# alignment


def test_the_quad_is_a_square_in_the_order_promised() -> None:
    quad = quad_from_points(POINTS)
    sides = np.hypot(*(np.roll(quad, -1, axis=0) - quad).T)
    assert np.allclose(sides, sides[0])
    top_left, bottom_left, bottom_right, top_right = quad
    assert top_left[0] < top_right[0] and top_left[1] < bottom_left[1] and bottom_right[0] > bottom_left[0]
    half = max(66 * 2.0, 75 * 1.8)
    assert np.allclose(sides[0], 2 * half) and np.allclose(quad.mean(axis=0), [128, 120 + 7.5])
    assert np.allclose(quad_from_points(POINTS, 0.7) - quad.mean(axis=0), 0.7 * (quad - quad.mean(axis=0)))


def test_the_quad_turns_and_grows_with_the_face() -> None:
    move = np.array([5, -9])
    turn = 2.5 * np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    assert np.allclose(quad_from_points(POINTS @ turn.T + move), quad_from_points(POINTS) @ turn.T + [5, -9])


def training_picture(image: NDArray[np.uint8], points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """What the models learned from: a 256 px warp, halved; then its central 0.7."""
    target = np.array([[0, 0], [0, 256], [256, 256], [256, 0]], np.float32)
    matrix = cv2.getPerspectiveTransform(quad_from_points(points).astype(np.float32), target)
    warped = cv2.warpPerspective(
        image, matrix, (256, 256), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(cv2.resize(warped, (128, 128), interpolation=cv2.INTER_AREA), np.uint8)


def test_crops_agree_with_the_pictures_of_training() -> None:
    image = drawn_face()
    whole = training_picture(image, POINTS).astype(float)
    # 0.7 of 128 px is 89.6 px; sample it where its 64 pixels lie: u = 0.15 + 0.7 (j + 0.5) / 64
    at = ((0.15 + 0.7 * (np.arange(64) + 0.5) / 64) * 128 - 0.5).astype(np.float32)
    expected = cv2.remap(whole.astype(np.float32), *np.meshgrid(at, at), cv2.INTER_LINEAR)
    got = crop(image, quad_from_points(POINTS, 0.7), 64).astype(np.float32)

    def distance(dx: float, dy: float) -> float:
        moved = cv2.warpAffine(
            got, np.array([[1, 0, dx], [0, 1, dy]], np.float64), (64, 64), borderMode=cv2.BORDER_REFLECT_101
        )
        return float(np.abs(moved - expected)[4:-4, 4:-4].mean())

    assert distance(0, 0) < 1.5
    assert all(distance(dx, dy) > distance(0, 0) for dx, dy in ((0.3, 0), (-0.3, 0), (0, 0.3), (0, -0.3)))


@pytest.mark.parametrize(("factor", "size"), [(1, 64), (12, 64), (1, 200)])
@pytest.mark.parametrize("angle", [0.0, 0.5])
def test_points_in_crop_say_where_the_pixels_went(factor: int, size: int, angle: float) -> None:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = ((POINTS - 128) @ turn.T + 128) * factor
    quad = quad_from_points(points, 0.9)
    ys, xs = np.mgrid[0 : 256 * factor, 0 : 256 * factor]
    for k, point in enumerate(points):
        radius = 5.0 * factor
        blob = 255 * np.exp(-((xs - point[0]) ** 2 + (ys - point[1]) ** 2) / (2 * radius**2))
        got = crop(np.repeat(np.rint(blob).astype(np.uint8)[:, :, None], 3, axis=2), quad, size)[
            :, :, 0
        ].astype(float)
        y, x = np.mgrid[0:size, 0:size]
        centre = np.array([(got * x).sum(), (got * y).sum()]) / got.sum()
        assert np.abs(centre - points_in_crop(points, quad, size)[k]).max() < 0.12 * max(1, size / 64)


def test_large_photographs_are_averaged_not_sampled() -> None:
    stripes = np.zeros((3000, 3000, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the crop can show: must become grey, not a pattern
    got = crop(stripes, [[300, 300], [300, 2700], [2700, 2700], [2700, 300]], 64)
    assert got.std() < 3 and abs(float(got.mean()) - 127.5) < 3


def test_borders_are_reflected_and_sizes_agree() -> None:
    image = np.full((100, 100, 3), 200, np.uint8)
    assert crop(image, [[-80, -80], [-80, 60], [60, 60], [60, -80]], 32).min() == 200
    face, quad = drawn_face(512), quad_from_points(POINTS * 2, 0.7)
    small = cv2.resize(crop(face, quad, 128), (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - crop(face, quad, 64)).mean() < 1.0


def test_what_is_no_geometry_is_refused() -> None:
    flat = np.zeros((5, 2))
    image = drawn_face(32)
    square = [[0, 0], [0, 9], [9, 9], [9, 0]]
    for call in (
        lambda: quad_from_points(flat),
        lambda: quad_from_points(POINTS[:4]),
        lambda: quad_from_points(POINTS * np.nan),
        lambda: quad_from_points(POINTS, 0),
        lambda: crop(image, np.zeros((4, 2)), 64),
        lambda: crop(image, square, 0),
        lambda: crop(image[:, :, 0], square, 8),
        lambda: points_in_crop(POINTS, np.ones((4, 2)), 64),
    ):
        with pytest.raises(ContractError):
            call()
