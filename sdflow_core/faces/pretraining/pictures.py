"""What a training looks like while it runs: curves of its losses, and a sheet of what it can draw."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sdflow_core.records.errors import ContractError

_PAPER, _INK, _SOFT, _RULE, _FAINT, _LINE = "#ffffff", "#1b1f24", "#6b7280", "#d9dde3", "#c7d7f5", "#1f5fd0"
_MARGIN_PX, _PANEL_PX, _GAP_PX, _COLUMNS = 32, (400, 220), 28, 3
_AXIS_PX, _CAPTION_PX, _FOOT_PX = 62, 26, 20
_LOGARITHMIC = 30.0  # a loss that spans more than this is drawn on a logarithmic axis
_GOOD = (1.0, 2.0, 5.0, 10.0)
Pixels = npt.NDArray[np.uint8]


def loss_curves(
    history: Mapping[str, Sequence[float]],
    steps: Mapping[str, Sequence[int]] | None = None,
    *,
    title: str = "Losses",
    note: str = "",
) -> bytes:
    """Draw each loss in a panel of its own: its values faint, their running mean dark.

    Values that are not finite leave a gap and are counted beside the name.

    Args:
        history: name -> values, drawn in this order.
        steps: name -> the step of each value; without it they are counted from 1.
        title: Headline.
        note: One line under it.

    Returns:
        A PNG file; the same input gives the same bytes.

    Raises:
        ContractError: Steps and values of a name differ in number.
    """
    across = min(_COLUMNS, max(1, len(history)))
    down = math.ceil(len(history) / across) if history else 0
    width, height = _PANEL_PX
    page = Image.new(
        "RGB",
        (
            2 * _MARGIN_PX + across * width + (across - 1) * _GAP_PX,
            90 + down * (height + _GAP_PX) + (0 if history else 40) + _MARGIN_PX // 2,
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(page)
    _header(draw, title, note or ("" if history else "nothing was measured yet"), page.width)
    for number, (name, values) in enumerate(history.items()):
        at = list(range(1, len(values) + 1)) if steps is None else list(steps.get(name, ()))
        if len(at) != len(values):
            raise ContractError(
                f"the curve of {name}", expected=f"{len(values)} steps", found=f"{len(at)} steps"
            )
        left = _MARGIN_PX + (number % across) * (width + _GAP_PX)
        top = 90 + (number // across) * (height + _GAP_PX)
        _panel(draw, name, at, np.asarray(values, np.float64), (left, top))
    return _png(page)


def sample_sheet(
    rows: Sequence[tuple[str, Pixels]], *, title: str = "Samples", note: str = "", tile_px: int = 96
) -> bytes:
    """Draw rows of pictures under their titles, for instance originals, reconstructions, samples.

    Args:
        rows: (title, uint8 [n, H, W, 3]); pictures are enlarged or made smaller to `tile_px`, keeping their
            shape. Rows may differ in number and size.
        title: Headline.
        note: One line under it.
        tile_px: Side of a picture on the page.

    Returns:
        A PNG file; the same input gives the same bytes.

    Raises:
        ContractError: Rows that are no uint8 [n, H, W, 3].
    """
    for name, images in rows:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
            raise ContractError(
                f"pictures of the row {name}",
                expected="uint8 [n, H, W, 3]",
                found=f"{images.dtype} {list(images.shape)}",
            )
    most = max((len(images) for _, images in rows), default=0)
    step = tile_px + 4
    page = Image.new(
        "RGB",
        (
            max(2 * _MARGIN_PX + most * step - 4, 420),
            90 + len(rows) * (step + _CAPTION_PX + 8) + _MARGIN_PX // 2,
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(page)
    _header(draw, title, note, page.width)
    for number, (name, images) in enumerate(rows):
        top = 90 + number * (step + _CAPTION_PX + 8)
        _write(draw, (_MARGIN_PX, top), name, 14, _INK)
        for column, pixels in enumerate(images):
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            picture.thumbnail((tile_px, tile_px), Image.Resampling.LANCZOS)
            if max(picture.size) < tile_px:
                factor = tile_px / max(picture.size)
                size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
                picture = picture.resize(size, Image.Resampling.BICUBIC)
            page.paste(picture, (_MARGIN_PX + column * step, top + _CAPTION_PX))
    return _png(page)


def _panel(
    draw: ImageDraw.ImageDraw,
    name: str,
    steps: list[int],
    values: npt.NDArray[np.float64],
    corner: tuple[int, int],
) -> None:
    left, top = corner
    right, bottom = left + _PANEL_PX[0], top + _PANEL_PX[1]
    fine = np.isfinite(values)
    lost = int((~fine).sum())
    last = f"{values[fine][-1]:.4g}" if fine.any() else "no finite value"
    _write(draw, (left, top), name, 15, _INK)
    _write(draw, (right, top), f"{last}{f', {lost} not finite' if lost else ''}", 14, _SOFT, anchor="ra")
    box = (left + _AXIS_PX, top + _CAPTION_PX, right, bottom - _FOOT_PX)
    draw.rectangle(box, outline=_RULE)
    if not fine.any():
        return
    low, high = float(values[fine].min()), float(values[fine].max())
    mean = _smooth(values)[fine]
    logarithmic = low > 0 and float(mean.max()) / float(mean.min()) > _LOGARITHMIC
    scaled = (
        np.log10(values, where=fine & (values > 0), out=np.full(len(values), np.nan))
        if logarithmic
        else values
    )
    low, high = (math.log10(low), math.log10(high)) if logarithmic else (low, high)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room
    first, final = steps[0], max(steps[-1], steps[0] + 1)

    def place(step: float, value: float) -> tuple[float, float]:
        x = box[0] + (step - first) / (final - first) * (box[2] - box[0])
        return x, box[3] - (value - low) / (high - low) * (box[3] - box[1])

    for mark in _marks(low, high):
        y = place(first, mark)[1]
        draw.line([(box[0], y), (box[2], y)], fill=_RULE)
        text = f"{10**mark:.3g}" if logarithmic else f"{mark:.4g}"
        _write(draw, (box[0] - 6, round(y)), text, 12, _SOFT, anchor="rm")
    _write(draw, (box[0], box[3] + 4), f"{first:,}", 12, _SOFT)
    _write(draw, (box[2], box[3] + 4), f"step {final:,}", 12, _SOFT, anchor="ra")
    for line, colour, thick in ((scaled, _FAINT, 1), (_smooth(scaled), _LINE, 2)):
        run: list[tuple[float, float]] = []
        for step, value in zip(steps, line, strict=True):
            if math.isfinite(value):
                run.append(place(step, float(value)))
                continue
            _stroke(draw, run, colour, thick)
            run = []
        _stroke(draw, run, colour, thick)


def _stroke(draw: ImageDraw.ImageDraw, run: list[tuple[float, float]], colour: str, thick: int) -> None:
    if len(run) > 1:
        draw.line(run, fill=colour, width=thick, joint="curve")
    elif run:
        x, y = run[0]
        draw.ellipse([x - 1.5, y - 1.5, x + 1.5, y + 1.5], fill=colour)


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the neighbours, a twentieth of the length on both sides; gaps stay gaps."""
    reach = len(values) // 40
    fine = np.isfinite(values)
    filled, counted = np.where(fine, values, 0.0).cumsum(), fine.cumsum()
    index = np.arange(len(values))
    end, start = np.minimum(index + reach, len(values) - 1), index - reach - 1
    total = filled[end] - np.where(start >= 0, filled[start.clip(0)], 0.0)
    count = counted[end] - np.where(start >= 0, counted[start.clip(0)], 0)
    return np.where(fine, total / np.maximum(count, 1), np.nan)


def _marks(low: float, high: float) -> list[float]:
    """Three to six round numbers between two others.

    Example:
        >>> _marks(0.0, 10.0)
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * good for good in _GOOD if power * good >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _header(draw: ImageDraw.ImageDraw, title: str, note: str, width: int) -> None:
    _write(draw, (_MARGIN_PX, 20), title, 24, _INK)
    _write(draw, (_MARGIN_PX, 54), note, 14, _SOFT)
    draw.line([(_MARGIN_PX, 80), (width - _MARGIN_PX, 80)], fill=_RULE)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, anchor: str = "la"
) -> None:
    # the built-in font has no other letters
    plain = text.encode("ascii", "replace").decode()
    draw.text(at, plain, font=ImageFont.load_default(size), fill=colour, anchor=anchor)


def _png(page: Image.Image) -> bytes:
    out = io.BytesIO()
    page.save(out, format="PNG", compress_level=6)
    return out.getvalue()
