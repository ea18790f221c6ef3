"""The page that reviewers look at: before, after and what changed, side by side."""

from __future__ import annotations

import io
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sdflow_core.records.errors import ContractError

MAX_ROWS = 600  # about 40,000 px of page; `pages` splits longer lists
_TILE_PX, _GAP_PX, _GUTTER_PX, _MARGIN_PX = 144, 4, 36, 48
_AIR_PX = 3  # around a drawn arrow or dot: the font's own space is narrow
_PAPER, _INK, _SOFT, _RULE, _EMPTY = "#ffffff", "#1b1f24", "#6b7280", "#d9dde3", "#eef0f3"
# Signs that Pillow's built-in font lacks. The arrow and the middle dot are drawn; these are spelled.
_SPELLED = str.maketrans(
    {
        "\u00d7": "x",
        "\u2013": "-",
        "\u2014": "-",
        "\u2212": "-",
        "≥": ">=",
        "≤": "<=",
        "≈": "~",
        "•": "·",
        "ß": "ss",
        "ø": "o",
        "ł": "l",
    }
)

_LABELS = ("Before", "After", "Difference")
T = TypeVar("T")
_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True, eq=False)
class SheetRow:
    """One edit.

    Attributes:
        before: [H, W, 3] uint8 RGB, what the edit starts from.
        after: Like `before`, the edit.
        caption: Names no file and no person.
        source: [H', W', 3] uint8 RGB, the picture that was handed over, in front; None: not shown.
        third: Takes the place of the difference where it is given.
    """

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    caption: str
    source: NDArray[np.uint8] | None = None
    third: NDArray[np.uint8] | None = None


def contact_sheet(
    groups: Mapping[str, Sequence[SheetRow]],
    title: str,
    *,
    columns: int = 3,
    note: str = "",
    gain: int = 4,
    labels: tuple[str, str, str] = _LABELS,
    unit: str = "edit",
) -> bytes:
    """Draw the contact sheet.

    Each row becomes three tiles, before / after / difference, or four with the source in front. The
    difference is the mean absolute difference of the three channels, times `gain`: white is unchanged,
    black is a change of 255 / gain levels or more.

    Args:
        groups: heading -> its rows, drawn in this order; usually one heading an attribute.
        title: headline of the page.
        columns: rows side by side, at least 1.
        note: one or two lines under the title, such as the date and the editor.
        gain: amplification of the difference.
        labels: what stands above the three pictures; the legend of the difference is left out with others
            than the usual.
        unit: what is counted.

    Returns:
        A PNG file. The same input gives the same bytes.

    Raises:
        ContractError: pictures of one row differ in size or type, more than `MAX_ROWS` rows, or columns or
            gain below 1.
    """
    total = sum(len(rows) for rows in groups.values())
    if columns < 1 or gain < 1:
        raise ContractError(
            "The sheet's layout is wrong", expected="columns and gain of at least 1", found=(columns, gain)
        )
    if total > MAX_ROWS:
        raise ContractError(
            "Too many rows for one sheet",
            expected=f"at most {MAX_ROWS}",
            found=total,
            todo="split them with sheet.pages()",
        )
    with_source = any(row.source is not None for rows in groups.values() for row in rows)
    shown = ("Source", *labels) if with_source else labels
    width = len(shown) * (_TILE_PX + _GAP_PX) - _GAP_PX
    # Fewer columns when no group fills them, but room for the title and the legend.
    used = max(1, min(columns, max((len(rows) for rows in groups.values()), default=1)))
    inner = max(used * width + (used - 1) * _GUTTER_PX, 6 * (_TILE_PX + _GAP_PX) + _GUTTER_PX)
    heights = [_group_height(len(rows), used) for rows in groups.values()]
    header = 128
    page = Image.new(
        "RGB", (inner + 2 * _MARGIN_PX, header + sum(heights) + (0 if total else 80) + _MARGIN_PX), _PAPER
    )
    draw = ImageDraw.Draw(page)
    said = note or f"{total} {unit}{'' if total == 1 else 's'} to compare"
    _header(draw, title, said, inner, gain if labels == _LABELS else 0)
    if not total:
        _text(draw, (_MARGIN_PX, header + 24), "Nothing to compare.", 16, _SOFT, inner)
    top = header
    for (heading, rows), height in zip(groups.items(), heights, strict=True):
        _group(page, draw, heading, rows, top, (used, width), inner, gain, shown, unit)
        top += height
    out = io.BytesIO()
    page.save(out, format="PNG", compress_level=6)
    return out.getvalue()


