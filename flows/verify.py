"""Journals and shards -> nothing wrong, or a failed run that names what is."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.reports import report
from tasks.story import QUIET, story
from tasks.verify import (
    VerifyPolicy,
    datasets_of,
    refuse,
    summed,
    verify_all_journals,
    verify_room,
    verify_tables,
)

_ALL = VerifyPolicy()


@flow(name="verify", **QUIET)
def verify(policy: VerifyPolicy = _ALL, store: str = "", parent: str = "") -> dict[str, Any]:
    """Read everything again that must not be lost; fails when anything is not what was written."""
    with story("verify", "all", store, parent, bundle=False) as job:
        parts = [verify_all_journals(job)]
        if policy.shards:
            for dataset in datasets_of(job):
                parts.append(verify_tables(job.model_copy(update={"dataset": dataset})))
        found = summed(parts)
        facts = found.model_dump(mode="json")
        report(job, "Verify", {k: v for k, v in facts.items() if k != "findings"})
        refuse(found, job)
        verify_room(job, policy)
    return facts
