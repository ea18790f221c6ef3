"""How often each face is drawn: rare combinations of groups more often, within a limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sdflow_core.faces.pretraining.data import FaceSet
from sdflow_core.records.errors import ContractError


def group_counts(faces: FaceSet, groups: Sequence[str]) -> dict[tuple[str, ...], int]:
    """How many faces each combination of the groups has, most frequent first; "" is unknown."""
    return dict(Counter(_combinations(faces, groups)).most_common())


def sampling_weights(
    faces: FaceSet,
    groups: Sequence[str],
    strength: float = 1.0,
    *,
    cap: float = 5.0,
    rows: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float64]:
    """Weight of each row, so that a draw in proportion to it meets every combination about equally often.

    Args:
        faces: With the category columns in `groups`.
        groups: Names of category columns; their combination counts.
        strength: 0 draws all rows alike, 1 all combinations alike; the weight is frequency^-strength.
        cap: Largest weight, in units of the mean: a combination of three people is not learned by heart.
        rows: bool [N], the rows that are drawn from; None: all. Only they are counted.

    Returns:
        float64 [N] with mean 1 over `rows` and 0 elsewhere. Rows with an unknown group get exactly the mean.

    Raises:
        ContractError: An unknown group, a strength outside [0, 1], or a cap below 1.
    """
    if not 0.0 <= strength <= 1.0 or not cap >= 1.0:
        raise ContractError(
            "the balance of sampling", expected="strength in [0, 1], cap >= 1", found=(strength, cap)
        )
    used = np.ones(len(faces.images), bool) if rows is None else rows
    keys = _combinations(faces, groups)
    known = used & np.array([all(key) for key in keys], bool)
    weights = used.astype(np.float64)
    if not groups or not known.any():
        return weights
    counts = Counter(key for key, counted in zip(keys, known, strict=True) if counted)
    raw = np.array([counts[key] ** -strength if key in counts else 0.0 for key in keys])[known]
    weights[known] = _capped(raw / raw.mean(), cap)
    return weights


def _capped(weights: npt.NDArray[np.float64], cap: float) -> npt.NDArray[np.float64]:
    """Limit to `cap` and keep the mean at 1: what is cut off goes to the others."""
    weights, fixed = weights.copy(), np.zeros(len(weights), bool)
    while (over := weights > cap * (1 + 1e-12)).any():
        fixed |= over
        weights[fixed] = cap
        if not fixed.all():
            weights[~fixed] *= (len(weights) - cap * fixed.sum()) / weights[~fixed].sum()
    return weights


def _combinations(faces: FaceSet, groups: Sequence[str]) -> list[tuple[str, ...]]:
    unknown = [name for name in groups if name not in faces.groups]
    if unknown:
        raise ContractError(
            "groups to balance", expected=f"some of {', '.join(faces.groups) or 'none'}", found=unknown
        )
    if not groups:
        return [()] * len(faces.images)
    return list(zip(*(faces.groups[name] for name in groups), strict=True))
