"""Pictures from and to an object store: our bulk path against the clients it could use, and listings at size.

`python benchmarks/bench_store.py [--images 2000] [--kilobytes 100] [--threads 32] [--rounds 3]
[--keys 100000] [--json]`. All clients use the same server (SeaweedFS on this machine) and the same objects,
in turn A B A B; a figure is the median of its rounds. Client and server share the processors.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sdflow_core.records.sources import open_source
from sdflow_core.records.store import open_store
from tests.s3_server import S3Server, s3_server

Rates = dict[str, list[tuple[float, float]]]


def timed(rates: Rates, name: str, count: int, act: Callable[[], object]) -> None:
    """Objects a second, and CPU seconds of this process a thousand objects."""
    cpu, began = time.process_time(), time.perf_counter()
    act()
    seconds = time.perf_counter() - began
    rates.setdefault(name, []).append((count / seconds, 1000 * (time.process_time() - cpu) / count))


def readers(server: S3Server, keys: list[str], threads: int) -> dict[str, Callable[[], object]]:
    """Each reads all objects of the bucket `faces` once."""
    import fsspec
    import pyarrow.fs as pyarrow_fs

    source = open_source("s3://faces/in")
    items = list(source.list())
    pool = ThreadPoolExecutor(threads)
    paths = [f"faces/{key}" for key in keys]
    defaults: Any = fsspec.filesystem("s3", skip_instance_cache=True)
    single: Any = fsspec.filesystem("s3", skip_instance_cache=True, max_concurrency=1)
    fsspec.register_implementation("bench-obstore", "obstore.fsspec.FsspecStore", clobber=True)
    face: Any = fsspec.get_filesystem_class("bench-obstore")
    obstore: Any = face(
        protocol="s3", config={"endpoint": server.endpoint}, client_options={"allow_http": True}
    )
    arrow: Any = pyarrow_fs.S3FileSystem(endpoint_override=server.endpoint, region="us-east-1")

    def arrow_read(path: str) -> bytes:
        with arrow.open_input_file(path) as file:
            return file.read()

    return {
        "s3fs.cat, defaults": lambda: defaults.cat(paths),
        "s3fs.cat, max_concurrency=1": lambda: single.cat(paths),
        "obstore.fsspec.cat_file, threads": lambda: list(pool.map(obstore.cat_file, paths)),
        "pyarrow.fs, threads": lambda: list(pool.map(arrow_read, paths)),
        "ours: SourceFolder.read, threads": lambda: list(pool.map(source.read, items)),
    }


def writers(server: S3Server, data: list[bytes], threads: int) -> dict[str, Callable[[str], object]]:
    """Each writes as many objects as there are under a prefix of the bucket `store`."""
    import fsspec
    import pyarrow.fs as pyarrow_fs

    store = open_store("s3://store/ours")
    pool = ThreadPoolExecutor(threads)
    s3fs: Any = fsspec.filesystem("s3", skip_instance_cache=True, max_concurrency=1)
    arrow: Any = pyarrow_fs.S3FileSystem(endpoint_override=server.endpoint, region="us-east-1")

    def arrow_write(path: str, item: bytes) -> None:
        with arrow.open_output_stream(path) as file:
            file.write(item)

    def create(path: str, item: bytes) -> None:
        if not store.exists(path):  # what a create by HEAD and PUT would cost; it is no create
            store.put(path, item)

    def names(prefix: str) -> list[str]:
        return [f"{prefix}/{number:06}" for number in range(len(data))]

    def each(write: Callable[[str, bytes], object], prefix: str, bucket: str = "") -> None:
        for _ in pool.map(write, [bucket + name for name in names(prefix)], data):
            pass

    return {
        "s3fs.pipe": lambda prefix: s3fs.pipe(
            {f"store/{name}": item for name, item in zip(names(prefix), data, strict=True)}
        ),
        "s3fs.pipe_file create, threads": lambda prefix: each(
            partial(s3fs.pipe_file, mode="create"), prefix, "store/"
        ),
        "pyarrow.fs, threads": lambda prefix: each(arrow_write, prefix, "store/"),
        "ours: Store.put, threads": lambda prefix: each(store.put, prefix),
        "ours: Store.create, threads": lambda prefix: each(store.create, prefix),
        "ours: HEAD and put, threads": lambda prefix: each(create, prefix),
    }


def listings(keys: int, threads: int) -> dict[str, float]:
    """Seconds and memory of listing so many keys, as a store and as a source, and of a tenth of them."""
    store = open_store("s3://store/list")
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(
            lambda number: store.put(f"{number % 10}/{number:08}.jpg", b"x"), range(keys), chunksize=64
        ):
            pass

    def listed(items: Iterator[Any]) -> tuple[int, float]:
        began = time.perf_counter()
        count = sum(1 for _ in items)
        return count, time.perf_counter() - began

    def peak(items: Iterator[Any]) -> float:
        tracemalloc.start()
        try:
            for _ in items:
                pass
            return tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()

    count, seconds = listed(store.list())
    assert count == keys
    source_count, source_seconds = listed(open_source("s3://store/list").list())
    assert source_count == keys
    # memory apart from time: being watched makes it slow
    return {
        "listing_keys": keys,
        "listing_seconds": seconds,
        "listing_source_seconds": source_seconds,
        "listing_peak_mb": peak(open_source("s3://store/list").list()),
        "listing_peak_mb_of_a_tenth": peak(open_source("s3://store/list/0").list()),
    }


@contextmanager
def _server() -> Iterator[S3Server]:
    with tempfile.TemporaryDirectory(prefix="sdflow-bench-") as folder, s3_server(Path(folder)) as server:
        os.environ.update(server.environment())
        yield server


def measure(images: int, size: int, threads: int, rounds: int, keys: int) -> dict[str, Any]:
    """All figures."""
    data = [os.urandom(size) for _ in range(min(images, 64))]
    names = [f"in/{number:06}.jpg" for number in range(images)]
    reads: Rates = {}
    writes: Rates = {}
    with _server() as server:
        faces = open_store("s3://faces")
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(faces.put, names, [data[number % len(data)] for number in range(images)]))
        reading = readers(server, names, threads)
        written = max(images // 4, 1)
        writing = writers(server, [data[number % len(data)] for number in range(written)], threads)
        for turn in range(rounds):
            for name, read in reading.items():
                timed(reads, name, images, read)
            for number, (name, write) in enumerate(writing.items()):
                timed(writes, name, written, partial(write, f"w/{turn}-{number}"))
        found = listings(keys, threads) if keys else {}

    def middle(rates: Rates) -> dict[str, dict[str, float]]:
        return {
            name: {
                "per_second": round(statistics.median(rate for rate, _ in said), 1),
                "cpu_seconds_per_1000": round(statistics.median(cpu for _, cpu in said), 3),
            }
            for name, said in rates.items()
        }

    read, wrote = middle(reads), middle(writes)
    ours = read["ours: SourceFolder.read, threads"]["per_second"]
    return {
        "images": images,
        "bytes": size,
        "threads": threads,
        "rounds": rounds,
        "fetch_ratio": round(ours / read["s3fs.cat, defaults"]["per_second"], 2),
        "fetch_per_second": ours,
        "create_ratio": round(
            wrote["ours: Store.create, threads"]["per_second"] / wrote["s3fs.pipe"]["per_second"], 2
        ),
        "read": read,
        "write": wrote,
        **{name: round(value, 2) for name, value in found.items()},
        "load": round(os.getloadavg()[0], 1),
        "cpus": os.cpu_count(),
    }


def main() -> None:
    """Prints a table, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--kilobytes", type=int, default=100)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keys", type=int, default=100_000, help="listed; 0: no listing")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked.images, asked.kilobytes * 1000, asked.threads, asked.rounds, asked.keys)
    for what in ("read", "write"):
        for name, said in found[what].items():
            print(
                f"{what:6}{name:36}{said['per_second']:9.0f}/s{said['cpu_seconds_per_1000']:9.2f} CPU s/1000"
            )
    print(f"fetch_ratio {found['fetch_ratio']} (ours / s3fs.cat with its defaults)")
    if asked.keys:
        print(f"{found['listing_keys']} keys listed in {found['listing_seconds']} s")
    if asked.json:
        print(json.dumps(found, sort_keys=True))


if __name__ == "__main__":
    main()
