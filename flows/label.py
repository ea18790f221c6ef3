"""Faces -> attribute scores."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.latents import label_shard, plan_label
from tasks.reports import counted, report
from tasks.step import each_shard
from tasks.story import QUIET, story


@flow(name="label", **QUIET)
def label(dataset: str, store: str = "", parent: str = "", bundle: str = "") -> dict[str, Any]:
    """Score every kept face that has no scores of the promoted labeller yet; latents are not touched."""
    with story("label", dataset, store, parent, pinned=bundle) as job:
        plan = plan_label(job)
        each_shard(label_shard, job, plan.shards)
        counts = counted(job, "labels", plan)
        report(job, "Labels", counts)
    return counts
