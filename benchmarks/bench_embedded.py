"""The embedded models on people nobody learned from: readers, reconstruction, identity, samples, speed.

Identity is judged by dlib's ResNet, a smile by face-api's expression net; neither had a part in training or
in choosing models. Labels are machine-made: an AUC against them is agreement with another classifier.
Needed are lfw.tar and lfw_attributes.csv (research only); prepared arrays stay in the user's cache folder.

Usage: `python benchmarks/bench_embedded.py [--data FOLDER] [--models FOLDER|embedded] [--judges FOLDER]
       [--cache FOLDER] [--only readers,reconstruction,identity,samples,speed] [--rows N] [--samples 1000]
       [--learned lfw.tar,utkface.tar] [--against FILE] [--json]`
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.judges.embedded import PARTS, Bench, Options  # noqa: E402
from benchmarks.judges.fetch import default_cache  # noqa: E402
from sdflow_core.records.errors import SDFlowError  # noqa: E402

LEAST = {
    "auc_smiling": 0.96,
    "auc_male": 0.98,
    "auc_eyeglasses": 0.98,
    "auc_young": 0.90,
    "expression_agreement": 0.85,
    "agree_smiling": 0.92,
    "agree_male": 0.95,
    "agree_eyeglasses": 0.92,
    "agree_young": 0.88,
    "agree_smiling_judge": 0.85,
    "one_face_share": 0.98,
}
MOST = {
    "other_people_share": 0.05,
    "memorised_share": 0.01,
    "render_ms": 25.0,
    "invert_ms": 15.0,
    "weights_mb": 30.0,
}


def target_of(key: str, figures: dict[str, Any], before: dict[str, Any]) -> tuple[str, float] | None:
    """(">=" or "<=", bound) of a figure, or None where it is only reported."""
    small = figures["resolution"] < 128
    if key == "psnr_db":
        return ">=", 23.0 if small else 22.0
    if key == "same_person_share":
        return ">=", 0.60 if small else 0.80
    if key == "feature_distance":
        # of other sizes it has another bias
        same_size = before.get("n_feature_distance") == figures.get("n_feature_distance")
        return ("<=", before[key] / 2) if key in before and same_size else None
    if key in LEAST:
        return ">=", LEAST[key]
    if key.startswith("ece_"):
        return "<=", 0.05
    return ("<=", MOST[key]) if key in MOST else None


def print_table(figures: dict[str, Any], before: dict[str, Any]) -> None:
    """One line a figure: measured, target, reached or missed, and its worst groups."""
    print(f"{'figure':34} {'measured':>10} {'target':>10}  {'':8} worst group (worst of gender x age x race)")
    for key, value in figures.items():
        if not isinstance(value, int | float) or key.startswith(("worst_", "n_", "resolution", "seconds")):
            continue
        target = target_of(key, figures, before)
        said, verdict = "", ""
        if target is not None:
            sign, bound = target
            said = f"{sign} {bound:.4g}"
            verdict = "reached" if (value >= bound if sign == ">=" else value <= bound) else "MISSED"
        worst = ""
        if f"worst_{key}" in figures:
            worst = f"{figures[f'worst_{key}']:.4g} ({figures[f'worst_{key}_group']})"
            if f"worst_crossed_{key}" in figures:
                worst += f"; {figures[f'worst_crossed_{key}']:.4g} ({figures[f'worst_crossed_{key}_group']})"
        print(f"{key:34} {value:10.4g} {said:>10}  {verdict:8} {worst}".rstrip())
    counts = ", ".join(f"{name} {row['n']}" for name, row in figures.get("groups", {}).items())
    if counts:
        print(f"photographs of each group: {counts}")


def main() -> int:
    """Print the table; with --json one object as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=None, help="folder with lfw.tar and its labels")
    parser.add_argument("--models", default="embedded", help="folder with bundle.json and *.safetensors")
    parser.add_argument("--judges", type=Path, default=None, help="folder of the judges' packages")
    parser.add_argument(
        "--cache", type=Path, default=default_cache() / "faces", help="folder of prepared arrays"
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure, by commas")
    parser.add_argument("--rows", type=int, default=None, help="only so many test photographs (a trial)")
    parser.add_argument("--samples", type=int, default=1000, help="people drawn from the prior")
    parser.add_argument("--truncation", type=float, default=None, help="of those people; the demo's without")
    parser.add_argument("--learned", default="lfw.tar", help="archives the models learned from, by commas")
    parser.add_argument("--against", type=Path, default=None, help="JSON of the models to compare with")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    parts = tuple(name for name in given.only.split(",") if name)
    unknown = set(parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {sorted(unknown)[0]}; known: {', '.join(PARTS)}")
    if given.data is None:
        print("only speed and weight: the rest needs --data FOLDER (lfw.tar and lfw_attributes.csv)")
        parts = tuple(name for name in parts if name == "speed")
    before = json.loads(given.against.read_text().strip().splitlines()[-1]) if given.against else {}
    options = Options(
        data=given.data or Path(),
        models=given.models,
        judges=given.judges,
        cache=given.cache,
        rows=given.rows,
        samples=given.samples,
        truncation=given.truncation,
        learned=tuple(given.learned.split(",")),
    )
    started = time.monotonic()
    try:
        figures = Bench(options).measure(parts)
    except SDFlowError as error:
        print(error, file=sys.stderr)
        return 1
    figures["seconds"] = round(time.monotonic() - started, 1)
    print_table(figures, before)
    if given.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
