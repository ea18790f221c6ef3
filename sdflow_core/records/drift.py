"""Whether scores still look like those that the editor learned from: the distance of two histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from .config import Config
from .errors import ContractError

__all__ = ["BINS", "Drift", "drift", "histogram", "psi"]

BINS = 10
_SOME, _MUCH = 0.1, 0.25  # the usual reading of a PSI
_SMOOTHING = 0.5  # rows added to every bin, so that an empty one is not infinitely surprising

Verdict = Literal["stable", "some shift", "shifted", "too few rows", "not recorded"]


class Drift(Config):
    """One attribute of one dataset against the training set of the editor in force.

    Attributes:
        attribute: Its name.
        rows: Scores that were compared.
        psi: Population stability index; None where the training set's histogram was not recorded.
        noise: What PSI would be expected between two samples of these sizes from one distribution.
        verdict: In words.
        now: Counts of the dataset.
        training: Counts of the training set, empty where not recorded.
    """

    attribute: str
    rows: int
    psi: float | None
    noise: float | None
    verdict: Verdict
    now: tuple[int, ...]
    training: tuple[int, ...]


def histogram(scores: npt.ArrayLike) -> list[int]:
    """Counts of scores in ten bins of equal width over [0, 1]; 1.0 falls into the last.

    Args:
        scores: [N] in [0, 1].

    Example:
        >>> histogram([0.0, 0.05, 0.95, 1.0])
        [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    """
    counts, _ = np.histogram(np.asarray(scores, dtype=np.float64), bins=BINS, range=(0.0, 1.0))
    return [int(count) for count in counts]


def psi(expected: Sequence[int], found: Sequence[int]) -> float:
    """Population stability index of two histograms, 0 when they are the same in shape.

    `sum((f - e) ln(f / e))` over the shares of the bins, each bin with half a row added.

    Args:
        expected: Counts, [bins].
        found: Counts, [bins].

    Raises:
        ContractError: They do not have the same number of bins, or one holds no row.

    Example:
        >>> psi([5, 5], [50, 50]) < 0.001, round(psi([90, 10], [10, 90]), 1)
        (True, 3.4)
    """
    if len(expected) != len(found) or sum(expected) == 0 or sum(found) == 0:
        raise ContractError(
            "two histograms cannot be compared",
            expected="the same number of bins, at least one row each",
            found=f"{len(expected)} and {len(found)} bins, {sum(expected)} and {sum(found)} rows",
        )
    shares = [
        (np.asarray(counts, dtype=np.float64) + _SMOOTHING) / (sum(counts) + _SMOOTHING * len(counts))
        for counts in (expected, found)
    ]
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))


def drift(attribute: str, scores: npt.ArrayLike, training: Sequence[int] | None) -> Drift:
    """Compare the scores [N] of one attribute with its histogram over the training set, if there is one."""
    now = histogram(scores)
    rows = sum(now)
    usable = training is not None and len(training) == BINS and sum(training) > 0
    if not usable or training is None:
        verdict: Verdict = "not recorded"
        index = noise = None
    elif rows == 0:
        verdict, index, noise = "too few rows", None, None
    else:
        # for two samples of one distribution: E[PSI] = (bins - 1) (1 / n + 1 / m)
        noise = (BINS - 1) * (1 / rows + 1 / sum(training))
        index = psi(training, now)
        if noise >= _SOME:
            verdict = "too few rows"
        else:
            verdict = "stable" if index < _SOME else "some shift" if index < _MUCH else "shifted"
    return Drift(
        attribute=attribute,
        rows=rows,
        psi=None if index is None else _rounded(index),
        noise=None if noise is None else _rounded(noise),
        verdict=verdict,
        now=tuple(now),
        training=tuple(training) if usable and training is not None else (),
    )


def _rounded(value: float) -> float:
    return round(value, 4) if math.isfinite(value) else value
