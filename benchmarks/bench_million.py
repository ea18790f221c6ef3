"""What planning costs at a million images: seconds, and megabytes above what a process has after its imports.

Rows are written straight into the tables (latents without their codes, which no planning reads), and the
listing comes from a generator: no picture is needed. Every figure is of a process of its own.

Usage: `python benchmarks/bench_million.py [--rows 100000] [--shard-rows 1000] [--json]`
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pyarrow as pa  # noqa: E402

from sdflow_core.records.config import DatasetRef  # noqa: E402
from sdflow_core.records.keys import row_key, sha256_hex  # noqa: E402
from sdflow_core.records.sources import SourceItem  # noqa: E402
from sdflow_core.records.store import Store, open_store  # noqa: E402
from sdflow_core.records.tables import Table  # noqa: E402

DATASET = "people"
FOLDER = "s3://faces/people/"
CONSENT = "source,subject,attributes,expires,evidence\n*,all of them,*,,contract\n"
REQUESTS = [{"smiling": 0.9}, {"smiling": 0.1}, {"smiling": "flip"}]
# Name of a probe -> what it measures, in the order in which they are run.
PROBES = {
    "first_ingest": "plan ingest, nothing known",
    "index": "open the index of one table",
    "ingest_same": "plan ingest, nothing new",
    "ingest_one_percent": "plan ingest, 1 % new",
    "invert_all": "plan invert, no code yet",
    "invert_same": "plan invert, nothing new",
    "edit_all": "plan edit, 3 variants, no edit yet",
    "night_same": "all planning of a night with nothing new",
    "waiting": "what waits for a person, for the report",
}


def bundle() -> Any:
    """The models that all recipes name."""
    from sdflow_core.weights.model_store import Bundle

    digests = {kind: kind[0] * 64 for kind in ("generator", "encoder", "labeller", "detector", "editor")}
    return Bundle(**digests, template_scale=0.7, resolution=64, attributes=("smiling",))


def listing(count: int) -> Iterator[SourceItem]:
    """A folder of so many files, one at a time."""
    for number in range(count):
        name = f"{number:09d}.jpg"
        yield SourceItem(name, FOLDER + name, 100_000, 1, etag(number), name)


def etag(number: int) -> str:
    """The server's name of a file's version."""
    return sha256_hex(f"version {number}".encode())[:32]


def fill(store: Store, rows: int, shard_rows: int, consent: str) -> None:
    """Sources, faces, latents and labels as nights before would have left them."""
    from datetime import date

    from sdflow_core.records.consent import ConsentList, subject_hmac
    from tasks import recipes

    models = bundle()
    ingest, invert, label = (recipe(models).key for recipe in (recipes.ingest, recipes.invert, recipes.label))
    granted = ConsentList.load(consent).grant("x", date.today()).consent
    assert granted is not None
    subject = subject_hmac(store, granted.subject)
    for start in range(0, rows, shard_rows):
        numbers = range(start, min(start + shard_rows, rows))
        images = [sha256_hex(f"image {n}".encode()) for n in numbers]
        faces = [f"{image}#0" for image in images]
        face_keys = [row_key(ingest, [face]) for face in faces]
        uris = [f"{FOLDER}{n:09d}.jpg" for n in numbers]
        sources = [sha256_hex(f"{uri}\n{etag(n)}".encode()) for uri, n in zip(uris, numbers, strict=True)]
        count = len(faces)
        points = {
            "points": [[0.25] * 10] * count,
            "crop": [f"private/crops/{image}-0.png" for image in images],
        }
        more = {
            "source_id": sources,
            "name": [uri.removeprefix(FOLDER) for uri in uris],
            "uri": uris,
            "version": [etag(n) for n in numbers],
            "size_bytes": [100_000] * count,
            "mtime_ns": [1] * count,
            "image_id": images,
            "face_id": faces,
            "subject": [subject] * count,
            "consent": [granted.digest] * count,
            "consent_attributes": [["*"]] * count,
            "consent_expires": [""] * count,
        }
        commit(
            store,
            "faces",
            ingest,
            [[face] for face in faces],
            {"face_id": faces, "image_id": images, **points},
        )
        commit(store, "sources", ingest, [[source, granted.digest] for source in sources], more)
        commit(store, "latents", invert, [[key] for key in face_keys], {"face_id": faces})
        commit(store, "labels", label, [[key] for key in face_keys], {"face_id": faces})


def commit(store: Store, table: str, recipe: str, inputs: list[list[str]], more: dict[str, Any]) -> None:
    """Rows that are kept, under the keys that their inputs give."""
    columns = {
        "row_key": [row_key(recipe, given) for given in inputs],
        "recipe": [recipe] * len(inputs),
        "status": ["kept"] * len(inputs),
        "inputs": inputs,
        **more,
    }
    _Filled(store, DATASET, table).commit(pa.table(columns), run="bench")


class _Filled(Table):
    """A table that is only written: each commit would else hash all keys for the reference that it gives."""

    def ref(self, recipe: str | None = None) -> DatasetRef:
        return DatasetRef(uri=self.root, version=0, digest="", rows=0)


def render(store: Store, shards: Any) -> None:
    """Commits what an edit plan lacks, as if it had been rendered."""
    from tasks.plans import read_plan

    for plan in shards.shards:
        items = read_plan(store, plan)
        columns = {
            "row_key": [item["row_key"] for item in items],
            "recipe": [shards.recipe] * len(items),
            "status": ["waiting"] * len(items),
            "inputs": [item["inputs"] for item in items],
            **{name: [item[name] for item in items] for name in ("source_id", "request", "edit_run")},
        }
        _Filled(store, DATASET, "edits").commit(pa.table(columns), run="bench")


# -- in a process of its own


def probe(name: str, uri: str, rows: int, consent: str) -> dict[str, Any]:
    """Runs one probe: seconds, peak megabytes above those after the imports, rows that were planned."""
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    from sdflow_core.method.request import EditConfig, Variant
    from sdflow_core.records.waiting import waiting_runs
    from tasks import edit_plan, ingest_plan, latents, recipes
    from tasks.step import Job

    store, models = open_store(uri), bundle()
    variants, config = tuple(Variant(targets=request) for request in REQUESTS), EditConfig()
    recipes.wanted(models)
    recipes.edit(models, config)
    forget_peak()
    base = peak_mb()

    def job(dataset: str = DATASET) -> Job:
        return Job(store=uri, dataset=dataset, bundle=models.digest, parent="bench")

    def ingest(count: int, dataset: str = DATASET) -> Any:
        class Folder:
            def list(self) -> Iterator[SourceItem]:
                return listing(count)

        ingest_plan.open_source = lambda *_: Folder()
        return ingest_plan.plan_ingest.fn(job(dataset), FOLDER, consent)

    def night() -> Any:
        for plan in (ingest(rows), latents.plan_invert.fn(job()), latents.plan_label.fn(job())):
            assert plan.held == plan.wanted == rows
        return edit_plan.plan_queue.fn(job(), variants, config).shards

    work: dict[str, Callable[[], Any]] = {
        "first_ingest": lambda: ingest(rows, "another"),
        "index": lambda: Table(store, DATASET, "sources").holds(["0" * 64]),
        "ingest_same": lambda: ingest(rows),
        "ingest_one_percent": lambda: ingest(rows + rows // 100),
        "invert_all": lambda: latents.plan_invert.fn(job()),
        "invert_same": lambda: latents.plan_invert.fn(job()),
        "edit_all": lambda: edit_plan.plan_edit.fn(job(), variants, config).shards,
        "night_same": night,
        "waiting": lambda: waiting_runs(store, [DATASET]),
    }
    if name == "invert_all":  # under another encoder, of which the table holds nothing
        models = models.model_copy(update={"encoder": "2" * 64})
        pin(store, models)
    start = time.perf_counter()
    found = work[name]()
    seconds = time.perf_counter() - start
    facts: dict[str, Any] = {
        "seconds": round(seconds, 2),
        "mb": round(peak_mb() - base),
        "base_mb": round(base),
    }
    if hasattr(found, "wanted"):
        facts["planned"] = found.wanted - found.held
    if name == "index":
        facts["bytes_a_row"] = round((peak_mb() - base) * 2**20 / rows)
    if name == "edit_all":
        render(store, found)
    return facts


def peak_mb() -> float:
    """The most memory that this process has had since `forget_peak`."""
    # not ru_maxrss, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def forget_peak() -> None:
    """Count the most memory anew from here."""
    Path("/proc/self/clear_refs").write_text("5")


def pin(store: Store, models: Any) -> None:
    """What `pin_bundle` keeps, without models."""
    from sdflow_core.records.keys import canonical_json

    store.create(f"models/pinned/{models.digest}.json", canonical_json(models.model_dump(mode="json")))


def main() -> None:
    """Print the table; with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shard-rows", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--probe", nargs=3, metavar=("NAME", "STORE", "CONSENT"))
    options = parser.parse_args()
    if options.probe:
        name, uri, consent = options.probe
        print(json.dumps(probe(name, uri, options.rows, consent)))
        return
    expected = {"first_ingest": 1.0, "ingest_same": 0, "ingest_one_percent": 0.01, "invert_all": 1.0,
                "invert_same": 0, "edit_all": float(len(REQUESTS)), "night_same": 0}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        uri, consent = str(Path(folder) / "store"), Path(folder) / "consent.csv"
        consent.write_text(CONSENT)
        store = open_store(uri)
        start = time.perf_counter()
        fill(store, options.rows, options.shard_rows, str(consent))
        pin(store, bundle())
        facts: dict[str, Any] = {"rows": options.rows, "fill_seconds": round(time.perf_counter() - start, 1)}
        print(f"{options.rows:,} sources, in shards of {options.shard_rows}")
        print(f"{'':44}{'seconds':>9}{'MB':>7}")
        for name, words in PROBES.items():
            command = [sys.executable, __file__, "--rows", str(options.rows)]
            done = subprocess.run(
                [*command, "--probe", name, uri, str(consent)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            found = facts[name] = json.loads(done.stdout.splitlines()[-1])
            if name in expected:
                assert found["planned"] == int(expected[name] * options.rows), (name, found)
            print(f"{words:44}{found['seconds']:9.2f}{found['mb']:7d}", flush=True)
    if options.json:
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
