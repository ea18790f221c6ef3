"""The rates that `sdflow plan` computes with, measured on this machine with the embedded models.

CPU seconds a row of every step, what growing tables cost, requests and bytes of every story in front of a
real S3 server, bytes at rest, Prefect's overhead, round trips of small objects, memory. Writes
`benchmarks/rates.json` and the copy that ships in `sdflow_core/capacity`.

Usage: `python benchmarks/measure_rates.py [--rows 96] [--table-rows 20000] [--out FILE] [--json]`
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

from benchmarks import rates_growth, rates_requests, rates_seconds  # noqa: E402
from benchmarks.counting_proxy import CountingProxy  # noqa: E402

OUT = ROOT / "benchmarks" / "rates.json"
SHIPPED = ROOT / "sdflow_core" / "capacity" / "rates.json"
PHOTOS_FOR_REQUESTS = sum(rows for _, _, rows in rates_requests.FORMS)
DEFAULT_TRAINING_STEPS = 800
# Nobody has measured this one. Networks as small as the embedded ones are bound by the start of kernels, not
# by arithmetic, so that a large GPU is far from its peak; a factor of 30 over one core is a cautious guess.
ASSUMED_DEVICES = {
    "h200": {
        "speedup": 30.0,
        "source": "assumed",
        "note": "nobody measured it: networks taken as 30 times as fast as one core of the measured CPU, all "
        "other work as there; measure with SDFLOW_DEVICE=cuda, or pass --speedup",
    }
}


def prefect_task_seconds(count: int = 150) -> float:
    """Seconds a task run of nothing, submitted as shard tasks are."""
    from prefect import flow, task

    @task(persist_result=False)
    def nothing(number: int) -> int:
        return number

    def run(count: int) -> float:
        @flow(name=f"nothing {count}", persist_result=False)
        def many() -> int:
            futures = [nothing.submit(number) for number in range(count)]
            return sum(future.result() for future in futures)

        started = time.perf_counter()
        many()
        return time.perf_counter() - started

    run(5)
    few = run(10)
    return max((run(count) - few) / (count - 10), 0.0)


def small_objects(store_uri: str, count: int = 150) -> dict[str, float]:
    """Seconds a request of a small object, one after another, and seconds a megabyte of a large one."""
    from sdflow_core.records.store import open_store

    store = open_store(store_uri)

    def each(call: Callable[[int], Any], times: int = count) -> float:
        call(0)
        taken: list[float] = []
        for number in range(1, times):
            started = time.perf_counter()
            call(number)
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    put = each(lambda n: store.create(f"small/{n}", os.urandom(6000)))
    get = each(lambda n: store.read(f"small/{n}"))
    store.put("large", os.urandom(16 * 10**6))
    large = each(lambda n: store.read("large"), 5)
    return {"put": put, "get": get, "megabyte": max(large - get, 0.0) / 16}


def rate(value: float, note: str, source: str = "measured", unit: str = "s") -> dict[str, Any]:
    """One rate as the file holds it."""
    return {"value": float(f"{value:.4g}"), "unit": unit, "source": source, "note": note}


def seconds(found: dict[str, float], rows: int) -> dict[str, Any]:
    """The rates of time, each with how it was found."""
    whole = f"CPU s a row of a whole shard task of {rows} rows on one core"
    notes = {
        "ingest.host": f"{whole}: read, hash, decode, detect, align, PNG, records",
        "invert.device": f"{whole}: encoder and generator",
        "invert.host": f"{whole}: all that is no network",
        "label.device": f"{whole}: labeller",
        "label.host": f"{whole}: all that is no network",
        "edit.device": f"{whole}, an edit: flow, generator, labeller, judge, strengths searched "
        f"({found['edit.renders']:.1f} renderings an edit)",
        "edit.host": f"{whole}, an edit: identity network (always on the CPU), two PNGs, records",
        "sheet.host": "CPU s an edit that waits: its pictures on overview and pages",
        "decide.host": "CPU s an edit that is decided: its picture is read again",
        "publish.host": "CPU s a picture that is released: read twice, written once",
        "plan.ingest": "CPU s a listed file, folder of empty files",
        "plan.invert": "CPU s a face",
        "plan.label": "CPU s a face; taken from the plan to invert, which is the same code",
        "plan.edit": "CPU s an edit",
        "shard.host": "CPU s a shard task of no rows: tables, journal, lineage",
        "held.ingest": "CPU s a shard task and row that `sources` holds: verdicts in force are read anew",
        "held.commit": "CPU s a commit and row that the table holds: what is held is counted and hashed",
        "held.edit": "CPU s a shard task and row that `latents` holds: all codes are read",
        "decode.megapixel": "CPU s, JPEG of 2048 px against 512 px",
        "detect.large": "CPU s more for a picture of 640 px and more than for the measured ones",
        "prefect.task": "wall s a task run of nothing, SQLite server on the same machine",
        "story.start": "wall s of the quickest story as a process: start of Python, imports, bundle, journal",
        "s3.request": "wall s of a small PUT or GET, the slower of the two, server on the same machine: "
        "a real one is 10 to 100 ms away",
        "s3.megabyte": "wall s of 10^6 bytes of a large object, server on the same machine",
    }  # fmt: skip
    made = {name: rate(found[name], note) for name, note in notes.items()}
    made["plan.label"]["source"] = "extrapolated"
    made["train.device"] = rate(
        found["train.step"] * DEFAULT_TRAINING_STEPS,
        f"{DEFAULT_TRAINING_STEPS} steps, from the time of a short training",
        "extrapolated",
    )
    return made


def measure(rows: int, table_rows: int, training_steps: int) -> dict[str, Any]:
    """Everything, in one temporary folder."""
    from cli.server import prefect_server
    from sdflow_core.records.costs import seconds_a_row
    from tasks.runtime import store_at
    from tests.nights import prepare, write_people
    from tests.s3_server import s3_server

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="sdflow-rates-") as folder:
        work, base = Path(folder), Path(folder) / "base"
        with prefect_server(str(base)):
            bundle = prepare(str(base), training_steps, people=24, prior_samples=200)
            found["train.step"] = seconds_a_row(store_at(str(base)), "learn")["train"] / training_steps
            print(f"prepared, {training_steps} steps of training", flush=True)
            found["prefect.task"] = prefect_task_seconds()
            write_people(store_at(str(base)), bundle, work / "photos", 0, max(rows, PHOTOS_FOR_REQUESTS))
            photos = sorted((work / "photos").iterdir())
            with s3_server(work / "s3") as server:
                os.environ.update(server.environment())
                objects = small_objects("s3://store/small-objects")
                with CountingProxy(server.endpoint, "store") as proxy:
                    bench = rates_requests.Bench(server, proxy, base, work)
                    told = rates_requests.measure(bench, photos)
        found |= {"s3.request": max(objects["put"], objects["get"]), "s3.megabyte": objects["megabyte"]}
        found["story.start"] = told.start_seconds
        found |= rates_seconds.shard_tasks(str(base), bundle, photos[:rows], work)
        print("shard tasks done", flush=True)
        few = max(table_rows // 10, 100)
        found |= rates_growth.growing(str(base), bundle, few, table_rows)
        again = rates_growth.read_again(str(base), bundle, photos, work)
        found |= {name: found[name] * share for name, share in again.items()}
        found["plan.ingest"] = rates_growth.plan_ingest_row(str(base), bundle, work)
        memory = rates_growth.memory(str(base), bundle, few, table_rows)
        parts = rates_seconds.parts(store_at(str(base)), bundle, photos)
        found |= {name: parts.pop(name) for name in ("decode.megapixel", "detect.large")}
    counted = rates_requests.fits(told)
    return {
        "seconds": seconds(found, rows),
        "requests": counted,
        "stored": rates_requests.stored_fits(told),
        "memory": {
            name: rate(value, f"peak that Python allocates, over {table_rows} rows", unit="bytes a row")
            for name, value in memory.items()
        },
        "parts": {
            name: rate(value, "CPU s a row, one core") for name, value in parts.items() if name != "image_px"
        }
        | {f"s3.{name}": rate(objects[name], "wall s, one after another") for name in ("put", "get")},
        "image_px": int(parts["image_px"]),
        "image_bytes": told.photo_bytes,
        "check": {
            "requests_of_one_more_edit_run": rates_requests.one_more_edit_run(told, counted),
            "waiting_share": round(told.waiting, 3),
            "read_again": again,
        },
    }


def versions() -> dict[str, str]:
    """Of what the rates depend on."""
    names = (
        "torch",
        "numpy",
        "pyarrow",
        "pillow",
        "opencv-python-headless",
        "onnxruntime",
        "prefect",
        "s3fs",
    )
    known = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **known}


def machine() -> str:
    """The processor's name."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {platform.system()} {platform.machine()}"


