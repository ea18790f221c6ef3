"""The table of editors, and its plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.editors.figures import COMPARED, LEVELS, READERS, over_attributes, reached_by_all, spread
from sdflow_core.method.plots import panels

# row -> figures of each seed
Results = Mapping[str, Sequence[dict[str, Any]]]

_HEADS = {
    "preserved_judge": "kept (judge)",
    "preserved_labeller": "kept (labeller)",
    "distance": "distance",
    "distance_source": "to source",
    "cosine": "SFace cosine",
    "faces": "one face",
    "frechet": "Frechet",
    "leakage": "leakage",
}


def compared(results: Results, anchors: Sequence[str], reader: str, level: float) -> dict[str, Any]:
    """Means over the attributes that all anchors reach, with the spread of seeds.

    Args:
        results: Figures.
        anchors: Rows that decide which attributes count, but for seeds that reach the accuracy nowhere; a
            row that lacks one of these attributes gets NaN.
        reader: Who says whether an edit succeeded.
        level: Accuracy.

    Returns:
        {"attributes": names, "rows": row -> quantity -> [mean, half the range, seeds]}.
    """
    seeds = [one for name in anchors if name in results for one in results[name]]
    # a row that reaches the accuracy for no attribute is compared with nobody, and does not stop the others
    seeds = [one for one in seeds if reached_by_all([one], reader, level)]
    use = reached_by_all(seeds, reader, level) if seeds else []
    first = next(iter(results.values()))[0]
    rows: dict[str, dict[str, list[float]]] = {}
    for name, found in results.items():
        rows[name] = {}
        for quantity in COMPARED:
            parts = [one[reader][f"{level:.2f}"].get(quantity) for one in found]
            values = [over_attributes(part, use) for part in parts if part is not None]
            if values:
                rows[name][quantity] = [*spread(values), len(values)]
    return {"attributes": [first["attributes"][i] for i in use], "rows": rows}


def print_comparison(results: Results, anchors: Sequence[str], reader: str, level: float) -> None:
    """One table: rows at one accuracy, as one reader sees success."""
    table = compared(results, anchors, reader, level)
    named = ", ".join(table["attributes"]) or "no attribute"
    print(f"\nAt {level:.0%} accuracy by the {reader}, mean over {named} (what the top rows reach):")
    heads = [q for q in COMPARED if any(q in row for row in table["rows"].values())]
    print(f"{'row':22}" + "".join(f"{_HEADS[head]:>17}" for head in heads))
    for name, row in table["rows"].items():
        cells = [_cell(row.get(head)) for head in heads]
        print(f"{name:22}" + "".join(f"{cell:>17}" for cell in cells))


def print_accuracies(results: Results) -> None:
    """What each row reaches at its greatest strength, its linearity and its cost."""
    print(
        f"\n{'row':22}{'best (judge)':>14}{'best (labeller)':>17}{'smile (net)':>13}{'linearity':>11}"
        f"{'evaluations':>13}{'ms at 32':>10}{'ms alone':>10}{'trained s':>11}"
    )
    for name, found in results.items():
        one = found[0]
        best = [sum(max(r) for r in one[reader]["accuracy"]) / len(one["attributes"]) for reader in READERS]
        smile = max(one["expression"]) if "expression" in one else math.nan
        line = sum(one["labeller"]["linearity"]) / len(one["attributes"])
        cost = one.get("cost", {})
        print(
            f"{name:22}{best[0]:14.3f}{best[1]:17.3f}{smile:13.3f}{line:11.3f}{one['nfe']:13d}"
            f"{cost.get('ms_batch_32', math.nan):10.2f}{cost.get('ms_batch_1', math.nan):10.2f}"
            f"{one.get('training_seconds', math.nan):11.0f}"
        )


def print_attributes(results: Results, reader: str, level: float, quantity: str) -> None:
    """One quantity, attribute by attribute, of the first seed."""
    names = next(iter(results.values()))[0]["attributes"]
    print(f"\n{_HEADS[quantity]} at {level:.0%} by the {reader}, attribute by attribute (first seed):")
    print(f"{'row':22}" + "".join(f"{name:>14}" for name in names))
    for row, found in results.items():
        values = found[0][reader][f"{level:.2f}"].get(quantity)
        if values is not None:
            print(f"{row:22}" + "".join(f"{_number(value):>14}" for value in values))


def print_matrix(name: str, found: dict[str, Any], tracked: Sequence[str], reader: str, level: float) -> None:
    """Cross-attribute matrix of one row: what an edit of each attribute does to all."""
    print(f"\n{name}: change of the {reader}'s scores at {level:.0%}, in the direction of the flip")
    print(f"{'edited':14}" + "".join(f"{other[:10]:>11}" for other in tracked))
    for attribute, values in zip(found["attributes"], found[reader][f"matrix_{level:.2f}"], strict=True):
        print(f"{attribute:14}" + "".join(f"{_number(value):>11}" for value in values))


def print_ceiling(ceiling: dict[str, Any]) -> None:
    """What two photographs of one person show."""
    print("\nNatural ceiling: two photographs of one person that differ by LFW's machine labels")
    print(f"{'attribute':22}{'pairs':>8}{'distance':>10}{'kept (judge)':>14}{'kept (labeller)':>17}")
    for name, row in ceiling.items():
        print(
            f"{name:22}{row['pairs']:8d}{_number(row.get('distance')):>10}"
            f"{_number(row.get('preserved_judge')):>14}{_number(row.get('preserved_labeller')):>17}"
        )


def draw(results: Results, folder: Path, reader: str) -> list[Path]:
    """Preservation and identity against accuracy, an attribute a panel; returns the files."""
    out: list[Path] = []
    names = next(iter(results.values()))[0]["attributes"]
    for quantity, title in (
        ("preserved_judge", "Other attributes kept, by the judge"),
        ("distance", "Identity distance to the reconstruction, by the judge"),
    ):
        charts = {
            attribute: {
                row: (found[0][reader]["accuracy"][a], found[0][reader]["curves"][quantity][a])
                for row, found in results.items()
            }
            for a, attribute in enumerate(names)
        }
        note = f"first seed; each line starts at no edit; accuracy by the {reader}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{quantity}-{reader}.png"
        path.write_bytes(panels(charts, title=title, x_label="editing accuracy", note=note))
        out.append(path)
    return out


def print_all(results: Results, anchors: Sequence[str], tracked: Sequence[str]) -> dict[str, Any]:
    """Every table; returns what was compared, for JSON."""
    out: dict[str, Any] = {}
    for reader in READERS:
        for level in LEVELS:
            print_comparison(results, anchors, reader, level)
            out[f"{reader}_{level:.2f}"] = compared(results, anchors, reader, level)
    print_attributes(results, READERS[0], LEVELS[0], "distance")
    print_attributes(results, READERS[0], LEVELS[0], "preserved_judge")
    print_accuracies(results)
    for name in anchors:
        if name in results:
            print_matrix(name, results[name][0], tracked, READERS[0], LEVELS[0])
    return out


def _cell(values: Sequence[float] | None) -> str:
    if values is None or math.isnan(values[0]):
        return "-"
    mean, half, seeds = values
    return f"{mean:.4f}" + (f" ±{half:.4f}" if seeds > 1 else "")


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
