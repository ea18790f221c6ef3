"""What a principal flow takes from one pass over the codes: directions, and slopes with less noise."""

from __future__ import annotations

import torch
from torch import Tensor

_EXACT = 2048  # rows or numbers up to which directions are those of a full decomposition
_BAND = 16  # neighbouring directions that share one factor: a single t^2 says little


def shrunk_slopes(slopes: Tensor, xx: Tensor, basis: Tensor, spread: Tensor, rest_spread: Tensor) -> Tensor:
    """Slopes of the regression of codes on phi(s), shrunk by how far they stand out of their own error.

    A regression fitted to N codes errs by about sqrt(1 / N) standard deviations in every direction. Whitened
    and added up over K directions this is a mean of z that differs with s by sqrt(K / N), and a linear probe
    finds it in the codes of other people: with N = 5,000 and K = 256 at an AUC of about .60. Most directions
    have no slope at all, so each band of 16 neighbouring directions is multiplied by max(0, 1 - 1 / mean t^2)
    (positive-part James-Stein; Efron and Morris, "Data analysis using Stein's estimator", JASA 1975), and
    what lies across the directions is one band. Slopes that stand out stay as they are.

    Args:
        slopes: [1 + A, N], intercept first, for codes less their mean.
        xx: Sums of products of [1, phi(s)] over all rows, [1 + A, 1 + A].
        basis: [K, N], orthonormal rows.
        spread: Standard deviation of the residual along each direction [K].
        rest_spread: Root mean square of the residual across the directions, scalar.

    Returns:
        [1 + A, N].
    """
    mean = xx[0, 1:] / xx[0, 0]
    centred = xx[1:, 1:] - xx[0, 0] * torch.outer(mean, mean)
    # standard error of a slope for a residual of unit variance; the ridge keeps a constant attribute finite
    ridge = 1e-4 * xx[0, 0] * torch.eye(len(centred), dtype=xx.dtype)
    error = torch.linalg.inv(centred + ridge).diagonal().sqrt()[:, None]
    along = slopes[1:] @ basis.T  # [A, K]
    across = slopes[1:] - along @ basis
    squares = (along / (error * spread)).square()
    parts = [part.mean(1, keepdim=True).expand_as(part) for part in squares.split(_BAND, dim=1)]
    along = along * _kept(torch.cat(parts, dim=1))
    free = max(slopes.shape[1] - len(basis), 1)
    rest = (across / (error * rest_spread)).square().sum(1, keepdim=True) / free
    shrunk = along @ basis + across * _kept(rest)
    # the regression still passes through the means
    moved = slopes[:1] + mean[None] @ (slopes[1:] - shrunk)
    return torch.cat([moved, shrunk])


def _kept(squares: Tensor) -> Tensor:
    return (1.0 - 1.0 / squares.clamp_min(1e-12)).clamp_min(0.0)


def principal_directions(centred: Tensor, count: int) -> Tensor:
    """[M, N] -> [count, N] orthonormal, by falling variance; the same bytes for the same input.

    Through whichever of the two Gram matrices is the smaller one; completed by the axes nearest to the rest
    where there are fewer rows than directions. Of matrices beyond 2,048 both ways by subspace iteration
    (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4): the last few directions are then nearly the
    principal ones, and exactly orthonormal.
    """
    m, n = centred.shape
    if min(m, n) > max(_EXACT, 4 * count):
        return _iterated_directions(centred, count)
    if n <= m:
        vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors  # ascending
        return vectors[:, -count:].flip(1).T.contiguous()
    values, left = torch.linalg.eigh(centred @ centred.T)
    kept = min(count, int((values > 1e-9 * values[-1].clamp_min(1e-30)).sum()))
    found = (left[:, len(values) - kept :].flip(1).T @ centred).T  # [N, kept]
    axes = torch.eye(n, count - kept, dtype=centred.dtype)
    return torch.linalg.qr(torch.cat([found, axes], dim=1)).Q.T.contiguous()


def _iterated_directions(centred: Tensor, count: int, more: int = 32, turns: int = 4) -> Tensor:
    start = torch.randn(centred.shape[1], count + more, generator=torch.Generator().manual_seed(0))
    found = torch.linalg.qr(start.to(centred)).Q
    for _ in range(turns):
        found = torch.linalg.qr(centred.T @ (centred @ found)).Q
    seen = centred @ found
    vectors = torch.linalg.eigh(seen.T @ seen).eigenvectors  # ascending
    return (found @ vectors[:, -count:].flip(1)).T.contiguous()
