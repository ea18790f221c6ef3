"""Figures over judged faces: distances of distributions and of people, worst groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

LEAST_OF_A_GROUP = 30


def frechet_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Distance of the Gaussians fitted to two sets of vectors.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)): Heusel et al., arXiv 1706.08500, equation 6, in
    whatever space the vectors are from. Of small sets it is biased upwards: compare sets of the same sizes.

    Args:
        a: [N, D].
        b: [M, D].

    Example:
        >>> unit = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
        >>> round(frechet_distance(unit, unit + 3), 6)
        18.0
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    s, t = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    values, vectors = np.linalg.eigh(s)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    # tr (S T)^(1/2) = tr (S^(1/2) T S^(1/2))^(1/2), and that one is symmetric
    cross = np.sqrt(np.linalg.eigvalsh(root @ t @ root).clip(0)).sum()
    mean = float(((x.mean(0) - y.mean(0)) ** 2).sum())
    return max(0.0, mean + float(np.trace(s) + np.trace(t) - 2 * cross))


def psnr_db(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each pair of images [N, H, W, 3]: [N] in dB, of 255."""
    error = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean((1, 2, 3), dtype=np.float64)
    return 10 * np.log10(255.0**2 / np.maximum(error, 1e-10))


def paired_distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Distance of each row of a to the same row of b: [N]."""
    return np.linalg.norm(a.astype(np.float64) - b, axis=1)


def nearest_distances(
    a: NDArray[np.float32], b: NDArray[np.float32], batch: int = 500
) -> NDArray[np.float64]:
    """Distance of each row of a to its nearest row of b: [N]."""
    out = np.empty(len(a))
    gallery, squares = b.astype(np.float64), (b.astype(np.float64) ** 2).sum(1)
    for start in range(0, len(a), batch):
        x = a[start : start + batch].astype(np.float64)
        square = (x**2).sum(1)[:, None] + squares - 2 * x @ gallery.T
        out[start : start + batch] = np.sqrt(square.clip(0).min(1))
    return out


def pair_distances(
    rows: NDArray[np.float32], people: NDArray[np.str_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """All pairs of photographs: distances within people, their weights, and distances between people.

    Pairs of one person weigh 1 together, so that who was photographed often does not decide.

    Returns:
        within [P], weights [P] that add up to the number of people with several photographs, between [Q].
    """
    first, second = np.triu_indices(len(rows), 1)
    squares = (rows.astype(np.float64) ** 2).sum(1)
    square = squares[first] + squares[second] - 2 * (rows.astype(np.float64) @ rows.T)[first, second]
    distance, same = np.sqrt(square.clip(0)), people[first] == people[second]
    _, index, counts = np.unique(people[first[same]], return_inverse=True, return_counts=True)
    return distance[same], 1.0 / counts[index], distance[~same]


def members(groups: Sequence[dict[str, str]], least: int = LEAST_OF_A_GROUP) -> dict[str, NDArray[np.bool_]]:
    """Groups by one column each, and by all columns together, that are large enough to speak of.

    Args:
        groups: Of each row, column -> value; a column without value belongs to no group.
        least: Fewest rows of a group.

    Returns:
        "gender: Man" or "Man, 30-39, white" -> mask [N]; columns and values in alphabetical order.
    """
    columns = sorted({column for row in groups for column in row})
    out: dict[str, NDArray[np.bool_]] = {}
    for column in columns:
        values = np.array([row.get(column, "") for row in groups])
        for value in sorted(set(values.tolist()) - {""}):
            out[f"{column}: {value}"] = values == value
    if len(columns) > 1:
        crossed = np.array(
            [", ".join(row[c] for c in columns) if len(row) == len(columns) else "" for row in groups]
        )
        for value in sorted(set(crossed.tolist()) - {""}):
            out[value] = crossed == value
    return {name: mask for name, mask in out.items() if int(mask.sum()) >= least}


def worst_group(
    groups: dict[str, NDArray[np.bool_]], figure: Callable[[NDArray[np.bool_]], float]
) -> tuple[str, float]:
    """The group with the least figure; ("", nan) when no group has one.

    Args:
        groups: From `members`.
        figure: Of the rows of a mask; NaN where the group cannot say.
    """
    known = [(value, name) for name, mask in groups.items() if not np.isnan(value := figure(mask))]
    value, name = min(known, default=(float("nan"), ""))
    return name, value


def is_crossed(name: str) -> bool:
    """Whether a group of `members` is one of all columns together."""
    return ": " not in name
