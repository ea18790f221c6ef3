"""Faces -> attribute scores."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.bodies import label_body
from tasks.reports import report
from tasks.story import QUIET, story


@flow(name="label", **QUIET)
def label(dataset: str, store: str = "", parent: str = "", bundle: str = "") -> dict[str, Any]:
    """Score every kept face that has no scores of the promoted labeller yet; latents are not touched."""
    with story("label", dataset, store, parent, pinned=bundle) as job:
        counts = label_body(job)
        report(job, "Labels", counts)
    return counts
