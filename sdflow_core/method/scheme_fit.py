"""Mirrored schemes bent to one flow: its numbers by damped least squares on codes that are not edited.

Shaul et al., "Bespoke Non-Stationary Solvers" (arXiv 2403.01329), fit a sampler's coefficients by gradient
descent; here they number n + n (n - 1) + n, so the Jacobian itself is affordable: one perturbed walk a
number, from the stage on that the number reaches. Levenberg-Marquardt then needs a few rounds where descent
needs hundreds. After half of them the norm of the error rises from 2 to 4: what counts is the worst number
of a code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdflow_core.method.flow import ConditionalFlow
from sdflow_core.method.mirrored import MirroredScheme, added, classical, retrace, trace
from sdflow_core.method.row_field import RowFlow

_REFUSALS = 6  # dampings tried in a round before the fit ends


@torch.no_grad()
def fitted(
    flow: ConditionalFlow,
    scheme: MirroredScheme,
    w_plus: Tensor,
    s: Tensor,
    s_after: Tensor,
    *,
    rounds: int = 10,
    fine: int = 8,
) -> MirroredScheme:
    """The scheme with its numbers bent to one flow, so that edits of these codes meet those of a fine grid.

    Unchanged s stays exact: the structure is the scheme's. z (`outer`) is fitted to the fine grid's, too.

    Args:
        flow: Its weights are not changed.
        scheme: Where to start.
        w_plus: Codes to fit on [B, L, D], other than those it will be judged by.
        s: [B, A].
        s_after: Edits asked for [B, A].
        rounds: Rounds of damped least squares; each costs about n^2 edits.
        fine: Steps of the grid that gives the truth.

    Returns:
        The better scheme; in the root mean square never worse than the given one on these codes.
    """
    exact = classical([(i + 1) / fine for i in range(fine)])
    rows = flow if flow.field.summary is not None else RowFlow(flow)
    walked = trace(rows, w_plus, s, exact)
    wanted = retrace(rows, walked, s_after, exact) - w_plus
    task = _Task(rows, flow.whiten(w_plus), s, s_after, wanted, flow.std)
    start = _Point.of(scheme)
    now, walk = start, task.walk(start)
    damping, power = 1e-3, 2.0
    for i in range(rounds):
        power = 2.0 if 2 * i < rounds else 4.0
        error = task.error(walk, now.back_outer)
        least = _size(error, power)
        weight = error.abs().pow(0.5 * power - 1.0)
        columns = torch.stack([(part * weight).flatten() for part in task.columns(now, walk)], dim=1).double()
        gram = columns.T @ columns
        against = columns.T @ (error * weight).flatten().double()
        scale = gram.diagonal() + 1e-9 * gram.diagonal().mean()
        for _ in range(_REFUSALS):
            step = torch.linalg.solve(gram + damping * scale.diag(), -against) / (power - 1.0)
            there = now.moved(step)
            tried = task.walk(there)
            if _size(task.error(tried, there.back_outer), power) < least:
                now, walk, damping = there, tried, max(damping / 5.0, 1e-9)
                break
            damping *= 4.0
        else:
            break
    first = task.error(task.walk(start), start.back_outer)
    if _size(task.error(walk, now.back_outer), 2.0) > _size(first, 2.0):
        return scheme
    slopes = torch.stack([part.flatten() for part in walk.slopes], dim=1).double() * flow.config.end_time
    outer = torch.linalg.lstsq(slopes, (walked.z - task.y).flatten().double()[:, None]).solution[:, 0]
    return MirroredScheme(now.times, now.inner, outer.cpu(), now.back_inner, now.back_outer, scheme.mirror)


def _size(error: Tensor, power: float) -> float:
    return float(error.double().abs().pow(power).sum())


@dataclass(frozen=True)
class _Point:
    """The numbers that are bent."""

    times: Tensor  # [n]
    inner: Tensor  # [n, n], strictly lower
    back_inner: Tensor  # [n, n], strictly lower
    back_outer: Tensor  # [n]
    mirror: tuple[int, ...]

    @staticmethod
    def of(scheme: MirroredScheme) -> _Point:
        return _Point(scheme.times, scheme.inner, scheme.back_inner, scheme.back_outer, scheme.mirror)

    def moved(self, step: Tensor) -> _Point:
        """`step`: times, inner, back_inner below their diagonals row by row, back_outer."""
        n, m = len(self.times), len(self.mirror)
        below, back = torch.tril_indices(n, n, -1), torch.tril_indices(m, m, -1)
        parts = step.cpu().split([n, below.shape[1], back.shape[1], m])
        inner, back_inner = self.inner.clone(), self.back_inner.clone()
        inner[below[0], below[1]] += parts[1]
        back_inner[back[0], back[1]] += parts[2]
        return _Point(self.times + parts[0], inner, back_inner, self.back_outer + parts[3], self.mirror)


@dataclass(frozen=True)
class _Walk:
    states: list[Tensor]
    slopes: list[Tensor]
    changes: list[Tensor]


@dataclass(frozen=True)
class _Task:
    """What the numbers are bent to."""

    flow: ConditionalFlow | RowFlow
    y: Tensor
    s: Tensor
    s_after: Tensor
    wanted: Tensor
    std: Tensor

    def walk(self, point: _Point, known: _Walk | None = None, there: int = 0, back: int = 0) -> _Walk:
        """There and back; with a `known` walk the stages before `there` and `back` are taken from it."""
        end = self.flow.config.end_time
        times = (end * point.times).to(self.y)
        states = known.states[:there] if known else []
        slopes = known.slopes[:there] if known else []
        changes = known.changes[:back] if known else []
        for i in range(there, len(times)):
            states.append(added(self.y, end * point.inner[i], slopes))
            slopes.append(self.flow.velocity(times[i], states[i], self.s))
        for j in range(back, len(point.mirror)):
            m = point.mirror[j]
            at = added(states[m], end * point.back_inner[j], changes)
            changes.append(self.flow.velocity(times[m], at, self.s_after) - slopes[m])
        return _Walk(states, slopes, changes)

    def error(self, walk: _Walk, outer: Tensor) -> Tensor:
        moved = added(torch.zeros_like(self.y), self.flow.config.end_time * outer, walk.changes)
        return moved * self.std - self.wanted

    def columns(self, point: _Point, walk: _Walk) -> list[Tensor]:
        """Derivatives of the error by every number, by differences; by `back_outer` as they are."""
        n, many, eps = len(point.times), len(point.mirror), torch.finfo(self.y.dtype).eps ** 0.4
        base = self.error(walk, point.back_outer)
        below = torch.tril_indices(n, n, -1)[0].tolist()
        below_back = torch.tril_indices(many, many, -1)[0].tolist()
        reached = [min(j for j, m in enumerate(point.mirror) if m >= i or j == many - 1) for i in range(n)]
        # stage from which a number is felt, on the way there and on the way back
        starts = (
            [(i, reached[i]) for i in range(n)]
            + [(i, reached[i]) for i in below]
            + [(n, i) for i in below_back]
        )
        out: list[Tensor] = []
        for number, (there, back) in enumerate(starts):
            step = torch.zeros(len(starts) + many, dtype=point.times.dtype)
            step[number] = eps
            felt = self.walk(point.moved(step), walk, there, back)
            out.append((self.error(felt, point.back_outer) - base) / eps)
        end = self.flow.config.end_time
        return out + [end * part * self.std for part in walk.changes]
