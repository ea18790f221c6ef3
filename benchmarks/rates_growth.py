"""What grows with a table: seconds and memory of planning, of commits, of what shard tasks read again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.rates_seconds import REQUEST, ROOT, best, slope


def read_again(store: str, bundle: str, photos: list[Path], work: Path) -> dict[str, float]:
    """Share of the rows that its table holds which a shard task reads: 0 where only its own."""
    from sdflow_core.records.tables import Table
    from tasks.edit import edit_shard
    from tasks.edit_plan import edit_config, plan_edit, variants_of
    from tasks.ingest import ingest_shard
    from tasks.ingest_plan import plan_ingest
    from tasks.latents import invert_shard, plan_invert
    from tasks.step import Job

    read, seen = Table.read, dict.fromkeys(("sources", "latents"), 0)

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        rows = read(self, *args, **kwargs)
        if self.name in seen:
            seen[self.name] += rows.num_rows
        return rows

    (folder := work / "shape").mkdir()
    for path in photos[:16]:
        (folder / path.name).write_bytes(path.read_bytes() + b"shape")
    job, settings = Job(store=store, dataset="shape", bundle=bundle, parent="measure"), edit_config(None)
    kept, os.environ["SDFLOW_SHARD_ROWS"] = os.environ.get("SDFLOW_SHARD_ROWS"), "8"
    try:
        shards = plan_ingest.fn(job, str(folder), str(work / "consent.csv")).shards
        ingest_shard.fn(job, shards[0])
        Table.read = counted
        ingest_shard.fn(job, shards[1])
        for shard in plan_invert.fn(job).shards:
            invert_shard.fn(job, shard)
        plan = plan_edit.fn(job, variants_of([dict(REQUEST)]), settings)
        seen["latents"] = 0
        edit_shard.fn(job, plan.shards.shards[0], settings)
    finally:
        Table.read = read
        os.environ.pop("SDFLOW_SHARD_ROWS")
        if kept is not None:
            os.environ["SDFLOW_SHARD_ROWS"] = kept
    return {
        "held.ingest": min(seen["sources"] / 8, 1.0),
        "held.edit": min(max(seen["latents"] - 8, 0) / 8, 1.0),
    }


def fill(store: Any, dataset: str, rows: int, bundle: Any, shard_rows: int = 1000) -> None:
    """Sources, faces and latents as the stories would leave them; nothing else."""
    from sdflow_core.records.keys import row_key, sha256_hex
    from sdflow_core.records.tables import Table, wplus_column
    from tasks import recipes
    from tasks.ingest import _FACES, _SOURCES

    of_ingest, of_invert = recipes.ingest(bundle).key, recipes.invert(bundle).key
    codes = np.random.default_rng(0).standard_normal((shard_rows, 10, 128)).astype(np.float32)
    for start in range(0, rows, shard_rows):
        sources, faces, keys = [], [], []
        for number in range(start, min(start + shard_rows, rows)):
            image = sha256_hex(f"{dataset} {number}".encode())
            name, face = f"{number:08d}.jpg", f"{image}#0"
            plain = {"recipe": of_ingest, "status": "kept", "reason": "", "image_id": image, "face_id": face}
            sources.append(
                {
                    **plain,
                    "row_key": row_key(of_ingest, [image, "c"]),
                    "inputs": [image, "c"],
                    "source_id": image,
                    "name": name,
                    "uri": f"s3://photos/{name}",
                    "version": image,
                    "size_bytes": 1,
                    "mtime_ns": 1,
                    "subject": image,
                    "consent": "c" * 64,
                    "consent_attributes": ["*"],
                    "consent_expires": "",
                }
            )
            key = row_key(of_ingest, [face])
            faces.append(
                {
                    **plain,
                    "row_key": key,
                    "inputs": [face],
                    "quad": [0.0] * 8,
                    "points": [0.0] * 10,
                    "crop": f"private/crops/{of_ingest[:16]}/{image}-0.png",
                    "crop_sha256": image,
                    "score": 1.0,
                }
            )
            keys.append((key, face))
        Table(store, dataset, "faces").commit(pa.Table.from_pylist(faces, _FACES), run="fill")
        Table(store, dataset, "sources").commit(pa.Table.from_pylist(sources, _SOURCES), run="fill")
        columns = [
            pa.array([row_key(of_invert, [key]) for key, _ in keys]),
            pa.array([of_invert] * len(keys)),
            pa.array(["kept"] * len(keys)),
            pa.array([[key] for key, _ in keys], pa.list_(pa.string())),
            pa.array([face for _, face in keys]),
            wplus_column(codes[: len(keys)]),
        ]
        names = ["row_key", "recipe", "status", "inputs", "face_id", "w_plus"]
        Table(store, dataset, "latents").commit(pa.table(columns, names=names), run="fill")


def growing(store: str, bundle: str, few: int, many: int) -> dict[str, float]:
    """What a shard task and a plan cost more, for every row that its tables hold already."""
    from sdflow_core.records.keys import row_key
    from sdflow_core.records.store import open_store
    from sdflow_core.records.tables import Table
    from tasks import recipes
    from tasks.edit_plan import edit_config, plan_edit, variants_of
    from tasks.ingest_plan import current_verdicts
    from tasks.latents import plan_label
    from tasks.runtime import load_bundle
    from tasks.step import Job

    opened = open_store(store)
    models = load_bundle(opened, bundle)
    of_ingest, of_invert = recipes.ingest(models).key, recipes.invert(models).key
    seen: dict[str, list[float]] = {}
    for rows in (few, many):
        dataset = f"grown-{rows}"
        fill(opened, dataset, rows, models)
        sources, faces, latents = (Table(opened, dataset, name) for name in ("sources", "faces", "latents"))
        job = Job(store=store, dataset=dataset, bundle=bundle, parent="measure")
        turn = iter(range(100))

        def commit(table: Any = faces, turn: Any = turn) -> None:
            key = row_key(of_ingest, [f"new {next(turn)}"])
            table.commit(
                pa.table({"row_key": [key], "recipe": [of_ingest], "status": ["kept"], "uri": [key]}),
                run="x",
            )

        def verdicts(table: Any = sources) -> None:
            current_verdicts(table, of_ingest)
            table.held(of_ingest)

        def codes(table: Any = latents) -> None:
            table.read(recipe=of_invert, columns=["row_key", "w_plus"], statuses=["kept"])

        def label(job: Job = job) -> None:
            plan_label.fn(job)

        def edit(job: Job = job) -> None:
            plan_edit.fn(job, variants_of([dict(REQUEST)]), edit_config(None))

        calls = {
            "held.ingest": verdicts,
            "held.edit": codes,
            "plan.invert": label,
            "plan.edit": edit,
            "held.commit": commit,  # last: its rows lack what the others read
        }
        for name, call in calls.items():
            call()
            seen.setdefault(name, []).append(best(call))
    found = {name: slope(small, large, few, many) for name, (small, large) in seen.items()}
    # an ingest shard commits to faces and sources, and a plan to invert is one to label
    return {**found, "plan.label": found["plan.invert"]}


def plan_ingest_row(store: str, bundle: str, work: Path, few: int = 500, many: int = 3000) -> float:
    """Seconds a listed file of planning an ingest."""
    from tasks.ingest_plan import plan_ingest
    from tasks.step import Job

    seconds: list[float] = []
    for rows in (few, many):
        (folder := work / f"listed-{rows}").mkdir()
        for number in range(rows):
            (folder / f"{number:06d}.jpg").write_bytes(b"x")
        job = Job(store=store, dataset=f"listed-{rows}", bundle=bundle, parent="measure")
        consent = str(work / "consent.csv")
        seconds.append(best(lambda j=job, f=folder, c=consent: plan_ingest.fn(j, str(f), c)))
    return slope(seconds[0], seconds[1], few, many)


# Traced, not the size of the process: that one has its peak while torch is loaded.
_INDEX = """
import sys, tracemalloc
from sdflow_core.records.store import open_store
from sdflow_core.records.tables import Table
store = open_store(sys.argv[1])
Table(store, "grown-" + sys.argv[2], "faces").recipes()
tracemalloc.start()
held = Table(store, "grown-" + sys.argv[3], "faces").held()
print(tracemalloc.get_traced_memory()[1] / len(held))
"""


def memory(store: str, bundle: str, few: int, many: int) -> dict[str, float]:
    """Bytes of memory a row: of a table's index, and of a plan in the making (peak)."""
    plan = _INDEX.replace(
        "tracemalloc.start", "import tasks.latents as t\nfrom tasks.step import Job\ntracemalloc.start"
    )
    plan = plan.replace(
        "held = Table", f"t.plan_label.fn(Job(store=sys.argv[1], dataset='grown-' + sys.argv[3], "
        f"bundle='{bundle}', parent='m'))\nheld = Table",
    )  # fmt: skip

    def grown(program: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", program, store, str(few), str(many)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return float(done.stdout.split()[-1])

    return {"index": grown(_INDEX), "plan.label": grown(plan)}
