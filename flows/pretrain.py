"""A folder of face pictures + a label CSV -> a compact generator, encoder, prior, labeller and judge."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.limits import device_slot
from tasks.pretrain import pretrain_models, pretraining_config
from tasks.reports import report
from tasks.story import QUIET, story


@flow(name="pretrain", **QUIET)
def pretrain(
    name: str,
    source: str,
    labels: str,
    config: dict[str, Any] | None = None,
    store: str = "",
    parent: str = "",
    teacher: str = "",
) -> dict[str, Any]:
    """Train compact models for a domain; a killed run goes on at its last checkpoint."""
    with story("pretrain", name, store, parent, bundle=False) as job, device_slot():
        facts = pretrain_models(job, source, labels, pretraining_config(config), teacher)
        report(job, "Pretraining", facts["metrics"])
    return facts
