"""What the tests deploy: the first half of a night, on a dataset of its own, through the real stories."""

from __future__ import annotations

from prefect import flow

from flows.ingest import ingest
from flows.invert import invert
from flows.label import label
from tasks.story import QUIET, story


@flow(name="small night", **QUIET)
def small_night(dataset: str, photos: str, consent: str, store: str = "") -> None:
    """Ingest, invert, label."""
    with story("small night", dataset, store) as job:
        where = {"store": job.store, "parent": job.parent, "bundle": job.bundle}
        ingest(dataset, photos, consent, **where)
        invert(dataset, **where)
        label(dataset, **where)
