"""Latents + a request -> edits that wait for a person."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.edit import edit_config, edit_shard, plan_edit, variants_of
from tasks.reports import contact_sheet, edited, planned, report
from tasks.step import each_shard
from tasks.story import QUIET, story


@flow(name="edit", **QUIET)
def edit(
    dataset: str,
    requests: list[dict[str, float | str]],
    config: dict[str, Any] | None = None,
    dry_run: bool = False,
    store: str = "",
    parent: str = "",
    bundle: str = "",
) -> dict[str, Any]:
    """Edit every kept source by every request its consent covers; a dry run only counts those rows."""
    with story("edit", dataset, store, parent, pinned=bundle) as job:
        settings = edit_config(config)
        plan = plan_edit(job, variants_of(requests), settings, dry_run)
        if dry_run:
            return planned(job, plan)
        each_shard(edit_shard, job, plan.shards.shards, settings)
        contact_sheet(job, plan.edit_run)
        facts = edited(job, plan)
        report(job, "Edits", facts)
    return facts
