"""Approved edits -> a release."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.publish import dataset_of, publish_release
from tasks.reports import report
from tasks.story import QUIET, story


@flow(name="publish", **QUIET)
def publish(edit_run: str, target: str, store: str = "", parent: str = "") -> dict[str, Any]:
    """Release what was approved, and nothing else; pixels are checked again, only metadata is added."""
    with story("publish", dataset_of(edit_run, store), store, parent, bundle=False) as job:
        released = publish_release(job, edit_run, target)
        facts = released.model_dump(mode="json")
        report(job, "Release", {"release": facts["release_id"], "outputs": len(facts["outputs"])})
    return facts
