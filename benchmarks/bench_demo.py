"""The demo twice in a new store: figures of the first run, model calls and time of the second.

Usage: `python benchmarks/bench_demo.py [--images 200] [--json]`
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def demo(store: Path, images: int) -> tuple[dict[str, Any], str]:
    """One run of the command: its JSON object, and what reached the error screen."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "--store", str(store), "--json", "demo", "--images", str(images)],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stderr


def main() -> None:
    """Print the figures; with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        first, noise = demo(store, options.images)
        second, more_noise = demo(store, options.images)
    facts = {
        "seconds": first["seconds"],
        "peak_mb": first["peak_mb"],
        "accuracy": first["edits"]["accuracy"],
        "judge_accuracy": first["edits"]["judge_accuracy"],
        "identity": first["edits"]["identity"],
        "preservation": first["edits"]["preservation"],
        "status": first["edits"]["status"],
        "second_seconds": second["seconds"],
        "second_model_calls": second["model_calls"],
        "stderr_bytes": len(noise) + len(more_noise),
    }
    for name, value in facts.items():
        print(f"{name:20} {value}")
    for name, row in first["edits"]["attributes"].items():
        print(f"{name:20} {row}")
    if options.json:
        print(json.dumps({**facts, "attributes": first["edits"]["attributes"]}))


if __name__ == "__main__":
    main()
