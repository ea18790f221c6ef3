"""Where an edited face may touch its photograph: a mask over the crop, and how photograph and crop map.

The mask is 1 in the middle of the face, falls smoothly, and is 0 at the border of the crop and outside.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from sdflow_core.faces.align import GRID_OFFSET, checked_quad
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

__all__ = ["Box", "MaskConfig", "box_of", "crop_mask", "picture_to_crop", "warped_mask"]

Box = tuple[int, int, int, int]  # left, top, right, bottom in px; right and bottom are the first px outside

_NODES = 256  # intervals of the grid that a mask is kept on; its nodes lie on the border, where it is 0
_SHORTEST_SIDE_PX = 4.0
# The ellipse of a face, in units of h, half the side of its FFHQ square: from the eyes' middle it lies by
# this share of the way to the mouth, and ends (mask 0) by these beside and above. Hair line to chin of an
# FFHQ picture is about 1.4 h, temple to temple 1.2 h.
_CENTRE, _HALF_WIDTH, _HALF_HEIGHT = 0.22, 0.85, 1.0


class MaskConfig(Config):
    """Shape of the mask.

    Attributes:
        region: `face`: an ellipse over the face, where its points are known; `crop`: as much of the crop as
            the border leaves, for edits of hair or hats.
        feather: Share of the ellipse's radius over which the mask falls from 1 to 0.
        border: Share of the crop's side over which it falls at the border of the crop.
    """

    region: str = Field(default="face", pattern="^(face|crop)$")
    feather: float = Field(default=0.4, gt=0.0, le=1.0)
    border: float = Field(default=0.12, gt=0.0, le=0.5)


def picture_to_crop(quad: ArrayLike, size: int, grid_offset: float = GRID_OFFSET) -> NDArray[np.float64]:
    """The perspective that takes px of the picture to px of the crop, both pixel indices.

    Args:
        quad: [4, 2] px, corners in the order of `align.quad_from_points`.
        size: side of the crop in px.
        grid_offset: the one that the crop was cut with.

    Returns:
        [3, 3] float64, of homogeneous coordinates.

    Raises:
        ContractError: the quad is not convex, is mirrored, or has a side below 4 px.

    Example:
        >>> matrix = picture_to_crop([[10, 10], [10, 30], [30, 30], [30, 10]], 40, 0.0)
        >>> [round(float(v), 6) for v in matrix @ [20, 20, 1]]
        [19.5, 19.5, 1.0]
    """
    corners = checked_quad(quad)
    sides = np.roll(corners, -1, axis=0) - corners
    after = np.roll(sides, -1, axis=0)
    turns = sides[:, 0] * after[:, 1] - sides[:, 1] * after[:, 0]
    if not (turns < 0).all():  # y points down: top-left, bottom-left, ... goes round against the clock
        raise ContractError(
            "The quad is no picture of a square",
            expected="top-left, bottom-left, bottom-right and top-right corner of a convex quad",
            found=corners.tolist(),
        )
    if float(np.hypot(*sides.T).min()) < _SHORTEST_SIDE_PX:
        raise ContractError(
            "The face is too small to paste",
            expected=f"a quad with sides of at least {_SHORTEST_SIDE_PX:g} px",
            found=f"{float(np.hypot(*sides.T).min()):.2g} px",
        )
    if size < 1:
        raise ContractError("The crop size is wrong", expected="at least 1 px", found=size)
    target = (np.array([[0, 0], [0, 1], [1, 1], [1, 0]]) + grid_offset) * size - 0.5
    # Solved about the quad's own middle and size, in double: quads far from the origin lose nothing.
    middle, reach = corners.mean(axis=0), float(np.abs(corners - corners.mean(axis=0)).max())
    p = (corners - middle) / reach
    rows = np.zeros((8, 8))
    for k, ((x, y), (u, v)) in enumerate(zip(p, target, strict=True)):
        rows[2 * k] = [x, y, 1, 0, 0, 0, -u * x, -u * y]
        rows[2 * k + 1] = [0, 0, 0, x, y, 1, -v * x, -v * y]
    solved = np.append(np.linalg.solve(rows, target.reshape(8)), 1.0).reshape(3, 3)
    to_middle = np.array([[1 / reach, 0, -middle[0] / reach], [0, 1 / reach, -middle[1] / reach], [0, 0, 1]])
    return solved @ to_middle


def box_of(quad: ArrayLike, shape: tuple[int, ...], grid_offset: float = GRID_OFFSET, margin: int = 0) -> Box:
    """The part of a picture that a crop covers, as whole pixels.

    Args:
        quad: [4, 2] px.
        shape: of the picture, height and width first.
        grid_offset: the one that the crop was cut with.
        margin: px that are added on each side, inside of the picture.

    Raises:
        ContractError: the quad has no part inside the picture, or is none.
    """
    height, width = shape[:2]
    # corners of the crop, which the offset moves off the quad's, as the picture has them
    ends = np.array([[-0.5, -0.5, 1], [-0.5, 0.5, 1], [0.5, 0.5, 1], [0.5, -0.5, 1]])
    back = ends @ np.linalg.inv(picture_to_crop(quad, 1, grid_offset)).T
    corners = back[:, :2] / back[:, 2:]
    low = np.clip(np.floor(corners.min(axis=0)) - margin, 0, (width, height)).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)) + 1 + margin, 0, (width, height)).astype(int)
    if (low >= high).any():
        raise ContractError(
            "The face lies outside the photograph",
            expected=f"a quad that meets 0..{width - 1} x 0..{height - 1} px",
            found=corners.round(1).tolist(),
            todo="give the quad in px of the upright photograph that it was found in",
        )
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def crop_mask(
    points: NDArray[np.float64] | None, config: MaskConfig, nodes: int = _NODES
) -> NDArray[np.float32]:
    """The mask over the crop, on a grid whose outer nodes are the crop's border.

    Args:
        points: [5, 2] facial points as shares of the crop's side; None where they are not known: the region
            is then an ellipse of the crop's size.
        config: The shape.
        nodes: Intervals a side.

    Returns:
        [nodes + 1, nodes + 1] float32 in [0, 1], 0 on the border.

    Example:
        >>> mask = crop_mask(None, MaskConfig(), 8)
        >>> float(mask[4, 4]), float(mask[0].max()), float(mask[:, -1].max())
        (1.0, 0.0, 0.0)
    """
    along = np.linspace(0.0, 1.0, nodes + 1)
    ramp = _smooth(np.minimum(along, 1.0 - along) / config.border)
    mask = np.outer(ramp, ramp)
    if config.region == "face":
        mask *= _smooth((1.0 - _radius(points, along)) / config.feather)
    mask[[0, -1], :] = 0.0
    mask[:, [0, -1]] = 0.0
    return mask.astype(np.float32)


def warped_mask(
    mask: NDArray[np.float32], quad: ArrayLike, box: Box, grid_offset: float = GRID_OFFSET
) -> NDArray[np.float32]:
    """The mask as it lies over a part of the picture.

    Args:
        mask: from `crop_mask`.
        quad: [4, 2] px.
        box: the part.
        grid_offset: the one that the crop was cut with.

    Returns:
        [bottom - top, right - left] float32 in [0, 1]; 0 where the crop does not reach.
    """
    nodes = len(mask) - 1
    matrix = picture_to_crop(quad, nodes, grid_offset)
    # a node k lies at k intervals from the border, a pixel k of a crop at k + 0.5
    matrix = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]) @ matrix
    left, top, right, bottom = box
    moved = matrix @ np.array([[1, 0, left], [0, 1, top], [0, 0, 1]], np.float64)
    warped = cv2.warpPerspective(
        mask,
        moved,
        (right - left, bottom - top),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return np.clip(np.asarray(warped, np.float32), 0.0, 1.0)


def _radius(points: NDArray[np.float64] | None, along: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 on the ellipse where the mask ends, 0 in its middle; [nodes + 1, nodes + 1], rows first."""
    x, y = along[None, :], along[:, None]
    if points is None:
        return np.hypot(x - 0.5, y - 0.5) / 0.5
    eye, mouth = (points[0] + points[1]) / 2, (points[3] + points[4]) / 2
    down = mouth - eye
    h = max(2.0 * float(np.hypot(*(points[1] - points[0]))), 1.8 * float(np.hypot(*down)))
    if h < 1e-6:
        raise ContractError("The facial points coincide", expected="five different points")
    down = down / max(float(np.hypot(*down)), 1e-9)
    centre = eye + _CENTRE * (mouth - eye)
    dx, dy = x - centre[0], y - centre[1]
    lengthwise, across = dx * down[0] + dy * down[1], dx * down[1] - dy * down[0]
    return np.hypot(across / (_HALF_WIDTH * h), lengthwise / (_HALF_HEIGHT * h))


def _smooth(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 below 0, 1 above 1, and between them without a kink."""
    t = np.clip(t, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
