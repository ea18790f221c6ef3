"""All stories in a row, on people that do not exist."""

from __future__ import annotations

from typing import Any, TypedDict

from prefect import flow

from flows.edit import edit
from flows.ingest import ingest
from flows.invert import invert
from flows.label import label
from flows.publish import publish
from flows.train import train
from tasks.demo import (
    DEMO_DATASET,
    DEMO_REQUESTS,
    demo_decision,
    demo_summary,
    demo_training,
    install_models,
    make_people,
)
from tasks.story import QUIET, story


class Where(TypedDict):
    """What the demo tells every story: the store, and the run it is part of."""

    store: str
    parent: str


@flow(name="demo", **QUIET)
def demo(images: int = 200, store: str = "", training: dict[str, Any] | None = None) -> dict[str, Any]:
    """Sample people, treat them like a customer's folder, edit every one, decide, release."""
    with story("demo", DEMO_DATASET, store, bundle=False) as job:
        pinned = install_models(job)
        folder = make_people(pinned, images)
        where: Where = {"store": job.store, "parent": job.parent}
        sources = ingest(DEMO_DATASET, folder.photos, folder.consent, **where)
        invert(DEMO_DATASET, **where)
        label(DEMO_DATASET, **where)
        train(DEMO_DATASET, demo_training(training), **where)
        edits = edit(DEMO_DATASET, DEMO_REQUESTS, **where)
        demo_decision(job, edits["edit_run"])
        released = publish(edits["edit_run"], folder.released, **where)
        facts = demo_summary(job, sources, edits, released)
    return facts
