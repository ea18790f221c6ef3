"""Editors compared at matched accuracy: known answers on toy faces, resumption, probes, plots."""

from __future__ import annotations

import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.bench_editors import chosen, run
from benchmarks.bench_targets import NEAR, TARGETS, agreement, spread_evenly
from benchmarks.editors import measure
from benchmarks.editors.ceiling import natural_pairs
from benchmarks.editors.figures import figures_of, over_attributes, reached_by_all, spread
from benchmarks.editors.material import HeldOut, Material, Training
from benchmarks.editors.options import Budget, Options
from benchmarks.editors.probes import probe_auc
from benchmarks.editors.report import compared, draw, print_all
from benchmarks.editors.rows import ROWS
from sdflow_core.method.editing import LinearEditor
from sdflow_core.method.matched import at_level, curves, described, leakage, linearity
from sdflow_core.method.plots import panels, round_ticks
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.sweeping import Observer, Sweep, find_strengths, join_sweeps, sweep
from sdflow_core.records.errors import ContractError

TRACKED = ("smile", "glasses", "hat")
DIM = 6  # three attributes, three numbers of the person


class Reader(nn.Module):
    """A picture of a code shows its numbers; attribute i reads number i, 0.25 a unit around one half."""

    kind = "labeller"
    attributes = TRACKED

    def logits(self, images: Tensor) -> Tensor:
        return torch.logit((0.5 + 0.25 * images[:, 0, 0, : len(TRACKED)]).clamp(0.001, 0.999))


def render(codes: Tensor) -> Tensor:
    return codes[:, None].expand(-1, 3, -1, -1)


def score(images: Tensor) -> Tensor:
    return torch.sigmoid(Reader().logits(images))


def editor(leak: float = 0.0, person: float = 0.0) -> LinearEditor:
    """s: 0 -> 1 moves number i by 4, the next one by `leak` of that, the person by `person` of it."""
    directions = torch.zeros(3, 1, DIM)
    for i in range(3):
        directions[i, 0, i] = 4.0
        directions[i, 0, (i + 1) % 3] += 4.0 * leak
        directions[i, 0, 3] = 4.0 * person
    return LinearEditor(directions, SemanticEncoder(Reader()), "e" * 64)


def codes(count: int = 40, seed: int = 0) -> Tensor:
    return 0.8 * torch.randn(count, 1, DIM, generator=torch.Generator().manual_seed(seed)).clamp(-1.8, 1.8)


def observers() -> dict[str, Observer]:
    return {
        "labeller": Observer(lambda x, rows: score(x).numpy()),
        "judge": Observer(lambda x, rows: score(0.9 * x).numpy()),
        "dlib": Observer(lambda x, rows: x[:, 0, 0, 3:].numpy()),
        "expression": Observer(lambda x, rows: score(x)[:, :1].numpy(), ("smile",)),
    }


def swept(one: LinearEditor, w: Tensor, strengths: tuple[float, ...] = (0.2, 0.5, 0.8, 1.0)) -> Sweep:
    names = ("smile", "glasses")
    table = np.tile(np.array(strengths, np.float32), (2, 1))
    return sweep(one, w, names, table, render, observers(), TRACKED, micro_batch=7)


def test_a_sweep_flips_and_keeps_what_failed() -> None:
    w = codes()
    found = swept(editor(), w)
    assert found.after["labeller"].shape == (2, 4, 40, 3)
    read = score(render(w))
    assert np.array_equal(found.wanted, (read[:, :2] < 0.5).numpy().T)
    # s' = s + k (t - s) is reached exactly by this editor, so that half the way is enough for nobody in doubt
    for k, strength in enumerate((0.2, 0.5, 0.8, 1.0)):
        goal = read[:, 0] + strength * (torch.from_numpy(found.wanted[0]).float() - read[:, 0])
        assert np.allclose(found.requested[0, k], goal, atol=1e-6)
        assert np.allclose(found.after["labeller"][0, k, :, 0], goal.clamp(0.001, 0.999), atol=1e-4)
    assert np.allclose(found.after["labeller"][0, :, :, 1:], read[:, 1:], atol=1e-6)
    assert np.isfinite(found.after["expression"][0]).all() and np.isnan(found.after["expression"][1]).all()
    assert found.nfe == 0
    accuracy = curves(found, "labeller", TRACKED, ["labeller"]).accuracy
    assert accuracy[0, 0] == 0.0 and accuracy[0, -1] == 1.0
    assert (np.diff(accuracy, axis=1) >= 0).all()


