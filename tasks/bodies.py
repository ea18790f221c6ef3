"""What the stories do inside their frame, so that a night can do it too without a Prefect run for each."""

from __future__ import annotations

from typing import Any

from sdflow_core.faces.qualities import check_quality
from tasks.edit import edit_shard
from tasks.edit_plan import QueuePlan, edit_config, plan_edit, plan_queue, variants_of
from tasks.ingest import ingest_shard
from tasks.ingest_plan import plan_ingest
from tasks.inversion_costs import measured_costs
from tasks.latents import invert_shard, label_shard, plan_invert, plan_label
from tasks.reports import contact_sheet, counted, edit_run_document, edited, planned
from tasks.runtime import load_bundle, store_at
from tasks.step import Job, each_shard


def ingest_body(job: Job, source: str, consent: str) -> dict[str, Any]:
    """Sources and faces; gives the counts of the dataset's sources."""
    plan = plan_ingest(job, source, consent)
    each_shard(ingest_shard, job, plan.shards)
    return counted(job, "sources", plan)


def invert_body(job: Job, quality: str = "fast") -> dict[str, Any]:
    """Latents; gives their counts and what each quality costs.

    Refined codes stand beside the encoder's own, which every dataset keeps: trainings learn from those, and
    nights compare them.
    """
    if check_quality(quality) != "fast":
        each_shard(invert_shard, job, plan_invert(job).shards)
    plan = plan_invert(job, quality)
    each_shard(invert_shard, job, plan.shards, quality)
    return {
        **counted(job, "latents", plan),
        "quality": quality,
        "costs": measured_costs(job, plan.recipe, quality),
    }


def label_body(job: Job) -> dict[str, Any]:
    """Labels; gives their counts."""
    plan = plan_label(job)
    each_shard(label_shard, job, plan.shards)
    return counted(job, "labels", plan)


def edit_body(
    job: Job,
    requests: list[dict[str, Any]],
    config: dict[str, Any] | None,
    dry_run: bool = False,
    quality: str = "fast",
) -> dict[str, Any]:
    """Edits of every source by every request, and their contact sheet; a dry run only counts.

    They start from codes of the quality asked.
    """
    settings = edit_config(config, load_bundle(store_at(job.store), job.bundle))
    plan = plan_edit(job, variants_of(requests), settings, dry_run, check_quality(quality))
    if dry_run:
        return planned(job, plan)
    each_shard(edit_shard, job, plan.shards.shards, settings)
    store = store_at(job.store)
    # a run that was killed between its last row and its sheet has none yet
    if plan.shards.shards or not store.exists(edit_run_document(store, plan.edit_run)["sheet"]):
        contact_sheet(job, plan.edit_run)
    return edited(job, plan)


def queue_body(job: Job, requests: list[dict[str, Any]], config: dict[str, Any] | None) -> QueuePlan:
    """Edits that nobody was asked about yet, and the contact sheets of their runs."""
    settings = edit_config(config, load_bundle(store_at(job.store), job.bundle))
    plan = plan_queue(job, variants_of(requests), settings)
    each_shard(edit_shard, job, plan.shards.shards, settings)
    for edit_run in plan.edit_runs:
        contact_sheet(job, edit_run)
    return plan
