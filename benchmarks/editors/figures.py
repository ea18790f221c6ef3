"""From measured arrays to figures, and from figures of several seeds to one line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.judges.figures import frechet_distance, paired_distances
from sdflow_core.method.matched import Curves, curves, described, leakage, linearity
from sdflow_core.method.sweeping import Sweep

LEVELS = (0.90, 0.95)
READERS = ("judge", "labeller")
# what is compared at a matched accuracy, and whether more of it is better
COMPARED = {
    "preserved_judge": True,
    "preserved_labeller": True,
    "distance": False,
    "distance_source": False,
    "cosine": True,
    "faces": True,
    "frechet": False,
    "leakage": False,
}
_LEAST_FRECHET = 8
Floats = NDArray[np.float64]


def cosines(a: Floats, b: Floats) -> Floats:
    """Cosine of each row of unit vectors [N, F] to the same row of the other: [N]."""
    return (a * b).sum(1)


def sweep_curves(
    found: Sweep,
    reader: str,
    tracked: Sequence[str],
    sources: dict[str, NDArray[np.float32]],
    reference: tuple[NDArray[np.float32], NDArray[np.bool_]] | None = None,
) -> Curves:
    """Everything that is compared, along the strengths, with success as `reader` sees it.

    Args:
        found: The sweep; `dlib` among its observers.
        reader: Who says whether an edit succeeded.
        tracked: Names of the readers' scores.
        sources: The identity networks' descriptors of the source photographs.
        reference: Judge's descriptors [M, F] of other people's renderings, and the edited attributes' classes
            of these [A, M]: what edits are compared with as a distribution.
    """
    keepers = [name for name in READERS if name in found.after]
    out = curves(found, reader, tracked, keepers)
    out.values["distance"] = described(found, "dlib", paired)
    out.values["distance_source"] = described(found, "dlib", paired, sources["dlib"].astype(np.float64))
    if "sface" in found.after:
        out.values["cosine"] = described(found, "sface", cosines)
        out.values["cosine_source"] = described(found, "sface", cosines, sources["sface"].astype(np.float64))
    if "faces" in found.after:
        share = found.after["faces"][..., 0].astype(np.float64).mean(2)
        first = float(found.before["faces"].mean())
        out.values["faces"] = np.concatenate([np.full_like(share[:, :1], first), share], axis=1)
    if reference is not None:
        out.values["frechet"] = distribution_distances(found, *reference)
    return out


def paired(a: Floats, b: Floats) -> Floats:
    """Euclidean distances of rows."""
    return paired_distances(a.astype(np.float32), b.astype(np.float32))


def distribution_distances(
    found: Sweep, reference: NDArray[np.float32], classes: NDArray[np.bool_]
) -> Floats:
    """Fréchet distance of edits to other people who show what was asked for [A, S + 1].

    Classes are in the same proportion on both sides. No edit at all stands first: the held-out renderings
    against the same reference. Of small sets the distance is biased upwards, alike for all editors.
    """
    rows: list[list[float]] = []
    for a in range(len(found.attributes)):
        wanted = found.wanted[a]
        share = float(wanted.mean())
        yes, no = np.flatnonzero(classes[a]), np.flatnonzero(~classes[a])
        size = min(
            len(yes) / share if share > 0 else math.inf, len(no) / (1 - share) if share < 1 else math.inf
        )
        if min(size, len(wanted)) < _LEAST_FRECHET:
            rows.append([math.nan] * (found.strengths.shape[1] + 1))
            continue
        pick = np.concatenate([yes[: round(size * share)], no[: round(size * (1 - share))]])
        sets = [found.before["dlib"], *found.after["dlib"][a]]
        rows.append([frechet_distance(one, reference[pick]) for one in sets])
    return np.array(rows)


def matched_figures(curve: Curves, tracked: Sequence[str], level: float) -> dict[str, list[float]]:
    """Quantity -> value of each attribute at an accuracy; NaN where it is not reached."""
    out = curve.matched(level)
    matrix = curve.matched_matrix(level)
    out["leakage"] = [math.nan if np.isnan(v) else v for v in leakage(matrix, curve.attributes, tracked)]
    return out


def figures_of(
    found: Sweep,
    tracked: Sequence[str],
    sources: dict[str, NDArray[np.float32]],
    reference: tuple[NDArray[np.float32], NDArray[np.bool_]] | None = None,
) -> dict[str, Any]:
    """All figures of one editor, as plain values for JSON.

    Returns:
        reader -> {"accuracy": [A][S + 1], "curves": quantity -> [A][S + 1], "0.90": quantity -> [A], ...,
        "matrix_0.90": [A][K], "linearity": [A]}, and "strengths".
    """
    out: dict[str, Any] = {"attributes": list(found.attributes), "nfe": found.nfe, "n": found.wanted.shape[1]}
    for reader in READERS:
        curve = sweep_curves(found, reader, tracked, sources, reference)
        part: dict[str, Any] = {
            "accuracy": curve.accuracy.tolist(),
            "curves": {name: rows.tolist() for name, rows in curve.values.items()},
            "linearity": linearity(found, reader, tracked),
        }
        for level in LEVELS:
            part[f"{level:.2f}"] = matched_figures(curve, tracked, level)
            part[f"matrix_{level:.2f}"] = curve.matched_matrix(level).tolist()
        out[reader] = part
        out["strengths"] = curve.strengths.tolist()
    if "expression" in found.after and "smiling" in found.attributes:
        out["expression"] = _by_expression(found)
    return out


def _by_expression(found: Sweep) -> list[float]:
    """Accuracy of smiles by the expression net, no edit first: [S + 1]."""
    a = found.attributes.index("smiling")
    seen = found.after["expression"][a, :, :, 0] > 0.5
    first = found.before["expression"][:, 0] > 0.5
    hits = (seen == found.wanted[a]).mean(1)
    return [float((first == found.wanted[a]).mean()), *hits.tolist()]


def over_attributes(values: Sequence[float], use: Sequence[int]) -> float:
    """Mean over the attributes that every row reaches."""
    return float(np.mean([values[i] for i in use])) if len(use) else math.nan


def reached_by_all(rows: Sequence[dict[str, Any]], reader: str, level: float) -> list[int]:
    """Indices of the attributes that every row reaches at a level: only these can be compared."""
    first = rows[0]["attributes"]
    reached = [[not math.isnan(v) for v in row[reader][f"{level:.2f}"]["distance"]] for row in rows]
    return [i for i in range(len(first)) if all(row[i] for row in reached)]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the range of several seeds."""
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return math.nan, math.nan
    return float(np.mean(known)), (max(known) - min(known)) / 2