def test_what_leaks_is_read_off() -> None:
    # small steps: nothing is clipped, and the readings are straight lines
    found = swept(editor(leak=0.3, person=0.25), 0.2 * codes(), (0.1, 0.2, 0.3, 0.4))
    curve = curves(found, "labeller", TRACKED, ["labeller", "judge"])
    for k in range(1, 5):
        assert np.allclose(leakage(curve.matrix[:, k], found.attributes, TRACKED), 0.3, atol=1e-5)
    distance = described(found, "dlib", lambda a, b: np.linalg.norm(a - b, axis=1))
    moved = np.abs(found.requested - found.before["labeller"][:, :2].T[:, None]).mean(2)
    assert np.allclose(distance[:, 1:], moved, atol=1e-6)  # 0.25 of the four units of a whole step
    assert (distance[:, 0] == 0).all()
    assert np.allclose(curve.values["moved_labeller"][:, 1:], 0.3 * moved / 2, atol=1e-6)
    assert (curve.values["preserved_labeller"][:, 0] == 1).all()
    assert all(value > 0.999 for value in linearity(found, "labeller", TRACKED))


def test_less_leak_is_more_kept_at_the_same_accuracy() -> None:
    w = codes(200)
    kept = [
        curves(swept(editor(leak), w), "labeller", TRACKED, ["labeller"]).matched(0.9)["preserved_labeller"]
        for leak in (0.0, 0.2, 0.6)
    ]
    for a in range(2):
        assert kept[0][a] == 1.0 > kept[1][a] > kept[2][a]


def test_nothing_is_extrapolated() -> None:
    assert math.isnan(at_level([0.0, 0.5, 0.8], [1.0, 0.9, 0.8], 0.9))
    assert math.isnan(at_level([0.95, 1.0], [1.0, 0.9], 0.9))
    # the first passage counts, not a later one of a sweep that falls again
    assert at_level([0.0, 1.0, 0.5, 1.0], [1.0, 0.8, 0.4, 0.2], 0.9) == pytest.approx(0.82)


def test_strengths_pass_from_few_to_all() -> None:
    one, w = editor(), codes(24)
    found = find_strengths(one, w, ("smile", "glasses"), render, score, TRACKED)
    assert found.shape == (2, 6) and (np.diff(found, axis=1) > 0).all()
    table = found.astype(np.float32)
    accuracy = curves(
        sweep(one, w, ("smile", "glasses"), table, render, observers(), TRACKED), "labeller", TRACKED, []
    ).accuracy
    assert (accuracy[:, 1] < 0.9).all() and (accuracy[:, 4:] == 1.0).all()


def test_blocks_join_to_the_whole() -> None:
    w = codes(20)
    whole, parts = swept(editor(0.1), w), [swept(editor(0.1), part) for part in (w[:7], w[7:])]
    joined = join_sweeps(parts)
    for name in whole.after:
        assert np.allclose(joined.after[name], whole.after[name], atol=1e-6, equal_nan=True)
    assert np.array_equal(joined.wanted, whole.wanted)
    again = measure.from_arrays(measure.to_arrays(whole))
    assert again.attributes == whole.attributes and np.array_equal(again.requested, whole.requested)
    with pytest.raises(ContractError, match="same attributes"):
        join_sweeps([])


