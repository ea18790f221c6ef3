"""Requests, bytes on the wire and bytes at rest of every story, counted in front of a real S3 server.

Every story runs as a process of its own, as under a scheduler, on small datasets of four forms: so many
shards, so many rows, so many shards that lie there already. Four forms give four coefficients.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.counting_proxy import CountingProxy, Counts, kind_of

ROOT = Path(__file__).resolve().parents[1]
# Shard rows and rows of each form; the last one grows out of the third.
FORMS = (("a", 12, 12), ("b", 3, 12), ("c", 12, 48), ("d", 12, 12))
REQUEST = "smiling=0.8"
NAMES = ("fixed", "per_shard", "per_row", "per_held_shard")
# Read again by the contact sheet: of all that waits in the run, and once more for the overview's ten.
_OF_THE_SHEET = frozenset({("crops", "GET"), ("edits", "GET")})
_OVERVIEW = 10


@dataclass
class Seen:
    """One story of one form."""

    shards: int
    rows: int
    waiting: int
    held_shards: int
    counts: Counts


@dataclass
class Told:
    """Everything that was counted.

    Attributes:
        stories: story -> one `Seen` a form.
        stored: form -> (kind -> objects and bytes); without the last form.
        waiting: Share of the edits that passed their gates.
        start_seconds: The least time that a story took as a process.
        photo_bytes: Mean size of the pictures.
    """

    stories: dict[str, list[Seen]] = field(default_factory=lambda: defaultdict(list))
    stored: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    waiting: float = 1.0
    start_seconds: float = 0.0
    photo_bytes: int = 0


class Bench:
    """Stores on one server, all seen through one proxy."""

    def __init__(self, server: Any, proxy: CountingProxy, base: Path, work: Path) -> None:
        self.server, self.proxy, self.base, self.work = server, proxy, base, work
        self.environment = {**os.environ, **server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint}
        self.told = Told()

    def prepare(self, form: str) -> None:
        """A store with models and an editor, and nothing else."""
        client = self.server.client()
        for path in sorted(self.base.rglob("*")):
            key = path.relative_to(self.base).as_posix()
            if path.is_file() and re.match(r"models/|heads/models|recipes/|private/secret", key):
                client.put_object(Bucket="store", Key=f"{form}/{key}", Body=path.read_bytes())

    def upload(self, form: str, photos: Sequence[Path]) -> None:
        """Pictures of the customer."""
        for path in photos:
            self.server.client().put_object(Bucket="faces", Key=f"{form}/{path.name}", Body=path.read_bytes())

    def run(self, form: str, shard_rows: int, *words: str) -> dict[str, Any]:
        """One command on the store of a form; what it prints under --json."""
        self.proxy.store = f"store/{form}/"
        self.proxy.take()
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", "--store", f"s3://store/{form}", "--json", *words],
            cwd=self.work,
            env={**self.environment, "SDFLOW_SHARD_ROWS": str(shard_rows), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"sdflow {' '.join(words)}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def shards(self, form: str) -> int:
        """Shards of all tables that lie there."""
        return sum("/shards/" in key for key, _ in self._objects(form))

    def stored(self, form: str) -> dict[str, tuple[int, int]]:
        """kind -> objects and bytes; shards by table."""
        found: Counter[str] = Counter()
        size: Counter[str] = Counter()
        for key, count in self._objects(form):
            kind = kind_of(key)
            if kind == "shards":
                kind = "table." + key.split("/")[-3]
            elif kind == "edits" and key.endswith("-before.png"):
                kind = "before"
            elif kind == "plans" and "/plan-edit-" in key:
                kind = "plans.edit"
            found[kind] += 1
            size[kind] += count
        return {kind: (found[kind], size[kind]) for kind in found}

    def _objects(self, form: str) -> list[tuple[str, int]]:
        pages = self.server.client().get_paginator("list_objects_v2")
        return [
            (one["Key"].removeprefix(f"{form}/"), int(one["Size"]))
            for page in pages.paginate(Bucket="store", Prefix=f"{form}/")
            for one in page.get("Contents", [])
        ]

    def stories(self, form: str, store: str, shard_rows: int, rows: int, before: int) -> None:
        """Every story of one form; `before` rows lie in the store already."""
        shards, whole = -(-rows // shard_rows), before + rows
        consent = self.work / "consent.csv"
        consent.write_text("source,subject,attributes,expires,evidence\n*,nobody,*,,synthetic\n")
        source = f"s3://faces/{store}"

        def tell(story: str, *words: str, rows: int = rows, shards: int = shards) -> dict[str, Any]:
            held = self.shards(store)
            started = time.perf_counter()
            said = self.run(store, shard_rows, *words)
            if story not in ("decide", "night"):
                taken = time.perf_counter() - started
                self.told.start_seconds = min(self.told.start_seconds or taken, taken)
            waiting = int(said.get("status", {}).get("waiting", 0)) if story == "edit" else 0
            self.told.stories[story].append(Seen(shards, rows, waiting, held, self.proxy.take()))
            print(f"{form} {story}: {sum(self.told.stories[story][-1].counts.requests.values())}", flush=True)
            return said

        tell("ingest", "ingest", source, "--name", "many", "--consent", str(consent))
        tell("invert", "invert", "many")
        tell("label", "label", "many")
        edited = tell("edit", "edit", "many", "--set", REQUEST)
        waiting = int(edited["status"].get("waiting", 0))
        self.told.waiting = waiting / whole
        if waiting:
            run = edited["edit_run"]
            tell("decide", "decide", run, "--approve", "all", "--by", "bench", rows=waiting, shards=0)
            tell("publish", "publish", run, "--to", "store:released/bench", rows=waiting, shards=0)
        if not before:
            self.told.stored[form] = self.stored(store)
        policy = self.work / f"{form}.toml"
        lines = {"dataset": "many", "source": source, "consent": str(consent)}
        policy.write_text(
            "[[datasets]]\n"
            + "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
            + "requests = [{ smiling = 0.8 }]\nallowed = { smiling = {} }\n"
        )
        tell("night", "nightly", str(policy), rows=whole, shards=0)


def measure(bench: Bench, photos: Sequence[Path]) -> Told:
    """All stories of all forms."""
    taken = 0
    for form, shard_rows, rows in FORMS:
        store, before = ("c", 48) if form == "d" else (form, 0)
        if not before:
            bench.prepare(store)
        bench.upload(store, photos[taken : taken + rows])
        taken += rows
        bench.stories(form, store, shard_rows, rows, before)
    bench.told.photo_bytes = sum(path.stat().st_size for path in photos) // len(photos)
    return bench.told


def fits(told: Told) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """story -> kind -> method -> coefficients; the bytes of a story as kind `bytes`, method UP and DOWN."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for story, seen in told.stories.items():
        if story in ("publish", "night"):
            # The last form releases pictures once more that lie there, and a night after it has two edit runs
            # to look at: other stories.
            seen = seen[:3]
        of = found.setdefault(story, {})
        pairs = sorted({pair for one in seen for pair in one.counts.requests})
        for kind, method in pairs:
            sheet = story == "edit" and (kind, method) in _OF_THE_SHEET
            values = [float(one.counts.requests[kind, method]) for one in seen]
            of.setdefault(kind, {})[method] = _sheet_fit(seen, values) if sheet else _fit(seen, values)
        of["bytes"] = {
            "UP": _fit(seen, [float(one.counts.up_bytes) for one in seen]),
            "DOWN": _fit(seen, [float(one.counts.down_bytes) for one in seen]),
        }
    return found


