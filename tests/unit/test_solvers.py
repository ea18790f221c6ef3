"""Solvers against problems with exact solutions."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torchdiffeq import odeint

from sdflow_core.method.flow import ConditionalFlow
from sdflow_core.method.solvers import Evaluations, SolverConfig, integrate
from sdflow_core.records.errors import ContractError

METHODS = [
    ("dopri5", 1, 1e-4),
    ("rk4", 20, 1e-5),
    ("midpoint", 100, 1e-3),
    ("heun", 100, 1e-3),
    ("euler", 2000, 5e-3),
    ("reversible", 50, 1e-3),
]


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


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
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


@pytest.mark.parametrize(
    "bad", [{"method": "bogus"}, {"steps": 0}, {"rtol": 0}, {"step": 3}, {"max_steps": 0}, {"coupling": 1.5}]
)
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SolverConfig(**bad)  # pyright: ignore


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.25)])
def test_fixed_grids_are_those_of_torchdiffeq(method: str, t0: float, t1: float) -> None:
    a = _matrix()
    y0 = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def velocity(t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ a.T) * (1 + t)

    grid = torch.linspace(t0, t1, 6, dtype=torch.float64)
    theirs = odeint(velocity, y0, grid, method=method)
    ours = integrate(velocity, y0, t0, t1, SolverConfig(method=method, steps=5))  # pyright: ignore
    assert torch.allclose(ours, theirs[-1], rtol=0, atol=1e-13)


def _stiff(t: Tensor, y: Tensor) -> Tensor:
    return -1e6 * (y - torch.cos(50 * t))


def test_a_stiff_field_ends_in_an_error_that_says_what_to_do() -> None:
    cost = Evaluations()
    solver = SolverConfig(method="dopri5", max_steps=30)
    with pytest.raises(ContractError, match=r"dopri5.*stiff.*30 steps.*rtol.*0 and 1.*raise max_steps"):
        integrate(_stiff, torch.zeros(2, dtype=torch.float64), 0.0, 1.0, solver, cost)
    assert cost.count <= 2 + 6 * 30


def test_a_limit_that_suffices_does_not_disturb() -> None:
    a = _matrix()
    y0 = torch.eye(4, dtype=torch.float64)
    free, bound = (
        integrate(lambda _, y: y @ a.T, y0, 0.0, 1.0, SolverConfig(method="dopri5", max_steps=n))
        for n in (1000, 20)
    )
    assert torch.equal(free, bound)


@pytest.mark.parametrize("method", [name for name, *_ in METHODS])
def test_a_row_that_is_not_finite_is_named(method: str) -> None:
    y0 = torch.zeros(4, 3)
    y0[2, 1] = float("nan")
    with pytest.raises(ContractError, match=r"integrate from.*1 of 4 rows.*row 2"):
        integrate(lambda _, y: -y, y0, 0.0, 1.0, SolverConfig(method=method, steps=2))  # pyright: ignore


@pytest.mark.parametrize("method", [name for name, *_ in METHODS])
def test_a_field_that_explodes_gives_an_error_and_not_numbers(method: str) -> None:
    y0 = torch.tensor([[0.0], [30.0]])
    with pytest.raises(ContractError, match="row 1|dopri5 does not arrive"):
        integrate(
            lambda _, y: 1e3 * y**3,
            y0,
            0.0,
            1.0,
            SolverConfig(method=method, steps=8, max_steps=50),  # pyright: ignore
        )


def test_codes_with_nan_are_refused_by_a_flow() -> None:
    flow = ConditionalFlow(2, 3, 1)
    w, s = torch.zeros(3, 2, 3), torch.full((3, 1), 0.5)
    w[1, 0, 0] = float("nan")
    with pytest.raises(ContractError, match="row 1"):
        flow.to_base(w, s)
    with pytest.raises(ContractError, match="finite"):
        flow.from_base(torch.zeros(3, 2, 3), s * float("inf"))
