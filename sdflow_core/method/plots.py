"""Lines of several series in panels, as a picture: what goes beside a table of editors."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Series", "panels", "round_ticks"]

_PAPER, _INK, _SOFT, _RULE = "#ffffff", "#1b1f24", "#6b7280", "#d9dde3"
# told apart without colour vision too, by their order of lightness
_COLOURS = (
    *("#1f5fd0", "#d1495b", "#2e8b57", "#e0a100", "#7b3fa0", "#00a0b0", "#8c564b"),
    *("#444444", "#e377c2", "#9acd32"),
)
_WIDE_PX, _HIGH_PX, _MARGIN_PX, _AXIS_PX, _LINE_PX = 420, 300, 32, 58, 18
_COLUMNS = 2

# name -> (x, y)
Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def panels(charts: Mapping[str, Series], *, title: str, x_label: str, note: str = "") -> bytes:
    """Draw charts beside each other, one colour a series throughout.

    Points that are not finite leave a gap.

    Args:
        charts: Title of a panel -> its series.
        title: Headline.
        x_label: Under every panel.
        note: One line under the headline.

    Returns:
        A PNG file; the same input gives the same bytes.
    """
    names = list(dict.fromkeys(name for chart in charts.values() for name in chart))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    across = min(_COLUMNS, max(len(charts), 1))
    down = -(-len(charts) // across)
    step_x, step_y = _WIDE_PX + _MARGIN_PX, _HIGH_PX + _MARGIN_PX
    legend = -(-len(names) // across) * _LINE_PX
    page = Image.new("RGB", (_MARGIN_PX + across * step_x, 96 + down * step_y + legend + _MARGIN_PX), _PAPER)
    draw = ImageDraw.Draw(page)
    _write(draw, (_MARGIN_PX, 20), title, 22)
    _write(draw, (_MARGIN_PX, 52), note, 13, _SOFT)
    for number, (name, chart) in enumerate(charts.items()):
        left = _MARGIN_PX + (number % across) * step_x
        top = 84 + (number // across) * step_y
        _panel(draw, name, x_label, chart, colours, (left, top))
    for number, name in enumerate(names):
        left = _MARGIN_PX + (number % across) * step_x
        top = 96 + down * step_y + (number // across) * _LINE_PX
        draw.line([(left, top + 7), (left + 24, top + 7)], fill=colours[name], width=3)
        _write(draw, (left + 32, top), name, 13)
    buffer = io.BytesIO()
    page.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()


def _panel(
    draw: ImageDraw.ImageDraw,
    name: str,
    x_label: str,
    chart: Series,
    colours: Mapping[str, str],
    corner: tuple[int, int],
) -> None:
    left, top = corner
    box = (left + _AXIS_PX, top + 26, left + _WIDE_PX, top + _HIGH_PX - 36)
    _write(draw, (left, top), name, 15)
    draw.rectangle(box, outline=_RULE)
    points = [
        (x, y)
        for xs, ys in chart.values()
        for x, y in zip(xs, ys, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]
    if not points:
        _write(draw, (box[0] + 8, box[1] + 8), "no values", 13, _SOFT)
        return
    low_x, high_x = _range([x for x, _ in points])
    low_y, high_y = _range([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            box[0] + (x - low_x) / (high_x - low_x) * (box[2] - box[0]),
            box[3] - (y - low_y) / (high_y - low_y) * (box[3] - box[1]),
        )

    for value in round_ticks(low_y, high_y):
        y = place(low_x, value)[1]
        draw.line([(box[0], y), (box[2], y)], fill=_RULE)
        _write(draw, (box[0] - 6, round(y)), f"{value:g}", 12, _SOFT, "rm")
    for value in round_ticks(low_x, high_x):
        x = round(place(value, low_y)[0])
        draw.line([(x, box[3]), (x, box[3] + 3)], fill=_RULE)
        _write(draw, (x, box[3] + 4), f"{value:g}", 12, _SOFT, "ma")
    _write(draw, ((box[0] + box[2]) // 2, box[3] + 18), x_label, 12, _SOFT, "ma")
    for series, (xs, ys) in chart.items():
        run: list[tuple[float, float]] = []
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(x) and math.isfinite(y):
                run.append(place(x, y))
                px, py = run[-1]
                draw.ellipse([px - 2.5, py - 2.5, px + 2.5, py + 2.5], fill=colours[series])
                continue
            _stroke(draw, run, colours[series])
            run = []
        _stroke(draw, run, colours[series])


def _stroke(draw: ImageDraw.ImageDraw, run: list[tuple[float, float]], colour: str) -> None:
    if len(run) > 1:
        draw.line(run, fill=colour, width=2, joint="curve")


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or abs(high) * 0.05 or 0.5
    return low - room, high + room


def round_ticks(low: float, high: float, about: int = 8) -> list[float]:
    """Round numbers in [low, high], 1, 2 or 5 times a power of ten apart, at most `about` steps."""
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(power * k for k in (1, 2, 5, 10) if power * k * about >= high - low)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    colour: str = _INK,
    anchor: str = "la",
) -> None:
    # the built-in font has no other letters
    plain = text.encode("ascii", "replace").decode()
    draw.text(at, plain, font=ImageFont.load_default(size), fill=colour, anchor=anchor)
