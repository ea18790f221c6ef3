"""One story on paper: what its shard tasks take, what it asks of the store, and what it leaves there.

The shapes follow the code: `tasks/*.py` for what a shard task reads and writes, `records/` for the rest. The
figures come from the rates, and each one that is used is remembered with its source.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from sdflow_core.capacity.prices import Limits
from sdflow_core.capacity.rates import Rates, Source, worst
from sdflow_core.capacity.workload import Work, Workload, makespan
from sdflow_core.records.config import Config

__all__ = ["METHODS", "SHEET", "Amounts", "Story", "StoryPlan", "less", "more"]

METHODS = ("PUT", "GET", "HEAD", "LIST", "DELETE")
Amounts = dict[str, float]  # method -> requests, and UP and DOWN -> bytes

_KEYS_A_PAGE = 1000
# Only the latest runs are asked how long they took (records/costs.py): five of each of five steps.
_RUNS_LOOKED_AT = 25
# Columns that a process keeps (records/shards.py). What a shard task reads anew and does not fit is fetched.
_CACHE_BYTES = 256 * 2**20
_SOURCE_ROW_BYTES = 600  # in memory, of the columns that a verdict needs; assumed from their types
SHEET = frozenset({("crops", "GET"), ("edits", "GET")})  # read once more by the contact sheet
# Tables and kinds that a story writes, and which share of a kind of all stories is its own.
_OWN = {
    "ingest": {"crops": 1, "table.sources": 1, "table.faces": 1, "models": 1, "recipes": 1, "private": 1},
    "invert": {"table.latents": 1},
    "label": {"table.labels": 1},
    "edit": {"table.edits": 1, "edits": 1, "before": 1, "edit_runs": 1, "sheets": 1, "plans.edit": 1},
    "publish": {"decisions": 1, "releases": 1},
}
# One entry a commit (ingest makes two), one pair of events a shard task, one plan a shard.
_SHARED = {
    "journal": {"ingest": 2 / 5, "invert": 1 / 5, "label": 1 / 5, "edit": 1 / 5},
    "lineage": {"ingest": 1 / 4, "invert": 1 / 4, "label": 1 / 4, "edit": 1 / 4},
    "plans": {"ingest": 1 / 3, "invert": 1 / 3, "label": 1 / 3},
}
_HELD = {
    "ingest": ("held.ingest", "held.commit", "held.commit"),
    "invert": ("held.commit",),
    "label": ("held.commit",),
    "edit": ("held.commit",),
}


def more(*parts: Amounts) -> Amounts:
    """The sum, name by name.

    Example:
        >>> dict(more({"PUT": 1}, {"PUT": 2, "GET": 3}))
        {'PUT': 3.0, 'GET': 3.0}
    """
    total: Amounts = defaultdict(float)
    for part in parts:
        for name, value in part.items():
            total[name] += value
    return total


def less(whole: Amounts, part: Amounts) -> Amounts:
    """The difference, name by name, and never below 0."""
    return defaultdict(float, {name: max(value - part.get(name, 0.0), 0.0) for name, value in whole.items()})


class StoryPlan(Config):
    """What one story takes.

    Attributes:
        name: Of the story.
        rows: Rows it makes; pictures for publish, listed files for a night.
        work: Its shards.
        seconds: From start to end.
        bound_by: What these are bound by; see `makespan`.
        device_seconds: That devices compute.
        device_lanes: Devices that are held meanwhile; 0 where the story uses none.
        core_lanes: Cores that are held.
        requests: Method -> how many.
        up_bytes: From workers into buckets.
        down_bytes: From buckets to workers.
        stored: Kind -> bytes at rest that it adds.
        objects: Objects that it adds.
        source: The least of the sources of its rates.
        assumed: Names of those that are not measured.
    """

    name: str
    rows: int
    work: Work
    seconds: float
    bound_by: str
    device_seconds: float
    device_lanes: int
    core_lanes: int
    requests: dict[str, int]
    up_bytes: int
    down_bytes: int
    stored: dict[str, int]
    objects: int
    source: Source
    assumed: tuple[str, ...]


class Story:
    """One story in the making."""

    def __init__(self, load: Workload, rates: Rates) -> None:
        self.load, self.rates = load, rates
        self.used: dict[str, Source] = {}
        self.device = rates.device(load.device)
        self.speedup = load.speedup if load.speedup is not None else self.device.speedup

    def second(self, name: str) -> float:
        """One rate; its source is remembered."""
        rate = self.rates.seconds[name]
        self.used[f"seconds.{name}"] = rate.source
        return rate.value

    def device_second(self, name: str) -> float:
        """One rate of a network, on the device."""
        given = self.load.speedup is not None
        self.used[f"devices.{self.load.device}.speedup"] = "assumed" if given else self.device.source
        return self.second(name) / self.speedup

    def shards(self, rows: int) -> int:
        """Shard tasks for so many rows."""
        return math.ceil(rows / self.load.shard_rows)

    # -- one shard task

    def host_row(self, story: str) -> float:
        """Core seconds of one row; larger pictures than the measured ones take longer."""
        seconds = self.second(f"{story}.host")
        if story == "ingest":
            measured = self.rates.measured.image_px
            px = self.load.image_px or measured
            seconds += self.second("decode.megapixel") * (px**2 - measured**2) / 1e6
            if measured < 640:
                larger = (min(max(px, measured), 640) ** 2 - measured**2) / (640**2 - measured**2)
                seconds += self.second("detect.large") * larger
        return max(seconds, 0.0)

    def work(self, story: str, rows: int, held_rows: int = 0) -> Work:
        """The shard tasks of one story over a table that holds `held_rows` when it begins."""
        load = self.load
        shards, size = self.shards(rows), min(load.shard_rows, rows)
        on_device = story != "ingest"
        device = self.device_second(f"{story}.device") if on_device else 0.0
        counts, transfer = self._shard_requests(story, size)
        trip, megabyte = self.second("s3.request"), self.second("s3.megabyte")
        fixed_counts, fixed_bytes = self._shard_requests(story, 0)
        fixed = self.second("shard.host") + self.second("prefect.task")
        fixed += sum(fixed_counts.values()) * trip + fixed_bytes / 1e6 * megabyte
        pixels = size * self.host_row(story)
        network = size * device
        traffic = (sum(counts.values()) - sum(fixed_counts.values())) * trip
        traffic += (transfer - fixed_bytes) / 1e6 * megabyte
        if load.pipeline == "serial":
            rows_seconds = pixels + network + traffic
        else:
            rows_seconds = max(pixels / load.host_cores, network, traffic / load.connections)
        held = sum(self.second(name) for name in _HELD[story])
        if story == "edit":
            fixed += self._all_codes()
        fixed += held * held_rows
        busiest = self._busiest(story, size)
        return Work(
            shards=shards,
            last_share=(rows - (shards - 1) * load.shard_rows) / size,
            shard_seconds=fixed + rows_seconds,
            fixed_seconds=fixed,
            held_seconds=held * size,
            lanes=load.device_lanes if on_device else load.lanes,
            server_seconds=self.second("prefect.task"),
            puts=busiest["PUT"],
            gets=busiest["GET"],
        )

    def _all_codes(self) -> float:
        """Seconds in which an edit shard reads all codes of the dataset; 0 where only its own."""
        each = self.second("held.edit")
        seconds = each * self.load.images
        shards, size = self.refetched("edit")
        return seconds + shards * 2 * self.second("s3.request") + size / 1e6 * self.second("s3.megabyte")

    def refetched(self, story: str) -> tuple[float, float]:
        """Shards and bytes that every shard task of a story fetches again, because the cache is too small."""
        table, row, rate = {
            "edit": ("table.latents", self._row_bytes("table.latents"), "held.edit"),
            "ingest": ("table.sources", _SOURCE_ROW_BYTES, "held.ingest"),
        }.get(story, ("", 0, ""))
        if not table or not self.second(rate) or row * self.load.images <= _CACHE_BYTES:
            return 0.0, 0.0
        share = 1.0 if story == "edit" else 0.5  # sources grow while they are read
        return share * self.shards(self.load.images), share * self._row_bytes(table) * self.load.images

    def _row_bytes(self, kind: str) -> float:
        stored = self.rates.stored.get(kind)
        return stored.bytes_per_row + stored.bytes_per_shard / self.load.shard_rows if stored else 0.0

    def _shard_requests(self, story: str, rows: int) -> tuple[dict[str, float], float]:
        """Requests and bytes of one shard task alone."""
        found: Amounts = defaultdict(float)
        transfer = 0.0
        for kind, methods in self.rates.requests[story].items():
            for method, linear in methods.items():
                if kind == "bytes":
                    photo = self._photo_bytes() if (story, method) == ("ingest", "DOWN") else 0.0
                    transfer += linear.per_shard + (linear.per_row + photo) * rows
                elif not self.is_serial(story, kind, method):
                    found[method] += linear.per_shard + linear.per_row * rows
        return dict(found), transfer

    def is_serial(self, story: str, kind: str, method: str) -> bool:
        """Whether requests are made before or after the shard tasks: the key of the HMACs, the sheets."""
        return (story == "ingest" and kind == "private") or (story == "edit" and (kind, method) in SHEET)

    def serial_requests(self, story: str) -> float:
        """Such requests a row."""
        counted = self.rates.requests[story].items()
        return sum(
            linear.per_row
            for kind, methods in counted
            for method, linear in methods.items()
            if kind != "bytes" and self.is_serial(story, kind, method)
        )

    def _photo_bytes(self) -> float:
        """How much larger a picture is than the measured ones."""
        measured = self.rates.measured.image_bytes
        return (self.load.image_bytes or measured) - measured

    def _busiest(self, story: str, rows: int) -> dict[str, float]:
        """Most requests of one shard task under one prefix; edits lie under 256 of them."""
        most = {"PUT": 0.0, "GET": 0.0}
        for kind, methods in self.rates.requests[story].items():
            prefixes = 256 if kind == "edits" else 1
            for method in most:
                linear = methods.get(method)
                if kind != "bytes" and linear is not None and not self.is_serial(story, kind, method):
                    each = (linear.per_shard + linear.per_row * rows) / prefixes
                    most[method] = max(most[method], each)
        return most

    # -- a whole story

    def requests(self, story: str, shards: float, rows: float, held: float, *, part: bool = False) -> Amounts:
        """Requests and bytes (UP, DOWN) of one story; `part`: of its shards and rows alone."""
        found: Amounts = defaultdict(float)
        pages = math.ceil(self.load.images / _KEYS_A_PAGE)
        for kind, methods in self.rates.requests[story].items():
            there = 0.0 if part else held
            if kind == "journal" and not part:
                there = there // 256 + there % 256
            elif kind == "lineage":
                there = min(there, _RUNS_LOOKED_AT)
            for method, linear in methods.items():
                count = linear.of(shards, rows, there) - (linear.fixed if part else 0.0)
                if (kind, method) == ("source", "LIST") and not part:
                    count += linear.fixed * (pages - 1)
                if (story, kind, method) == ("ingest", "bytes", "DOWN"):
                    count += self._photo_bytes() * rows
                found[method] += count
        self.used["requests"] = "measured"
        again, size = self.refetched(story)
        found["GET"] += again * shards
        found["HEAD"] += again * shards
        found["DOWN"] += size * shards
        if self.load.processes and shards:
            self._every_process(story, shards, found)
        return found

    def _every_process(self, story: str, shards: float, found: Amounts) -> None:
        """Worker processes open the models each for itself, and read what the others commit."""
        more = self.load.lanes - 1
        for method, linear in self.rates.requests[story].get("models", {}).items():
            found[method] += more * linear.fixed
        for kind in ("journal", "shards"):
            for method, linear in self.rates.requests["label"].get(kind, {}).items():
                found[method] += more * shards * linear.per_held_shard
        self.used["requests of processes"] = "extrapolated"

    def made(
        self,
        name: str,
        rows: int,
        works: Sequence[Work],
        requests: Amounts,
        device_seconds: float,
        limits: Limits,
        stored: tuple[dict[str, int], int] = ({}, 0),
    ) -> StoryPlan:
        """Puts a story together; several works follow each other."""
        limit = {"put_limit": limits.put_per_second, "get_limit": limits.get_per_second}
        ends = [makespan(work, self.load.failure_rate, **limit) for work in works]
        biggest = max(range(len(ends)), key=lambda number: ends[number][0])
        attempts = 1 + self.load.failure_rate / 2 + self.load.failure_rate**2 / 2
        on_device = device_seconds > 0
        used = dict(self.used)
        if rows > self.rates.measured.rows:
            used["rows"] = "extrapolated"
        return StoryPlan(
            name=name,
            rows=rows,
            work=works[biggest],
            seconds=sum(seconds for seconds, _ in ends),
            bound_by=ends[biggest][1],
            device_seconds=device_seconds * attempts,
            device_lanes=self.load.device_lanes if on_device else 0,
            core_lanes=max(work.lanes for work in works),
            requests={
                method: round(requests.get(method, 0.0))
                for method in ("PUT", "GET", "HEAD", "LIST", "DELETE")
            },
            up_bytes=round(requests.get("UP", 0.0)),
            down_bytes=round(requests.get("DOWN", 0.0)),
            stored=stored[0],
            objects=stored[1],
            source=worst(list(used.values())),
            assumed=tuple(sorted(n for n, source in used.items() if source == "assumed")),
        )

    def stored(self, story: str, rows: int) -> tuple[dict[str, int], int]:
        """Bytes by kind and number of objects that a story adds."""
        shards = self.shards(rows)
        found: dict[str, int] = {}
        objects = 0.0
        shares = dict(_OWN.get(story, {}))
        shares |= {kind: of[story] for kind, of in _SHARED.items() if story in of}
        for kind, share in shares.items():
            at_rest = self.rates.stored.get(kind)
            if at_rest is None:
                continue
            size = at_rest.bytes_fixed + at_rest.bytes_per_shard * shards + at_rest.bytes_per_row * rows
            found[kind] = round(share * size)
            count = at_rest.objects_fixed + at_rest.objects_per_shard * shards
            objects += share * (count + at_rest.objects_per_row * rows)
        return found, round(objects)
