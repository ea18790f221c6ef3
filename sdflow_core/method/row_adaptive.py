"""Edits whose effort is chosen row by row: a cheap mirrored scheme for all, a finer one for the hard ones.

Where rows do not see each other, each of them is an ODE of its own, and a bound on the *worst* number of an
edit is decided by a few of them. All rows are walked there and back by a cheap scheme (`scheme_fit.py`).
What that walk leaves behind foretells its error without another evaluation: differences of first and second
order of the q_j of the way back, and of second order of the slopes k_j of the way there, each a size a row,

    log estimate = constant + sum_i c_i log(size_i),    c_i >= 0.

Rows whose estimate reaches a limit are walked again by a finer scheme. c and limit come from codes that are
not edited, by a rule without a choice (`adapted`). Every row is judged alone, so what becomes of it does not
hang on its neighbours; and unchanged s has q = 0, an estimate of zero and the source as its edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdflow_core.method.flow import ConditionalFlow
from sdflow_core.method.mirrored import MirroredScheme, Trace, classical, differences, moved, trace
from sdflow_core.method.row_field import RowFlow
from sdflow_core.records.errors import ContractError

Feature = tuple[Literal["back", "there"], int, int]  # of the q_j or the k_j, order of the difference, first j

_LEAST = 1e-30  # sizes below are taken for it: a logarithm of zero is none


@dataclass(frozen=True)
class Gauge:
    """Foretells the error of a walk: the largest |dw| of a row, from the sizes of its differences.

    Attributes:
        features: What is measured.
        weights: c_i >= 0 of each.
        constant: Of the sum.
    """

    features: tuple[Feature, ...]
    weights: tuple[float, ...]
    constant: float

    def estimate(self, std: Tensor, walked: Trace, changes: Sequence[Tensor]) -> Tensor:
        """Estimates [E, B, L] in units of w+ for a way there and the q_j [E, B, L, D] of its way back."""
        total = torch.full_like(changes[0][..., 0], self.constant)
        for feature, weight in zip(self.features, self.weights, strict=True):
            total += weight * _size(feature, std, walked, changes).clamp_min_(_LEAST).log_()
        return total.exp_()


@dataclass(frozen=True)
class RowAdaptive:
    """A cheap scheme, what foretells its error, and a finer scheme.

    Attributes:
        scheme: For all rows.
        gauge: Of its error.
        limit: Estimate from which on a row is walked again.
        finer: The scheme it is walked again by.
    """

    scheme: MirroredScheme
    gauge: Gauge
    limit: float
    finer: MirroredScheme


@dataclass
class Effort:
    """What was done, in rows: ways back by the cheap scheme, ways there and back by the finer one."""

    rows: int = 0
    there_again: int = 0
    back_again: int = 0


@torch.no_grad()
def edited(
    flow: RowFlow, w_plus: Tensor, s: Tensor, s_after: Tensor, by: RowAdaptive, effort: Effort | None = None
) -> Tensor:
    """Edits of codes; the way there is walked once a code, whatever the number of its edits.

    Args:
        flow: Rows that do not see each other.
        w_plus: [B, L, D].
        s: [B, A].
        s_after: [E * B, A], E edits of each code.
        by: Made for this flow by `adapted`.
        effort: Added to.

    Returns:
        Edited codes [E * B, L, D].
    """
    walked = trace(flow, w_plus, s, by.scheme)
    changes = differences(flow, walked, s_after, by.scheme)
    out = moved(flow, walked, changes, by.scheme)
    hard = by.gauge.estimate(flow.std, walked, changes) >= by.limit  # [E, B, L]
    del walked, changes
    edit, code, row = hard.nonzero(as_tuple=True)
    if effort is not None:
        effort.rows += hard.numel()
        effort.back_again += len(edit)
    if len(edit):
        sources, which = torch.unique(code * flow.rows + row, return_inverse=True)
        if effort is not None:
            effort.there_again += len(sources)
        of = sources // flow.rows, sources % flow.rows
        again = trace(flow.picked(of[1]), w_plus[of][:, None], s[of[0]], by.finer)
        again = Trace(
            again.w_plus[which],
            tuple(state[which] for state in again.states),
            tuple(slope[which] for slope in again.slopes),
            again.z[which],
        )
        alone, after = flow.picked(row), s_after[edit * len(w_plus) + code]
        better = moved(alone, again, differences(alone, again, after, by.finer), by.finer)
        out[edit * len(w_plus) + code, row] = better[:, 0]
    return out


@torch.no_grad()
def adapted(
    flow: RowFlow | ConditionalFlow,
    scheme: MirroredScheme,
    w_plus: Tensor,
    s: Tensor,
    s_after: Tensor,
    *,
    bound: float = 1e-3,
    grids: Sequence[int] = (3, 4, 5, 6, 8, 12),
    fine: int = 16,
    chunk: int = 1024,
) -> RowAdaptive:
    """Chooses gauge, limit and finer scheme for a flow, from codes other than those it will be judged by.

    The first half of the codes fits the gauge, by least squares on logarithms; features whose weight comes
    out negative are left out one after another, so that a larger difference never means a smaller estimate.
    The limit is the least estimate of a row of the second half whose error passes 0.8 of the bound; where
    there is none, the largest estimate seen. The finer scheme is the coarsest grid of Kutta's method whose
    error on the rows beyond the limit stays below half of the bound.

    Args:
        flow: Rows that do not see each other.
        scheme: The cheap scheme.
        w_plus: [N, L, D].
        s: [N, A].
        s_after: [N, A].
        bound: On max |dw| of a row.
        grids: Steps to choose the finer scheme from, rising.
        fine: Steps of the grid that gives the truth.
        chunk: Codes that are walked together.

    Raises:
        ContractError: Fewer than 64 rows, or a bound that is not positive.
    """
    rows = flow if isinstance(flow, RowFlow) else RowFlow(flow)
    if bound <= 0 or len(w_plus) * rows.rows < 64:
        raise ContractError(
            "codes to adapt a scheme on",
            expected="64 rows or more, a bound above zero",
            found=f"{len(w_plus)} codes of {rows.rows} rows, bound {bound:g}",
        )
    features = _features(scheme)
    exact = _grid(fine)
    sizes: list[Tensor] = []
    errors: list[Tensor] = []
    truths: list[Tensor] = []
    for part in torch.arange(len(w_plus)).split(chunk):
        walked = trace(rows, w_plus[part], s[part], scheme)
        changes = differences(rows, walked, s_after[part], scheme)
        truths.append(_edit(rows, w_plus[part], s[part], s_after[part], exact))
        errors.append((moved(rows, walked, changes, scheme) - truths[-1]).abs().amax(-1).flatten())
        of = [_size(feature, rows.std, walked, changes).expand(len(changes[0]), -1, -1) for feature in features]
        sizes.append(torch.stack([size.flatten() for size in of], dim=1))
    size, error, truth = torch.cat(sizes).double(), torch.cat(errors).double(), torch.cat(truths)
    half = len(size) // 2
    gauge = _gauge(features, size[:half], error[:half])
    index = [features.index(feature) for feature in gauge.features]
    weights = torch.tensor(gauge.weights, dtype=torch.float64, device=size.device)
    told = (size[half:, index].clamp_min(_LEAST).log() @ weights + gauge.constant).exp()
    passed = told[error[half:] > 0.8 * bound]
    limit = float(passed.min() if len(passed) else told.max())
    picked = half + (told >= limit).nonzero()[:, 0]
    code, row = picked // rows.rows, picked % rows.rows
    alone = rows.picked(row)
    finer = _grid(grids[-1])
    for steps in grids:
        finer = _grid(steps)
        again = _edit(alone, w_plus[code, row][:, None], s[code], s_after[code], finer)
        if float((again[:, 0] - truth[code, row]).abs().max()) < 0.5 * bound:
            break
    return RowAdaptive(scheme, gauge, limit, finer)


def _grid(steps: int) -> MirroredScheme:
    return classical([(i + 1) / steps for i in range(steps)])


def _edit(flow: RowFlow, w_plus: Tensor, s: Tensor, s_after: Tensor, scheme: MirroredScheme) -> Tensor:
    walked = trace(flow, w_plus, s, scheme)
    return moved(flow, walked, differences(flow, walked, s_after, scheme), scheme)


def _features(scheme: MirroredScheme) -> list[Feature]:
    there, back = len(scheme.times), len(scheme.mirror)
    out: list[Feature] = [("back", 1, j) for j in range(back - 1)]
    out += [("back", 2, j) for j in range(back - 2)]
    return out + [("there", 2, j) for j in range(there - 2)]


def _size(feature: Feature, std: Tensor, walked: Trace, changes: Sequence[Tensor]) -> Tensor:
    """Sizes [E, B, L], or [1, B, L] of a feature of the way there."""
    way, order, j = feature
    parts = changes if way == "back" else walked.slopes
    apart = parts[j] - parts[j + 1]
    if order == 2:
        apart.sub_(parts[j + 1]).add_(parts[j + 2])
    size = torch.linalg.vector_norm(apart.mul_(std), dim=-1)
    return size if way == "back" else size[None]


def _gauge(features: Sequence[Feature], size: Tensor, error: Tensor) -> Gauge:
    """Least squares of log(error) by the logarithms of the sizes [N, F], negative weights left out."""
    x, y = size.clamp_min(_LEAST).log(), error.clamp_min(_LEAST).log()
    kept = list(range(len(features)))
    while True:
        here = x[:, kept] - x[:, kept].mean(0)
        gram = here.T @ here + torch.eye(len(kept), dtype=x.dtype, device=x.device)
        weights = torch.linalg.solve(gram, here.T @ (y - y.mean()))
        if not kept or float(weights.min()) >= 0:
            break
        kept.pop(int(weights.argmin()))
    constant = float(y.mean() - x[:, kept].mean(0) @ weights)
    return Gauge(tuple(features[i] for i in kept), tuple(weights.tolist()), constant)
