"""Face chips as the identity judge expects them: turned upright, eyes and mouth where dlib puts them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

SIDE_PX = 150
_PADDING = 0.25  # dlib's, as a share of the inner square
# Eyes, nose tip and mouth corners of a mean face in the inner square.
_INNER = np.array([[0.21, 0.20], [0.79, 0.20], [0.50, 0.57], [0.27, 0.80], [0.73, 0.80]])
_TEMPLATE = (_INNER + _PADDING) / (1 + 2 * _PADDING) * SIDE_PX


def chip(image: NDArray[np.uint8], points: ArrayLike, side_px: int = SIDE_PX) -> NDArray[np.uint8]:
    """Turn, scale and shift a picture so that its points lie on the template (least squares).

    Args:
        image: [H, W, 3] uint8 RGB.
        points: [5, 2] px: eyes, nose, mouth corners, image-left first.
        side_px: Side of the result.

    Returns:
        [side_px, side_px, 3] uint8 RGB; beyond the border the picture is mirrored.
    """
    p = np.asarray(points, dtype=np.float64)
    target = _TEMPLATE[:, 0] + 1j * _TEMPLATE[:, 1]
    target = (target + 0.5) * (side_px / SIDE_PX) - 0.5
    source = p[:, 0] + 1j * p[:, 1]
    centred = source - source.mean()
    turn = complex(np.sum(centred.conj() * (target - target.mean())) / np.sum(np.abs(centred) ** 2))
    height, width = image.shape[:2]
    if abs(turn) < 0.5 and min(height, width) * abs(turn) >= 1:
        # bilinear sampling would skip pixels: average first
        small = max(1, round(width * abs(turn))), max(1, round(height * abs(turn)))
        reduced = np.asarray(cv2.resize(image, small, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        return chip(reduced, (p + 0.5) * (np.array(small) / (width, height)) - 0.5, side_px)
    shift = complex(target.mean() - turn * source.mean())
    matrix = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
    warped = cv2.warpAffine(
        image, matrix, (side_px, side_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(warped, dtype=np.uint8)


def chips(images: NDArray[np.uint8], points: ArrayLike) -> NDArray[np.uint8]:
    """`chip` of each: [N, H, W, 3] and [N, 5, 2] -> [N, 150, 150, 3]."""
    rows = [chip(image, p) for image, p in zip(images, np.asarray(points), strict=True)]
    return np.stack(rows) if rows else np.zeros((0, SIDE_PX, SIDE_PX, 3), np.uint8)
