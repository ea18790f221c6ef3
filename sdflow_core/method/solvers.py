"""One front door to the ODE solvers of torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor
from torchdiffeq import odeint

from sdflow_core.records.config import Config

State = TypeVar("State", Tensor, tuple[Tensor, ...])


class SolverConfig(Config):
    """How to integrate.

    Attributes:
        method: `dopri5` is adaptive (reference); the others walk a fixed grid.
        steps: Intervals of the fixed grid; ignored by `dopri5`.
        rtol: Relative tolerance of `dopri5`.
        atol: Absolute tolerance of `dopri5`.
    """

    method: Literal["dopri5", "rk4", "midpoint", "euler"] = "midpoint"
    steps: int = Field(default=8, ge=1, le=10_000)
    rtol: float = Field(default=1e-5, gt=0)
    atol: float = Field(default=1e-5, gt=0)


REFERENCE = SolverConfig(method="dopri5")


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
        y0: Tensor, or tuple of tensors, of floating dtype. Gradients flow through the solver.
        t0: Start.
        t1: End.
        config: Method and its accuracy.
        evaluations: Incremented once a velocity call.

    Returns:
        y(t1), same structure as y0.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> round(float(integrate(lambda t, y: -y, one, 0.0, 1.0, SolverConfig(method="rk4", steps=20))), 6)
        0.367879
    """
    span = t1 - t0
    is_tuple = isinstance(y0, tuple)

    # Time is mapped to u in [0, 1] so that both directions use one ascending grid with exact end points.
    def scaled(u: Tensor, y: Any) -> Any:
        if evaluations is not None:
            evaluations.count += 1
        slope = velocity(t0 + u * span, y)
        return tuple(part * span for part in slope) if is_tuple else slope * span

    first = y0[0] if isinstance(y0, tuple) else y0
    ends = torch.tensor([0.0, 1.0], dtype=first.dtype, device=first.device)
    options: dict[str, Any] | None = None
    if config.method != "dopri5":
        grid = torch.linspace(0.0, 1.0, config.steps + 1, dtype=first.dtype, device=first.device)
        options = {"grid_constructor": lambda _f, _y, _t: grid}
    solve = cast(Callable[..., Any], odeint)
    path = solve(scaled, y0, ends, method=config.method, rtol=config.rtol, atol=config.atol, options=options)
    return cast(State, tuple(part[-1] for part in path) if is_tuple else path[-1])
