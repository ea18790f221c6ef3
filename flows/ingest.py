"""A prefix of pictures + a consent list -> sources and faces."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.ingest import ingest_shard, plan_ingest
from tasks.reports import counted, report
from tasks.step import each_shard
from tasks.story import QUIET, story


@flow(name="ingest", **QUIET)
def ingest(
    dataset: str, source: str, consent: str, store: str = "", parent: str = "", bundle: str = ""
) -> dict[str, Any]:
    """Every file of `source` becomes a row, kept or dropped with a reason; originals are only read."""
    with story("ingest", dataset, store, parent, pinned=bundle) as job:
        plan = plan_ingest(job, source, consent)
        each_shard(ingest_shard, job, plan.shards)
        counts = counted(job, "sources", plan)
        report(job, "Ingest", counts)
    return counts
