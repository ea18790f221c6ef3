"""Curves, sheets and the diary beside a checkpoint."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from sdflow_core.faces.pretraining.diary import CURVES, HISTORY, SHEET, Diary
from sdflow_core.faces.pretraining.pictures import loss_curves, sample_sheet
from sdflow_core.records.errors import ContractError


class Drawer(dict[str, bytes]):
    def keep(self, name: str, data: bytes) -> None:
        self[name] = data

    def find(self, name: str) -> bytes | None:
        return self.get(name)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def dark_blue(png: bytes) -> np.ndarray:
    """Where the mean of a curve is drawn."""
    return (np.abs(pixels(png) - (31, 95, 208)).sum(2) < 60).nonzero()


def test_a_curve_goes_where_its_values_go() -> None:
    falling = loss_curves({"loss": list(np.linspace(3, 1, 100))})
    rows, columns = dark_blue(falling)
    assert rows[columns.argmin()] < rows[columns.argmax()] - 100
    assert falling == loss_curves({"loss": list(np.linspace(3, 1, 100))})
    broken = [1.0] * 40 + [float("nan")] * 30 + [1.0] * 30
    _, columns = dark_blue(loss_curves({"loss": broken}))
    assert np.diff(np.unique(columns)).max() > 60, "what is not finite leaves a gap"
    for history in (
        {},
        {"a": []},
        {"a": [float("inf")]},
        {"a": [0.0]},
        {"a": [1e-9, 1e9]},
        {"a": [-1.0, 2.0]},
    ):
        assert pixels(loss_curves(history)).size
    with pytest.raises(ContractError, match="2 steps"):
        loss_curves({"loss": [1.0]}, {"loss": [1, 2]})


def test_a_sheet_shows_every_picture_enlarged() -> None:
    rng = np.random.default_rng(0)
    rows = [
        ("one", rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)),
        ("two", np.zeros((5, 200, 100, 3), np.uint8)),
    ]
    page = pixels(sample_sheet(rows, tile_px=50))
    assert (page.sum(2) == 0).sum() == pytest.approx(5 * 50 * 25, rel=0.05)
    assert page.shape[1] >= 5 * 54
    assert pixels(sample_sheet([])).size
    with pytest.raises(ContractError, match="row two"):
        sample_sheet([("two", np.zeros((8, 8, 3), np.uint8))])


def test_a_diary_goes_on_where_a_killed_run_left_its_checkpoint() -> None:
    drawer = Drawer()
    diary = Diary(drawer, every=10)
    for step in range(1, 101):
        diary.note("autoencoder", step, {"loss": float(step)})
        if step == 50:
            diary.page("autoencoder", step, [("row", np.zeros((2, 8, 8, 3), np.uint8))])
    assert {HISTORY, CURVES.format(stage="autoencoder"), SHEET, "samples-0000050.png"} == set(drawer)
    again = Diary(drawer, every=10)
    again.rewind("autoencoder", 40)
    for step in range(41, 61):
        again.note("autoencoder", step, {"loss": 1000.0, "fool": 2.0})
    again.close()
    lines = [json.loads(line) for line in drawer[HISTORY].splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert [line["losses"]["loss"] for line in lines] == [5.5, 15.5, 25.5, 35.5, 1000.0, 1000.0]
    assert all(line["at"].endswith("Z") and line["stage"] == "autoencoder" for line in lines)
    assert again.history("autoencoder")[1] == {"loss": [10, 20, 30, 40, 50, 60], "fool": [50, 60]}


def test_a_torn_history_costs_its_torn_line_only() -> None:
    drawer = Drawer()
    diary = Diary(drawer, every=1)
    for step in (1, 2, 3):
        diary.note("autoencoder", step, {"loss": 1.0})
    diary.close()
    foreign = b'null\n3\n[1]\n{"stage": "autoencoder"}\n{"stage": 1, "step": 1, "losses": {}}\n\xff\n'
    foreign += b'{"stage": "autoencoder", "step": 1, "losses": {"loss": "x"}}\n'
    drawer[HISTORY] = foreign + drawer[HISTORY][:-20]
    again = Diary(drawer)
    again.rewind("autoencoder", 2)
    again.page("autoencoder", 2)
    assert [line["step"] for line in Diary(drawer).lines] == [1, 2]


def test_a_loss_that_is_not_finite_is_written_down_at_once() -> None:
    drawer = Drawer()
    diary = Diary(drawer)
    diary.note("labeller", 1, {"bce": 1.0})
    diary.note("labeller", 2, {"bce": float("nan")})
    assert [line["step"] for line in diary.lines] == [2]
    diary.close()
    assert json.loads(drawer[HISTORY])["losses"] == {"bce": None}
    assert np.isnan(Diary(drawer).history("labeller")[0]["bce"]).all()
    Diary(Drawer()).close()
