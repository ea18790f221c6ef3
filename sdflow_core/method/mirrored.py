"""There and back as one scheme: the way back walks the *difference* that the new condition makes.

On the way there, y(t) under s, a Runge-Kutta walk evaluates k_i = f(t_i, Y_i, s). On the way back only the
difference d to that walk is integrated, through the same points in mirrored order:

    q_j = f(t_m(j), Y_m(j) + D_j, s') - k_m(j),    D_j = sum_l A'_jl q_l,    w' = w + std * sum_j b'_j q_j

With s' = s every q is zero, so the edit is its source by construction, on any grid, and no third integration
is needed as for w + D(z, s') - D(z, s). What remains is an error of the *difference*, a fraction of the
edit's size. (The idea of subtracting the source's own velocity is FlowEdit's, arXiv 2412.08629; here the
source's walk is the deterministic one of the flow, so the result converges to the edit by inversion.)

A scheme is only a handful of numbers, and those of a textbook serve any field. `fitted` bends them to one
flow on a few of its codes, as Shaul et al. do for sampling ("Bespoke Non-Stationary Solvers", arXiv
2403.01329): same weights, same number of evaluations, a smaller error on that flow. It stays exact for s' =
s.
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


@dataclass(frozen=True)
class MirroredScheme:
    """Numbers of the scheme for n evaluations a way, for T = 1 (others are scaled).

    Attributes:
        times: t_i [n].
        inner: A [n, n], strictly lower: Y_i = y(0) + sum_j A_ij k_j.
        outer: b [n]: z = y(0) + sum_j b_j k_j.
        back_inner: A' [n, n], strictly lower.
        back_outer: b' [n].
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


def classical(ends: Sequence[float]) -> MirroredScheme:
    """Kutta's classical method of order 4 on the grid 0 < .. < 1 given by the ends of its steps.

    Example:
        >>> scheme = classical([0.5, 1.0])
        >>> len(scheme.times), scheme.mirror, float(scheme.outer.sum())
        (8, (7, 6, 5, 4, 4, 2, 1, 0), 1.0)
    """
    grid = [0.0, *ends]
    if grid[-1] != 1.0 or any(a >= b for a, b in itertools.pairwise(grid)):
        raise ContractError(
            "grid of a mirrored scheme", expected="rising ends of steps up to 1", found=list(ends)
        )
    steps, c = len(ends), (0.0, 0.5, 0.5, 1.0)
    a = torch.zeros(4, 4, dtype=torch.float64)
    a[1, 0], a[2, 1], a[3, 2] = 0.5, 0.5, 1.0
    b = torch.tensor([1 / 6, 1 / 3, 1 / 3, 1 / 6], dtype=torch.float64)
    n = 4 * steps
    times = torch.zeros(n, dtype=torch.float64)
    inner, outer = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    back_inner, back_outer = inner.clone(), outer.clone()
    mirror: list[int] = []
    for i in range(steps):
        h = grid[i + 1] - grid[i]
        own = slice(4 * i, 4 * i + 4)
        times[own] = grid[i] + h * torch.tensor(c, dtype=torch.float64)
        inner[own] = outer  # what the steps before have added
        inner[own, own] = h * a
        outer[own] = h * b
    for j, i in enumerate(reversed(range(steps))):
        h = grid[i + 1] - grid[i]
        own = slice(4 * j, 4 * j + 4)
        back_inner[own] = back_outer
        back_inner[own, own] = -h * a
        back_outer[own] = -h * b
        # at a step's upper end the next step's first point is the better one: there the walk itself arrived
        mirror += [4 * i + 4 if i < steps - 1 else 4 * i + 3, 4 * i + 2, 4 * i + 1, 4 * i]
    return MirroredScheme(times, inner, outer, back_inner, back_outer, tuple(mirror))


def trace(
    flow: Rows, w_plus: Tensor, s: Tensor, scheme: MirroredScheme, evaluations: Evaluations | None = None
) -> Trace:
    """The way there: w+ [B, L, D] under s [B, A]. Once an image, whatever the number of its edits."""
    y = flow.whiten(w_plus)
    inner, outer, times = _for_span(flow.config.end_time, scheme.inner, scheme.outer, scheme.times, like=y)
    states: list[Tensor] = []
    slopes: list[Tensor] = []
    for i, t in enumerate(times):
        state = _added(y, inner[i], slopes)
        states.append(state)
        slopes.append(flow.velocity(t, state, s))
        if evaluations is not None:
            evaluations.count += 1
    return Trace(w_plus, tuple(states), tuple(slopes), _added(y, outer, slopes))


