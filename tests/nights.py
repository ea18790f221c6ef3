"""What nights need and leave: people who do not exist, a policy, a process of its own, whole records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def write_people(store: Any, bundle: str, folder: Path, first: int, count: int) -> None:
    """Photographs of people who do not exist, drawn from the prior; `first` is number and seed."""
    import torch
    from PIL import Image

    from sdflow_core.faces.networks import to_uint8
    from tasks.demo import photograph
    from tasks.runtime import networks_of

    networks = networks_of(store, bundle)
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(first, first + count, 250):
        some = min(250, first + count - start)
        codes = networks.prior.sample(some, torch.Generator().manual_seed(1000 + start), truncation=0.75)
        for number, pixels in enumerate(to_uint8(networks.render(codes)), start):
            Image.fromarray(photograph(pixels)).save(folder / f"{number:06d}.jpg", quality=95)


def prepare(store_uri: str, steps: int, *, people: int = 24, prior_samples: int = 400) -> str:
    """A store with models, some people and a shortly trained editor; gives the digest of the bundle."""
    from flows.ingest import ingest
    from flows.invert import invert
    from flows.label import label
    from flows.train import train
    from tasks.demo import install_models, make_people
    from tasks.runtime import pin_bundle, store_at
    from tasks.step import Job

    job = install_models(Job(store=store_uri, dataset="learn", parent="bench"))
    folder = make_people(job, people)
    ingest("learn", folder.photos, folder.consent, store_uri)
    invert("learn", store_uri)
    label("learn", store_uri)
    train("learn", {"training": {"steps": steps}, "prior_samples": prior_samples}, store_uri)
    return pin_bundle(store_at(store_uri)).digest


def copy_store(source: str | Path, target: str | Path) -> str:
    """All objects of a store under another address, on either side a folder or an object store.

    What belongs to this machine (`state/`) and to runs that are alive is left out.
    """
    from sdflow_core.records.store import open_store

    here, there = open_store(str(source)), open_store(str(target))

    def copy(key: str) -> None:
        there.put(key, here.read(key), durable=False)

    keys = [key for key in here.list() if not key.startswith(("state/", "leases/", "open/"))]
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(copy, keys):
            pass
    return there.uri


def remove_store(store: str | Path) -> None:
    """All objects of a store."""
    from sdflow_core.records.store import open_store

    opened = open_store(str(store))
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(opened.delete, list(opened.list())):
            pass


def write_policy(path: Path, dataset: str, photos: Path | str) -> Path:
    """One dataset, one request."""
    consent = path.with_suffix(".csv")
    consent.write_text("source,subject,attributes,expires,evidence\n*,nobody,*,,synthetic\n")
    said = {"dataset": dataset, "source": str(photos), "consent": str(consent)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in said.items()]
    path.write_text(
        "\n".join(
            ["[[datasets]]", *lines, "requests = [{ smiling = 0.8 }]", "allowed = { smiling = {} }", ""]
        )
    )
    return path


def start_night(
    store: Path | str, policy: Path, shard_rows: int, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """One night as a process group of its own, on the server that is up.

    Args:
        store: A folder or an address.
        policy: Its file; the night runs in the folder where it lies.
        shard_rows: Rows of a shard.
        environment: What differs from this process' environment, such as the endpoint of a proxy.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", "--store", str(store), "--json", "nightly", str(policy)],
        cwd=policy.parent,
        env={
            **os.environ,
            "SDFLOW_SHARD_ROWS": str(shard_rows),
            "PYTHONPATH": str(ROOT),
            **(environment or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def night(
    store: Path | str, policy: Path, shard_rows: int = 1000, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One undisturbed night: its figures, and `process_seconds` with the start of Python and all imports."""
    started = time.monotonic()
    out, err = (process := start_night(store, policy, shard_rows, environment)).communicate()
    if process.returncode:
        raise RuntimeError(err or out)
    return {**json.loads(out.strip().splitlines()[-1]), "process_seconds": time.monotonic() - started}


def kill_once(store: Path | str, policy: Path, shard_rows: int, delay: float) -> bool:
    """Start a night and kill its group `delay` seconds after it began; False when it ended before."""
    from sdflow_core.records.store import open_store

    opened = open_store(str(store))
    before = set(opened.list("leases/"))
    process = start_night(store, policy, shard_rows)
    while process.poll() is None and not set(opened.list("leases/")) - before:
        time.sleep(0.05)
    try:
        _, err = process.communicate(timeout=delay)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode:
        raise RuntimeError(err)
    return False


def orphans_after_gc(store: Path | str) -> int:
    """What nobody will ask for again, after `gc`."""
    from sdflow_core.records.gc import collect
    from sdflow_core.records.store import open_store

    opened = open_store(str(store))
    # a moment ahead: times of object stores are whole seconds, of their own clock
    ahead = datetime.now(UTC) + timedelta(hours=1)
    collect(opened, delete=True, older_than_hours=0, now=ahead)
    left = collect(opened, older_than_hours=0, now=ahead)
    return len(left.found) + len(left.alive) + len(unnamed_shards(store))


def whole(store: Path | str, dataset: str) -> tuple[dict[str, str], int]:
    """Digests of everything, and how many committed rows are lost or there twice.

    The digest of `pictures` is over the pixels of all edits, which the others know by key alone.

    Raises:
        CorruptError: A record is not what was written.
    """
    from sdflow_core.records.digests import TABLES, canonical_digests
    from sdflow_core.records.keys import canonical_json, sha256_hex
    from sdflow_core.records.store import open_store
    from sdflow_core.records.tables import Table

    opened = open_store(str(store))
    wrong = 0
    for name in TABLES:
        table = Table(opened, dataset, name)
        table.verify()
        entries = [entry for entry in table.journal.entries() if entry.payload.get("table") == name]
        wrong += abs(sum(int(entry.payload["rows"]) for entry in entries) - len(table.held()))
    edits = Table(opened, dataset, "edits")
    pixels = edits.read(columns=["row_key", "pixel_sha256"]).to_pylist() if edits.held() else []
    seen = sha256_hex(canonical_json(sorted([row["row_key"], row["pixel_sha256"]] for row in pixels)))
    return {**canonical_digests(opened, dataset), "pictures": seen}, wrong


def unnamed_shards(store: Path | str) -> set[str]:
    """Shard files that no journal entry names."""
    from sdflow_core.records.journal import Journal
    from sdflow_core.records.lookup import datasets
    from sdflow_core.records.store import open_store

    opened = open_store(str(store))
    named = {
        str(entry.payload["shard"])
        for name in datasets(opened)
        for entry in Journal(opened, f"private/datasets/{name}/journal").entries()
        if "shard" in entry.payload
    }
    return {key for key in opened.list("private/datasets/") if "/shards/" in key} - named
