"""Faces to paste: squares of chance over points of any place, turn and size."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from sdflow_core.faces.align import points_in_crop, quad_from_points
from sdflow_core.faces.paste_back import EditedFace, PasteConfig
from sdflow_core.faces.paste_mask import crop_mask, warped_mask

POINTS = np.array([[-33.0, -18], [33, -18], [0, 20], [-28, 57], [28, 57]])  # about the middle of a face


def placed(x: float, y: float, degrees: float = 0.0, times: float = 1.0) -> NDArray[np.float64]:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return times * POINTS @ turn.T + [x, y]


def smooth_picture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).uniform(40, 210, (height // 25, width // 25, 3)).astype(np.float32)
    return np.asarray(
        np.clip(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255), np.uint8
    )


def random_face(points: NDArray[np.float64], size: int, seed: int = 3) -> EditedFace:
    rng, quad = np.random.default_rng(seed), quad_from_points(points)
    edited = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    start = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    return EditedFace(quad, edited, start, points_in_crop(points, quad, size))


def mask_over(face: EditedFace, config: PasteConfig, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """[H, W] over the whole photograph."""
    size = len(np.asarray(face.edited))
    points = None if face.points is None else (np.asarray(face.points) + 0.5) / size
    return warped_mask(crop_mask(points, config.mask), face.quad, (0, 0, shape[1], shape[0]))
