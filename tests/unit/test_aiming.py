"""The search for s': what was asked for is read afterwards, within few tries, whatever the neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sdflow_core.faces.labeller import Labeller, LabellerConfig
from sdflow_core.method.aiming import Aimed, Aims, aim, aims_of, draw_at, prepare_all
from sdflow_core.method.condition import attributes_of, features
from sdflow_core.method.editor import EditorBase, Prepared
from sdflow_core.method.request import EditConfig, Variant
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.records.errors import ContractError

NAMES = ("a", "b")
Answer = Callable[[Tensor], Tensor]


class _Ruler(EditorBase):
    """Code [B, 1, 4]: the first two numbers are what is shown, in phi; an answer maps phi(s') - phi(s)."""

    def __init__(self, answer: Answer) -> None:
        torch.manual_seed(0)
        network = Labeller(LabellerConfig(attributes=NAMES, resolution=16, channels=(4, 4)))
        super().__init__(SemanticEncoder(network), "encoder", 1, 4)
        self.answer, self.calls, self.prepared = answer, list[int](), 0

    def to_bytes(self) -> bytes:
        return b""

    def prepare(self, w_plus: Tensor, s: Tensor) -> Prepared:
        self.prepared += 1
        return Prepared(w_plus, s, w_plus, w_plus, 0)

    def move(self, prepared: Prepared, s_after: Tensor) -> tuple[Tensor, int]:
        self.calls.append(len(s_after))
        step = features(s_after.double()) - features(prepared.s.double())
        moved = prepared.w_plus.clone()
        moved[:, 0, :2] += self.answer(step).float()
        return moved, 0


def _show(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Third number of the code: a column that the editor does not know, before the others."""
    scores = torch.sigmoid(2 * codes[:, 0, [2, 0, 1]])
    return codes[:, None].expand(-1, 3, -1, -1).clone(), scores


def _run(
    answer: Answer,
    start: Tensor,
    variant: Variant | list[Variant],
    rows: Tensor | None = None,
    editor: _Ruler | None = None,
    look: Any = None,
    **config: Any,
) -> tuple[Aimed, Aims, _Ruler]:
    """Aim codes that show `start` [B, 2] in phi; s is what is shown."""
    settings = EditConfig.model_validate({"micro_batch": 4, **config})
    codes = torch.zeros(len(start), 1, 4)
    codes[:, 0, :2] = start
    variants = variant if isinstance(variant, list) else [variant] * len(start)
    s, (images, scores) = attributes_of(codes[:, 0, :2]), _show(codes)
    if rows is not None:
        variants = [variants[int(row)] for row in rows]
        codes, s, images, scores = (part[rows] for part in (codes, s, images, scores))
    ruler = editor or _Ruler(answer)
    prepared = prepare_all(ruler, codes, s, settings.micro_batch)
    aims = aims_of(variants, NAMES, scores[:, 1:], settings)
    found = aim(ruler, prepared, images, scores, aims, (1, 2), look or (lambda c, _: _show(c)), settings)
    return found, aims, ruler


def _straight(slope: float) -> Answer:
    return lambda step: slope * step


def _interacting(step: Tensor) -> Tensor:
    return step @ torch.tensor([[1.0, 0.6], [-0.5, 0.8]], dtype=torch.float64)


def _saturating(step: Tensor) -> Tensor:
    return 1.2 * torch.tanh(step)


def _rising_and_falling(step: Tensor) -> Tensor:
    return torch.where(step.abs() < 3.0, 0.8 * step, step.sign() * (4.8 - 0.8 * step.abs()))


def _starts(count: int = 21) -> Tensor:
    return torch.stack([torch.linspace(-1.8, 1.8, count), torch.linspace(0.9, -0.9, count)], dim=1)


@pytest.mark.parametrize("slope", [0.4, 1.0, 1.7, 3.0])
@pytest.mark.parametrize("value", [0.1, 0.35, 0.5, 0.9])
def test_the_value_asked_for_is_read_afterwards(slope: float, value: float) -> None:
    found, _, _ = _run(_straight(slope), _starts(), Variant(targets={"a": value}))
    assert (found.scores[:, 1] - value).abs().max() <= 0.02 + 1e-6
    assert found.reached.all() and not found.capped.any() and found.finite.all()
    assert found.tries.max() <= 4, "two points of a straight line are enough, logits are one"
    unchanged = found.tries == 0
    start = _starts()
    assert (
        torch.equal(found.w_plus[unchanged, 0, :2], start[unchanged]) and not found.strength[unchanged].any()
    )
    assert torch.equal(found.w_plus[:, 0, 1], start[:, 1]), "what was not asked is not touched"


def test_changes_count_from_what_is_read_and_end_at_the_ends() -> None:
    start = features(torch.tensor([[0.2, 0.5], [0.6, 0.5], [0.95, 0.5]]))
    up, _, _ = _run(_straight(0.7), start, Variant(targets={"a": "+0.3"}))
    down, _, _ = _run(_straight(0.7), start, Variant(targets={"a": "-0.5"}))
    assert torch.allclose(up.scores[:, 1], torch.tensor([0.5, 0.9, 1.0]), atol=0.021)
    assert torch.allclose(down.scores[:, 1], torch.tensor([0.0, 0.1, 0.45]), atol=0.021)
    assert up.reached.all() and down.reached.all()


def test_a_flip_reaches_the_other_side_with_no_more_than_it_needs() -> None:
    found, aims, _ = _run(_straight(1.8), _starts(), Variant(targets={"a": "flip"}))
    there = torch.where(aims.goal[:, 0] > 0.5, found.scores[:, 1] >= 0.94, found.scores[:, 1] <= 0.06)
    assert there.all() and found.reached.all()
    # at the first try 1.8 times too far; the second knows the slope
    assert found.tries.max() <= 3
    assert (found.scores[:, 1] - aims.goal[:, 0]).abs().max() <= 0.03 + 1e-6
    exact, _, _ = _run(_straight(1.0), _starts(), Variant(targets={"a": "flip"}))
    assert exact.tries.max() == 1 and torch.allclose(exact.strength, torch.ones(21), atol=0.15)


def test_two_attributes_that_pull_at_each_other_arrive_together() -> None:
    found, aims, _ = _run(_interacting, _starts(), Variant(targets={"a": 0.8, "b": "-0.2"}))
    assert ((found.scores[:, 1:] - aims.goal).abs() <= 0.02 + 1e-6).all()
    assert found.reached.all() and found.tries.float().mean() <= 5
    alone, _, _ = _run(_interacting, _starts(), Variant(targets={"a": 0.8}))
    assert (alone.scores[:, 2] - torch.sigmoid(2 * _starts()[:, 1])).abs().max() > 0.1


def test_hold_brings_back_what_drifts() -> None:
    asked = Variant(targets={"a": 0.8})
    loose, aims, _ = _run(_interacting, _starts(), asked)
    held, _, _ = _run(_interacting, _starts(), asked, hold=True)
    drift = [(found.scores[:, 2] - aims.goal[:, 1]).abs() for found in (loose, held)]
    assert held.reached.all() and (drift[1] <= drift[0] + 1e-6).all()
    assert drift[1].mean() < 0.5 * drift[0].mean()


def test_what_cannot_be_reached_is_capped_at_the_greatest_distance() -> None:
    start = torch.full((5, 2), -1.5)
    found, _, ruler = _run(_saturating, start, Variant(targets={"a": 0.9}), furthest=4.0)
    assert found.capped.all() and not found.reached.any()
    assert found.tries.max() < 8, "at the end of the way there is nothing more to try"
    assert torch.allclose(found.scores[:, 1], torch.sigmoid(torch.tensor(2 * (-1.5 + 1.2))), atol=0.01)
    assert found.phi.abs().max() <= 4.0 + 1e-3
    easy, _, _ = _run(_saturating, start, Variant(targets={"a": 0.3}), furthest=4.0)
    assert easy.reached.all() and not easy.capped.any()
    backwards, _, _ = _run(_straight(-1.0), start, Variant(targets={"a": 0.9}))
    assert not backwards.reached.any() and backwards.capped.all()
    assert torch.equal(backwards.w_plus[:, 0, :2], start) and not backwards.strength.any()
    assert set(ruler.calls) == {4}


def test_of_a_reading_that_rises_and_falls_the_best_is_kept() -> None:
    start = torch.stack([torch.linspace(-1.8, -1.0, 9), torch.zeros(9)], dim=1)
    found, _, _ = _run(_rising_and_falling, start, Variant(targets={"a": 0.7}))
    assert (found.scores[:, 1] - 0.7).abs().max() <= 0.02 + 1e-6
    out_of_reach, _, _ = _run(_rising_and_falling, start - 1.5, Variant(targets={"a": 0.9}))
    best = torch.sigmoid(2 * (start[:, 0] - 1.5 + 2.4))
    assert not out_of_reach.reached.any()
    assert (out_of_reach.scores[:, 1] > torch.sigmoid(2 * (start[:, 0] - 1.5))).all()
    assert (out_of_reach.scores[:, 1] <= best + 1e-6).all()


def test_a_row_is_the_same_bytes_whatever_its_neighbours() -> None:
    requests: list[dict[str, Any]] = [
        {"a": 0.8},
        {"a": "flip", "b": "+0.1"},
        {"b": "flip"},
        {"a": "-0.3", "b": 0.5},
    ]
    variants = [Variant(targets=targets) for targets in requests for _ in range(5)]
    start = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    whole, _, ruler = _run(_interacting, start, variants, hold=True)
    assert set(ruler.calls) == {4} and ruler.prepared == 5, "z once for each code, not for each try"
    for rows in (torch.tensor([7]), torch.tensor([19, 3, 11]), torch.arange(20).flip(0)):
        part, _, _ = _run(_interacting, start, variants, rows, hold=True)
        for name in ("w_plus", "images", "scores", "phi", "strength", "tries", "reached", "capped"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name


def test_pictures_that_are_not_finite_are_never_the_result() -> None:
    def breaks(limit: float) -> Any:
        def look(codes: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            images, scores = _show(codes)
            broken = codes[:, 0, 0] > limit
            images[broken] = torch.nan
            scores[broken] = torch.nan
            return images, scores

        return look

    start = torch.full((3, 2), -1.0)
    target = Variant(targets={"a": 0.7})  # phi 0.42
    found, _, _ = _run(_straight(3.0), start, target, look=breaks(0.6))
    assert found.finite.all() and found.reached.all(), "the first try is too far, the next is nearer"
    never, _, _ = _run(_straight(3.0), start, target, look=breaks(-20.0))
    assert not never.finite.any() and not never.reached.any()
    for result in (found, never):
        assert torch.isfinite(result.images).all() and torch.isfinite(result.w_plus).all()
        assert torch.isfinite(result.scores).all()


def test_draw_at_the_start_is_the_code_itself() -> None:
    ruler = _Ruler(_interacting)
    codes = torch.randn(5, 1, 4, generator=torch.Generator().manual_seed(2))
    prepared = prepare_all(ruler, codes, torch.rand(5, 2), 4)
    rows = torch.tensor([4, 0, 2])
    phi = features(prepared.s.double())[rows]
    drawn, _, _ = draw_at(ruler, prepared, phi, rows, lambda c, _: _show(c), 4)
    assert torch.equal(drawn, codes[rows])


def test_parts_that_do_not_fit_are_refused() -> None:
    ruler = _Ruler(_straight(1.0))
    prepared = prepare_all(ruler, torch.zeros(2, 1, 4), torch.full((2, 2), 0.5), 4)
    images, scores = _show(torch.zeros(2, 1, 4))
    aims = aims_of([Variant(targets={"a": 0.8})] * 2, NAMES, scores[:, 1:], EditConfig())
    for wrong in ({"aims": aims.take(torch.tensor([0]))}, {"columns": (1,)}, {"scores": scores[:1]}):
        parts: dict[str, Any] = {"aims": aims, "columns": (1, 2), "scores": scores, **wrong}
        with pytest.raises(ContractError, match="rows to aim"):
            aim(
                ruler, prepared, images, parts["scores"], parts["aims"], parts["columns"],
                lambda c, _: _show(c), EditConfig(),
            )  # fmt: skip
