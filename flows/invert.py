"""Faces -> W+ latents."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.latents import invert_shard, plan_invert
from tasks.reports import counted, report
from tasks.step import each_shard
from tasks.story import QUIET, story


@flow(name="invert", **QUIET)
def invert(dataset: str, store: str = "", parent: str = "", bundle: str = "") -> dict[str, Any]:
    """Encode every kept face that has no code of the promoted encoder yet."""
    with story("invert", dataset, store, parent, pinned=bundle) as job:
        plan = plan_invert(job)
        each_shard(invert_shard, job, plan.shards)
        counts = counted(job, "latents", plan)
        report(job, "Inversion", counts)
    return counts
