"""Shard tasks run as they are, without a server: the body of every step is a plain function of its job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdflow_core.records.store import Store
from tasks.step import Job

CONSENT = "source,subject,attributes,expires,evidence\n*,nobody,*,,synthetic\n"


def with_models(store: Store) -> str:
    """Put the embedded models into a store, and an editor that nobody trained; gives the bundle's digest."""
    import torch

    from sdflow_core.faces.checkpoint import load_model
    from sdflow_core.method.editing import LinearEditor
    from sdflow_core.method.semantic_encoder import SemanticEncoder
    from sdflow_core.weights.embedded import accept_for_demo, install_embedded
    from sdflow_core.weights.model_store import Bundles, ModelStore
    from tasks.runtime import pin_bundle

    accept_for_demo(store)
    bundle, models = install_embedded(store), ModelStore(store)
    assert bundle.labeller is not None and bundle.encoder is not None
    semantic = SemanticEncoder.warm_start(load_model(models.weights(bundle.labeller)))
    directions = torch.randn(len(bundle.attributes), 10, 128, generator=torch.Generator().manual_seed(0))
    editor = LinearEditor(0.3 * directions, semantic, bundle.encoder)
    digest = models.add("editor", editor.to_bytes(), {"title": "directions by chance"})
    Bundles(store).promote(bundle.model_copy(update={"editor": digest}), "test", "")
    return pin_bundle(store).digest


def job_for(store: Store, bundle: str, dataset: str = "people") -> Job:
    """What every step is told."""
    return Job(store=store.uri, dataset=dataset, bundle=bundle, parent="test")


def body(step: Any) -> Any:
    """What a step does, without Prefect around it."""
    return step.fn


def run_ingest(job: Job, source: str, consent: Path | str) -> Any:
    """Plan and run all shards; gives the plan."""
    from tasks.ingest import ingest_shard
    from tasks.ingest_plan import plan_ingest

    plan = body(plan_ingest)(job, source, str(consent))
    for shard in plan.shards:
        body(ingest_shard)(job, shard)
    return plan


def run_invert(job: Job) -> Any:
    """Plan and run all shards; gives the plan."""
    from tasks.latents import invert_shard, plan_invert

    plan = body(plan_invert)(job)
    for shard in plan.shards:
        body(invert_shard)(job, shard)
    return plan


def run_label(job: Job) -> Any:
    """Plan and run all shards; gives the plan."""
    from tasks.latents import label_shard, plan_label

    plan = body(plan_label)(job)
    for shard in plan.shards:
        body(label_shard)(job, shard)
    return plan


def run_edit(job: Job, requests: list[dict[str, Any]]) -> Any:
    """Plan and run all shards; gives the plan."""
    from tasks.edit import edit_shard
    from tasks.edit_plan import edit_config, plan_edit, variants_of

    config = edit_config(None)
    plan = body(plan_edit)(job, variants_of(requests), config)
    for shard in plan.shards.shards:
        body(edit_shard)(job, shard, config)
    return plan