def retrace(
    flow: Rows,
    walked: Trace,
    s_after: Tensor,
    scheme: MirroredScheme,
    evaluations: Evaluations | None = None,
    changes: list[Tensor] | None = None,
) -> Tensor:
    """The way back under s' [B, A], or [E * B, A] for E edits of each code: edited codes [B or E * B, L, D].

    Rows with s' = s are `w_plus`, to the rounding of two equal evaluations in batches of other sizes.
    """
    many = len(s_after) // len(walked.w_plus)
    like = walked.w_plus
    inner, outer, times = _for_span(
        flow.config.end_time, scheme.back_inner, scheme.back_outer, scheme.times, like=like
    )
    shape = (many, *like.shape)
    changes = [] if changes is None else changes
    for j, i in enumerate(scheme.mirror):
        state = walked.states[i].expand(shape) if many > 1 else walked.states[i][None]
        at = _added(state, inner[j], changes).flatten(0, 1)
        slope = flow.velocity(times[i], at, s_after).unflatten(0, shape[:2])
        changes.append(slope - walked.slopes[i])
        if evaluations is not None:
            evaluations.count += 1
    moved = _added(torch.zeros(shape, dtype=like.dtype, device=like.device), outer, changes)
    # only the scale of the whitening: its shift has no part in a difference
    scaled = flow.unwhiten(moved.flatten(0, 1)) - flow.unwhiten(torch.zeros_like(like[:1]))
    return (like.expand(shape) + scaled.unflatten(0, shape[:2])).flatten(0, 1)


def fitted(
    flow: ConditionalFlow,
    scheme: MirroredScheme,
    w_plus: Tensor,
    s: Tensor,
    s_after: Tensor,
    *,
    rounds: int = 60,
    rate: float = 3e-3,
    fine: int = 8,
) -> MirroredScheme:
    """The scheme with its numbers bent to one flow, so that edits of these codes meet those of a fine grid.

    Args:
        flow: Its weights are not changed.
        scheme: Where to start.
        w_plus: Codes to fit on [B, L, D], other than those it will be judged by.
        s: [B, A].
        s_after: Edits asked for [B, A].
        rounds: Evaluations of the fit, each the cost of about three edits.
        rate: Of Adam, falling to zero.
        fine: Steps of the grid that gives the truth.

    Returns:
        The better scheme; never worse than the given one on these codes.
    """
    exact = classical([(i + 1) / fine for i in range(fine)])
    with torch.no_grad():
        truth = retrace(flow, trace(flow, w_plus, s, exact), s_after, exact)
    names = ("times", "inner", "outer", "back_inner")
    values = {name: getattr(scheme, name).clone().requires_grad_() for name in names}
    below = torch.ones_like(scheme.inner).tril(-1)
    wanted = ((truth - w_plus) / flow.std).flatten()
    found = _weighed(flow, w_plus, s, s_after, scheme)[0].detach() @ scheme.back_outer.to(wanted)
    best, least = scheme, float((found - wanted).square().mean())
    optimizer = torch.optim.Adam(list(values.values()), lr=rate)
    for step in range(rounds):
        optimizer.param_groups[0]["lr"] = rate * (1.0 - step / rounds)
        bent = {**values, "inner": values["inner"] * below, "back_inner": values["back_inner"] * below}
        changes, now = _weighed(
            flow,
            w_plus,
            s,
            s_after,
            MirroredScheme(**bent, back_outer=scheme.back_outer, mirror=scheme.mirror),
        )
        # b' enters linearly, so the best one is known for any choice of the others; at the optimum its own
        # derivative has no part in theirs
        with torch.no_grad():
            gram = changes.double().T @ changes.double()
            ridge = 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            against = changes.double().T @ wanted.double() + ridge @ scheme.back_outer.to(gram)
            outer = torch.linalg.solve(gram + ridge, against)
        loss = (changes @ outer.to(changes) - wanted).square().mean()
        if float(loss.detach()) < least:
            least = float(loss.detach())
            kept = {name: value.detach().clone() for name, value in now.items()}
            best = MirroredScheme(**kept, back_outer=outer.to(scheme.back_outer), mirror=scheme.mirror)
        optimizer.zero_grad()
        loss.log().backward()  # of the logarithm: steps of the same size however small the error is already
        optimizer.step()
    return best


def _weighed(
    flow: ConditionalFlow, w_plus: Tensor, s: Tensor, s_after: Tensor, scheme: MirroredScheme
) -> tuple[Tensor, dict[str, Tensor]]:
    """What b' weighs: q_j of the way back as columns [numbers, n], and the scheme's other numbers."""
    columns: list[Tensor] = []
    retrace(flow, trace(flow, w_plus, s, scheme), s_after, scheme, changes=columns)
    numbers = {name: getattr(scheme, name) for name in ("times", "inner", "outer", "back_inner")}
    return torch.stack([flow.config.end_time * part.flatten() for part in columns], dim=1), numbers


def _for_span(end: float, inner: Tensor, outer: Tensor, times: Tensor, *, like: Tensor) -> tuple[Tensor, ...]:
    return tuple((end * part).to(like) for part in (inner, outer, times))


def _added(y: Tensor, weights: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    out = y
    for weight, slope in zip(weights[: len(slopes)], slopes, strict=False):
        if weight.requires_grad:
            out = out + weight * slope
        elif float(weight) != 0.0:
            out = torch.add(out, slope, alpha=float(weight))
    return out