@pytest.mark.parametrize(
    ("names", "strengths", "rows", "said"),
    [
        (("smile", "beard"), [[0.5, 1.0]] * 2, 4, "beard"),
        ((), [[0.5]], 4, "attributes"),
        (("smile",), [[1.0, 0.5]], 4, "ascending"),
        (("smile",), [[0.5]], 0, "at least one row"),
    ],
)
def test_sweeps_that_cannot_be(names: Any, strengths: Any, rows: int, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        sweep(editor(), codes(4)[:rows], names, np.array(strengths), render, observers(), TRACKED)


def test_probes_find_what_is_there_and_only_that() -> None:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(3000, 8, generator=rng)
    straight, bent = x[:, 0] > 0, x[:, 1] * x[:, 2] > 0
    chance = torch.rand(3000, generator=rng) > 0.5
    assert probe_auc(x, straight, "linear") > 0.99
    assert probe_auc(x, bent, "linear") < 0.6 < 0.9 < probe_auc(x, bent, "mlp")
    for kind in ("linear", "mlp"):
        assert 0.4 < probe_auc(x, chance, kind) < 0.6
    assert probe_auc(x, straight, "mlp", seed=3) == probe_auc(x, straight, "mlp", seed=3)


def test_probes_refuse_what_they_cannot_read() -> None:
    x = torch.randn(100, 3)
    with pytest.raises(ContractError, match="both classes"):
        probe_auc(x, torch.zeros(100, dtype=torch.bool))
    with pytest.raises(ContractError, match="finite"):
        probe_auc(x * torch.nan, x[:, 0] > 0)


def test_pairs_are_of_one_person_and_differ() -> None:
    people = np.array(["ann", "ann", "bob", "bob", "cid", "cid"])
    values = np.array([0.9, 0.1, 0.9, 0.8, 0.55, 0.1])
    assert natural_pairs(people, values, 10) == [(0, 1)]  # .55 is in doubt


def test_agreement_of_requests() -> None:
    assert agreement(np.array([0.1, 0.9]), np.array([0.9, 0.1]))["pearson"] == -1.0
    assert math.isnan(agreement(np.array([0.5, 0.5]), np.array([0.9, 0.1]))["pearson"])


def test_faces_of_the_natural_yardstick_read_every_target_equally_often() -> None:
    read = np.random.default_rng(1).beta(0.3, 0.3, 5000)
    rows, faces = spread_evenly(read, 40)
    asked = np.repeat(np.array(TARGETS), 40)
    assert len(rows) == len(asked) and np.abs(read[rows] - asked).max() <= NEAR
    assert all(len(set(part)) == 40 for part in rows.reshape(len(TARGETS), 40))  # enough of each: none twice
    assert faces == [int((np.abs(read - target) <= NEAR).sum()) for target in TARGETS]
    none, faces = spread_evenly(read[read < 0.6], 40)
    assert len(none) == 0 and faces[-1] == 0


def test_rows_are_chosen_by_group_or_name() -> None:
    assert {row.group for row in chosen("top")} == {"top"}
    assert [row.name for row in chosen("linear, projected;ours: flow")] == ["linear, projected", "ours: flow"]
    assert [row.name for row in chosen("linear, projected")] == ["linear, projected"]
    with pytest.raises(KeyError):
        chosen("best")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.02, 1.04, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.038, 0.94, [0.2, 0.4, 0.6, 0.8]),
        (-3e-4, 1.2e-3, [-0.0002, 0.0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001, 0.0012]),
        (-110.0, 420.0, [-100.0, 0.0, 100.0, 200.0, 300.0, 400.0]),
        (7.0, 7.5, [7.0, 7.1, 7.2, 7.3, 7.4, 7.5]),
    ],
)
def test_axes_are_labelled_by_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert round_ticks(low, high) == expected


def test_plots_are_pictures() -> None:
    charts = {
        "a": {"one": ([0.0, 0.5, 1.0], [1.0, math.nan, 0.8])},
        "b": {"one": ([], []), "two": ([1], [1])},
    }
    data = panels(charts, title="Title", x_label="accuracy")
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (picture == (0x1F, 0x5F, 0xD0)).all(-1).any() and (picture == (0xD1, 0x49, 0x5B)).all(-1).any()
    assert data == panels(charts, title="Title", x_label="accuracy")


