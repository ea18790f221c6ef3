"""`stale` over many rows: a dataset made by hand, an encoder promoted over another, fresh processes.

Usage: `python benchmarks/bench_stale.py [--rows 100000] [--rounds 3] [--json]`

Rows are those of each table: sources, faces, latents (without codes) and labels hold as many.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from sdflow_core.records.keys import row_key, sha256_hex
from sdflow_core.records.lineage import save_recipe
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table
from sdflow_core.weights.model_store import Bundle, Bundles
from tasks.recipes import wanted

SHARD_ROWS = 1000
OLD = Bundle(
    generator="g" * 64,
    encoder="1" * 64,
    labeller="b" * 64,
    detector="d" * 64,
    template_scale=0.7,
    resolution=64,
    attributes=("smiling",),
)
# Timed inside: starting Python and importing is the same for every command.
PROBE = """
import json, sys, time
from sdflow_core.records.stale import stale
from sdflow_core.records.store import open_store
from sdflow_core.weights.model_store import Bundles
from tasks.recipes import wanted
store = open_store(sys.argv[1])
bundle = Bundles(store).current()
recipes = wanted(bundle)
taken = []
for _ in range(2):
    started = time.perf_counter()
    found = stale(store, "people", recipes, bundle)
    taken.append(time.perf_counter() - started)
print(json.dumps({"first": taken[0], "again": taken[1], "stale": found.step("invert").stale,
                  "current": found.step("label").held}))
"""


def fill(store: Store, rows: int) -> None:
    """All tables of one dataset as the old bundle would have left them."""
    recipes = {
        name: save_recipe(store, doc) for name, doc in wanted(OLD).items() if doc["config"] is not None
    }

    for start in range(0, rows, SHARD_ROWS):
        numbers = range(start, min(start + SHARD_ROWS, rows))
        images = [sha256_hex(f"image {n}".encode()) for n in numbers]
        faces = [f"{image}#0" for image in images]
        keys = [row_key(recipes["ingest"], [face]) for face in faces]
        sources = [sha256_hex(f"source {n}".encode()) for n in numbers]
        more = {
            "source_id": sources,
            "uri": [f"store:photos/{n}.jpg" for n in numbers],
            "face_id": faces,
            "consent_expires": [""] * len(faces),
        }
        _commit(store, "faces", recipes["ingest"], [[face] for face in faces], {"face_id": faces})
        _commit(store, "sources", recipes["ingest"], [[source, "c"] for source in sources], more)
        _commit(store, "latents", recipes["invert"], [[key] for key in keys], {"face_id": faces})
        _commit(store, "labels", recipes["label"], [[key] for key in keys], {"face_id": faces})


def _commit(store: Store, table: str, recipe: str, inputs: list[list[str]], more: dict[str, Any]) -> None:
    count = len(inputs)
    columns = {
        "row_key": [row_key(recipe, given) for given in inputs],
        "recipe": [recipe] * count,
        "status": ["kept"] * count,
        "inputs": inputs,
        **more,
    }
    Table(store, "people", table).commit(pa.table(columns), run=f"run-{table}")


def main() -> None:
    """Print the figures; with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "store")
        store = open_store(uri)
        fill(store, options.rows)
        Bundles(store).promote(OLD, "bench", "")
        Bundles(store).promote(OLD.model_copy(update={"encoder": "2" * 64}), "bench", "another encoder")
        found: list[dict[str, Any]] = []
        for _ in range(options.rounds):
            done = subprocess.run(
                [sys.executable, "-c", PROBE, uri],
                cwd=Path(__file__).resolve().parents[1],
                capture_output=True,
                text=True,
                check=True,
            )
            found.append(json.loads(done.stdout))
    assert all(item["stale"] == options.rows == item["current"] for item in found)
    facts = {
        "rows": options.rows,
        "stale_seconds": round(statistics.median(item["first"] for item in found), 3),
        "stale_again_seconds": round(statistics.median(item["again"] for item in found), 3),
    }
    for name, value in facts.items():
        print(f"{name:22} {value}")
    if options.json:
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
