"""What a night costs when little or nothing is new, and what is left of one that is killed.

One Prefect server runs all the time, so that its start is apart; every night is a process of its own, as
under a scheduler. With --tiny only Prefect and the records are measured, beside networks that are not real.

Usage: `python benchmarks/bench_nightly.py [--rows 5000] [--kills 30] [--json]`
       `python benchmarks/bench_nightly.py --tiny 20000 [--json]`
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.nights import (  # noqa: E402
    kill_once,
    night,
    orphans_after_gc,
    prepare,
    unnamed_shards,
    whole,
    write_people,
    write_policy,
)

MICRO_BATCH = 16
KILL_ROWS, KILL_SHARD = 24, 6


def check_calls(facts: dict[str, Any], new: int, shard_rows: int) -> None:
    """Exactly the new rows went through the networks.

    Raises:
        AssertionError: Naming what was counted.
    """
    part = facts["datasets"][0]
    calls, edits = part["model_calls"], part["edits"]
    batches = sum(
        math.ceil(min(shard_rows, part["new_latents"] - start) / MICRO_BATCH)
        for start in range(0, part["new_latents"], shard_rows)
    )
    found = {name: calls.get(name, 0) for name in ("detector", "encoder", "identity")}
    wanted = {"detector": new, "encoder": batches, "identity": 2 * edits["rendered"]}
    assert part["sources"]["new"] == new and found == wanted, (new, found, wanted, part["sources"])
    assert new or not calls, calls


def bench_shares(store: Path, bundle: str, work: Path, rows: int, repeats: int) -> dict[str, Any]:
    """The first night, then alternately 1 % new and nothing new."""
    from tasks.runtime import store_at

    opened, photos, one = store_at(str(store)), work / "many", max(1, rows // 100)
    write_people(opened, bundle, photos, 0, rows)
    policy = write_policy(work / "many.toml", "many", photos)
    first = night(store, policy)
    check_calls(first, rows, 1000)
    print(
        f"first night  {rows} new: {first['seconds']} s, {first['totals']['model_calls']} calls", flush=True
    )
    some: list[dict[str, Any]] = []
    none: list[dict[str, Any]] = []
    for turn in range(repeats):
        write_people(opened, bundle, photos, rows + turn * one, one)
        some.append(night(store, policy))
        check_calls(some[-1], one, 1000)
        none.append(night(store, policy))
        check_calls(none[-1], 0, 1000)
        print(f"{one} new: {some[-1]['seconds']} s; nothing new: {none[-1]['seconds']} s", flush=True)

    def median(nights: list[dict[str, Any]], name: str) -> float:
        return round(statistics.median(one[name] for one in nights), 2)

    return {
        "rows": rows,
        "first_seconds": first["seconds"],
        "first_process_seconds": round(first["process_seconds"], 2),
        "one_percent_rows": one,
        "one_percent_seconds": median(some, "seconds"),
        "one_percent_share": round(median(some, "seconds") / first["seconds"], 4),
        "nothing_new_seconds": median(none, "seconds"),
        "nothing_new_process_seconds": median(none, "process_seconds"),
        "nothing_new_share": round(median(none, "seconds") / first["seconds"], 4),
        "first_model_calls": first["totals"]["model_calls"],
        "one_percent_model_calls": some[-1]["totals"]["model_calls"],
        "nothing_new_model_calls": none[-1]["totals"]["model_calls"],
    }


def bench_kills(base: Path, bundle: str, work: Path, kills: int) -> dict[str, Any]:
    """Kill nights at random instants and start them again, until enough were killed; compare each end."""
    from tasks.runtime import store_at

    photos, chance = work / "few", random.Random(5)
    write_people(store_at(str(base)), bundle, photos, 50_000, KILL_ROWS)
    policy = write_policy(work / "few.toml", "few", photos)

    def fresh(name: str) -> Path:
        return Path(shutil.copytree(base, work / name, ignore=shutil.ignore_patterns("state", "many")))

    calm = fresh("calm")
    window = night(calm, policy, KILL_SHARD)["seconds"]
    reference, _ = whole(calm, "few")
    killed, ends, identical, wrong, unnamed, left = 0, 0, 0, 0, 0, 0
    while killed < kills:
        store = fresh(f"killed-{ends}")
        while killed < kills and kill_once(store, policy, KILL_SHARD, chance.uniform(0, window)):
            killed += 1
        night(store, policy, KILL_SHARD)
        digests, bad = whole(store, "few")
        identical, wrong, ends = identical + (digests == reference), wrong + bad, ends + 1
        unnamed += len(unnamed_shards(store))
        left += orphans_after_gc(store)
        print(f"{killed} kills, {identical} of {ends} ends identical", flush=True)
        shutil.rmtree(store)
    return {
        "kills": killed,
        "kills_identical": identical == ends,
        "ends": ends,
        "ends_identical": identical,
        "rows_lost_or_doubled": wrong,
        "unnamed_shards": unnamed,
        "orphans_after_gc": left,
    }


def real_row_seconds(store: Any, bundle: str, folder: Path, rows: int = 64) -> dict[str, float]:
    """What a row takes in the real networks, on this machine and now."""
    import numpy as np
    import torch

    from sdflow_core.faces.decode import decode
    from sdflow_core.faces.networks import to_tensor
    from tasks.runtime import networks_of

    write_people(store, bundle, folder, 90_000, rows)
    networks, size = networks_of(store, bundle), networks_of(store, bundle).bundle.resolution
    pictures = [decode(path.read_bytes(), max_pixels=10**8) for path in sorted(folder.iterdir())]
    crops = np.random.default_rng(0).integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    codes = torch.from_numpy(networks.encode(crops))
    work: dict[str, Callable[[], Any]] = {
        "detector": lambda: [networks.detector.find(picture) for picture in pictures],
        "encoder": lambda: networks.encode(crops),
        "generator": lambda: networks.render(codes),
        "labeller": lambda: networks.scores(to_tensor(crops)),
    }
    seconds: dict[str, float] = {}
    for name, call in work.items():
        call()  # opened and warm
        started = time.perf_counter()
        call()
        seconds[name] = (time.perf_counter() - started) / rows
    return seconds


def bench_tiny(store_uri: str, bundle: str, work: Path, rows: int, database: Path) -> dict[str, Any]:
    """Tiny pictures through ingest, invert and label with networks that only take their time."""
    import numpy as np
    from PIL import Image

    import tasks.streams
    from flows.ingest import ingest
    from flows.invert import invert
    from flows.label import label
    from tasks.runtime import networks_from, store_at
    from tests.fakes import FakeNetworks

    per_row = real_row_seconds(store_at(store_uri), bundle, work / "measured")
    (photos := work / "tiny").mkdir()
    chance = np.random.default_rng(0)
    for number in range(rows):
        pixels = chance.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number:06d}.png")
    (consent := work / "tiny.csv").write_text(
        "source,subject,attributes,expires,evidence\n*,n,*,,synthetic\n"
    )
    made: list[FakeNetworks] = []
    stream_seconds = [0.0]

    def fakes(found: Any) -> FakeNetworks:
        made[:] = made or [FakeNetworks(found, per_row)]
        return made[0]

    streaming = tasks.streams.streaming

    @contextmanager
    def timed(*args: Any) -> Generator[Any]:
        started = time.perf_counter()
        try:
            with streaming(*args) as results:
                yield results
        finally:
            stream_seconds[0] += time.perf_counter() - started

    # reading, decoding, networks, cutting and keeping pictures is work on rows and lies side by side in a
    # stream; all that is outside of the streams is charged to Prefect and the records
    tasks.streams.streaming = timed
    os.environ["SDFLOW_SHARD_ROWS"] = "1250"
    runs_before = task_runs(database)
    with networks_from(fakes):
        started = time.perf_counter()
        ingest("tiny", str(photos), str(consent), store_uri)
        invert("tiny", store_uri)
        label("tiny", store_uri)
        total = time.perf_counter() - started
    time.sleep(3)  # the server writes the last states a moment later
    fake = made[0]
    assert fake.rows == dict.fromkeys(per_row, rows), fake.rows
    overhead = total - stream_seconds[0]
    return {
        "tiny_rows": rows,
        "tiny_seconds": round(total, 2),
        "tiny_network_seconds": round(fake.spent, 2),
        "tiny_stream_seconds": round(stream_seconds[0], 2),
        "tiny_overhead_seconds": round(overhead, 2),
        "tiny_overhead_share": round(overhead / total, 4),
        "tiny_task_runs": task_runs(database) - runs_before,
        "tiny_shard_rows": 1250,
        "real_ms_per_row": {name: round(1000 * value, 2) for name, value in per_row.items()},
    }


def task_runs(database: Path) -> int:
    """Task runs that the server knows."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as opened:
        return int(opened.execute("select count(*) from task_run").fetchone()[0])


def main() -> None:
    """Print the figures; with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--training-steps", type=int, default=120)
    parser.add_argument("--tiny", type=int, default=0, help="only this part, with so many rows")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from cli.server import prefect_server, state_folder

    facts: dict[str, Any] = {"cpus": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory() as folder:
        work, store = Path(folder), Path(folder) / "store"
        with prefect_server(str(store)):
            bundle = prepare(str(store), 2 if options.tiny else options.training_steps)
            if options.tiny:
                database = state_folder(str(store)) / "prefect" / "prefect.db"
                facts |= bench_tiny(str(store), bundle, work, options.tiny, database)
            else:
                facts |= bench_kills(store, bundle, work, options.kills) if options.kills else {}
                facts |= (
                    bench_shares(store, bundle, work, options.rows, options.repeats) if options.rows else {}
                )
    facts["load_after"] = round(os.getloadavg()[0], 2)
    for name, value in facts.items():
        print(f"{name:28} {value}")
    if options.json:
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
