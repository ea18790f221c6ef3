"""Plans: which items a shard task takes. A plan is bytes in the store, only a reference crosses Prefect."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from sdflow_core.records.config import Config, PlanRef
from sdflow_core.records.keys import canonical_json
from sdflow_core.records.store import Store
from tasks.step import StepRun

T = TypeVar("T")


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


def write_plans(run: StepRun, items: Iterable[dict[str, Any]], shard_rows: int) -> tuple[PlanRef, ...]:
    """Cut items into shards and keep each as one object under `private/plans/`.

    Items are taken one by one and written as soon as they fill a shard: a generator never has more than one
    shard of them alive.
    """
    refs: list[PlanRef] = []
    part: list[dict[str, Any]] = []

    def write() -> None:
        key = f"private/plans/{run.run}/{run.name.replace(' ', '-')}-{len(refs):05d}.json"
        run.store.create(key, canonical_json(part))
        refs.append(PlanRef(uri=key, rows=len(part)))
        part.clear()

    for item in items:
        part.append(item)
        if len(part) == shard_rows:
            write()
    if part:
        write()
    return tuple(refs)


def windows(items: Iterable[T], count: int) -> Iterator[list[T]]:
    """The items in lists of so many, the last one shorter; taken as they are asked for."""
    left = iter(items)
    while part := list(islice(left, count)):
        yield part


def read_plan(store: Store, plan: PlanRef) -> list[dict[str, Any]]:
    """The items of one shard."""
    return json.loads(store.read(plan.uri))
