"""Requested against measured: targets .1 to .9 for every attribute of held-out people.

The product's own search (`sdflow_core/method/aiming.py`) asks until the labeller reads the target; then the
labeller, the embedded judge (it learned from other people and steers nothing) and, for smiles, face-api's
expression net measure the picture. All rows count, capped ones too; how many were capped is printed.

A judge that shares no people with the labeller disagrees with it on unedited faces already: its error there
is printed beside. Most of these faces are far from .5, where two classifiers agree easily; so there is
another yardstick, `natural`: unedited people drawn anew, of whom the labeller reads each target as often as
of the edits. What the judge says of *them* is what an edit that looks like a natural face can reach.

Usage: `python benchmarks/bench_targets.py [--data FOLDER] [--row "ours: edit map"] [--images 100]
       [--work FOLDER] [--quick] [--json]`
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks.editors.material import Material  # noqa: E402
from benchmarks.editors.observers import Observers  # noqa: E402
from benchmarks.editors.options import QUICK, Budget, Options  # noqa: E402
from benchmarks.editors.rows import OURS, ROWS, trained  # noqa: E402
from benchmarks.judges.fetch import default_cache  # noqa: E402
from sdflow_core.method.aiming import aim, aims_of, prepare_all  # noqa: E402
from sdflow_core.method.editor import Editor  # noqa: E402
from sdflow_core.method.request import EditConfig, Variant  # noqa: E402
from sdflow_core.records.errors import SDFlowError  # noqa: E402

TARGETS = tuple(round(0.1 * k, 1) for k in range(1, 10))
LEAST_PEARSON, MOST_ERROR_JUDGE, MOST_ERROR_LABELLER = 0.9, 0.1, 0.05
NEAR = 0.05  # a natural face reads a target when the labeller is no further from it


def agreement(asked: NDArray[np.float64], measured: NDArray[np.float64]) -> dict[str, float]:
    """Pearson correlation and mean absolute error of two [N].

    Example:
        >>> agreement(np.array([0.1, 0.5, 0.9]), np.array([0.2, 0.6, 1.0]))
        {'pearson': 1.0, 'error': 0.1}
    """
    flat = np.ptp(asked) == 0 or np.ptp(measured) == 0
    correlation = float("nan") if flat else float(np.corrcoef(asked, measured)[0, 1])
    return {"pearson": round(correlation, 4), "error": round(float(np.abs(asked - measured).mean()), 4)}


def spread_evenly(
    read: NDArray[np.float64], count: int, seed: int = 0
) -> tuple[NDArray[np.int64], list[int]]:
    """Rows of faces of whom every target is read equally often.

    Args:
        read: The labeller's readings [N].
        count: Faces a target; drawn with replacement where there are fewer.
        seed: Of the draw.

    Returns:
        (rows [T * count] in the order of the targets, how many faces there were for each); no rows where some
        target has none.
    """
    rng = np.random.default_rng(seed)
    near = [np.flatnonzero(np.abs(read - target) <= NEAR) for target in TARGETS]
    found = [len(rows) for rows in near]
    if not all(found):
        return np.zeros(0, np.int64), found
    return np.concatenate([rng.choice(rows, count, replace=len(rows) < count) for rows in near]), found


def natural(material: Material, count: int, drawn: int) -> dict[str, dict[str, Any]]:
    """Attribute -> the judge's agreement on unedited faces spread evenly over the targets."""
    people = material.unseen(drawn)

    def compute() -> dict[str, Any]:
        parts = (part.float() / 127.5 - 1.0 for part in people.images.split(256))
        return {"judged": torch.cat([material.networks.judged(part) for part in parts]).numpy()}

    judged = material.keep("judged", compute, count=drawn)["judged"].astype(np.float64)
    out: dict[str, dict[str, Any]] = {}
    for name in material.options.attributes:
        column = material.tracked.index(name)
        rows, faces = spread_evenly(people.scores[:, column].numpy().astype(np.float64), count)
        if len(rows):
            agreed = agreement(np.repeat(np.array(TARGETS), count), judged[rows, column])
            out[name] = {**agreed, "faces": faces}
    return out