def pages(groups: Mapping[str, Sequence[T]], rows_per_page: int = 120) -> Iterator[dict[str, Sequence[T]]]:
    """Split groups over several sheets; nothing is left out and the order stays.

    Args:
        groups: heading -> its rows, or what rows are made of later.
        rows_per_page: at most this many rows a sheet.

    Yields:
        Groups for one `contact_sheet` each; a heading that runs over is repeated as "heading (continued)".

    Raises:
        ContractError: rows_per_page is below 1.

    Example:
        >>> row = SheetRow(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), "")
        >>> [{k: len(v) for k, v in page.items()} for page in pages({"smile": [row] * 3, "age": [row]}, 2)]
        [{'smile': 2}, {'smile (continued)': 1, 'age': 1}]
    """
    if rows_per_page < 1:
        raise ContractError("The page length is wrong", expected="at least 1 row", found=rows_per_page)
    page: dict[str, Sequence[T]] = {}
    room = rows_per_page
    for heading, rows in groups.items():
        start = 0
        while start < len(rows):
            part = rows[start : start + room]
            page[heading if start == 0 else f"{heading} (continued)"] = part
            start, room = start + len(part), room - len(part)
            if room == 0:
                yield page
                page, room = {}, rows_per_page
    if page:
        yield page


def difference(before: NDArray[np.uint8], after: NDArray[np.uint8], gain: int = 4) -> NDArray[np.uint8]:
    """The difference picture: white where nothing changed.

    Args:
        before: [H, W, 3] uint8.
        after: [H, W, 3] uint8.
        gain: amplification.

    Returns:
        [H, W] uint8: 255 - min(255, gain * mean over channels of |after - before|), rounded.

    Raises:
        ContractError: sizes or types differ.
    """
    for picture in (before, after):
        if (
            picture.dtype != np.uint8
            or picture.ndim != 3
            or picture.shape[2] != 3
            or picture.shape != before.shape
        ):
            raise ContractError(
                "Before and after cannot be compared",
                expected="two uint8 [H, W, 3] pictures of one size",
                found=f"{before.dtype} {list(before.shape)} and {after.dtype} {list(after.shape)}",
            )
    change = np.abs(after.astype(np.float64) - before.astype(np.float64)).mean(axis=2) * gain
    return (255 - np.minimum(255, np.rint(change))).astype(np.uint8)


_HEADING_PX, _LABEL_PX, _CAPTION_PX, _GROUP_END_PX = 58, 22, 40, 14


