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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sdflow_core.method import mirrored
from sdflow_core.method.flow import ConditionalFlow
from sdflow_core.method.mirrored import MirroredScheme, Trace, classical, differences, moved, trace
from sdflow_core.method.row_field import RowFlow
from sdflow_core.records.errors import ContractError

Feature = tuple[Literal["back", "there"], int, int]  # of the q_j or the k_j, order of the difference, first j

_TOGETHER = 576  # rows walked at once: enough for the matrix products, few enough for the caches
_FEATURES = 6  # measured at most: each costs a pass over the codes
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
    many, after = len(s_after) // len(w_plus), s_after.unflatten(0, (-1, len(w_plus)))  # [E, B, A]
    out = w_plus.new_empty(many, *w_plus.shape)
    hard = torch.empty(out.shape[:3], dtype=torch.bool, device=out.device)
    for part in torch.arange(len(w_plus)).split(max(1, _TOGETHER // flow.rows)):
        here = slice(int(part[0]), int(part[-1]) + 1)
        walked = trace(flow, w_plus[here], s[here], by.scheme)
        changes = differences(flow, walked, after[:, here].flatten(0, 1), by.scheme)
        out[:, here] = moved(flow, walked, changes, by.scheme).unflatten(0, (many, -1))
        hard[:, here] = by.gauge.estimate(flow.std, walked, changes) >= by.limit
    edit, code, row = hard.nonzero(as_tuple=True)
    if effort is not None:
        effort.rows += hard.numel()
        effort.back_again += len(edit)
    if len(edit):
        sources, which = torch.unique(code * flow.rows + row, return_inverse=True)
        if effort is not None:
            effort.there_again += len(sources)
        for first in range(0, len(sources), 2 * _TOGETHER):
            these = sources[first : first + 2 * _TOGETHER]
            here = (which >= first) & (which < first + len(these))
            e, b, r = edit[here], code[here], row[here]
            codes, rows = these // flow.rows, these % flow.rows
            again = trace(flow.picked(rows), w_plus[codes, rows][:, None], s[codes], by.finer)
            again = _of(again, which[here] - first)
            alone = flow.picked(r)
            changes = differences(alone, again, after[e, b], by.finer)
            out[e, b, r] = moved(alone, again, changes, by.finer)[:, 0]
    return out.flatten(0, 1)


@torch.no_grad()
def adapted(
    flow: RowFlow | ConditionalFlow,
    scheme: MirroredScheme,
    w_plus: Tensor,
    s: Tensor,
    s_after: Tensor,
    *,
    bound: float = 1e-3,
    grids: Sequence[int] = (3, 4, 5, 6, 8),
    fine: int = 10,
    chunk: int = 1024,
) -> RowAdaptive:
    """Chooses gauge, limit and finer scheme for a flow, from codes other than those it will be judged by.

    The first quarter of the codes fits the gauge, by least squares on logarithms; the features of least
    weight are left out one after another until none is negative, so that a larger difference never means a
    smaller estimate, and few are left. The limit is the least estimate of a row of the rest whose error
    passes 0.8 of the bound, or where none does, 0.8 of the bound over the worst ratio of an error to its
    estimate. It hangs on the few rows that pass: let there be as many codes as it will be used on. The
    finer scheme is the coarsest grid of Kutta's method whose error on the rows beyond the limit stays below
    half of the bound; the finest where no row is beyond it.

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
        of = [
            _size(feature, rows.std, walked, changes).expand(len(changes[0]), -1, -1) for feature in features
        ]
        sizes.append(torch.stack([size.flatten() for size in of], dim=1))
    size, error, truth = torch.cat(sizes).double(), torch.cat(errors).double(), torch.cat(truths)
    first = len(size) // 4
    gauge = _gauge(features, size[:first], error[:first])
    index = [features.index(feature) for feature in gauge.features]
    weights = torch.tensor(gauge.weights, dtype=torch.float64, device=size.device)
    told = (size[first:, index].clamp_min(_LEAST).log() @ weights + gauge.constant).exp()
    passed = told[error[first:] > 0.8 * bound]
    worst = (error[first:] / told.clamp_min(_LEAST)).max()
    limit = float(passed.min() if len(passed) else 0.8 * bound / worst)
    picked = first + (told >= limit).nonzero()[:, 0]
    code, row = picked // rows.rows, picked % rows.rows
    alone = rows.picked(row)
    finer = _grid(grids[-1])
    for steps in grids if len(picked) else ():
        finer = _grid(steps)
        again = _edit(alone, w_plus[code, row][:, None], s[code], s_after[code], finer)
        if float((again[:, 0] - truth[code, row]).abs().max()) < 0.5 * bound:
            break
    return RowAdaptive(scheme, gauge, limit, finer)


def as_numbers(by: RowAdaptive) -> dict[str, object]:
    """The scheme as plain data, for JSON."""
    return {
        "scheme": mirrored.as_numbers(by.scheme),
        "finer": mirrored.as_numbers(by.finer),
        "limit": by.limit,
        "gauge": {
            "features": [list(feature) for feature in by.gauge.features],
            "weights": list(by.gauge.weights),
            "constant": by.gauge.constant,
        },
    }


def from_numbers(numbers: Mapping[str, Any]) -> RowAdaptive:
    """Inverse of `as_numbers`.

    Raises:
        ContractError: Numbers that are none of it.
    """
    try:
        gauge = numbers["gauge"]
        features: list[Feature] = [(way, int(order), int(j)) for way, order, j in gauge["features"]]
        weights = tuple(float(weight) for weight in gauge["weights"])
        found = Gauge(tuple(features), weights, float(gauge["constant"]))
        limit = float(numbers["limit"])
        of = {name: mirrored.from_numbers(numbers[name]) for name in ("scheme", "finer")}
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(str(error)) from error
    known = _features(of["scheme"])
    if len(features) != len(weights) or not set(features) <= set(known) or min(weights, default=0.0) < 0:
        raise _wrong(f"features {features}, weights {weights}")
    return RowAdaptive(of["scheme"], found, limit, of["finer"])


def _wrong(found: str) -> ContractError:
    return ContractError("row-adaptive scheme", expected="numbers made by as_numbers", found=found)


def _of(walked: Trace, index: Tensor) -> Trace:
    """The ways there of some of its codes, repeated as the index says."""
    states, slopes = (tuple(part[index] for part in parts) for parts in (walked.states, walked.slopes))
    return Trace(walked.w_plus[index], states, slopes, walked.z[index])


def _grid(steps: int) -> MirroredScheme:
    return classical([(i + 1) / steps for i in range(steps)])


def _edit(flow: RowFlow, w_plus: Tensor, s: Tensor, s_after: Tensor, scheme: MirroredScheme) -> Tensor:
    walked = trace(flow, w_plus, s, scheme)
    return moved(flow, walked, differences(flow, walked, s_after, scheme), scheme)


def _features(scheme: MirroredScheme) -> list[Feature]:
    there, back = len(scheme.times), len(scheme.mirror)
    first: list[Feature] = [("back", 1, j) for j in range(back - 1)]
    second: list[Feature] = [("back", 2, j) for j in range(back - 2)]
    slopes: list[Feature] = [("there", 2, j) for j in range(there - 2)]
    return first + second + slopes


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
    """Least squares of log(error) by the logarithms of the sizes [N, F], the least weights left out."""
    x, y = size.clamp_min(_LEAST).log(), error.clamp_min(_LEAST).log()
    kept = list(range(len(features)))
    while True:
        here = x[:, kept] - x[:, kept].mean(0)
        gram = here.T @ here + torch.eye(len(kept), dtype=x.dtype, device=x.device)
        weights = torch.linalg.solve(gram, here.T @ (y - y.mean()))
        if not kept or (float(weights.min()) >= 0 and len(kept) <= _FEATURES):
            break
        kept.pop(int(weights.argmin()))
    constant = float(y.mean() - x[:, kept].mean(0) @ weights)
    return Gauge(tuple(features[i] for i in kept), tuple(weights.tolist()), constant)
