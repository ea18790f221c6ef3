"""From five facial points to a square crop in the FFHQ template.

The template is the one of Karras et al., *A Style-Based Generator Architecture for GANs* (arXiv 1812.04948,
appendix C), computed from eyes and mouth corners. Coordinates are pixel indices: (0, 0) is the centre of the
first pixel. Models of others, trained on FFHQ itself, need the square of its 68 points: `faces.ffhq`.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sdflow_core.records.errors import ContractError

OVERSAMPLING = 3  # the warp samples 3 x 3 points a pixel, then averages: bilinear alone would alias
# The pictures the compact models learned from were warped on a 256 px grid whose samples sit at the *corner*
# of their cell, and the central 0.7 of it was kept. Every crop keeps that half-sample offset (0.18 px of 64),
# so that training and use agree.
GRID_OFFSET = 0.5 / (256 * 0.7)
_CORNERS = np.array([[0, 0], [0, 1], [1, 1], [1, 0]], dtype=np.float64)


def quad_from_points(points: ArrayLike, scale: float = 1.0) -> NDArray[np.float64]:
    """Place the FFHQ square over a face.

    Args:
        points: [5, 2] px: image-left eye, image-right eye, nose, image-left mouth corner, image-right mouth
            corner.
        scale: 1.0 is the FFHQ square; 0.7 keeps its central 70 % (a tighter face).

    Returns:
        [4, 2] px: top-left, bottom-left, bottom-right, top-right corner. It may reach outside the picture.

    Raises:
        ContractError: wrong shape, values that are not finite, or points that coincide.

    Example:
        >>> quad = quad_from_points([[40, 50], [80, 50], [60, 70], [45, 95], [75, 95]])
        >>> [round(float(v), 1) for v in quad[0]]
        [-21.0, -26.5]
    """
    p = checked_points(points)
    if not scale > 0:
        raise ContractError("The crop scale is wrong", expected="a number above 0", found=scale)
    eye, mouth = (p[0] + p[1]) / 2, (p[3] + p[4]) / 2
    eye_to_eye, eye_to_mouth = p[1] - p[0], mouth - eye
    x = eye_to_eye - np.array([-eye_to_mouth[1], eye_to_mouth[0]])
    length = float(np.hypot(*x))
    if length < 1e-6:
        raise ContractError("The facial points coincide", expected="five different points", found=p.tolist())
    x *= max(float(np.hypot(*eye_to_eye)) * 2.0, float(np.hypot(*eye_to_mouth)) * 1.8) * scale / length
    y = np.array([-x[1], x[0]])
    centre = eye + eye_to_mouth * 0.1
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def crop(
    image: NDArray[np.uint8], quad: ArrayLike, size: int, grid_offset: float = GRID_OFFSET
) -> NDArray[np.uint8]:
    """Cut the quad out of a picture as an upright square.

    Args:
        image: [H, W, 3] uint8 RGB.
        quad: [4, 2] px, as from `quad_from_points`. Parts outside the picture are filled by reflection.
        size: side of the result in px.
        grid_offset: by how much of its side the picture lies further right and down in the crop: that of the
            compact models, or 0 for an exact crop.

    Returns:
        [size, size, 3] uint8 RGB. A quad much larger than `size` is averaged, not sampled.

    Raises:
        ContractError: the image is no uint8 [H, W, 3], the quad is degenerate or the size is below 1.
    """
    check_image(image)
    corners = checked_quad(quad)
    if size < 1:
        raise ContractError("The crop size is wrong", expected="at least 1 px", found=size)
    grid = size * OVERSAMPLING
    side = float(max(np.hypot(*(corners[3] - corners[0])), np.hypot(*(corners[1] - corners[0]))))
    source = image
    if side > 1.5 * grid:
        height, width = image.shape[:2]
        small = max(1, round(width * grid / side)), max(1, round(height * grid / side))
        source = _uint8(cv2.resize(image, small, interpolation=cv2.INTER_AREA))
        corners = (corners + 0.5) * (np.array(small) / (width, height)) - 0.5
    # Sample k of the grid lies at u = (k + 0.5) / grid - grid_offset of the quad.
    to_grid = cv2.getPerspectiveTransform(
        corners.astype(np.float32), ((_CORNERS + grid_offset) * grid - 0.5).astype(np.float32)
    )
    warped = cv2.warpPerspective(
        source, to_grid, (grid, grid), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return _uint8(cv2.resize(warped, (size, size), interpolation=cv2.INTER_AREA))


def points_in_crop(
    points: ArrayLike, quad: ArrayLike, size: int, grid_offset: float = GRID_OFFSET
) -> NDArray[np.float64]:
    """Say where facial points of the picture lie in its crop.

    Args:
        points: [5, 2] px in the picture.
        quad: [4, 2] px, the one that was cropped.
        size: side of the crop in px.
        grid_offset: the one that `crop` was given.

    Returns:
        [5, 2] px in the crop (pixel indices; outside 0..size - 1 when the point was not inside the quad).

    Raises:
        ContractError: wrong shapes or a degenerate quad.
    """
    p, corners = checked_points(points), checked_quad(quad)
    to_unit = cv2.getPerspectiveTransform(corners.astype(np.float32), _CORNERS.astype(np.float32))
    mapped = np.concatenate([p, np.ones((len(p), 1))], axis=1) @ to_unit.T
    return (mapped[:, :2] / mapped[:, 2:] + grid_offset) * size - 0.5


def checked_points(points: ArrayLike) -> NDArray[np.float64]:
    """Facial points as [5, 2] float64.

    Raises:
        ContractError: another shape, or values that are not finite.
    """
    p = np.asarray(points, dtype=np.float64)
    if p.shape != (5, 2) or not np.isfinite(p).all():
        raise ContractError("These are no facial points", expected="[5, 2] finite numbers", found=p.tolist())
    return p


def checked_quad(quad: ArrayLike) -> NDArray[np.float64]:
    """A quad as [4, 2] float64.

    Raises:
        ContractError: another shape, values that are not finite, or no area.
    """
    q = np.asarray(quad, dtype=np.float64)
    if q.shape != (4, 2) or not np.isfinite(q).all():
        raise ContractError("This is no quad", expected="[4, 2] finite numbers", found=q.tolist())
    a, b = q[2] - q[0], q[3] - q[1]
    if abs(float(a[0] * b[1] - a[1] * b[0])) < 1e-6:
        raise ContractError("The quad has no area", expected="four corners of a square", found=q.tolist())
    return q


def check_image(image: NDArray[np.uint8]) -> None:
    """Raise a ContractError for anything but uint8 [H, W, 3]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ContractError(
            "This is no picture", expected="uint8 [H, W, 3] RGB", found=f"{image.dtype} {list(image.shape)}"
        )


def _uint8(array: Any) -> NDArray[np.uint8]:
    """Give OpenCV's result its type back (its stubs say only 'integer or floating')."""
    return np.asarray(array, dtype=np.uint8)
