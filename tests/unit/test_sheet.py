"""The contact sheet: every row is on it, the difference is honest, the same input gives the same bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sdflow_core.faces.sheet import MAX_ROWS, SheetRow, contact_sheet, difference, pages
from sdflow_core.records.errors import ContractError


def rows(count: int, size: tuple[int, int] = (64, 64)) -> list[SheetRow]:
    rng = np.random.default_rng(5)
    before = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    after = before.copy()
    after[size[0] // 2 :] //= 2
    return [SheetRow(before, after, f"row {k}: smiling 0.12 → 0.90 · identity 0.83") for k in range(count)]


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    assert picture.format == "PNG" and picture.mode == "RGB"
    return picture


def test_same_input_same_bytes_and_it_grows_with_rows() -> None:
    one = contact_sheet({"smiling": rows(4)}, "Preview")
    assert one == contact_sheet({"smiling": rows(4)}, "Preview")
    assert opened(contact_sheet({"smiling": rows(7)}, "Preview")).height > opened(one).height
    assert opened(contact_sheet({"a": rows(2), "b": rows(2)}, "Preview")).height > opened(one).height


def test_the_pictures_are_on_the_page() -> None:
    red, blue = np.full((64, 64, 3), (250, 10, 20), np.uint8), np.full((64, 64, 3), (10, 20, 250), np.uint8)
    page = np.asarray(opened(contact_sheet({"x": [SheetRow(red, blue, "c")]}, "t")))
    for colour in (red[0, 0], blue[0, 0]):
        assert (page == colour).all(axis=2).sum() >= 140 * 140


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (40, 90), (1, 1)])
@pytest.mark.parametrize("columns", [1, 3])
def test_any_size_and_width(size: tuple[int, int], columns: int) -> None:
    assert opened(contact_sheet({"x": rows(3, size)}, "t", columns=columns)).width >= 900


def test_empty_and_strange_text() -> None:
    opened(contact_sheet({}, "Nothing"))
    opened(contact_sheet({"none": []}, "Nothing"))
    row = rows(1)[0]
    opened(contact_sheet({"Ünïcode 漢字 \x00\n": [SheetRow(row.before, row.after, "x" * 5000)]}, "→·é" * 300))


def test_the_difference_is_the_amplified_mean_absolute_difference() -> None:
    before = np.zeros((2, 2, 3), np.uint8)
    after = before.copy()
    after[0, 0] = (10, 20, 30)
    after[1, 1] = 255
    assert difference(before, after, gain=4).tolist() == [[255 - 80, 255], [255, 0]]
    assert np.array_equal(difference(before, after), difference(after, before))


def test_what_cannot_be_compared_is_refused() -> None:
    small, large = np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)
    for row in (SheetRow(small, large, ""), SheetRow(small, small.astype(np.float32), "")):  # type: ignore[arg-type]
        with pytest.raises(ContractError):
            contact_sheet({"x": [row]}, "t")
    for layout in ({"columns": 0}, {"gain": 0}):
        with pytest.raises(ContractError):
            contact_sheet({"x": rows(1)}, "t", **layout)
    with pytest.raises(ContractError, match="pages"):
        contact_sheet({"x": [SheetRow(small, small, "")] * (MAX_ROWS + 1)}, "t")


def test_pages_lose_nothing() -> None:
    groups = {"a": rows(5), "b": [], "c": rows(4)}
    split = list(pages(groups, 3))
    assert [sum(map(len, page.values())) for page in split] == [3, 3, 3]
    assert [row for page in split for part in page.values() for row in part] == groups["a"] + groups["c"]
    with pytest.raises(ContractError):
        list(pages(groups, 0))


def test_the_source_has_a_tile_of_its_own() -> None:
    green = np.full((40, 30, 3), (10, 250, 20), np.uint8)
    plain = rows(2)
    page = np.asarray(opened(contact_sheet({"x": plain}, "t", columns=2)))
    assert not (page == green[0, 0]).all(axis=2).any()
    with_source = [SheetRow(row.before, row.after, row.caption, green) for row in plain]
    page = np.asarray(opened(contact_sheet({"x": with_source}, "t", columns=2)))
    assert (page == green[0, 0]).all(axis=2).sum() >= 2 * 100 * 140
