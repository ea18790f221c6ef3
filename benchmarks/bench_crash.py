"""What is left of nights on an object store that are killed, disturbed, or lose their server.

A real S3 server on this machine and one Prefect server run all the time; every night is a process of its own
from photographs in one bucket to a store in another. Every end is compared with an undisturbed night.

Usage: `python benchmarks/bench_crash.py [--kills 20] [--seeds 1,2,3] [--restarts 3] [--rows 12] [--json]`
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.crashes import Scene, disturb_night, kill_nights, make_scene, restart_server  # noqa: E402
from tests.s3_server import s3_server  # noqa: E402

SHARD_ROWS = 4
_COUNTED = ("rows_lost_or_doubled", "unnamed_shards", "orphans_after_gc")


def added_up(name: str, ends: list[dict[str, Any]]) -> dict[str, Any]:
    """All ends of one kind in a few figures."""
    facts: dict[str, Any] = {
        f"{name}_ends": len(ends),
        f"{name}_identical": sum(bool(end["identical"]) for end in ends),
    }
    return facts | {f"{name}_{what}": sum(int(end[what]) for end in ends) for what in _COUNTED}


def run(scene: Scene, options: argparse.Namespace) -> dict[str, Any]:
    """All three kinds of crash."""
    facts: dict[str, Any] = {"night_seconds": scene.seconds}
    if options.kills:
        ends = kill_nights(scene, options.kills)
        facts |= {"kills": sum(end["kills"] for end in ends), **added_up("killed", ends)}
    if options.seeds:
        ends = []
        for seed in options.seeds.split(","):
            ends.append(disturb_night(scene, int(seed), options.share))
            print(json.dumps(ends[-1]), flush=True)
        facts |= {"seeds": len(ends), **added_up("disturbed", ends)}
        facts |= {"struck": sum(end["struck"] for end in ends), "requests": sum(e["requests"] for e in ends)}
    if options.restarts:
        ends = [restart_server(scene, seed) for seed in range(options.restarts)]
        for end in ends:
            print(json.dumps(end), flush=True)
        facts |= added_up("restarted", ends)
        facts["restarted_first_night_survived"] = sum(end["exit_code"] == 0 for end in ends)
    return facts


def main() -> None:
    """Print the figures; with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from cli.server import prefect_server

    facts: dict[str, Any] = {"cpus": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with s3_server(work / "s3") as server, prefect_server(str(work / "home")):
            os.environ.update(server.environment())
            scene = make_scene(server, work, "crash", options.rows, SHARD_ROWS)
            facts |= {"rows": options.rows, "shard_rows": SHARD_ROWS, **run(scene, options)}
    facts["load_after"] = round(os.getloadavg()[0], 2)
    for name, value in facts.items():
        print(f"{name:32} {value}")
    if options.json:
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