def _group_height(rows: int, columns: int) -> int:
    lines = -(-rows // columns)
    return _HEADING_PX + _LABEL_PX + lines * (_TILE_PX + _CAPTION_PX) + _GROUP_END_PX if rows else 0


def _header(draw: ImageDraw.ImageDraw, title: str, note: str, inner: int, gain: int) -> None:
    ramp, right = 160, _MARGIN_PX + inner
    _text(draw, (_MARGIN_PX, 40), title, 30, _INK, inner - ramp - 60)
    for number, line in enumerate(_two_lines(draw, note, 15, inner - ramp - 60)):
        _text(draw, (_MARGIN_PX, 80 + 20 * number), line, 15, _SOFT, inner - ramp - 60)
    left = right - ramp
    if not gain:
        return
    _text(draw, (left, 40), f"Difference, amplified {gain}x", 13, _SOFT, ramp + 20)
    for x in range(ramp):
        shade = 255 - round(255 * x / (ramp - 1))
        draw.line([(left + x, 62), (left + x, 75)], fill=(shade, shade, shade))
    draw.rectangle([left - 1, 61, right, 76], outline=_RULE)
    _text(draw, (left, 82), "unchanged", 12, _SOFT, ramp)
    most = f"{-(-255 // gain)}+ of 255"
    _text(draw, (right - round(draw.textlength(most, font=_font(12))), 82), most, 12, _SOFT, ramp)


def _group(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    heading: str,
    rows: Sequence[SheetRow],
    top: int,
    columns_and_width: tuple[int, int],
    inner: int,
    gain: int,
    labels: Sequence[str],
    unit: str,
) -> None:
    if not rows:
        return
    columns, place = columns_and_width
    draw.line([(_MARGIN_PX, top), (_MARGIN_PX + inner, top)], fill=_RULE)
    count = f"{len(rows)} {unit}{'' if len(rows) == 1 else 's'}"
    width = round(draw.textlength(count, font=_font(14)))
    _text(draw, (_MARGIN_PX, top + 18), heading, 21, _INK, inner - width - 24)
    _text(draw, (_MARGIN_PX + inner - width, top + 24), count, 14, _SOFT, width + 20)
    for column in range(min(columns, len(rows))):
        for i, label in enumerate(labels):
            x = _MARGIN_PX + column * (place + _GUTTER_PX) + i * (_TILE_PX + _GAP_PX)
            _text(draw, (x, top + _HEADING_PX), label, 13, _SOFT, _TILE_PX)
    for number, row in enumerate(rows):
        change = row.third if row.third is not None else difference(row.before, row.after, gain)
        x = _MARGIN_PX + (number % columns) * (place + _GUTTER_PX)
        y = top + _HEADING_PX + _LABEL_PX + (number // columns) * (_TILE_PX + _CAPTION_PX)
        pictures = (row.before, row.after, change)
        if len(labels) > len(pictures):
            pictures = (row.source, *pictures)
        for i, pixels in enumerate(pictures):
            if pixels is None:
                continue
            left = x + i * (_TILE_PX + _GAP_PX)
            page.paste(_tile(pixels), (left, y))
            if pixels is change and row.third is None:  # mostly white: give it an edge
                draw.rectangle([left, y, left + _TILE_PX - 1, y + _TILE_PX - 1], outline=_RULE)
        _text(draw, (x, y + _TILE_PX + 8), row.caption, 14, _INK, place)


def _tile(pixels: NDArray[np.uint8]) -> Image.Image:
    """Fit [H, W] or [H, W, 3] into the tile, keeping its shape; 64 px is enlarged 2.25 times."""
    picture = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    factor = _TILE_PX / max(picture.size)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    if size == (_TILE_PX, _TILE_PX):
        return picture
    tile = Image.new("RGB", (_TILE_PX, _TILE_PX), _EMPTY)
    tile.paste(picture, ((_TILE_PX - size[0]) // 2, (_TILE_PX - size[1]) // 2))
    return tile


def _two_lines(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> list[str]:
    """Broken at a space where one line is too short; what the second has no room for is left to `_text`."""
    font, words = _font(size), text.split(" ")
    fits = sum(
        _width(draw, _plain(" ".join(words[:n])), font, size) <= width for n in range(1, len(words) + 1)
    )
    return [text] if fits in (0, len(words)) else [" ".join(words[:fits]), " ".join(words[fits:])]


def _font(size: int) -> _Font:
    return ImageFont.load_default(size)


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, width: int
) -> None:
    """One line, shortened to `width` px; the arrow and middle dot that the font lacks are drawn."""
    font = _font(size)
    line = _plain(text)
    if _width(draw, line, font, size) > width:
        line = line[:width]  # no letter is narrower than 1 px
        fits = bisect_right(
            range(1, len(line) + 1), width, key=lambda n: _width(draw, line[:n] + "...", font, size)
        )
        line = line[:fits].rstrip() + "..."
    x, middle = float(at[0]), at[1] + size * 0.62
    for piece in _pieces(line):
        if piece == "→":
            start, end = x + _AIR_PX, x + _AIR_PX + size * 0.8
            draw.line([(start, middle), (end, middle)], fill=colour, width=max(1, size // 12))
            for side in (-1, 1):
                draw.line([(end - size * 0.26, middle + side * size * 0.2), (end, middle)], fill=colour)
        elif piece == "·":
            draw.ellipse([x + _AIR_PX, middle - 1.2, x + _AIR_PX + 2.4, middle + 1.2], fill=colour)
        else:
            draw.text((x, at[1]), piece, font=font, fill=colour)
        x += _width(draw, piece, font, size)


def _pieces(line: str) -> list[str]:
    return [p for p in line.replace("→", "\n→\n").replace("·", "\n·\n").split("\n") if p]


def _width(draw: ImageDraw.ImageDraw, line: str, font: _Font, size: int) -> float:
    drawn = {"→": size * 0.8 + 2 * _AIR_PX, "·": 2.4 + 2 * _AIR_PX}
    return sum(drawn[p] if p in drawn else draw.textlength(p, font=font) for p in _pieces(line))


def _plain(text: str) -> str:
    """Letters that the built-in font has: accents dropped, the rest as '?', control characters as spaces."""
    letters = unicodedata.normalize("NFKD", " ".join(text.translate(_SPELLED).split()))
    kept = (c for c in letters if not unicodedata.combining(c))
    return "".join(
        c if c in "→·" or " " <= c <= "~" else " " if unicodedata.category(c) == "Cc" else "?" for c in kept
    )