def one_more_edit_run(told: Told, found: dict[str, dict[str, dict[str, dict[str, float]]]]) -> float:
    """Requests that an earlier edit run adds to a night: what the last form has beyond the fit."""
    last = told.stories["night"][-1]
    fitted = 0.0
    for kind, methods in found["night"].items():
        for one in methods.values() if kind != "bytes" else ():
            fitted += one["fixed"] + one["per_row"] * last.rows + one["per_held_shard"] * last.held_shards
    return round(sum(last.counts.requests.values()) - fitted, 1)


def _fit(seen: Sequence[Seen], values: Sequence[float]) -> dict[str, float]:
    """Least squares without negative coefficients: what comes out negative is left out."""
    matrix = np.array([[1.0, one.shards, one.rows, one.held_shards] for one in seen], float)
    used = [0, *(column for column in (1, 2, 3) if np.ptp(matrix[:, column]) > 0)]
    while True:
        # scaled, because bytes and counts of rows differ by many orders
        scale = np.abs(matrix[:, used]).max(axis=0)
        solved = np.linalg.lstsq(matrix[:, used] / scale, np.array(values), rcond=None)[0] / scale
        least = int(np.argmin(solved))
        if solved[least] >= -1e-6 or len(used) == 1:
            break
        del used[least]
    by_column = dict(zip(used, solved, strict=True))
    return {name: round(max(float(by_column.get(n, 0.0)), 0.0), 3) + 0.0 for n, name in enumerate(NAMES)}


def _sheet_fit(seen: Sequence[Seen], values: Sequence[float]) -> dict[str, float]:
    """As if every edit waited: so many reads a waiting edit, and the overview's."""
    some = [(one.waiting, value) for one, value in zip(seen, values, strict=True) if one.waiting]
    each = [value / (waiting + min(waiting, _OVERVIEW)) for waiting, value in some]
    reads = float(np.mean(each)) if each else 0.0
    return {**dict.fromkeys(NAMES, 0.0), "fixed": round(_OVERVIEW * reads, 3), "per_row": round(reads, 3)}


def stored_fits(told: Told) -> dict[str, dict[str, float]]:
    """kind -> bytes and objects at rest: fixed, per shard and per row."""
    forms = [(shard_rows, rows) for name, shard_rows, rows in FORMS if name in told.stored]
    matrix = np.array([[1.0, -(-rows // size), rows] for size, rows in forms])
    found: dict[str, dict[str, float]] = {}
    for kind in sorted({kind for one in told.stored.values() for kind in one}):
        entry: dict[str, float] = {}
        for place, what in enumerate(("objects", "bytes")):
            values = np.array([one.get(kind, (0, 0))[place] for one in told.stored.values()], float)
            solved = np.linalg.lstsq(matrix, values, rcond=None)[0]
            for name, value in zip(NAMES, solved, strict=False):
                entry[f"{what}_{name}"] = round(max(float(value), 0.0), 4) + 0.0
        found[kind] = entry
    return found
