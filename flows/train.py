"""Latents + labels + samples of the prior -> an editor, promoted into the bundle."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.limits import device_slot
from tasks.reports import report, trained
from tasks.story import QUIET, story
from tasks.train import promote_editor, train_editor_step, training_config


@flow(name="train", **QUIET)
def train(
    dataset: str,
    config: dict[str, Any] | None = None,
    store: str = "",
    parent: str = "",
    bundle: str = "",
    by: str = "train",
) -> dict[str, Any]:
    """Train an editor; a killed training goes on where it stopped."""
    with story("train", dataset, store, parent, pinned=bundle) as job, device_slot():
        editor = train_editor_step(job, training_config(config))
        bundle = promote_editor(job, editor, by)
        facts = trained(job, editor, bundle)
        report(job, "Training", facts)
    return facts
