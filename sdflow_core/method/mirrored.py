"""There and back as one scheme: the way back walks the *difference* that the new condition makes.

On the way there, y(t) under s, a Runge-Kutta walk evaluates k_i = f(t_i, Y_i, s). On the way back only the
difference d to that walk is integrated, through the same points in mirrored order:

    q_j = f(t_m(j), Y_m(j) + D_j, s') - k_m(j),    D_j = sum_l A'_jl q_l,    w' = w + std * sum_j b'_j q_j

With s' = s every q is zero, so the edit is its source by construction, on any grid, and no third integration
is needed as for w + D(z, s') - D(z, s). What remains is an error of the *difference*, a fraction of the
edit's size. (The idea of subtracting the source's own velocity is FlowEdit's, arXiv 2412.08629; here the
source's walk is the deterministic one of the flow, so the result converges to the edit by inversion.)

A scheme is only a handful of numbers, and those of a textbook serve any field. `fitted` bends them to one
flow on a few of its codes (`scheme_fit.py`): same weights, same number of evaluations, a smaller error on
that flow. It stays exact for s' = s. `as_numbers` and `from_numbers` keep such a scheme beside its flow.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdflow_core.method.flow import ConditionalFlow
from sdflow_core.method.row_field import RowFlow
from sdflow_core.method.solvers import Evaluations
from sdflow_core.records.errors import ContractError

Rows = ConditionalFlow | RowFlow


_TENSORS = ("times", "inner", "outer", "back_inner", "back_outer")
# Kutta's methods of order 3 and 4 by their number of stages: c, a, b
_KUTTA = {
    3: ((0.0, 0.5, 1.0), ((0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (-1.0, 2.0, 0.0)), (1 / 6, 2 / 3, 1 / 6)),
    4: (
        (0.0, 0.5, 0.5, 1.0),
        ((0.0, 0.0, 0.0, 0.0), (0.5, 0.0, 0.0, 0.0), (0.0, 0.5, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}


@dataclass(frozen=True)
class MirroredScheme:
    """Numbers of the scheme for n evaluations there and m back, for T = 1 (others are scaled).

    Attributes:
        times: t_i [n].
        inner: A [n, n], strictly lower: Y_i = y(0) + sum_j A_ij k_j.
        outer: b [n]: z = y(0) + sum_j b_j k_j.
        back_inner: A' [m, m], strictly lower.
        back_outer: b' [m].
        mirror: m(j): the point of the way there that evaluation j of the way back belongs to.
    """

    times: Tensor
    inner: Tensor
    outer: Tensor
    back_inner: Tensor
    back_outer: Tensor
    mirror: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """The way there, kept for the edits of an image: n states and n slopes, each [B, L, D]."""

    w_plus: Tensor
    states: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]
    z: Tensor


def classical(ends: Sequence[float], stages: Sequence[int] | None = None) -> MirroredScheme:
    """Kutta's classical methods on the grid 0 < .. < 1 given by the ends of its steps.

    Args:
        ends: Of the steps.
        stages: Of each step: 4 (order 4, the default) or 3 (order 3).

    Raises:
        ContractError: A grid that does not rise to 1, or another number of stages.

    Example:
        >>> scheme = classical([0.5, 1.0])
        >>> len(scheme.times), scheme.mirror, round(float(scheme.outer.sum()), 9)
        (8, (7, 6, 5, 4, 4, 2, 1, 0), 1.0)
        >>> len(classical([0.6, 1.0], (4, 3)).times)
        7
    """
    grid = [0.0, *ends]
    if grid[-1] != 1.0 or any(a >= b for a, b in itertools.pairwise(grid)):
        raise ContractError(
            "grid of a mirrored scheme", expected="rising ends of steps up to 1", found=list(ends)
        )
    each = [4] * len(ends) if stages is None else list(stages)
    if len(each) != len(ends) or not set(each) <= set(_KUTTA):
        raise ContractError(
            "stages of a mirrored scheme", expected=f"3 or 4 for each of {len(ends)} steps", found=each
        )
    n, first = sum(each), [0, *itertools.accumulate(each)]
    times, inner, outer = _empty(n)
    _, back_inner, back_outer = _empty(n)
    for i, k in enumerate(each):
        h, own, (c, a, b) = grid[i + 1] - grid[i], slice(first[i], first[i] + k), _KUTTA[k]
        times[own] = grid[i] + h * torch.tensor(c, dtype=torch.float64)
        inner[own] = outer  # what the steps before have added
        inner[own, own] = h * torch.tensor(a, dtype=torch.float64)
        outer[own] = h * torch.tensor(b, dtype=torch.float64)
    mirror: list[int] = []
    for i, k in reversed(list(enumerate(each))):
        h, own, (_, a, b) = grid[i + 1] - grid[i], slice(len(mirror), len(mirror) + k), _KUTTA[k]
        back_inner[own] = back_outer
        back_inner[own, own] = -h * torch.tensor(a, dtype=torch.float64)
        back_outer[own] = -h * torch.tensor(b, dtype=torch.float64)
        points = [first[i] + k - 1 - j for j in range(k)]
        # at a step's upper end the next step's first point is the better one: there the walk itself arrived
        points[0] = first[i] + k if i < len(each) - 1 else points[0]
        mirror += points
    return MirroredScheme(times, inner, outer, back_inner, back_outer, tuple(mirror))


def as_numbers(scheme: MirroredScheme) -> dict[str, list[object]]:
    """The scheme as plain data, for JSON.

    Example:
        >>> scheme = classical([0.5, 1.0])
        >>> torch.equal(from_numbers(as_numbers(scheme)).inner, scheme.inner)
        True
    """
    out: dict[str, list[object]] = {name: getattr(scheme, name).tolist() for name in _TENSORS}
    return {**out, "mirror": list(scheme.mirror)}


def from_numbers(numbers: dict[str, list[object]]) -> MirroredScheme:
    """Inverse of `as_numbers`.

    Raises:
        ContractError: Numbers that are no scheme.
    """
    try:
        tensors = {name: torch.tensor(numbers[name], dtype=torch.float64) for name in _TENSORS}
        mirror = tuple(int(str(i)) for i in numbers["mirror"])
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(
            "mirrored scheme", expected="numbers made by as_numbers", found=str(error)
        ) from error
    n, m = len(tensors["times"]), len(mirror)
    shapes = {"times": [n], "inner": [n, n], "outer": [n], "back_inner": [m, m], "back_outer": [m]}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes or not all(0 <= i < n for i in mirror):
        raise ContractError("mirrored scheme", expected=shapes, found=found)
    return MirroredScheme(**tensors, mirror=mirror)


def trace(
    flow: Rows, w_plus: Tensor, s: Tensor, scheme: MirroredScheme, evaluations: Evaluations | None = None
) -> Trace:
    """The way there: w+ [B, L, D] under s [B, A]. Once an image, whatever the number of its edits."""
    y = flow.whiten(w_plus)
    inner, outer, times = _for_span(flow.config.end_time, scheme.inner, scheme.outer, scheme.times, like=y)
    states: list[Tensor] = []
    slopes: list[Tensor] = []
    for i, t in enumerate(times):
        state = added(y, inner[i], slopes)
        states.append(state)
        slopes.append(flow.velocity(t, state, s))
        if evaluations is not None:
            evaluations.count += 1
    return Trace(w_plus, tuple(states), tuple(slopes), added(y, outer, slopes))


def retrace(
    flow: Rows,
    walked: Trace,
    s_after: Tensor,
    scheme: MirroredScheme,
    evaluations: Evaluations | None = None,
) -> Tensor:
    """The way back under s' [B, A], or [E * B, A] for E edits of each code: edited codes [B or E * B, L, D].

    Rows with s' = s are `w_plus`, to the rounding of two equal evaluations in batches of other sizes.
    """
    return moved(flow, walked, differences(flow, walked, s_after, scheme, evaluations), scheme)


def differences(
    flow: Rows,
    walked: Trace,
    s_after: Tensor,
    scheme: MirroredScheme,
    evaluations: Evaluations | None = None,
) -> list[Tensor]:
    """q_j of the way back, each [E, B, L, D]."""
    like = walked.w_plus
    many = len(s_after) // len(like)
    inner, times = _for_span(flow.config.end_time, scheme.back_inner, scheme.times, like=like)
    shape = (many, *like.shape)
    changes: list[Tensor] = []
    for j, i in enumerate(scheme.mirror):
        state = walked.states[i].expand(shape) if many > 1 else walked.states[i][None]
        at = added(state, inner[j], changes).flatten(0, 1)
        slope = flow.velocity(times[i], at, s_after).unflatten(0, shape[:2])
        changes.append(slope.sub_(walked.slopes[i]))
        if evaluations is not None:
            evaluations.count += 1
    return changes


def moved(flow: Rows, walked: Trace, changes: Sequence[Tensor], scheme: MirroredScheme) -> Tensor:
    """Edited codes [E * B, L, D] from the q_j of `differences`."""
    like = walked.w_plus
    (outer,) = _for_span(flow.config.end_time, scheme.back_outer, like=like)
    change = added(torch.zeros_like(changes[0]), outer, changes)
    # only the scale of the whitening: its shift has no part in a difference
    return torch.addcmul(like, change, flow.std).flatten(0, 1)


def _empty(n: int) -> tuple[Tensor, Tensor, Tensor]:
    kind = torch.float64
    return torch.zeros(n, dtype=kind), torch.zeros(n, n, dtype=kind), torch.zeros(n, dtype=kind)


def _for_span(end: float, *parts: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    return tuple((end * part).to(like) for part in parts)


def added(y: Tensor, weights: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    """y + sum_j weights_j slopes_j, numbers that are zero left out; y itself is not written to."""
    out = y
    for weight, slope in zip(weights.tolist(), slopes, strict=False):
        if weight:
            out = torch.add(out, slope, alpha=weight) if out is y else out.add_(slope, alpha=weight)
    return out
