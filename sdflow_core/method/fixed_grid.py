"""Runge-Kutta steps on a fixed grid, without the bookkeeping that an adaptive solver needs.

States are tuples of tensors. Every row of a batch is treated alone, so a result does not hang on its
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Field = Callable[[Tensor, State], State]  # (t scalar tensor, y) -> dy/dt, of the structure of y
Base = Literal["euler", "midpoint", "heun", "rk4"]


@dataclass(frozen=True)
class Tableau:
    """Explicit Runge-Kutta: k_i = f(t + c_i h, y + h sum_j a_ij k_j), y' = y + h sum_i b_i k_i."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]  # a[i] holds the i entries below the diagonal
    b: tuple[float, ...]


# `rk4` is Kutta's 3/8 rule, as in torchdiffeq, so results are those of earlier versions to rounding
TABLEAUS: dict[Base, Tableau] = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": Tableau(
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
}


def grid_times(t0: float, t1: float, steps: int, tableau: Tableau, like: Tensor) -> Tensor:
    """Times of all stages [steps, stages] of the walk from t0 to t1, of the dtype and device of `like`.

    Example:
        >>> grid_times(0.0, 1.0, 2, TABLEAUS["midpoint"], torch.zeros(1)).tolist()
        [[0.0, 0.25], [0.5, 0.75]]
    """
    h = (t1 - t0) / steps
    starts = torch.arange(steps, dtype=torch.float64)[:, None] + torch.tensor(tableau.c, dtype=torch.float64)
    return (t0 + h * starts).to(dtype=like.dtype, device=like.device)


def moved(state: State, slopes: State, factor: float) -> State:
    """State + factor * slopes, part by part."""
    return tuple(torch.add(part, slope, alpha=factor) for part, slope in zip(state, slopes, strict=True))


def one_step(field: Field, tableau: Tableau, times: Tensor, y: State, h: float, start: State) -> State:
    """`start` + Psi_h(y): the increment of one step from y, added to `start` (y itself for an ordinary step).

    Args:
        field: Velocity.
        tableau: Method.
        times: Of the stages [stages].
        y: Where the step begins.
        h: Its length, negative backwards.
        start: What the increment is added to.
    """
    stages: list[State] = []
    for t, row in zip(times, tableau.a, strict=True):
        at = y
        for weight, slope in zip(row, stages, strict=True):
            at = moved(at, slope, h * weight)
        stages.append(field(t, at))
    out = start
    for weight, slope in zip(tableau.b, stages, strict=True):
        if weight:
            out = moved(out, slope, h * weight)
    return out


def walk(field: Field, y0: State, t0: float, t1: float, steps: int, base: Base) -> State:
    """y(t1) from y(t0) = y0 in equal steps; t1 < t0 runs backwards. Gradients flow through it."""
    tableau = TABLEAUS[base]
    h = (t1 - t0) / steps
    y = y0
    for times in grid_times(t0, t1, steps, tableau, y0[0]):
        y = one_step(field, tableau, times, y, h, y)
    return y
