"""Editors compared where they succeed equally often: figures of a sweep, read at a fixed editing accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdflow_core.method.evaluation import at_accuracy
from sdflow_core.method.sweeping import Sweep
from sdflow_core.records.errors import ContractError

__all__ = ["Curves", "at_level", "curves", "leakage", "linearity", "mean_of"]

Floats = NDArray[np.float64]


def at_level(accuracy: Sequence[float], values: Sequence[float], level: float) -> float:
    """A quantity where a sweep of rising strength first reaches an accuracy.

    Args:
        accuracy: Of each strength, strengths ascending. The first entry may be that of no edit at all.
        values: The quantity at the same strengths.
        level: Accuracy to read it at.

    Returns:
        Linear between the two strengths around the first passage; NaN where the sweep starts above the
        level or never reaches it: nothing is extrapolated.

    Example:
        >>> at_level([0.0, 0.8, 1.0, 0.7], [1.0, 0.9, 0.7, 0.1], 0.9)
        0.8
    """
    for i in range(len(accuracy) - 1):
        if accuracy[i] <= level <= accuracy[i + 1]:
            return at_accuracy(accuracy[i : i + 2], values[i : i + 2], level)
    return math.nan


@dataclass(frozen=True)
class Curves:
    """Figures along the strengths, no edit first: A attributes, S + 1 strengths.

    Attributes:
        attributes: A names.
        strengths: [A, S + 1], the first 0.
        accuracy: [A, S + 1] by one reader.
        values: Quantity -> [A, S + 1].
        matrix: Signed mean change of every tracked score [A, S + 1, K], in the direction of the flip.
    """

    attributes: tuple[str, ...]
    strengths: Floats
    accuracy: Floats
    values: dict[str, Floats]
    matrix: Floats

    def matched(self, level: float) -> dict[str, list[float]]:
        """Quantity -> its value for each attribute at an accuracy; NaN where that is not reached."""
        return {
            name: [
                at_level(self.accuracy[a].tolist(), rows[a].tolist(), level)
                for a in range(len(self.attributes))
            ]
            for name, rows in self.values.items()
        }

    def matched_matrix(self, level: float) -> Floats:
        """Cross-attribute matrix [A, K] at an accuracy."""
        return np.array(
            [
                [
                    at_level(self.accuracy[a].tolist(), self.matrix[a, :, b].tolist(), level)
                    for b in range(self.matrix.shape[2])
                ]
                for a in range(len(self.attributes))
            ]
        )


def curves(found: Sweep, reader: str, tracked: Sequence[str], keepers: Sequence[str]) -> Curves:
    """Accuracy and preservation along a sweep.

    Args:
        found: The sweep.
        reader: Observer that says whether an edit succeeded, and whose scores the matrix is of.
        tracked: K names of the scores.
        keepers: Observers of the same K scores; `preserved_<name>` is the share of other attributes whose
            class each of them sees unchanged, `moved_<name>` the mean change of their scores.

    Returns:
        Curves; add further quantities (`with_distances`).

    Raises:
        ContractError: An observer that did not look.
    """
    for name in (reader, *keepers):
        if name not in found.after or found.before[name].shape[1] != len(tracked):
            raise ContractError("readers of a sweep", expected=f"scores of {len(tracked)} names", found=name)
    index = [list(tracked).index(name) for name in found.attributes]
    scores, first = found.after[reader].astype(np.float64), found.before[reader].astype(np.float64)
    side = np.where(found.wanted, 1.0, -1.0)  # [A, N]
    matrix = (side[:, None, :, None] * (scores - first)).mean(2)
    hit = np.stack([(scores[a, :, :, k] > 0.5) == found.wanted[a] for a, k in enumerate(index)]).mean(2)
    start = np.stack([((first[:, k] > 0.5) == found.wanted[a]).mean() for a, k in enumerate(index)])
    values: dict[str, Floats] = {}
    for name in keepers:
        now, then = found.after[name].astype(np.float64), found.before[name].astype(np.float64)
        kept: list[Floats] = []
        moved: list[Floats] = []
        for a, k in enumerate(index):
            others = [b for b in range(len(tracked)) if b != k]
            same = (now[a] > 0.5) == (then > 0.5)
            kept.append(same[:, :, others].mean((1, 2)) if others else np.ones(now.shape[1]))
            moved.append(
                np.abs(now[a] - then)[:, :, others].mean((1, 2)) if others else np.zeros(now.shape[1])
            )
        values[f"preserved_{name}"] = _with_start(np.stack(kept), 1.0)
        values[f"moved_{name}"] = _with_start(np.stack(moved), 0.0)
    return Curves(
        found.attributes,
        _with_start(found.strengths.astype(np.float64), 0.0),
        np.concatenate([start[:, None], hit], axis=1),
        values,
        np.concatenate([np.zeros_like(matrix[:, :1]), matrix], axis=1),
    )


def described(
    found: Sweep, observer: str, figure: Callable[[Floats, Floats], Floats], anchor: Floats | None = None
) -> Floats:
    """Mean figure of descriptors along a sweep, no edit first: [A, S + 1].

    Args:
        found: The sweep.
        observer: Whose descriptors.
        figure: Two sets of descriptors [N, F] -> [N], such as distances.
        anchor: What edits are compared with [N, F]; None: the unedited renderings.
    """
    rows = found.before[observer].astype(np.float64)
    anchor = rows if anchor is None else anchor.astype(np.float64)
    after = found.after[observer].astype(np.float64)
    moved = np.array([[figure(anchor, one).mean() for one in strengths] for strengths in after])
    return _with_start(moved, float(figure(anchor, rows).mean()))


def leakage(matrix: Floats, attributes: Sequence[str], tracked: Sequence[str]) -> list[float]:
    """Of each row of a cross-attribute matrix [A, K]: norm of what was not asked for over what was.

    Example:
        >>> leakage(np.array([[0.5, 0.3, -0.4]]), ["a"], ["a", "b", "c"])
        [1.0]
    """
    out: list[float] = []
    for a, name in enumerate(attributes):
        k = list(tracked).index(name)
        rest = np.delete(matrix[a], k)
        asked = abs(float(matrix[a, k]))
        out.append(round(float(np.linalg.norm(rest)) / asked, 12) if asked > 0 else math.nan)
    return out


def linearity(found: Sweep, reader: str, tracked: Sequence[str]) -> list[float]:
    """Pearson correlation of requested s' and measured score over all rows and strengths, each attribute."""
    out: list[float] = []
    for a, name in enumerate(found.attributes):
        seen = found.after[reader][a, :, :, list(tracked).index(name)].ravel().astype(np.float64)
        asked = found.requested[a].ravel().astype(np.float64)
        flat = bool(np.ptp(seen) == 0) or bool(np.ptp(asked) == 0)
        out.append(math.nan if flat else float(np.corrcoef(asked, seen)[0, 1]))
    return out


def mean_of(values: Sequence[float]) -> float:
    """Mean over attributes; NaN when one has no value: means over different attributes are not compared."""
    return float(np.mean(values)) if len(values) else math.nan


def _with_start(rows: Floats, start: float) -> Floats:
    return np.concatenate([np.full_like(rows[:, :1], start), rows], axis=1)