def main() -> None:
    """Measure and write; with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=96, help="of the large shard, at least 32")
    parser.add_argument("--table-rows", type=int, default=20_000)
    parser.add_argument("--training-steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=None, help="instead of both places")
    parser.add_argument("--remark", default="", help="kept with the rates")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.rows < 32 or options.table_rows < 1000 or options.training_steps < 1:
        parser.error("--rows is at least 32, --table-rows at least 1000, --training-steps at least 1")
    started, before = time.monotonic(), os.getloadavg()[0]
    found = measure(options.rows, options.table_rows, options.training_steps)
    words = (
        f"--rows {options.rows} --table-rows {options.table_rows} --training-steps {options.training_steps}"
    )
    document = {
        "format": 1,
        "measured": {
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"python benchmarks/measure_rates.py {words}",
            "machine": machine(),
            "cpus": os.cpu_count() or 1,
            "load_before": round(before, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "versions": versions(),
            "rows": options.rows,
            "remark": options.remark,
        },
        "models": "embedded: 64 px, L = 10, D = 128",
        "devices": {
            "cpu": {"speedup": 1.0, "source": "measured", "note": "one core of the measured machine"},
            **ASSUMED_DEVICES,
        },
        **found,
    }
    from sdflow_core.capacity.rates import Rates

    document["measured"] |= {name: document.pop(name) for name in ("image_px", "image_bytes")}
    Rates.model_validate(document)
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    for path in [options.out] if options.out else [OUT, SHIPPED]:
        path.write_text(text)
    for name, one in document["seconds"].items():
        print(f"{name:20} {one['value']:<12} {one['source']:13} {one['note']}")
    for name, one in document["parts"].items():
        print(f"{name:20} {one['value']}")
    print(f"{time.monotonic() - started:.0f} s")
    if options.json:
        print(json.dumps(document))


if __name__ == "__main__":
    main()
