"""Figures of the readers, as a whole and per group of people: AUC, calibration, agreement, reconstruction.

A group is what a category column of the labels says (gender, age band, race label), or a crossing of all
columns. Groups compare figures and serve nothing else: none of them can be edited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sdflow_core.faces.pretraining.classifiers import auc, calibration_error

__all__ = ["Figure", "age_band", "group_masks", "group_table", "psnr_db", "reader_figures", "reliability"]

MINIMUM = 30  # photographs a group
_CLASS_MINIMUM = 5  # labels of either class, for an AUC of a group
_LABEL_MINIMUM = 30  # labels, for a calibration error: that of a handful is chance
Rows = npt.NDArray[np.bool_]
Figure = Callable[[Rows], float | None]


def age_band(age: str) -> str:
    """The decade of an age: "34" -> "30-39"; "" for what is no number."""
    try:
        decade = int(float(age)) // 10 * 10
    except ValueError:
        return ""
    return f"{decade}-{decade + 9}"


def reliability(
    scores: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_], bins: int = 10
) -> list[dict[str, float]]:
    """Reliability curve over equal-width bins; empty bins are left out."""
    index = np.clip((scores * bins).astype(int), 0, bins - 1)
    return [
        {
            "mean_score": round(float(scores[index == b].mean()), 4),
            "share_true": round(float(truth[index == b].mean()), 4),
            "count": int((index == b).sum()),
        }
        for b in range(bins)
        if (index == b).any()
    ]


def psnr_db(images: npt.NDArray[np.uint8], rebuilt: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """PSNR of each picture in dB: two uint8 [N, H, W, 3] -> [N]."""
    error = ((images.astype(np.float64) - rebuilt) ** 2).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-9))


def group_masks(columns: Mapping[str, Sequence[str]], minimum: int = MINIMUM) -> dict[str, Rows]:
    """Groups of at least `minimum` rows.

    Args:
        columns: Category column -> N values, "" where unknown.
        minimum: Rows a group.

    Returns:
        "column: value", and "value, value, ..." for each crossing of all columns -> bool [N].
    """
    values = {name: np.array(list(column)) for name, column in columns.items()}
    out: dict[str, Rows] = {}
    for name, column in values.items():
        for value in np.unique(column[column != ""]):
            out[f"{name}: {value}"] = column == value
    if len(values) > 1:
        stacked = np.stack(list(values.values()), 1)
        known = (stacked != "").all(1)
        for combination in np.unique(stacked[known], axis=0):
            out[", ".join(str(v) for v in combination)] = (stacked == combination).all(1)
    return {name: rows for name, rows in out.items() if int(rows.sum()) >= minimum}


def reader_figures(
    on_photo: npt.NDArray[np.float32],
    on_rebuilt: npt.NDArray[np.float32],
    labels: npt.NDArray[np.float32],
    attributes: tuple[str, ...],
) -> dict[str, Figure]:
    """Figures of one reader as functions of the rows they are taken over.

    Args:
        on_photo: Scores of photographs [N, A].
        on_rebuilt: Scores of their reconstructions [N, A].
        labels: [N, A] in [0, 1], NaN where there is none.
        attributes: A names.

    Returns:
        `auc_<a>`, `ece_<a>` against the labels; `agree_<a>`, the share of rows of which photograph and
        reconstruction are read alike. A function gives None where there are too few labels.
    """
    out: dict[str, Figure] = {}
    for a, name in enumerate(attributes):
        known, truth = ~np.isnan(labels[:, a]), labels[:, a] > 0.5

        def area(rows: Rows, a: int = a, known: Rows = known, truth: Rows = truth) -> float | None:
            few = min(int((rows & known & truth).sum()), int((rows & known & ~truth).sum())) < _CLASS_MINIMUM
            return None if few else auc(on_photo[rows & known, a], truth[rows & known])

        def error(rows: Rows, a: int = a, known: Rows = known, truth: Rows = truth) -> float | None:
            if int((rows & known).sum()) < _LABEL_MINIMUM:
                return None
            return calibration_error(on_photo[rows & known, a], truth[rows & known])

        def alike(rows: Rows, a: int = a) -> float | None:
            same = (on_photo[rows, a] > 0.5) == (on_rebuilt[rows, a] > 0.5)
            return float(same.mean()) if len(same) else None

        out |= {f"auc_{name}": area, f"ece_{name}": error, f"agree_{name}": alike}
    return out


def group_table(figures: Mapping[str, Figure], groups: Mapping[str, Rows]) -> dict[str, Any]:
    """Each figure over each group.

    Returns:
        `groups`: group -> `n` and the figures there are; `worst`: figure -> `group` and `value`, the highest
        of errors (`ece_`), the lowest of everything else; `mean`: figure -> mean over the groups.
    """
    table: dict[str, dict[str, Any]] = {}
    worst: dict[str, dict[str, Any]] = {}
    mean: dict[str, float] = {}
    for group, rows in groups.items():
        found = {key: figure(rows) for key, figure in figures.items()}
        table[group] = {
            "n": int(rows.sum()),
            **{key: round(value, 4) for key, value in found.items() if value is not None},
        }
    for key in figures:
        there = {group: row[key] for group, row in table.items() if key in row}
        if there:
            pick = max if "ece_" in key else min
            group = pick(there, key=lambda name: there[name])
            worst[key] = {"group": group, "value": there[group]}
            mean[key] = round(float(np.mean(list(there.values()))), 4)
    return {"groups": table, "worst": worst, "mean": mean}
