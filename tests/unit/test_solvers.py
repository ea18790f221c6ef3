"""Solvers against problems with exact solutions."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sdflow_core.method.solvers import Evaluations, SolverConfig, integrate

METHODS = [("dopri5", 1, 1e-4), ("rk4", 20, 1e-5), ("midpoint", 100, 1e-3), ("euler", 2000, 5e-3)]


def _matrix(size: int = 4) -> Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5


@pytest.mark.parametrize(("method", "steps", "tolerance"), METHODS)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0), (0.5, 2.0)])
def test_linear_field_reaches_the_matrix_exponential(
    method: str, steps: int, tolerance: float, t0: float, t1: float
) -> None:
    a = _matrix()
    y0 = torch.eye(4, dtype=torch.float64)
    config = SolverConfig(method=method, steps=steps)  # pyright: ignore
    found = integrate(lambda _, y: y @ a.T, y0, t0, t1, config)
    exact = y0 @ torch.linalg.matrix_exp(a * (t1 - t0)).T
    assert (found - exact).abs().max() < tolerance


@pytest.mark.parametrize(("method", "steps", "tolerance"), METHODS)
def test_time_reaches_the_field_in_both_directions(method: str, steps: int, tolerance: float) -> None:
    config = SolverConfig(method=method, steps=steps)  # pyright: ignore
    zero = torch.zeros(2, dtype=torch.float64)
    up = integrate(lambda t, y: 2 * t + 0 * y, zero, 0.0, 3.0, config)
    assert abs(float(up[0]) - 9.0) < 10 * tolerance
    assert abs(float(integrate(lambda t, y: 2 * t + 0 * y, up, 3.0, 0.0, config)[1])) < 20 * tolerance


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_order_of_convergence(method: str, order: int) -> None:
    a = _matrix()
    y0 = torch.eye(4, dtype=torch.float64)
    exact = torch.linalg.matrix_exp(a).T
    errors = [
        float(
            (
                integrate(lambda _, y: y @ a.T, y0, 0.0, 1.0, SolverConfig(method=method, steps=n)) - exact
            ).norm()
        )  # pyright: ignore
        for n in (8, 16)
    ]
    assert errors[0] / errors[1] > 2**order * 0.75


def test_tuples_gradients_and_cost() -> None:
    cost = Evaluations()
    y0 = torch.ones(3, requires_grad=True)
    y, total = integrate(
        lambda _, state: (-state[0], state[0].sum()[None]),
        (y0, torch.zeros(1)),
        0.0,
        1.0,
        SolverConfig(method="midpoint", steps=5),
        cost,
    )
    assert cost.count == 10
    (y.sum() + total.sum()).backward()
    assert y0.grad is not None
    assert torch.allclose(y0.grad, torch.ones(3), atol=1e-2)  # y + its integral is conserved


@pytest.mark.parametrize("bad", [{"method": "bogus"}, {"steps": 0}, {"rtol": 0}, {"step": 3}])
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SolverConfig(**bad)  # pyright: ignore
