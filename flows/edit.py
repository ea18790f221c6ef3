"""Latents + a request -> edits that wait for a person."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.bodies import edit_body
from tasks.reports import report
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
    quality: str = "fast",
) -> dict[str, Any]:
    """Edit every kept source by every request its consent covers; a dry run only counts those rows."""
    with story("edit", dataset, store, parent, pinned=bundle) as job:
        facts = edit_body(job, requests, config, dry_run, quality)
        if not dry_run:
            report(job, "Edits", facts)
    return facts
