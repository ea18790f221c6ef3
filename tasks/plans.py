"""Plans: which items a shard task takes. A plan is bytes in the store, only a reference crosses Prefect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sdflow_core.records.config import Config, PlanRef
from sdflow_core.records.keys import canonical_json
from sdflow_core.records.store import Store
from tasks.step import StepRun


class Shards(Config):
    """What a planning step hands to the flow.

    Attributes:
        shards: One reference a shard task.
        wanted: Rows the story wants to exist.
        held: Of these, rows that exist already.
        recipe: How the missing ones are computed.
        remarks: What a person should know, in words; names no file and no person.
    """

    shards: tuple[PlanRef, ...]
    wanted: int
    held: int
    recipe: str
    remarks: tuple[str, ...] = ()


def write_plans(run: StepRun, items: Sequence[dict[str, Any]], shard_rows: int) -> tuple[PlanRef, ...]:
    """Cut items into shards and keep each as one object under `private/plans/`."""
    refs: list[PlanRef] = []
    for number, start in enumerate(range(0, len(items), shard_rows)):
        part = list(items[start : start + shard_rows])
        key = f"private/plans/{run.run}/{run.name.replace(' ', '-')}-{number:05d}.json"
        run.store.create(key, canonical_json(part))
        refs.append(PlanRef(uri=key, rows=len(part)))
    return tuple(refs)


def read_plan(store: Store, plan: PlanRef) -> list[dict[str, Any]]:
    """The items of one shard."""
    return json.loads(store.read(plan.uri))
