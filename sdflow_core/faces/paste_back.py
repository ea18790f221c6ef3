"""Edited faces back into the photograph that they were cut from, at its full resolution.

Two ways, for a crop c of the photograph, its reconstruction r, its edit e and the mask m:

    change    photograph + m (W(e - r) - W(1 - k) (photograph - g - W(c)))
    replace   photograph + m (W(e + low(c - r)) + g - photograph)

W warps from the crop to the photograph. `change` pastes only what the edit changed, so pores and the light of
the photograph stay, and so does whatever the generator cannot draw. Fine detail (photograph - W(c)) belongs
to what was there: it fades where the edit changed much, k being 1 where it changed nothing. `replace` pastes
the drawn face itself; low(c - r) is what the generator's colours miss of the photograph's, smoothed. g is the
photograph's grain: without it a face drawn by a small generator would be smooth between grainy surroundings.

Outside of the mask the samples are those of the photograph, bit for bit. An edit that changes nothing leaves
them everywhere (`change`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from sdflow_core.faces.align import GRID_OFFSET, check_image, checked_quad, crop
from sdflow_core.faces.paste_mask import Box, MaskConfig, box_of, crop_mask, picture_to_crop, warped_mask
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

__all__ = ["EditedFace", "PasteConfig", "Pasted", "paste_back"]

_STRIP_PIXELS = 100_000  # what is computed at a time: 8 MB of floats, however large the face
_LARGEST_GRID = 2048
# OpenCV's warps know 32 places between two pixels; on a small crop drawn large that shows as steps, so that
# crops are enlarged first, up to this.
_MOST_ENLARGED = 8
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. ITU-R BT.601
_SOFTNESS = 0.06 * 127.5  # levels of the smoothed change at which detail has faded to 1/e; method.residual
_UNCHANGED = 0.25  # levels
_COLOUR_REACH = 1.0 / 8.0  # standard deviation of the colour match, of the crop's side
_FADE_REACH = 1.0 / 32.0
_GRAIN_PX, _GRAIN_LEVELS = 1.5, 10.0  # what is finer than this and no stronger: noise and pores, not edges
_GRAIN_FROM = 2.0  # times finer must the photograph be than the crop, or the edit has that detail itself
_LEAST_SHOWN = 1.0 / 512.0  # a mask below this cannot move a sample of 8 bit by half a level


class PasteConfig(Config):
    """How edited faces are pasted.

    Attributes:
        blend: `change` pastes the difference of edit and reconstruction, `replace` the edit itself.
        fade_detail: With `change`: how much of the photograph's own fine detail goes where the edit changed
            much; 0 keeps all of it (a smile's creases under a closed mouth), 1 takes it all.
        keep_grain: Leave the photograph's grain on what is drawn, where the photograph is much finer.
        match_colour: With `replace`: take the photograph's low-frequency colours.
        mask: Shape of the mask.
    """

    blend: Literal["change", "replace"] = "change"
    fade_detail: float = Field(default=1.0, ge=0.0, le=1.0)
    keep_grain: bool = True
    match_colour: bool = True
    mask: MaskConfig = MaskConfig()


@dataclass(frozen=True, eq=False)
class EditedFace:
    """One face to paste.

    Pictures are uint8 [R, R, 3] RGB or float [3, R, R] RGB in [-1, 1], NumPy or torch, any R.

    Attributes:
        quad: [4, 2] px of the upright photograph: what the crop was cut from.
        edited: The edit.
        reconstruction: What the edit started from, as the models drew it; of the edit's size. `change` needs
            it; without it `replace` matches the mean colour alone.
        points: [5, 2] facial points in px of the crop, or None: the mask is then an ellipse of its size.
        grid_offset: What the crop was cut with (`align.crop`).
    """

    quad: ArrayLike
    edited: Any
    reconstruction: Any = None
    points: ArrayLike | None = None
    grid_offset: float = GRID_OFFSET


@dataclass(frozen=True, eq=False)
class Pasted:
    """A photograph with its edited faces.

    Attributes:
        pixels: [H, W, 3] uint8 RGB.
        boxes: For each face, in the order given, the part of the photograph that was touched; px.
    """

    pixels: NDArray[np.uint8]
    boxes: tuple[Box, ...] = field(default=())


def paste_back(
    photograph: NDArray[np.uint8],
    faces: Sequence[EditedFace],
    config: PasteConfig | None = None,
    *,
    in_place: bool = False,
) -> Pasted:
    """Paste edited faces into their photograph.

    Where masks overlap, the larger face lies on top: faces are pasted from the smallest quad to the largest,
    whatever their order here (of equal ones the later on top). A grey photograph stays grey. Parts of a quad
    outside the photograph are left out. All arguments are checked before a sample is changed.

    Args:
        photograph: [H, W, 3] uint8 RGB, upright, as `decode` gives it: grey, transparent and 16-bit files
            and EXIF orientations become this form there.
        faces: What to paste; none gives the photograph.
        config: How; default `change`.
        in_place: Change the array given instead of a copy: a large photograph then needs no second one.

    Returns:
        The photograph, and what was touched.

    Raises:
        ContractError: The photograph is no uint8 [H, W, 3] (or cannot be written, in place), a quad is
            degenerate, mirrored or outside, a picture is no square of the forms of `EditedFace`, holds values
            that are not finite, or is missing.

    Example:
        >>> photograph = np.full((100, 100, 3), 90, np.uint8)
        >>> edited = np.full((16, 16, 3), 120, np.uint8)
        >>> face = EditedFace([[20, 20], [20, 80], [80, 80], [80, 20]], edited, np.full_like(edited, 100))
        >>> pasted = paste_back(photograph, [face]).pixels
        >>> pasted[50, 50].tolist(), pasted[5, 5].tolist()
        ([110, 110, 110], [90, 90, 90])
    """
    config = config or PasteConfig()
    check_image(photograph)
    if in_place and not photograph.flags.writeable:
        raise ContractError("the photograph cannot be changed in place", found="a read-only array")
    ready = [_Ready(face, photograph.shape, config, number) for number, face in enumerate(faces)]
    pixels = photograph if in_place else photograph.copy()
    for face in sorted(ready, key=lambda face: face.area):
        face.paste(pixels)
    return Pasted(pixels, tuple(face.box for face in ready))


class _Ready:
    """One face, checked: nothing of `paste` can fail for its arguments."""

    def __init__(self, face: EditedFace, shape: tuple[int, ...], config: PasteConfig, number: int) -> None:
        self.config, self.offset = config, _offset(face.grid_offset, number)
        self.quad = checked_quad(face.quad)
        self.edited = _levels(face.edited, f"edited face {number}")
        self.size = len(self.edited)
        picture_to_crop(self.quad, self.size, self.offset)
        self.box = box_of(self.quad, shape, self.offset)
        self.reconstruction = None
        if face.reconstruction is not None:
            self.reconstruction = _levels(face.reconstruction, f"reconstruction of face {number}")
            if self.reconstruction.shape != self.edited.shape:
                raise ContractError(
                    "edit and reconstruction differ in size",
                    expected=list(self.edited.shape),
                    found=list(self.reconstruction.shape),
                    where=f"face {number}",
                )
        elif config.blend == "change":
            raise ContractError(
                "a change cannot be pasted without what it started from",
                expected="a reconstruction",
                found="none",
                where=f"face {number}",
                todo="give the reconstruction, or blend: replace",
            )
        self.mask = crop_mask(_shares(face.points, self.size, number), config.mask)
        sides = np.hypot(*(np.roll(self.quad, -1, axis=0) - self.quad).T)
        self.side, self.area = float(sides.max()), float(sides.prod())

    def paste(self, pixels: NDArray[np.uint8]) -> None:
        """Change the pixels under the mask."""
        grey = _is_grey(pixels, self.box)
        if self.config.blend == "change":
            assert self.reconstruction is not None
            change = self.edited - self.reconstruction
            if not change.any():
                return
            faded = self.config.fade_detail * _changed_much(change)
            added = _grey(change) if grey else change
            layers = self._layer(np.dstack([added, faded]))
            coarse = self._layer(self._crop(pixels)) if faded.any() else None
        else:
            drawn = self.edited + self._missed(pixels) if self.config.match_colour else self.edited
            layers, coarse = self._layer(_grey(drawn) if grey else drawn), None
        left, top, right, bottom = self.box
        smooth: NDArray[np.uint8] | None = None
        needs_grain = coarse is not None or self.config.blend == "replace"
        if self.config.keep_grain and needs_grain and self.side >= _GRAIN_FROM * self.size:
            whole = pixels[top:bottom, left:right]
            smooth = np.asarray(cv2.GaussianBlur(whole, (0, 0), _GRAIN_PX), np.uint8)
        rows = max(1, _STRIP_PIXELS // (right - left))
        for start in range(top, bottom, rows):
            strip = left, start, right, min(start + rows, bottom)
            self._paste_strip(pixels, strip, layers, coarse, smooth)

    def _paste_strip(
        self,
        pixels: NDArray[np.uint8],
        strip: Box,
        layers: NDArray[np.float32],
        coarse: NDArray[np.float32] | None,
        smooth: NDArray[np.uint8] | None,
    ) -> None:
        mask = warped_mask(self.mask, self.quad, strip, self.offset)
        touched = mask > _LEAST_SHOWN
        columns = np.flatnonzero(touched.any(axis=0))
        if not len(columns):
            return
        first, last = int(columns[0]), int(columns[-1]) + 1
        mask, touched = mask[:, first:last, None], touched[:, first:last]
        strip = strip[0] + first, strip[1], strip[0] + last, strip[3]
        part = pixels[strip[1] : strip[3], strip[0] : strip[2]]
        here = part.astype(np.float32)
        grain: NDArray[np.float32] | None = None
        if smooth is not None:
            x, y = strip[0] - self.box[0], strip[1] - self.box[1]
            grain = here - smooth[y : y + here.shape[0], x : x + here.shape[1]]
            np.clip(grain, -_GRAIN_LEVELS, _GRAIN_LEVELS, out=grain)
        warped = self._warp(layers, strip)
        if self.config.blend == "change" and coarse is None:
            step = warped[:, :, :3]
        else:
            step = warped if coarse is None else self._warp(coarse, strip)
            step -= here
            if grain is not None:
                step += grain
            if coarse is not None:
                step *= warped[:, :, 3:]
                step += warped[:, :, :3]
        step *= mask
        here += step
        np.rint(here, out=here)
        np.clip(here, 0.0, 255.0, out=here)
        np.copyto(part, here.astype(np.uint8), where=touched[:, :, None])

    def _warp(self, layers: NDArray[np.float32], strip: Box) -> NDArray[np.float32]:
        """Layers [R', R', C] over a part of the photograph."""
        left, top, right, bottom = strip
        matrix = picture_to_crop(self.quad, len(layers), self.offset)
        matrix = matrix @ np.array([[1, 0, left], [0, 1, top], [0, 0, 1]], np.float64)
        warped = cv2.warpPerspective(
            layers,
            matrix,
            (right - left, bottom - top),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return np.asarray(warped, np.float32)

    def _layer(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Crop-sized values on the grid that they are warped from: about as fine as the photograph there."""
        if self.side < self.size / 1.5:
            grid = max(1, round(self.side))
            small = cv2.resize(values, (grid, grid), interpolation=cv2.INTER_AREA)
            return np.asarray(small, np.float32)
        times = min(math.ceil(self.side / self.size), _MOST_ENLARGED, _LARGEST_GRID // self.size)
        if times <= 1:
            return np.ascontiguousarray(values, np.float32)
        grid = self.size * times
        return np.asarray(cv2.resize(values, (grid, grid), interpolation=cv2.INTER_CUBIC), np.float32)

    def _crop(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The crop as the photograph shows it now, [R, R, 3]; only the face's surroundings are read."""
        margin = 4 + math.ceil(0.01 * self.side)
        left, top, right, bottom = box_of(self.quad, pixels.shape, self.offset, margin)
        around = pixels[top:bottom, left:right]
        return crop(around, self.quad - (left, top), self.size, self.offset).astype(np.float32)

    def _missed(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the drawn colours miss of the photograph's under the mask, smoothed: [R, R, 3] or [3]."""
        weight = cv2.resize(self.mask, (self.size, self.size), interpolation=cv2.INTER_AREA)
        weight = np.maximum(np.asarray(weight, np.float32), 1e-4)[:, :, None]
        cut = self._crop(pixels)
        if self.reconstruction is None:
            return np.asarray(((cut - self.edited) * weight).sum((0, 1)) / weight.sum(), np.float32)
        sigma = max(self.size * _COLOUR_REACH, 0.5)
        sums = cv2.GaussianBlur(np.dstack([(cut - self.reconstruction) * weight, weight]), (0, 0), sigma)
        return np.asarray(sums[:, :, :3] / sums[:, :, 3:], np.float32)


def _changed_much(change: NDArray[np.float32]) -> NDArray[np.float32]:
    """0 where an edit changed nothing, towards 1 where it changed much: [R, R]; see `method.residual`."""
    size = np.abs(change).mean(axis=2)
    smooth = cv2.GaussianBlur(size, (0, 0), max(len(size) * _FADE_REACH, 0.5))
    grown = np.maximum(np.maximum(np.asarray(smooth, np.float32), size) - _UNCHANGED, 0.0)
    return np.asarray(1.0 - np.exp(-((grown / _SOFTNESS) ** 2)), np.float32)


def _grey(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.repeat((values @ _LUMA)[:, :, None], 3, axis=2)


def _is_grey(pixels: NDArray[np.uint8], box: Box) -> bool:
    part = pixels[box[1] : box[3], box[0] : box[2]]
    # most photographs show it at once; only a grey one is read to the end
    few = part[:: max(1, len(part) // 16)]
    return all(bool((p[..., 0] == p[..., 1]).all() and (p[..., 1] == p[..., 2]).all()) for p in (few, part))


def _levels(picture: Any, where: str) -> NDArray[np.float32]:
    """A picture of either form as float32 [R, R, 3], 0..255."""
    if hasattr(picture, "detach"):  # a torch tensor, of whatever device
        picture = picture.detach().cpu()
        picture = (picture.float() if picture.is_floating_point() else picture).numpy()
    values = np.asarray(picture)
    if values.dtype == np.uint8:
        square = values.ndim == 3 and values.shape[2] == 3 and values.shape[0] == values.shape[1] > 0
    else:
        square = values.ndim == 3 and values.shape[0] == 3 and values.shape[1] == values.shape[2] > 0
        square = square and bool(np.issubdtype(values.dtype, np.floating))
    if not square:
        raise ContractError(
            "This is no picture of a face",
            expected="uint8 [R, R, 3], or float [3, R, R] in [-1, 1]",
            found=f"{values.dtype} {list(values.shape)}",
            where=where,
        )
    if values.dtype == np.uint8:
        return values.astype(np.float32)
    if not bool(np.isfinite(values).all()):
        raise ContractError("A picture holds values that are not finite", where=where)
    clipped = np.clip(values.transpose(1, 2, 0).astype(np.float32), -1.0, 1.0)
    return np.ascontiguousarray((clipped + 1.0) * 127.5)


def _shares(points: ArrayLike | None, size: int, number: int) -> NDArray[np.float64] | None:
    """Facial points as shares of the crop's side."""
    if points is None:
        return None
    p = np.asarray(points, dtype=np.float64)
    if p.shape != (5, 2) or not np.isfinite(p).all():
        raise ContractError(
            "These are no facial points",
            expected="[5, 2] finite px of the crop",
            found=p.tolist(),
            where=f"face {number}",
        )
    return (p + 0.5) / size


def _offset(value: float, number: int) -> float:
    if not -0.5 < value < 0.5:
        raise ContractError(
            "The crop's offset is wrong",
            expected="a share of its side, between -0.5 and 0.5",
            found=value,
            where=f"face {number}",
        )
    return float(value)
