"""Terms of the objective: right at their optimum, with gradients where they belong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sdflow_core.method import objectives
from sdflow_core.method.field import FieldConfig
from sdflow_core.method.flow import ConditionalFlow, FlowConfig
from sdflow_core.method.solvers import SolverConfig


def _flow() -> ConditionalFlow:
    torch.manual_seed(0)
    return ConditionalFlow(
        2, 3, 2, FlowConfig(field=FieldConfig(width=8, mix=4), solver=SolverConfig(steps=2))
    )


@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_distillation_is_least_where_logits_give_the_scores(kind: str) -> None:
    scores = torch.tensor([[0.2, 0.9]])
    exact = torch.logit(scores).requires_grad_(True)
    loss = objectives.distillation(exact, scores, kind)  # pyright: ignore
    loss.backward()
    assert exact.grad is not None and exact.grad.abs().max() < 1e-6
    assert objectives.distillation(exact + 0.5, scores, kind) > loss  # pyright: ignore


def test_nll_counts_the_whitening_and_is_a_number_a_dimension() -> None:
    flow = _flow()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
    flow.std.fill_(3.0)
    nll = objectives.nll_per_dimension(flow, torch.zeros(4, 2, 3), torch.rand(4, 2))
    assert abs(float(nll.detach()) - (0.5 * math.log(2 * math.pi) + math.log(3.0))) < 1e-5


def test_matching_is_zero_for_the_field_that_follows_the_path() -> None:
    flow = _flow()
    w, noise, t = torch.randn(4, 2, 3), torch.randn(4, 2, 3), torch.rand(4)

    class Follow(nn.Module):
        def forward(self, t: Tensor, y: Tensor, s: Tensor) -> Tensor:
            return noise - flow.whiten(w)

    flow.field = Follow()  # pyright: ignore
    assert float(objectives.matching(flow, w, torch.rand(4, 2), noise, t)) < 1e-10


def test_matching_learns_the_transport_of_a_conditional_gaussian() -> None:
    """y | s ~ N(+-2, 0.5^2): z becomes standard normal whatever s; changing s moves the code across."""
    torch.manual_seed(0)
    flow = ConditionalFlow(
        1, 1, 1, FlowConfig(field=FieldConfig(width=32, depth=3, mix=0), solver=SolverConfig(steps=16))
    )
    rng = torch.Generator().manual_seed(0)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        s = torch.randint(0, 2, (n, 1), generator=rng).float()
        return (4 * s - 2)[:, :, None] + 0.5 * torch.randn(n, 1, 1, generator=rng), s

    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for step in range(300):
        w, s = draw(256)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 300)
        optimizer.zero_grad()
        noise = torch.randn(256, 1, 1, generator=rng)
        objectives.matching(flow, w, s, noise, torch.rand(256, generator=rng)).backward()
        optimizer.step()
    w, s = draw(2000)
    with torch.no_grad():
        z = flow.to_base(w, s)
        moved = flow.from_base(z, 1 - s)
    for value in (0, 1):
        side = z[s[:, 0] == value]
        assert abs(float(side.mean())) < 0.25 and abs(float(side.std()) - 1) < 0.25
    assert (moved[:, 0, 0] * w[:, 0, 0] < 0).float().mean() > 0.95


@pytest.mark.parametrize("term", ["matching", "nll"])
def test_density_terms_reach_every_parameter_and_s(term: str) -> None:
    flow = _flow()
    w, s = torch.randn(4, 2, 3), torch.rand(4, 2, requires_grad=True)
    if term == "nll":
        objectives.nll_per_dimension(flow, w, s).backward()
    else:
        objectives.matching(flow, w, s, torch.randn(4, 2, 3), torch.rand(4)).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert s.grad is not None


def test_redraw_changes_one_attribute_a_row_uniformly_and_without_gradient() -> None:
    s = torch.rand(4000, 3, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    after, which = objectives.redraw_one(s, torch.Generator().manual_seed(0))
    changed = after != s
    assert torch.equal(changed.sum(1), torch.ones(4000, dtype=torch.long))
    assert torch.equal(changed.float().argmax(1), which)
    assert not after.requires_grad
    drawn = after[changed]
    assert drawn.min() >= 0 and drawn.max() < 1 and abs(float(drawn.mean()) - 0.5) < 0.03
    assert torch.bincount(which).min() > 1200


def test_redraw_is_fixed_by_its_generator() -> None:
    s = torch.rand(5, 3)
    first = objectives.redraw_one(s, torch.Generator().manual_seed(7))[0]
    assert torch.equal(first, objectives.redraw_one(s, torch.Generator().manual_seed(7))[0])


def test_closeness_is_in_whitened_units() -> None:
    flow = _flow()
    flow.std.fill_(2.0)
    w = torch.randn(3, 2, 3)
    assert float(objectives.closeness(flow, w, w)) == 0
    assert abs(float(objectives.closeness(flow, w + 4.0, w)) - 4.0) < 1e-5


def test_consistency_asks_all_attributes() -> None:
    wanted = torch.tensor([[0.8, 0.3]])
    exact = torch.logit(wanted)
    assert float(objectives.consistency(exact, wanted)) < 1e-12
    for column in (0, 1):
        off = exact.clone()
        off[0, column] += 1
        assert objectives.consistency(off, wanted) > 1e-3
