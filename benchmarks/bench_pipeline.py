"""What the streaming engine makes of S3, threads and a device: is the model ever kept waiting, and what for.

A server of its own (tests/s3_server.py) holds the pictures in the bucket `faces` and the results in `store`.

busy_share    Share of the time in which a simulated device computes, from the first listing to the last
              acknowledged write; the least of `chain_busy_share` (list, fetch JPEG of 256 px, decode, align
              by quads that are known, batch, device, PNG, store), `eyes_busy_share` (the same, and YuNet sees
              every picture), `invert_busy_share` and `edit_busy_share` (the real flows on a real Prefect
              server, from the plan's first read to the commit of the last shard). `eyes_most_possible` is the
              share at which all cores were busy with this process alone: no engine reaches more here.
              The device uses no CPU, takes one batch at a time and 0.4 s for 32 rows, shorter batches in
              proportion; in the chains and in `invert` that is all its work on a picture, in `edit` every
              network call takes half of it.
cpu_ratio     CPU seconds an image (all threads of the process, not the server's) of the chain with the
              embedded models from S3 to S3, over a plain loop in memory: decode, align, model, PNG. A B A B.
memory_ratio  Peak memory of a fresh process that ingests, inverts and labels ten times the pictures, over
              that of one with the pictures; networks that answer at once. `stream_memory_ratio`: the chain
              alone.
fetch_ratio   Images a second through the store's client and the engine's threads, over `s3fs.cat` with its
              defaults. In turn, A B A B.

Usage: `python benchmarks/bench_pipeline.py [--rows 2000] [--only busy,cpu,memory,fetch] [--json]`
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402

from sdflow_core.records.store import Store, open_store  # noqa: E402
from sdflow_core.streaming import Pace, Stage, Through, batched, flattened, streaming  # noqa: E402
from tests.device import BATCH, BATCH_SECONDS, Device, OnDevice  # noqa: E402
from tests.fakes import FakeNetworks  # noqa: E402
from tests.pictures import faces_256, tiny, upload  # noqa: E402
from tests.s3_server import s3_server  # noqa: E402
from tests.shards import CONSENT, job_for, run_ingest, run_invert, run_label, with_models  # noqa: E402


def chain(
    source: Store, target: Store, align: Callable[[str, bytes], Any], model: Callable[[Any], Any], batch: int
) -> list[Stage | Through]:
    """List to store, as the shard tasks do it: the stages behind a listing of keys."""
    from sdflow_core.faces.pixels import png_bytes
    from tasks.runtime import settings

    threads = settings().io_threads
    cores = os.cpu_count() or 1

    def run(crops: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        return zip([key for key, _ in crops], model(np.stack([crop for _, crop in crops])), strict=True)

    return [
        Stage("fetch", lambda key: (key, source.read(key)), threads, batch),
        Stage("decode", lambda got: (got[0], align(*got)), cores, cores),
        batched(batch),
        Stage("model", run),
        flattened(),
        Stage("encode", lambda made: (made[0], png_bytes(made[1], None)), cores, cores),
        Stage("keep", lambda file: target.create(file[0] + ".png", file[1]), threads),
    ]


def with_eyes(bundle: Any, resolution: int) -> Callable[[str, bytes], Any]:
    """What ingest does with a file: decode, YuNet, align."""
    from sdflow_core.faces.detect import default_detector
    from sdflow_core.faces.ingestion import IngestConfig, align_bytes

    detector = default_detector()
    config = IngestConfig(template_scale=bundle.template_scale, resolution=resolution)
    return lambda _, data: align_bytes(data, detector.find, config).crop


def by_quads(bundle: Any, faces: list[bytes], resolution: int) -> Callable[[str, bytes], Any]:
    """Decode, and align by quads that are known already, as `faces` holds them."""
    from sdflow_core.faces.align import crop
    from sdflow_core.faces.decode import decode
    from sdflow_core.faces.detect import default_detector
    from sdflow_core.faces.ingestion import IngestConfig, align_bytes

    detector, config = default_detector(), IngestConfig(template_scale=bundle.template_scale)
    quads = [align_bytes(data, detector.find, config).quad for data in faces]

    def align(key: str, data: bytes) -> Any:
        quad = quads[int(key.partition(".")[0]) % len(quads)]
        return crop(decode(data, max_pixels=config.max_pixels), quad, resolution)

    return align


def bench_chain(what: str, align: Callable[[str, bytes], Any], source: str, rows: int) -> dict[str, Any]:
    """The simulated device at the end of a chain from S3 to S3."""
    device, pace = Device(), Pace(total=rows)

    def model(crops: Any) -> Any:
        device.run(len(crops))
        return crops

    read, written = open_store(source), open_store(f"s3://store/{what}")
    started, cpu = time.perf_counter(), time.process_time()
    with streaming(read.list(), chain(read, written, align, model, BATCH), pace) as results:
        assert sum(results) == rows == device.rows
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(f"{what:7} {rows} rows in {seconds:.1f} s, CPU {cpu:.1f} s: {pace.facts()}", flush=True)
    return {
        f"{what}_busy_share": round(device.busy_seconds / seconds, 4),
        f"{what}_images_per_second": round(rows / seconds, 1),
        f"{what}_cpu_ms": round(1e3 * cpu / rows, 2),
        f"{what}_most_possible": round(min(1.0, (os.cpu_count() or 1) * device.busy_seconds / cpu), 4),
    }


def bench_flows(work: Path, source: str, few: str, rows: int, edits: int) -> dict[str, Any]:
    """The real flows `invert` and `edit` on a real Prefect server, each on a dataset of its own."""
    import tasks.bodies
    from cli.server import prefect_server
    from sdflow_core.weights.model_store import Bundles
    from tasks.runtime import networks_from, pin_bundle

    store = open_store("s3://store/flows")
    with_models(store)
    current = Bundles(store).current()
    assert current is not None
    Bundles(store).promote(current.model_copy(update={"resolution": 256}), "bench", "crops of 256 px")
    bundle = pin_bundle(store).digest
    (consent := work / "consent.csv").write_text(CONSENT)
    device = Device()

    def stand_in(bundle: Any, on: Device | None = device) -> OnDevice:
        networks = OnDevice(bundle, micro_batch=BATCH)
        networks.device = on
        return networks

    with networks_from(lambda bundle: stand_in(bundle, None)):
        run_ingest(job_for(store, bundle, "many"), source, consent)
        run_ingest(job_for(store, bundle, "few"), few, consent)
        run_invert(job_for(store, bundle, "few"))
    window: list[float] = []

    def timed(call: Any) -> Any:
        def inner(*args: Any, **kwargs: Any) -> Any:
            window.append(time.perf_counter())
            try:
                return call(*args, **kwargs)
            finally:
                window.append(time.perf_counter())

        return inner

    for name in ("plan_invert", "plan_edit", "each_shard"):
        setattr(tasks.bodies, name, timed(getattr(tasks.bodies, name)))
    facts: dict[str, Any] = {}
    with prefect_server(str(work / "server")), networks_from(stand_in):
        from flows.edit import edit
        from flows.invert import invert

        def measured(what: str, run: Callable[[], Any], row_seconds: float, count: int) -> None:
            window.clear()
            device.busy_seconds, device.row_seconds = 0.0, row_seconds
            run()
            seconds = max(window) - min(window)
            facts[f"{what}_busy_share"] = round(device.busy_seconds / seconds, 4)
            facts[f"{what}_images_per_second"] = round(count / seconds, 1)
            print(f"{what:7} {count} rows in {seconds:.1f} s, busy {facts[f'{what}_busy_share']}", flush=True)

        half = BATCH_SECONDS / BATCH / 2
        # encoder and generator together take 0.4 s for 32
        measured("invert", lambda: invert("many", store.uri), half, rows)
        measured("edit", lambda: edit("few", [{"smiling": 0.9}], store=store.uri), half, edits)
    return facts


def bench_cpu(store: Store, bundle: str, source: str, faces: list[bytes], rows: int) -> dict[str, Any]:
    """CPU seconds an image: from S3 to S3, and in a plain loop in memory."""
    import torch

    from sdflow_core.faces.networks import to_uint8
    from sdflow_core.faces.pixels import png_bytes
    from tasks.runtime import networks_of

    networks = networks_of(store, bundle)
    align = with_eyes(networks.bundle, networks.bundle.resolution)

    def model(crops: Any) -> Any:
        return to_uint8(networks.render(torch.from_numpy(networks.encode(crops))))

    def bare() -> float:
        started = time.process_time()
        for start in range(0, rows, networks.micro_batch):
            count = min(networks.micro_batch, rows - start)
            crops = np.stack([align("", faces[(start + i) % len(faces)]) for i in range(count)])
            for picture in model(crops):
                png_bytes(picture, None)
        return (time.process_time() - started) / rows

    def piped(turn: int) -> float:
        read, written = open_store(source), open_store(f"s3://store/cpu-{turn}")
        stages = chain(read, written, align, model, networks.micro_batch)
        started = time.process_time()
        with streaming((key for key, _ in zip(read.list(), range(rows), strict=False)), stages) as results:
            assert sum(results) == rows
        return (time.process_time() - started) / rows

    model(np.zeros((1, networks.bundle.resolution, networks.bundle.resolution, 3), np.uint8))  # opened, warm
    align("", faces[0])
    pairs = [(piped(turn), bare()) for turn in range(2)]
    print(
        f"cpu     piped and bare, ms an image: {[[round(1e3 * s, 1) for s in p] for p in pairs]}", flush=True
    )
    return {
        "cpu_ratio": round(statistics.mean(a for a, _ in pairs) / statistics.mean(b for _, b in pairs), 3),
        "cpu_ms_piped": round(1e3 * statistics.mean(a for a, _ in pairs), 2),
        "cpu_ms_bare": round(1e3 * statistics.mean(b for _, b in pairs), 2),
    }


def child(what: str, source: str, rows: int) -> None:
    """Run in a process of its own; the last line is its peak memory in MB."""
    if what == "tasks":
        from tasks.runtime import networks_from

        store = open_store(f"s3://store/memory-{rows}")
        job = job_for(store, with_models(store))
        with tempfile.TemporaryDirectory() as folder, networks_from(FakeNetworks):
            (consent := Path(folder) / "consent.csv").write_text(CONSENT)
            for run in (lambda: run_ingest(job, source, consent), lambda: run_invert(job)):
                run()
            run_label(job)
    else:
        read, written = open_store(source), open_store(f"s3://store/stream-{rows}")
        from sdflow_core.faces.decode import decode

        stages = chain(
            read, written, lambda _, data: decode(data, max_pixels=10**6), lambda crops: crops, BATCH
        )
        with streaming(read.list(), stages) as results:
            assert sum(results) == rows
    print(peak_mb())


def peak_mb() -> float:
    """Of this process alone. Linux hands `ru_maxrss` of the starting process down; VmHWM begins anew."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def bench_memory(rows: int) -> dict[str, Any]:
    """Peak memory of fresh processes, for so many pictures and for ten times as many."""
    facts: dict[str, Any] = {}
    for count in (rows, 10 * rows):
        upload(f"s3://faces/tiny-{count}", tiny(), count, "png")
        for what in ("stream", "tasks"):
            started = time.perf_counter()
            command = [sys.executable, __file__, "--child", what, f"s3://faces/tiny-{count}", str(count)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            facts[f"{what}_mb_{count}"] = round(float(done.stdout.split()[-1]), 1)
            seconds = time.perf_counter() - started
            print(f"memory  {what} {count}: {facts[f'{what}_mb_{count}']} MB in {seconds:.0f} s", flush=True)
    facts["memory_ratio"] = round(facts[f"tasks_mb_{10 * rows}"] / facts[f"tasks_mb_{rows}"], 3)
    facts["stream_memory_ratio"] = round(facts[f"stream_mb_{10 * rows}"] / facts[f"stream_mb_{rows}"], 3)
    return facts


def bench_fetch(source: str, rows: int) -> dict[str, Any]:
    """The store's client from the engine's threads, against `s3fs.cat` as it comes."""
    import fsspec

    from tasks.runtime import settings

    store = open_store(source)
    keys = list(store.list())[:rows]
    paths = [store.url(key).removeprefix("s3://") for key in keys]

    def ours() -> float:
        started = time.perf_counter()
        with streaming(keys, [Stage("fetch", store.read, settings().io_threads, 32)]) as results:
            assert sum(len(data) > 0 for data in results) == len(keys)
        return len(keys) / (time.perf_counter() - started)

    def theirs() -> float:
        fsspec.filesystem("s3").clear_instance_cache()
        started = time.perf_counter()
        assert len(fsspec.filesystem("s3").cat(paths)) == len(keys)
        return len(keys) / (time.perf_counter() - started)

    pairs = [(ours(), theirs()) for _ in range(2)]
    print(f"fetch   ours and s3fs.cat, images/s: {[[round(v) for v in pair] for pair in pairs]}", flush=True)
    mean = statistics.mean
    return {
        "fetch_ratio": round(mean(a for a, _ in pairs) / mean(b for _, b in pairs), 2),
        "fetch_images_per_second": round(mean(a for a, _ in pairs)),
        "fetch_images_per_second_s3fs_cat": round(mean(b for _, b in pairs)),
    }


def main() -> None:
    """Print the figures; with --json one object as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2000, help="pictures of 256 px, busy and fetch")
    parser.add_argument("--edit-rows", type=int, default=500, help="of these, edited; an edit is ten calls")
    parser.add_argument("--cpu-rows", type=int, default=320)
    parser.add_argument("--memory-rows", type=int, default=2000)
    parser.add_argument("--only", default="busy,cpu,memory,fetch")
    parser.add_argument("--shares", default="chain,eyes,invert,edit", help="the least of these: busy_share")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "SOURCE", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], options.child[1], int(options.child[2]))
        return
    only = options.only.split(",")
    facts: dict[str, Any] = {"cpus": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder) / "s3") as server:
        os.environ.update(server.environment())
        work, source = Path(folder), "s3://faces/people"
        local = open_store(str(work / "models"))
        bundle = with_models(local)
        faces = faces_256(local, bundle, work)
        rows = max(
            options.rows if {"busy", "fetch"} & set(only) else 0, options.cpu_rows if "cpu" in only else 0
        )
        upload(source, faces, rows, "jpg")
        facts["rows"] = rows
        if "busy" in only:
            from tasks.runtime import load_bundle

            found = load_bundle(local, bundle)
            facts |= bench_chain("chain", by_quads(found, faces, 256), source, rows)
            facts |= bench_chain("eyes", with_eyes(found, 256), source, rows)
            few = "s3://faces/few"
            upload(few, faces, options.edit_rows, "jpg")
            facts |= bench_flows(work, source, few, rows, options.edit_rows)
            facts["busy_share"] = min(facts[f"{what}_busy_share"] for what in options.shares.split(","))
        if "cpu" in only:
            facts |= bench_cpu(local, bundle, source, faces, options.cpu_rows)
        if "memory" in only:
            facts |= bench_memory(options.memory_rows)
        if "fetch" in only:
            facts |= bench_fetch(source, options.rows)
    facts["load_after"] = round(os.getloadavg()[0], 2)
    for name, value in facts.items():
        print(f"{name:34} {value}")
    if options.json:
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
