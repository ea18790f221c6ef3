"""The table of docs/scaling.md: `sdflow plan` at five sizes, as Markdown.

Usage: `python benchmarks/scaling_table.py [--edits 3] [--json]`
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIZES = ("1e4", "1e5", "1e6", "1e7", "1e8")
Cell = Callable[[dict[str, Any], dict[str, Any]], str]


def plan(*words: str) -> dict[str, Any]:
    """What `sdflow plan` says, as a document."""
    command = [sys.executable, "-m", "cli.main", "plan", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def rows() -> dict[str, Cell]:
    """Name of a row -> what stands in a cell, from a plan and its growth."""
    from cli.plan import _bytes, _time

    def story(name: str) -> Cell:
        return lambda p, _: _time(p["stories"][name]["seconds"])

    def money(name: str) -> Cell:
        return lambda p, _: f"{p['total']['money'][name]:,.{0 if p['total']['money'][name] >= 10 else 2}f}"

    return {
        **{f"{name}, time": story(name) for name in ("ingest", "invert", "label", "edit", "publish")},
        "of which one core alone: plans": lambda _, g: _time(sum(g["planning_seconds"].values())),
        "night, nothing new": story("nothing_new"),
        "night, 1 % new": story("one_percent"),
        "refresh": story("refresh"),
        "edit shard: first / last": lambda _, g: (
            f"{_time(g['edit_shard_first_seconds'])} / {_time(g['edit_shard_last_seconds'])}"
        ),
        "journal entries": lambda _, g: number(g["journal_entries"]),
        "task runs": lambda _, g: number(g["task_runs"]),
        "lineage objects": lambda _, g: number(g["lineage_objects"]),
        "memory: index of all tables": lambda _, g: _bytes(g["index_memory_bytes"]),
        "memory: plan of the edits": lambda _, g: _bytes(g["plan_memory_bytes"]),
        "record of one edit run": lambda _, g: _bytes(g["edit_run_record_bytes"]),
        "objects": lambda p, _: number(p["total"]["objects"]),
        "at rest": lambda p, _: _bytes(sum(p["total"]["stored"].values())),
        "PUT / GET": lambda p, _: " / ".join(number(p["total"]["requests"][kind]) for kind in ("PUT", "GET")),
        "requests of a night of nothing new": lambda p, _: number(
            sum(p["stories"]["nothing_new"]["requests"].values())
        ),
        "LIST of it": lambda p, _: number(p["stories"]["nothing_new"]["requests"]["LIST"]),
        "people, at 3 s an edit": lambda _, g: f"{g['review_person_hours']:,.0f} h",
        "money: compute": money("compute"),
        "money: storage and month": money("storage"),
        "money: requests": money("requests"),
        "money: people": money("people"),
    }


def number(value: float) -> str:
    """1234567 -> 1.23 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def main() -> None:
    """Print the table; with --json one object as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edits", default="3")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    plans = {size: plan("--images", size, "--edits", options.edits) for size in SIZES}
    table = {
        name: [cell(found, found["growth"]) for found in plans.values()] for name, cell in rows().items()
    }
    print("| | " + " | ".join(f"10^{size[2:]}" for size in SIZES) + " |\n|---|" + "---|" * len(SIZES))
    for name, cells in table.items():
        print(f"| {name} | " + " | ".join(cells) + " |")
    if options.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()
