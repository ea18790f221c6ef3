"""Editors compared where they succeed equally often, on people that none of them has seen.

Every attribute of every held-out person is flipped against its own prediction at six strengths, found on
training codes; gates and blending are off, failed edits count. Preservation, identity and leakage are read
where 90 and 95 % of the edits succeed, as the embedded judge sees it (primary; it learned from other people
than the labeller) and as the labeller sees it. Identity is judged by dlib's ResNet, which had no part in any
training; SFace stands beside it, and taught the edit map. With --data the held-out people are photographs of
LFW's test people (research only, never shown); without, people drawn anew from the embedded prior.

Everything trained and measured is kept in the work folder: a killed run goes on where it stopped, and a run
for more images or seeds computes what is new. `--quick` is a trial of the machinery and says nothing about
quality.

Usage: `python benchmarks/bench_editors.py [--data FOLDER] [--rows top,ours,baseline,ablation | NAME ..]
       [--seeds 3] [--images 240] [--work FOLDER] [--paper-steps N] [--quick] [--json]`
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

from benchmarks.editors.ceiling import ceiling  # noqa: E402
from benchmarks.editors.figures import figures_of  # noqa: E402
from benchmarks.editors.material import Material  # noqa: E402
from benchmarks.editors.measure import costs, measured, reference_of, sources_described  # noqa: E402
from benchmarks.editors.options import QUICK, Budget, Options  # noqa: E402
from benchmarks.editors.report import draw, print_all, print_ceiling  # noqa: E402
from benchmarks.editors.rows import ROWS, Row, trained  # noqa: E402
from benchmarks.judges.fetch import default_cache  # noqa: E402
from sdflow_core.records.errors import SDFlowError  # noqa: E402

GROUPS = ("top", "ours", "baseline", "ablation")


def chosen(asked: str) -> list[Row]:
    """Rows by the names of groups or of rows.

    Raises:
        KeyError: Neither a group nor a row.
    """
    out: list[Row] = []
    alone = any(row.name == asked.strip() for row in ROWS)  # names hold commas
    for word in (part.strip() for part in asked.split(";" if ";" in asked or alone else ",") if part.strip()):
        found = [row for row in ROWS if word in (row.group, row.name)]
        if not found:
            raise KeyError(word)
        out += [row for row in found if row not in out]
    return [row for row in ROWS if row in out]


def run(material: Material, rows: list[Row], seeds: int) -> dict[str, list[dict[str, Any]]]:
    """Train and measure; row -> figures of each seed."""
    out: dict[str, list[dict[str, Any]]] = {}
    sources, reference = sources_described(material), reference_of(material)
    for seed in range(seeds):  # first all rows once: a table stands as early as can be
        for row in rows:
            if seed and row.group != "top":
                continue
            ready = trained(row, material, seed)
            name = f"{row.name}, seed {seed}"
            found = measured(material, ready.editor, ready.digest, name)
            figures = figures_of(found, material.tracked, sources, reference)
            figures |= {"seed": seed, "cost": costs(material, ready.editor)}
            figures["training_seconds"] = ready.seconds
            out.setdefault(row.name, []).append(figures)
    return out


def main() -> int:
    """Print the tables; with --json one object as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=None, help="folder with lfw.tar and its labels")
    parser.add_argument("--judges", type=Path, default=None, help="folder of the judges' packages")
    parser.add_argument("--cache", type=Path, default=default_cache() / "faces", help="prepared photographs")
    parser.add_argument("--work", type=Path, default=default_cache() / "editors", help="trained and measured")
    parser.add_argument(
        "--rows",
        default=",".join(GROUPS),
        help=f"groups ({', '.join(GROUPS)}) or names; names with commas are parted by semicolons",
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the top rows")
    parser.add_argument("--images", type=int, default=None, help="held-out people")
    parser.add_argument("--samples", type=int, default=None, help="people drawn from the prior, to train on")
    parser.add_argument("--real", type=int, default=None, help="photographs to train on")
    parser.add_argument("--flow-steps", type=int, default=None, help="of our flow")
    parser.add_argument("--paper-steps", type=int, default=None, help="of SDFlow as published")
    parser.add_argument("--quick", action="store_true", help="a trial of the machinery")
    parser.add_argument("--without", default="", help="sface,faces: observers to leave out")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        rows = chosen(given.rows)
    except KeyError as error:
        parser.error(f"unknown row {error}; known: {', '.join(GROUPS)}; {'; '.join(r.name for r in ROWS)}")
    numbers = {
        "images": given.images,
        "samples": given.samples,
        "real": given.real,
        "flow_steps": given.flow_steps,
        "published_steps": given.paper_steps,
    }
    base = QUICK if given.quick else Budget()
    budget = Budget(**(base.model_dump() | {k: v for k, v in numbers.items() if v is not None}))
    left_out = {name for name in given.without.split(",") if name}
    options = Options(
        data=given.data,
        judges=given.judges,
        cache=given.cache,
        work=given.work,
        budget=budget,
        identity="sface" not in left_out,
        detector="faces" not in left_out,
    )
    started = time.monotonic()
    try:
        material = Material(options, lambda text: print(text, file=sys.stderr, flush=True))
        results = run(material, rows, given.seeds)
        natural = ceiling(material) if given.data is not None else {}
    except SDFlowError as error:
        print(error, file=sys.stderr)
        return 1
    print(material.describe())
    print("budget: " + ", ".join(f"{name} {value}" for name, value in budget.model_dump().items()))
    tables = print_all(results, [row.name for row in rows if row.group == "top"], material.tracked)
    if natural:
        print_ceiling(natural)
    files = [path for reader in ("judge", "labeller") for path in draw(results, given.work / "plots", reader)]
    print("\nplots: " + ", ".join(str(path) for path in files))
    if given.json:
        document = {"budget": budget.model_dump(), "tables": tables, "rows": results, "ceiling": natural}
        print(json.dumps(document | {"seconds": round(time.monotonic() - started, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
