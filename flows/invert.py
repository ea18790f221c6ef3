"""Faces -> W+ latents."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.bodies import invert_body
from tasks.reports import report
from tasks.story import QUIET, story


@flow(name="invert", **QUIET)
def invert(
    dataset: str, store: str = "", parent: str = "", bundle: str = "", quality: str = "fast"
) -> dict[str, Any]:
    """Encode every kept face that has no code of the promoted encoder yet, and refine it if asked."""
    with story("invert", dataset, store, parent, pinned=bundle) as job:
        counts = invert_body(job, quality)
        report(job, "Inversion", {k: v for k, v in counts.items() if k != "costs"})
    return counts