def measure(material: Material, editor: Editor, digest: str, drawn: int) -> dict[str, Any]:
    """Attribute -> agreement by every reader, and counts."""
    people, networks = material.held_out, material.networks
    config = EditConfig()
    observers = Observers(material, people.points)
    pictures = networks.render(people.codes)
    scores = networks.scores(pictures)
    s = networks.batched("semantic_encoder", editor.encode_semantics, pictures)
    prepared = prepare_all(editor, people.codes, s, config.micro_batch)
    columns = [material.tracked.index(name) for name in editor.attributes]
    out: dict[str, Any] = {"n": len(people.codes), "targets": list(TARGETS), "attributes": {}}

    def look(codes: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shown = networks.render(codes)
        return shown, networks.scores(shown)

    for name in material.options.attributes:
        column = material.tracked.index(name)
        parts: dict[str, list[NDArray[np.float64]]] = {"labeller": [], "judge": [], "expression": []}
        capped = tries = 0
        for target in TARGETS:

            def compute(target: float = target, name: str = name, column: int = column) -> dict[str, Any]:
                variants = [Variant(targets={name: target})] * len(people.codes)
                aims = aims_of(variants, editor.attributes, scores[:, columns], config)
                found = aim(editor, prepared, pictures, scores, aims, columns, look, config)
                arrays = {
                    "labeller": found.scores[:, column].numpy(),
                    "judge": networks.judged(found.images)[:, column].numpy(),
                    "capped": found.capped.numpy(),
                    "tries": found.tries.numpy(),
                }
                if name == "smiling":
                    observer = observers.all()["expression"]
                    arrays["expression"] = observer.call(found.images, np.arange(len(found.images)))[:, 0]
                material.say(f"{name} at {target}: {len(people.codes)} people")
                return arrays

            kept = material.keep(
                "targets",
                compute,
                editor=digest,
                attribute=name,
                target=target,
                count=len(people.codes),
                real=people.real,
                config=config.model_dump(),
            )
            capped, tries = capped + int(kept["capped"].sum()), tries + int(kept["tries"].sum())
            for reader, values in parts.items():
                if reader in kept:
                    values.append(kept[reader].astype(np.float64))
        asked = np.repeat(np.array(TARGETS), len(people.codes))
        row: dict[str, Any] = {
            reader: agreement(asked, np.concatenate(values)) for reader, values in parts.items() if values
        }
        row["mean_by_target"] = {
            reader: [round(float(one.mean()), 4) for one in values]
            for reader, values in parts.items()
            if values
        }
        row |= {"capped": capped, "edits": len(asked), "tries": round(tries / len(asked), 2)}
        judged = networks.judged(pictures)[:, column].numpy().astype(np.float64)
        row["unedited"] = agreement(scores[:, column].numpy().astype(np.float64), judged)
        out["attributes"][name] = row
    for name, agreed in natural(material, len(people.codes), drawn).items():
        out["attributes"][name]["natural"] = agreed
    return out


def print_table(found: dict[str, Any], row: str) -> None:
    """One line an attribute and reader."""
    print(f"{row}: {found['n']} people, targets {', '.join(map(str, found['targets']))}")
    print(f"{'attribute':14}{'measured by':>14}{'Pearson':>9}{'error':>8}   {'mean reading at each target'}")
    for name, one in found["attributes"].items():
        for reader in ("labeller", "judge", "expression"):
            if reader not in one:
                continue
            bound = MOST_ERROR_LABELLER if reader == "labeller" else MOST_ERROR_JUDGE
            fine = one[reader]["error"] <= bound and one[reader]["pearson"] >= LEAST_PEARSON
            means = " ".join(f"{value:.2f}" for value in one["mean_by_target"][reader])
            said = f"error <= {bound}, Pearson >= {LEAST_PEARSON}: {'reached' if fine else 'MISSED'}"
            pearson, error = one[reader]["pearson"], one[reader]["error"]
            print(f"{name:14}{reader:>14}{pearson:9.3f}{error:8.3f}   {means}  {said}")
        before = f"Pearson {one['unedited']['pearson']:.3f}, error {one['unedited']['error']:.3f}"
        print(f"{'':14}{one['capped']} of {one['edits']} capped, {one['tries']} renderings an edit")
        print(f"{'':14}judge against labeller on unedited faces: {before}")
        if "natural" in one:
            said = f"Pearson {one['natural']['pearson']:.3f}, error {one['natural']['error']:.3f}"
            print(f"{'':14}judge on unedited faces of which the labeller reads the same targets: {said}")


def main() -> int:
    """Print the table; with --json one object as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=None, help="folder with lfw.tar and its labels")
    parser.add_argument("--judges", type=Path, default=None, help="folder of the judges' packages")
    parser.add_argument("--cache", type=Path, default=default_cache() / "faces", help="prepared photographs")
    parser.add_argument("--work", type=Path, default=default_cache() / "editors", help="trained and measured")
    parser.add_argument("--row", default=OURS, help="whose edits")
    parser.add_argument("--images", type=int, default=100, help="held-out people")
    parser.add_argument("--real", type=int, default=None, help="photographs to train on")
    parser.add_argument("--samples", type=int, default=None, help="people drawn from the prior")
    parser.add_argument("--natural", type=int, default=10_000, help="people drawn for the natural yardstick")
    parser.add_argument("--quick", action="store_true", help="a trial of the machinery")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    row = next((row for row in ROWS if row.name == given.row), None)
    if row is None:
        parser.error(f"unknown row {given.row}; known: {'; '.join(row.name for row in ROWS)}")
    asked = {"real": given.real, "samples": given.samples}
    if not given.quick:
        asked["images"] = given.images
    base = QUICK if given.quick else Budget()
    budget = Budget(**(base.model_dump() | {k: v for k, v in asked.items() if v is not None}))
    options = Options(data=given.data, judges=given.judges, cache=given.cache, work=given.work, budget=budget)
    try:
        material = Material(options, lambda text: print(text, file=sys.stderr, flush=True))
        ready = trained(row, material, 0)
        found = measure(material, ready.editor, ready.digest, 400 if given.quick else given.natural)
    except SDFlowError as error:
        print(error, file=sys.stderr)
        return 1
    print_table(found, row.name)
    if given.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
