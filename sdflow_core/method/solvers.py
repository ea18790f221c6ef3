"""One front door to the ODE solvers: torchdiffeq's adaptive one, fixed grids, and the reversible scheme."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor
from torchdiffeq import odeint

from sdflow_core.method.fixed_grid import walk
from sdflow_core.method.reversible import Scheme, solve
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

State = TypeVar("State", Tensor, tuple[Tensor, ...])


class DivergedError(ContractError):
    """A row whose state is not finite, or a field that the solver does not get through: other rows, solved
    without it, may be well."""


class SolverConfig(Config):
    """How to integrate.

    Attributes:
        method: `dopri5` is adaptive (reference); the others walk a fixed grid. `reversible` trains in memory
            that does not grow with the steps; coming home exactly takes its pair (see `reversible.py`).
        steps: Intervals of the fixed grid; ignored by `dopri5`. One costs 1 (euler), 2 (midpoint, heun), 4
            (rk4) evaluations of the field, or twice its base's (reversible).
        rtol: Relative tolerance of `dopri5`.
        atol: Absolute tolerance of `dopri5`.
        max_steps: Steps, taken or refused, after which `dopri5` gives up: a stiff field ends in an error.
        base: Base method of `reversible`.
        coupling: Coupling of `reversible`: nearer to 1 amplifies rounding less.
    """

    method: Literal["dopri5", "rk4", "midpoint", "heun", "euler", "reversible"] = "midpoint"
    steps: int = Field(default=8, ge=1, le=10_000)
    rtol: float = Field(default=1e-5, gt=0)
    atol: float = Field(default=1e-5, gt=0)
    max_steps: int = Field(default=1000, ge=1)
    base: Literal["euler", "midpoint", "heun", "rk4"] = "midpoint"
    coupling: float = Field(default=0.999, gt=0.5, le=1)


REFERENCE = SolverConfig(method="dopri5")

# evaluations of a dopri5 step, and those before the first one
_STAGES, _FIRST = 6, 2


@dataclass
class Evaluations:
    """Counts calls of the velocity: the honest cost of an integration."""

    count: int = 0


def integrate(
    velocity: Callable[[Tensor, Any], Any],
    y0: State,
    t0: float,
    t1: float,
    config: SolverConfig,
    evaluations: Evaluations | None = None,
) -> State:
    """Solve dy/dt = velocity(t, y) from t0 to t1; t1 < t0 runs backwards.

    A fixed grid treats every row of a batch alone. `dopri5` chooses its steps from the error of the whole
    batch, so its rows depend on their neighbours, but only within the tolerances.

    Args:
        velocity: (t scalar tensor, y) -> dy/dt of the structure of y.
        y0: Tensor, or tuple of tensors, of floating dtype, rows first. Gradients flow through the solver.
        t0: Start.
        t1: End.
        config: Method and its accuracy.
        evaluations: Incremented once a velocity call.

    Returns:
        y(t1), same structure as y0.

    Raises:
        DivergedError: A row of y0 or of the result that is not finite, or a field so stiff that `dopri5`
            has not arrived after `max_steps`.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> round(float(integrate(lambda t, y: -y, one, 0.0, 1.0, SolverConfig(method="rk4", steps=20))), 6)
        0.367879
    """
    state = y0 if isinstance(y0, tuple) else (y0,)
    is_tuple = isinstance(y0, tuple)

    def field(t: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if evaluations is not None:
            evaluations.count += 1
        return velocity(t, parts) if is_tuple else (velocity(t, parts[0]),)

    _require_finite(
        state, "state to integrate from", "check the codes and attributes: NaN or infinity came in"
    )
    if config.method == "dopri5":
        end = _adaptive(field, state, t0, t1, config)
    elif config.method == "reversible":
        scheme = Scheme(t0, t1, config.steps, config.base, config.coupling)
        end = solve(field, state, scheme).y
    else:
        end = walk(field, state, t0, t1, config.steps, config.method)
    todo = (
        f"the field overflows on the way: take more than {config.steps} steps of {config.method}, or dopri5"
    )
    if config.method == "dopri5":
        todo = "the field itself is not finite there: train it again, or check its weights"
    _require_finite(end, "result of an integration", todo)
    return cast(State, end if is_tuple else end[0])


def _adaptive(
    field: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    state: tuple[Tensor, ...],
    t0: float,
    t1: float,
    config: SolverConfig,
) -> tuple[Tensor, ...]:
    """dopri5 of torchdiffeq, with an end to its patience."""
    span, calls = t1 - t0, 0

    # Time is mapped to u in [0, 1] so that both directions use one ascending grid with exact end points.
    def scaled(u: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal calls
        # counted here and not by torchdiffeq, whose own limit is an assertion, gone under `python -O`
        if calls >= _FIRST + _STAGES * config.max_steps:
            raise _stiff(config, t0, t1, f"at t = {t0 + float(u) * span:.6g} after {config.max_steps} steps")
        calls += 1
        return tuple(part * span for part in field(t0 + u * span, parts))

    ends = torch.tensor([0.0, 1.0], dtype=state[0].dtype, device=state[0].device)
    call = cast(Callable[..., tuple[Tensor, ...]], odeint)
    try:
        path = call(scaled, state, ends, method="dopri5", rtol=config.rtol, atol=config.atol)
    except AssertionError as error:
        # torchdiffeq asserts that its step does not vanish and that the state is finite
        raise _stiff(config, t0, t1, str(error)[:80]) from error
    return tuple(part[-1] for part in path)


def _stiff(config: SolverConfig, t0: float, t1: float, found: str) -> DivergedError:
    return DivergedError(
        "dopri5 does not arrive: the field is stiff or not finite",
        expected=f"at most {config.max_steps} steps (max_steps), rtol {config.rtol:g}, atol {config.atol:g}",
        found=found,
        where=f"between t = {t0:g} and {t1:g}",
        todo="loosen rtol and atol, raise max_steps, or use a fixed grid; train a field that blew up again"
        " from its last good checkpoint",
    )


def _require_finite(state: tuple[Tensor, ...], what: str, todo: str) -> None:
    for part in state:
        if bool(torch.isfinite(part.detach().sum())):  # a sum of finite numbers is finite, but for overflow
            continue
        bad = ~torch.isfinite(part.detach())
        if not bool(bad.any()):
            continue
        rows = bad.reshape(len(part), -1).any(1).nonzero()[:, 0].tolist() if part.ndim else [0]
        raise DivergedError(
            what,
            expected="finite numbers",
            found=f"NaN or infinity in {len(rows)} of {len(part) if part.ndim else 1} rows",
            where=f"row {rows[0]}",
            todo=todo,
        )
