"""The reversible scheme: home to rounding, gradients of its steps, constant memory, and its trap."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sdflow_core.method.field import FieldConfig
from sdflow_core.method.flow import ConditionalFlow, FlowConfig, rademacher
from sdflow_core.method.reversible import Pair, Scheme, back, captured, solve, start, there
from sdflow_core.method.solvers import Evaluations, SolverConfig, integrate
from sdflow_core.records.errors import ContractError

BASES = ["euler", "midpoint", "heun", "rk4"]
ROWS, DIM = 3, 4


def _flow(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> ConditionalFlow:
    torch.manual_seed(0)
    field = FieldConfig(width=16, depth=3, mix=4, last_scale=1.0)
    flow = ConditionalFlow(ROWS, DIM, 2, FlowConfig(field=field)).to(dtype)
    with torch.no_grad():
        for parameter in flow.field.layers[-1].parameters():
            parameter.mul_(scale)
    return flow


def _batch(n: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    return torch.randn(n, ROWS, DIM, generator=rng, dtype=dtype), torch.rand(n, 2, generator=rng, dtype=dtype)


def _field(flow: ConditionalFlow, s: Tensor) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda t, y: (flow.velocity(t, y[0], s),)


def _distance(a: Pair, b: Pair) -> float:
    return max(float((p - q).abs().max()) for p, q in zip((*a.y, *a.x), (*b.y, *b.x), strict=True))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("steps", [1, 3, 20])
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_pair_comes_home_to_rounding_on_any_grid(base: Any, steps: int, t0: float, t1: float) -> None:
    flow = _flow()
    w, s = _batch()
    scheme = Scheme(t0, t1, steps, base)
    with torch.no_grad():
        end = there(_field(flow, s), start(w), scheme)
        home = back(_field(flow, s), end, scheme)
    assert _distance(home, start(w)) < 1e-12
    assert (end.y[0] - w).abs().max() > 0.1


@torch.no_grad()
def test_without_x_nobody_comes_home() -> None:
    flow = _flow()
    w, s = _batch()
    scheme = Scheme(0.0, 1.0, 2)
    end = there(_field(flow, s), start(w), scheme)
    assert (back(_field(flow, s), start(*end.y), scheme).y[0] - w).abs().max() > 1e-6


@torch.no_grad()
def test_a_loose_grid_comes_home_exactly_while_the_edit_is_wrong() -> None:
    """The trap: the exact return is a law of the scheme and says nothing of the solution."""
    flow = _flow(scale=3.0)
    w, s = _batch()
    tight = SolverConfig(method="dopri5", rtol=1e-10, atol=1e-10)
    truth = flow.from_base(flow.to_base(w, s, tight), 1 - s, tight)
    errors: list[float] = []
    for steps in (1, 64):
        scheme = Scheme(0.0, 1.0, steps, "euler")
        end = there(_field(flow, s), start(w), scheme)
        assert _distance(back(_field(flow, s), end, scheme), start(w)) < 1e-12
        edited = back(_field(flow, 1 - s), end, scheme).y[0]
        errors.append(float((edited - truth).norm() / (truth - w).norm()))
    assert errors[0] > 0.3
    assert errors[1] < 0.02


@torch.no_grad()
def test_rounding_grows_with_the_steps_and_with_a_loose_coupling() -> None:
    flow = _flow(torch.float32)
    w, s = _batch(dtype=torch.float32)

    def error(steps: int, coupling: float) -> float:
        scheme = Scheme(0.0, 1.0, steps, "euler", coupling)
        return _distance(back(_field(flow, s), there(_field(flow, s), start(w), scheme), scheme), start(w))

    assert error(4, 0.999) < 1e-5
    assert error(100, 0.999) < 1e-4
    assert error(100, 0.9) > 30 * error(100, 0.999)  # 0.9^-100 = 4e4


@pytest.mark.parametrize(("base", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_order_is_at_least_that_of_the_base(base: Any, order: int) -> None:
    a = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    y0 = torch.eye(4, dtype=torch.float64)
    exact = torch.linalg.matrix_exp(a).T
    errors = [
        float((there(lambda _, y: (y[0] @ a.T,), start(y0), Scheme(0.0, 1.0, n, base)).y[0] - exact).norm())
        for n in (8, 16)
    ]
    assert errors[0] / errors[1] > 2**order * 0.75


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("explicit", [True, False])
def test_gradients_are_those_of_backpropagation_through_the_same_steps(base: Any, explicit: bool) -> None:
    """For the weights, the start, and a condition that is itself computed."""
    flow = _flow()
    w, s = _batch()
    scheme = Scheme(0.0, 1.0, 5, base, 0.99)
    found: list[list[Tensor]] = []
    for constant_memory in (True, False):
        y0, raw = w.clone().requires_grad_(), torch.logit(s).requires_grad_()
        condition = torch.sigmoid(raw)
        field = _field(flow, condition)
        named = [*flow.parameters(), condition] if explicit else None
        end = solve(field, (y0,), scheme, named) if constant_memory else there(field, start(y0), scheme)
        loss = end.y[0].square().sum() + (end.x[0] * w.flip(0)).sum()
        found.append(list(torch.autograd.grad(loss, [y0, raw, *flow.field.parameters()])))
    for ours, plain in zip(*found, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-9, atol=1e-11)
    assert all(float(part.abs().max()) > 1e-6 for part in found[0])


def test_the_density_trains_through_it_with_the_gradient_of_its_steps() -> None:
    flow = _flow()
    w, s = _batch()
    probe = rademacher(w, torch.Generator().manual_seed(0))
    scheme = SolverConfig(method="reversible", steps=3, base="rk4")

    def gradient(solver: SolverConfig) -> tuple[float, list[Tensor]]:
        loss = -flow.log_prob(w, s, probe=probe, solver=solver).mean()
        return float(loss.detach()), list(torch.autograd.grad(loss, list(flow.field.parameters())))

    value, ours = gradient(scheme)
    exact, wanted = gradient(SolverConfig(method="rk4", steps=64))
    assert abs(value - exact) < 1e-3
    for a, b in zip(ours, wanted, strict=True):
        assert torch.allclose(a, b, atol=2e-3 * float(b.abs().max()) + 1e-9)


def _peak_bytes(solver: SolverConfig) -> int:
    """Peak of what the allocator holds for tensors in one training step, by the profiler's record of it."""
    flow = _flow()
    w, s = _batch(16)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        flow.log_prob(w, s, solver=solver).mean().backward()
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]  # pyright: ignore
    held = list(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    assert len(held) > 100
    return max(held)


def test_peak_memory_does_not_know_the_number_of_steps() -> None:
    """Of the simulated likelihood of a real flow, Hutchinson's divergence included, forward and backward."""
    few, many = (_peak_bytes(SolverConfig(method="reversible", steps=n)) for n in (1, 8))
    plain_few, plain_many = (_peak_bytes(SolverConfig(method="midpoint", steps=n)) for n in (1, 8))
    assert many < 1.05 * few  # the grid's times are the only thing that grows
    assert plain_many > 4 * plain_few


def test_only_what_needs_a_gradient_is_captured() -> None:
    weight, frozen = torch.ones(2, requires_grad=True), torch.ones(2)
    inner = weight * 3
    leaves = captured(lambda t, y: (y[0] * inner + frozen * t,), torch.zeros(()), (torch.ones(2),))
    assert len(leaves) == 1 and leaves[0] is weight
    # a field without any: nothing to differentiate, nothing kept
    end = solve(lambda _, y: (-y[0],), (torch.ones(2),), Scheme(0.0, 1.0, 4))
    assert not end.y[0].requires_grad


def test_gradients_reach_through_the_front_door_and_are_refused_a_second_time() -> None:
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    cost = Evaluations()
    solver = SolverConfig(method="reversible", steps=6, base="rk4")
    y = integrate(lambda _, y: weight * y, torch.ones(1, dtype=torch.float64), 0.0, 1.0, solver, cost)
    assert cost.count == 1 + 6 * 8  # one looks for what is captured
    (first,) = torch.autograd.grad(y, weight, create_graph=True)
    assert abs(float(first) - float(torch.tensor(0.5).exp())) < 1e-5
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first, weight)


@pytest.mark.parametrize(("steps", "coupling"), [(0, 0.9), (2, 0.0), (2, 1.1)])
def test_impossible_schemes_are_refused(steps: int, coupling: float) -> None:
    with pytest.raises(ContractError, match="reversible scheme"):
        Scheme(0.0, 1.0, steps, coupling=coupling)
