"""The square that FFHQ was cut with, for encoders that were trained on FFHQ itself (e4e, pSp, ReStyle).

FFHQ's square is computed from 68 points: eyes are means of six points of their outline, the mouth's corners
are the outer ones. A detector of five points means other places by the same names: YuNet's eyes lie further
out and lower, its mouth corners further out and higher, so that its square has another size. What is
systematic of that is corrected here, point by point. The crop then is exact (`GRID_OFFSET` 0): the offset of
`align.crop` is that of the compact models' training pictures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sdflow_core.faces.align import checked_points, crop, quad_from_points
from sdflow_core.records.errors import ContractError

__all__ = ["EYE_SHIFT", "GRID_OFFSET", "MOUTH_SHIFT", "as_of_68", "ffhq_crop", "ffhq_quad", "ffhq_quad_of_68"]

GRID_OFFSET = 0.0
# Inward and down, in units of the distance from the eyes' middle to the mouth's: mean of where 68 points say
# less where YuNet says, over 250 people of LFW (`benchmarks/bench_quad.py`). On 250 others the median
# distance of the corners falls from 4.9 to 4.3 % of the side, its 90 % quantile from 9.6 to 7.9 %. The rest
# is scatter: a linear map of all five points gave no more; the 68-point network differs from itself by 1.1 %.
# It is face-api's; FFHQ was aligned by dlib's, from which the raw square was measured to differ by 4.3 %.
EYE_SHIFT = (0.028, -0.013)
MOUTH_SHIFT = (0.020, 0.028)


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
        >>> [round(float(v), 1) for v in ffhq_quad(points)[0]]
        [-24.3, -30.2]
    """
    return quad_from_points(as_of_68(points), scale)


def as_of_68(points: ArrayLike) -> NDArray[np.float64]:
    """Where the means and corners of 68 points would lie, from YuNet's five points; [5, 2] px.

    Raises:
        ContractError: wrong shape, or values that are not finite.
    """
    p = checked_points(points).copy()
    down = (p[3] + p[4] - p[0] - p[1]) / 2
    right = np.array([down[1], -down[0]])
    for (inward, lower), (left_one, right_one) in ((EYE_SHIFT, (0, 1)), (MOUTH_SHIFT, (3, 4))):
        p[left_one] += inward * right + lower * down
        p[right_one] += -inward * right + lower * down
    return p


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
