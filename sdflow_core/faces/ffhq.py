"""The square that FFHQ was cut with, for encoders that were trained on FFHQ itself (e4e, pSp, ReStyle).

FFHQ's square is computed from 68 points: eyes are means of six points of their outline, the mouth's corners
are the outer ones. A detector of five points means other places by the same names, so that its square is
another one; what is systematic of that is corrected here. The crop then is exact (`GRID_OFFSET` 0): the
offset of `align.crop` is that of the compact models' training pictures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sdflow_core.faces.align import crop, quad_from_points
from sdflow_core.records.errors import ContractError

__all__ = ["GRID_OFFSET", "SHIFT", "SIZE", "ffhq_crop", "ffhq_quad", "ffhq_quad_of_68"]

GRID_OFFSET = 0.0
SHIFT, SIZE = 0.0, 1.0


def ffhq_quad(points: ArrayLike, scale: float = 1.0) -> NDArray[np.float64]:
    """The FFHQ square of a face, from the five points of YuNet.

    Args:
        points: [5, 2] px, as `Face.points`.
        scale: 1.0 is the FFHQ square; smaller is nearer.

    Returns:
        [4, 2] px: top-left, bottom-left, bottom-right, top-right corner; it may reach outside the picture.

    Raises:
        ContractError: as `quad_from_points`.

    Example:
        >>> points = [[40, 50], [80, 50], [60, 70], [45, 95], [75, 95]]
        >>> raw, corrected = quad_from_points(points), ffhq_quad(points)
        >>> round(float((corrected[3] - corrected[0])[0] / (raw[3] - raw[0])[0]), 3) == SIZE
        True
    """
    quad = quad_from_points(points)
    middle = quad.mean(axis=0)
    return middle + SHIFT * (quad[1] - quad[0]) + SIZE * scale * (quad - middle)


def ffhq_quad_of_68(landmarks: ArrayLike) -> NDArray[np.float64]:
    """The FFHQ square of a face, from 68 points in the order of iBUG 300-W, as its authors compute it.

    Args:
        landmarks: [68, 2] px.

    Returns:
        [4, 2] px, as `ffhq_quad`.

    Raises:
        ContractError: wrong shape, values that are not finite, or points that coincide.
    """
    p = np.asarray(landmarks, dtype=np.float64)
    if p.shape != (68, 2):
        raise ContractError("These are no facial points", expected="[68, 2]", found=list(p.shape))
    eyes = p[36:42].mean(axis=0), p[42:48].mean(axis=0)
    return quad_from_points(np.stack([*eyes, p[30], p[48], p[54]]))


def ffhq_crop(image: NDArray[np.uint8], points: ArrayLike, size: int = 256) -> NDArray[np.uint8]:
    """A face as an encoder trained on FFHQ wants it.

    Args:
        image: [H, W, 3] uint8 RGB.
        points: [5, 2] px, as `Face.points`.
        size: side in px; e4e, pSp and ReStyle take 256.

    Returns:
        [size, size, 3] uint8 RGB. Outside of the picture it is reflected; FFHQ also blurred that part.

    Raises:
        ContractError: see `crop` and `ffhq_quad`.
    """
    return crop(image, ffhq_quad(points), size, GRID_OFFSET)
