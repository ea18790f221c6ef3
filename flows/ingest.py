"""A prefix of pictures + a consent list -> sources and faces."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.bodies import ingest_body
from tasks.reports import report
from tasks.story import QUIET, story


@flow(name="ingest", **QUIET)
def ingest(
    dataset: str, source: str, consent: str, store: str = "", parent: str = "", bundle: str = ""
) -> dict[str, Any]:
    """Every file of `source` becomes a row, kept or dropped with a reason; originals are only read."""
    with story("ingest", dataset, store, parent, pinned=bundle) as job:
        counts = ingest_body(job, source, consent)
        report(job, "Ingest", counts)
    return counts
