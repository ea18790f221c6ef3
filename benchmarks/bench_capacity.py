"""The formula of `sdflow plan` against the simulation: 10^4 to 10^8 pictures, one device to many.

Per size and number of devices, over ingest, invert, label and edit: seconds from start to end (`seconds`, and
`shards` without what one core does alone), lane seconds and requests by the formula, and simulated in three
weathers: `calm` (nothing happens), `usual` (shards differ, few fail, stragglers) and `rough` (heavy tail,
failures, workers that die). Ratios are simulated over formula; the formula knows the failure rate of each
weather and nothing of the rest.

Usage: `python benchmarks/bench_capacity.py [--largest 1e8] [--edits 1] [--device cpu] [--seeds 3] [--json]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sdflow_core.capacity.formula import works  # noqa: E402
from sdflow_core.capacity.prices import Limits, load_prices  # noqa: E402
from sdflow_core.capacity.rates import Rates, load_rates  # noqa: E402
from sdflow_core.capacity.simulation import Chances, simulate  # noqa: E402
from sdflow_core.capacity.workload import Work, Workload, lost_seconds, makespan, whole  # noqa: E402

SIZES = (10**4, 10**5, 10**6, 10**7, 10**8)
DEVICES = (1, 8, 64)
WEATHERS: dict[str, dict[str, float]] = {
    "calm": {},
    "usual": {"failure_rate": 0.01, "spread": 0.15, "straggler_rate": 0.01},
    "rough": {"failure_rate": 0.05, "spread": 0.4, "straggler_rate": 0.05, "crash_seconds": 6 * 3600.0},
}


def formula(stories: dict[str, Work], failure_rate: float, limits: Limits) -> dict[str, float]:
    """Seconds, lane seconds and requests of the busiest prefix, by the formula."""
    ends = [
        makespan(work, failure_rate, put_limit=limits.put_per_second, get_limit=limits.get_per_second)
        for work in stories.values()
    ]
    lanes = 0.0
    for work in stories.values():
        size = min(work.lanes, work.shards)
        held = work.held_seconds * size * (-(-work.shards // size) - 1) / 2
        lost = lost_seconds(work.shard_seconds + held, failure_rate)
        lanes += (work.shards - 1) * (work.shard_seconds + held + lost)
        lanes += work.seconds_of(work.shards - 1, 0) + held + lost
    attempts = 1 + failure_rate / 2 + failure_rate**2 / 2
    puts = sum(work.puts * (work.shards - 1 + work.last_share) * attempts for work in stories.values())
    return {"seconds": sum(seconds for seconds, _ in ends), "lane_seconds": lanes, "puts": puts}


def simulated(stories: dict[str, Work], chances: Chances) -> dict[str, float]:
    """The same, simulated once."""
    outs = [simulate(work, chances) for work in stories.values()]
    return {
        "seconds": sum(out.seconds for out in outs),
        "lane_seconds": sum(out.busy_seconds for out in outs),
        "puts": sum(out.puts for out in outs),
    }


def compare(load: Workload, rates: Rates, limits: Limits, seeds: int) -> list[dict[str, Any]]:
    """One size and number of devices in all weathers."""
    stories = works(load, rates)
    serial = sum(work.before_seconds + work.after_seconds for work in stories.values())
    rows: list[dict[str, Any]] = []
    for weather, chance in WEATHERS.items():
        started = time.perf_counter()
        told = formula(stories, chance.get("failure_rate", 0.0), limits)
        bounds = {"put_limit": limits.put_per_second, "get_limit": limits.get_per_second}
        runs = [
            simulated(stories, Chances.model_validate({**chance, **bounds, "seed": seed}))
            for seed in range(1 if weather == "calm" else seeds)
        ]
        found = {name: statistics.mean(run[name] for run in runs) for name in told}
        rows.append(
            {
                "images": load.images,
                "devices": load.devices,
                "weather": weather,
                "shards_a_lane": round(max(work.shards / work.lanes for work in stories.values()), 2),
                "formula_seconds": round(told["seconds"], 1),
                "simulated_seconds": round(found["seconds"], 1),
                "seconds_ratio": round(found["seconds"] / told["seconds"], 4),
                "shards_ratio": round((found["seconds"] - serial) / (told["seconds"] - serial), 4),
                "serial_share": round(serial / told["seconds"], 4),
                "lane_ratio": round(found["lane_seconds"] / told["lane_seconds"], 4),
                "requests_ratio": round(found["puts"] / told["puts"], 4) if told["puts"] else None,
                "took_seconds": round(time.perf_counter() - started, 2),
            }
        )
    return rows


def main() -> None:
    """Print the table; with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--largest", default="1e8")
    parser.add_argument("--edits", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shard-rows", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rates, limits, largest = load_rates(), load_prices().limits, whole(options.largest, "--largest")
    rows: list[dict[str, Any]] = []
    for images in (size for size in SIZES if size <= largest):
        for devices in DEVICES:
            load = Workload(
                images=images,
                edits=options.edits,
                device=options.device,
                devices=devices,
                shard_rows=options.shard_rows,
            )
            for row in compare(load, rates, limits, options.seeds):
                rows.append(row)
                print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)
    calm = [abs(row["shards_ratio"] - 1) for row in rows if row["weather"] == "calm"]
    usual = [abs(row["shards_ratio"] - 1) for row in rows if row["weather"] == "usual"]
    full = [
        abs(r["seconds_ratio"] - 1) for r in rows if r["weather"] == "usual" and r["shards_a_lane"] >= 100
    ]
    facts = {
        "device": options.device,
        "edits": options.edits,
        "shard_rows": options.shard_rows,
        "worst_calm": round(max(calm), 4),
        "worst_usual": round(max(usual), 4),
        "worst_usual_of_100_shards_a_lane": round(max(full), 4) if full else None,
        "rows": rows,
    }
    for name in ("worst_calm", "worst_usual", "worst_usual_of_100_shards_a_lane"):
        print(f"{name:36} {facts[name]}")
    if options.json:
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
