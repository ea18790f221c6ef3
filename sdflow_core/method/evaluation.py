"""Figures about edits, as this field defines them, from probabilities, embeddings and images.

Symbols: N images, A edited attributes, K tracked attributes (A <= K, edited attribute a is tracked attribute
`edited[a]`). `before` [N, K] are classifier probabilities of the unedited images, `after` [A, N, K] those of
image i edited for attribute a.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdflow_core.method.flow import ConditionalFlow
from sdflow_core.method.solvers import SolverConfig
from sdflow_core.records.errors import ContractError


def editing_accuracy(before: Tensor, after: Tensor, edited: Sequence[int] | None = None) -> Tensor:
    """Share of images whose edited attribute flipped.

    Acc_a = mean_i 1[h_a(y_ia) = 1 - h_a(x_i)] with h = 1[p > 0.5].

    Args:
        before: [N, K].
        after: [A, N, K].
        edited: Tracked index of each edited attribute; None = 0 .. A-1.

    Returns:
        [A]. The mean over a is the figure to report.

    Example:
        >>> before, after = torch.tensor([[0.1], [0.9]]), torch.tensor([[[0.8], [0.7]]])
        >>> editing_accuracy(before, after)
        tensor([0.5000])
    """
    index = _index(before, after, edited)
    flipped = [(after[a, :, k] > 0.5) != (before[:, k] > 0.5) for a, k in enumerate(index)]
    return torch.stack(flipped).float().mean(dim=1)


def attribute_preservation(before: Tensor, after: Tensor, edited: Sequence[int] | None = None) -> Tensor:
    """Share of the other attributes that kept their class.

    Pres_a = mean_i mean_{b != a} 1[h_b(y_ia) = h_b(x_i)].

    Returns:
        [A]; 1 where nothing else is tracked.
    """
    index = _index(before, after, edited)
    same = ((after > 0.5) == (before > 0.5)).float()  # [A, N, K]
    out: list[Tensor] = []
    for a, k in enumerate(index):
        others = [b for b in range(before.shape[1]) if b != k]
        out.append(same[a][:, others].mean() if others else before.new_ones(()))
    return torch.stack(out)


def cross_attribute_matrix(before: Tensor, after: Tensor) -> Tensor:
    """How far editing a moves b on average: M[a, b] = mean_i (p_b(y_ia) - p_b(x_i)), [A, K].

    Rows of images edited in both directions should be told apart first, or multiplied by the direction.
    """
    _index(before, after, None)
    return (after - before).mean(dim=1)


def signed_cross_attribute_matrix(
    before: Tensor, after: Tensor, edited: Sequence[int] | None = None
) -> Tensor:
    """`cross_attribute_matrix` for flips: changes are counted in the direction of the flip, [A, K]."""
    index = _index(before, after, edited)
    sign = 1.0 - 2.0 * (before[:, list(index)] > 0.5).float()  # [N, A]
    return (sign.T[:, :, None] * (after - before)).mean(dim=1)


def entanglement(matrix: Tensor) -> float:
    """Off-diagonal norm of a square cross-attribute matrix over its diagonal norm; 0 is perfect."""
    diagonal = torch.diagonal(matrix)
    rest = matrix - torch.diag(diagonal)
    return float(rest.norm() / diagonal.norm().clamp_min(1e-12))


def identity_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two sets of face embeddings [N, F], row by row [N]; report network and anchor with it."""
    if a.shape != b.shape or a.ndim != 2:
        raise ContractError(
            "embeddings", expected="two [N, F] of one shape", found=(list(a.shape), list(b.shape))
        )
    return torch.nn.functional.cosine_similarity(a, b, dim=1)


@dataclass(frozen=True)
class IdentitySummary:
    """Identity of reconstructions r and edits y of inputs x: means of cosines."""

    inversion: float  # ID(x, r): the ceiling that the encoder sets
    edit: float  # ID(r, y): what the edit alone costs
    overall: float  # ID(x, y)
    edit_median: float


def identity_summary(x: Tensor, r: Tensor, y: Tensor) -> IdentitySummary:
    """Embeddings [N, F] of inputs, reconstructions and edits -> means."""
    edit = identity_cosine(r, y)
    return IdentitySummary(
        float(identity_cosine(x, r).mean()),
        float(edit.mean()),
        float(identity_cosine(x, y).mean()),
        float(edit.median()),
    )


def inversion_l2(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean square error an image [N] of [N, 3, H, W] in [-1, 1] (the range of the pSp family's scripts)."""
    return (images - reconstructions).square().flatten(1).mean(dim=1)


def inversion_psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio an image in dB [N]: 10 log10(MAX^2 / MSE), MAX = 2 for the range [-1, 1].

    Example:
        >>> x = torch.zeros(1, 3, 2, 2)
        >>> float(inversion_psnr(x, x + 0.2).round(decimals=3))
        20.0
    """
    return 10.0 * torch.log10(4.0 / inversion_l2(images, reconstructions).clamp_min(1e-12))


@torch.no_grad()
def round_trip_error(
    flow: ConditionalFlow, w_plus: Tensor, s: Tensor, solver: SolverConfig | None = None
) -> Tensor:
    """Largest |w - flow^-1(flow(w, s), s)| a code, in W+ units [B]."""
    back = flow.from_base(flow.to_base(w_plus, s, solver), s, solver)
    return (back - w_plus).abs().flatten(1).amax(dim=1)


def at_accuracy(accuracy: Sequence[float], values: Sequence[float], level: float) -> float:
    """A quantity at a fixed editing accuracy, interpolated over a sweep of strengths.

    Args:
        accuracy: Of each strength, any order.
        values: The quantity (preservation, identity) at the same strengths.
        level: Accuracy to read it at.

    Returns:
        The interpolated value; NaN when the sweep does not reach the level: methods are never compared by
        extrapolation.

    Example:
        >>> at_accuracy([0.8, 1.0], [0.9, 0.7], 0.9)
        0.8
    """
    points = sorted(zip(accuracy, values, strict=True))
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= level <= x1:
            share = 0.0 if x1 == x0 else (level - x0) / (x1 - x0)
            return round(y0 + share * (y1 - y0), 12)
    return math.nan


def _index(before: Tensor, after: Tensor, edited: Sequence[int] | None) -> Sequence[int]:
    index = range(after.shape[0]) if edited is None else edited
    if (
        before.ndim != 2
        or after.ndim != 3
        or tuple(after.shape[1:]) != tuple(before.shape)
        or len(index) != after.shape[0]
        or any(not 0 <= k < before.shape[1] for k in index)
    ):
        raise ContractError(
            "scores to evaluate",
            expected="before [N, K], after [A, N, K], one tracked index for each edited attribute",
            found=(list(before.shape), list(after.shape), list(index)),
        )
    return index