class Toy(Material):
    """The benchmark's material on toy faces: no networks, no photographs."""

    def __init__(self, options: Options) -> None:
        self.options, self.say, self.rendered = options, lambda text: None, 0
        labeller: Any = Reader()
        labeller.only = lambda names: labeller

        def draw(w: Tensor) -> Tensor:
            self.rendered += len(w)
            return render(w)

        self.networks = SimpleNamespace(
            digest=lambda kind: f"{kind}-digest", render=draw, scores=score, labeller=labeller, micro_batch=8
        )
        self.tracked = TRACKED
        self.columns = [0, 1, 2]
        w = codes(400, seed=1)
        pictures = torch.zeros(400, 3, 1, DIM, dtype=torch.uint8)
        self.__dict__["training"] = Training(w, pictures, score(render(w)))
        people = codes(30, seed=2)
        self.__dict__["held_out"] = HeldOut(
            np.zeros((30, 1, DIM, 3), np.uint8), np.zeros((30, 5, 2)), people, False
        )


class ToyObservers:
    def __init__(self, material: Material, points: NDArray[np.float64]) -> None:
        pass

    def all(self, offset: int = 0) -> dict[str, Observer]:
        return observers()


def test_the_benchmark_from_training_to_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # the toy labeller cannot be written to a file
    monkeypatch.setattr("benchmarks.editors.rows.load_editor", lambda data: _opened[data])
    monkeypatch.setattr(LinearEditor, "to_bytes", _kept)
    monkeypatch.setattr(measure, "Observers", ToyObservers)
    described_people = {"dlib": codes(30, seed=2)[:, 0, 3:].numpy()}
    monkeypatch.setattr("benchmarks.bench_editors.sources_described", lambda material: described_people)
    reference = (codes(60, seed=3)[:, 0, 3:].numpy(), (score(render(codes(60, seed=3))) > 0.5).numpy().T)
    monkeypatch.setattr("benchmarks.bench_editors.reference_of", lambda material: reference)
    budget = Budget(images=30, block=12, pick=16)
    options = Options(cache=tmp_path, work=tmp_path, attributes=TRACKED, budget=budget)
    rows = [row for row in ROWS if row.name.startswith("linear")]
    first = Toy(options)
    results = run(first, rows, 2)
    assert [len(results[row.name]) for row in rows] == [1, 2]  # one seed of the baseline, two of the top row
    second = Toy(options)
    again = run(second, rows, 2)
    assert second.rendered < first.rendered / 20  # only the cost is measured anew
    for name in results:
        for one, other in zip(results[name], again[name], strict=True):
            del one["cost"], other["cost"]
            assert repr(one) == repr(other)
    tables = print_all(results, ["linear, projected"], TRACKED)
    said = capsys.readouterr().out
    assert "At 90% accuracy by the judge" in said and "linear, projected" in said
    row = tables["labeller_0.90"]["rows"]["linear, projected"]
    assert 0.5 < row["preserved_labeller"][0] <= 1.0 and row["preserved_labeller"][2] == 2
    files = draw(results, tmp_path / "plots", "judge")
    assert all(path.stat().st_size > 1000 for path in files)


_opened: dict[bytes, Any] = {}


def _kept(self: LinearEditor) -> bytes:
    data = self.directions.numpy().tobytes()
    _opened[data] = self
    return data


def test_rows_are_compared_where_all_reach() -> None:
    w = codes(60)
    sources = {"dlib": w[:, 0, 3:].numpy()}
    strong = figures_of(swept(editor(), w), TRACKED, sources)
    weak = figures_of(swept(editor(), w, (0.02, 0.04, 0.06, 0.08)), TRACKED, sources)
    assert reached_by_all([strong], "labeller", 0.9) == [0, 1]
    assert reached_by_all([strong, weak], "labeller", 0.9) == []
    table = compared({"strong": [strong], "weak": [weak]}, ["strong"], "labeller", 0.9)
    assert table["attributes"] == ["smile", "glasses"]
    assert table["rows"]["strong"]["preserved_labeller"] == [1.0, 0.0, 1]
    assert math.isnan(table["rows"]["weak"]["preserved_labeller"][0])
    assert math.isnan(over_attributes([1.0], []))
    assert spread([0.8, 0.9, 1.0]) == (pytest.approx(0.9), pytest.approx(0.1))
