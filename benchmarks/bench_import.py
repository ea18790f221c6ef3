"""Import time of `flows` and `cli` against `import prefect` alone, in turn (A B A B), each in a new process.

Usage: `python benchmarks/bench_import.py [--rounds 7] [--json]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

FLOWS = "flows.demo, flows.edit, flows.ingest, flows.invert, flows.label, flows.publish, flows.train"
CASES = {"prefect": "import prefect", "flows": f"import {FLOWS}", "cli": "import cli.main"}


def seconds(code: str) -> float:
    """Wall time of a fresh interpreter that runs `code`."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print a table; with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for code in CASES.values():
        seconds(code)  # warm the file cache
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(options.rounds):
        for name, code in CASES.items():
            taken[name].append(seconds(code))
    median = {name: statistics.median(values) for name, values in taken.items()}
    ratios = {f"{name}_ratio": round(median[name] / median["prefect"], 3) for name in ("flows", "cli")}
    for name, value in median.items():
        print(f"{name:8} {value:6.2f} s  {value / median['prefect']:5.2f} x prefect")
    if options.json:
        print(json.dumps({**ratios, "prefect_seconds": round(median["prefect"], 3)}))


if __name__ == "__main__":
    main()
