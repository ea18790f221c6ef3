"""The whole plan as one document: stories, money, what grows, and where every figure comes from."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from sdflow_core.capacity.formula import FIRST, stories
from sdflow_core.capacity.prices import Prices
from sdflow_core.capacity.rates import Rate, Rates, Stored
from sdflow_core.capacity.story import StoryPlan
from sdflow_core.capacity.workload import Workload
from sdflow_core.records.errors import ContractError

__all__ = ["bill", "growth", "plan"]

_HOUR = 3600.0
_UNKNOWN = Rate(value=0, source="assumed")
_GB = 1e9


def bill(story: StoryPlan, load: Workload, prices: Prices) -> dict[str, float]:
    """What a story costs. Devices are paid while it runs, busy or not; a story without any holds cores."""
    hours = story.seconds / _HOUR
    on_device = story.device_lanes > 0
    held = hours * (load.devices * prices.hour(load.device) if on_device else 0.0)
    cores = 0.0 if on_device else hours * story.core_lanes * prices.hour("cpu")
    of = prices.requests
    each = {"PUT": of.put, "GET": of.get, "HEAD": of.head, "LIST": of.list, "DELETE": of.delete}
    people = load.images * load.edits * prices.people.seconds_per_edit / _HOUR * prices.people.hour
    money = {
        "compute": held + cores,
        "storage": sum(story.stored.values()) / _GB * prices.storage.gb_month * prices.storage.months,
        "requests": sum(story.requests[method] / 1000 * price for method, price in each.items()),
        "transfer": story.up_bytes / _GB * prices.transfer.up_gb
        + story.down_bytes / _GB * prices.transfer.down_gb,
        "people": people if story.name == "publish" else 0.0,
    }
    return {
        **{name: round(value, 4) for name, value in money.items()},
        "total": round(sum(money.values()), 4),
    }


def growth(load: Workload, rates: Rates, found: dict[str, StoryPlan], prices: Prices) -> dict[str, Any]:
    """What grows with the number of pictures, and breaks first; see docs/scaling.md."""
    edits = load.images * load.edits
    shards, edit_shards = (math.ceil(rows / load.shard_rows) for rows in (load.images, edits))
    entries = 4 * shards + edit_shards
    memory = {name: rates.memory.get(name, _UNKNOWN) for name in ("index", "plan.label")}
    ids = rates.stored.get("edit_runs", Stored())
    edit = found["edit"].work
    return {
        "journal_entries": entries,
        "task_runs": 3 * shards + edit_shards,
        "lineage_objects": 2 * (3 * shards + edit_shards),
        "index_memory_bytes": round(memory["index"].value * (4 * load.images + edits)),
        "plan_memory_bytes": round(memory["plan.label"].value * edits),
        "edit_run_record_bytes": round(ids.bytes_per_row * edits),
        "edit_shard_first_seconds": round(edit.seconds_of(0, 0), 3),
        "edit_shard_last_seconds": round(edit.seconds_of(0, max(edit.shards - 1, 0)), 3),
        "planning_seconds": {
            name: round(found[name].work.before_seconds, 1) for name in ("ingest", "invert", "label", "edit")
        },
        "story_fails_share": round(1 - (1 - load.failure_rate**3) ** (3 * shards + edit_shards), 6),
        "review_person_hours": round(edits * prices.people.seconds_per_edit / _HOUR, 2),
    }


def plan(load: Workload, rates: Rates, prices: Prices) -> dict[str, Any]:
    """Everything that `sdflow plan` says, as plain values.

    Raises:
        ContractError: The device is unknown to rates or prices, or the figures leave every bound.
    """
    device = rates.device(load.device)
    prices.hour(load.device)
    prices.hour("cpu")
    found = stories(load, rates, prices.limits)
    if not all(math.isfinite(one.seconds) for one in found.values()):
        raise ContractError("this cannot be planned", found="a time without end", todo="check the rates")
    documents = {name: _document(one, load, prices) for name, one in found.items()}
    speedup = load.speedup if load.speedup is not None else device.speedup
    return {
        "workload": load.model_dump(mode="json"),
        "stories": documents,
        "total_of": list(FIRST),
        "total": _sum([documents[name] for name in FIRST]),
        "growth": growth(load, rates, found, prices),
        "device": {
            "name": load.device,
            "speedup": speedup,
            "source": "assumed" if load.speedup is not None else device.source,
            "note": "given by --speedup" if load.speedup is not None else device.note,
        },
        "measured": rates.measured.model_dump(mode="json"),
        "models": rates.models,
        "rates": {name: rate.model_dump(mode="json") for name, rate in sorted(rates.seconds.items())},
        "prices": {"as_of": prices.as_of, "currency": prices.currency, "remark": prices.remark},
        "remarks": _remarks(load, rates, speedup),
    }


def _document(story: StoryPlan, load: Workload, prices: Prices) -> dict[str, Any]:
    hours = story.seconds / _HOUR
    return {
        "rows": story.rows,
        "shards": story.work.shards,
        "seconds": round(story.seconds, 2),
        "bound_by": story.bound_by,
        "device_hours": round(hours * load.devices if story.device_lanes else 0.0, 4),
        "device_busy_hours": round(story.device_seconds / _HOUR, 4),
        "core_hours": round(hours * story.core_lanes, 4),
        "requests": story.requests,
        "up_bytes": story.up_bytes,
        "down_bytes": story.down_bytes,
        "stored": dict(sorted(story.stored.items())),
        "objects": story.objects,
        "money": bill(story, load, prices),
        "source": story.source,
        "assumed": list(story.assumed),
    }


def _sum(parts: list[dict[str, Any]]) -> dict[str, Any]:
    names = (
        "seconds",
        "device_hours",
        "device_busy_hours",
        "core_hours",
        "up_bytes",
        "down_bytes",
        "objects",
    )
    total: dict[str, Any] = {name: round(sum(part[name] for part in parts), 4) for name in names}
    for name in ("requests", "stored", "money"):
        counted: Counter[str] = Counter()
        for part in parts:
            counted.update(part[name])
        total[name] = {key: round(value, 4) for key, value in counted.items()}
    return total


def _remarks(load: Workload, rates: Rates, speedup: float) -> list[str]:
    by = rates.measured
    said = [
        f"Rates: {by.machine}, {by.cpus} cores, {by.date}, load {by.load_before:g} to {by.load_after:g}, "
        f"{by.rows} rows a shard, pictures of {by.image_px} px, {rates.models}; by `{by.command}`"
        + (f". {by.remark}" if by.remark else ""),
        "Every picture is taken as kept, and every edit as good, waiting and approved: the most that can be.",
        "Round trips are those of a store on the measured machine: put your own under seconds.s3.request.",
    ]
    device = rates.device(load.device)
    if load.speedup is not None:
        said.append(f"ASSUMED: the networks run {speedup:g} times as fast on {load.device} (--speedup).")
    elif device.source != "measured":
        said.append(f"{device.source.upper()}: {load.device}: {device.note}.")
    if load.images > by.rows:
        said.append(
            f"EXTRAPOLATED: {load.images:,} pictures from stories of at most {by.rows}; "
            "the formula is checked by `python benchmarks/bench_capacity.py`."
        )
    if load.lanes > by.cpus:
        said.append(f"ASSUMED: each of {load.lanes} workers has a core of its own; {by.cpus} were measured.")
    return said
