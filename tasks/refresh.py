"""Bringing a dataset to the bundle in force: plan, recompute by shard, retrain, put into service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from sdflow_core.records.config import PlanRef
from sdflow_core.records.errors import ContractError
from sdflow_core.records.lineage import load_recipe
from sdflow_core.records.lookup import datasets
from sdflow_core.records.refreshes import Refreshes, RefreshPolicy, is_paused, refresh_id
from sdflow_core.records.store import Store
from sdflow_core.weights.model_store import Bundles
from tasks.canary import Gate, RefreshPlan, read_figures
from tasks.fan_out import at_a_time
from tasks.ingest import ingest_shard
from tasks.latents import invert_shard, label_shard, plan_invert, plan_label
from tasks.limits import device_slot
from tasks.reingest import plan_reingest
from tasks.reports import report
from tasks.runtime import load_bundle, settings, store_at
from tasks.service import bundle_in_service, editors_of, pinned, refresh_due, staleness
from tasks.step import Job, StepRun, each_shard, step
from tasks.train import EditorRef, train_editor_step, training_config


def person(go: bool, by: str) -> str:
    """Who says go; empty when nobody does.

    Raises:
        ContractError: A go without a name.
    """
    if go and not by.strip():
        raise ContractError("a go needs a name", expected="who says so", todo="pass --by NAME")
    return by.strip() if go else ""


@step("plan refresh")
def plan_refresh(run: StepRun, policy: RefreshPolicy) -> RefreshPlan:
    """What the bundle in force would compute anew, and which models it would replace."""
    store, dataset = run.store, run.job.dataset
    if dataset not in datasets(store):
        raise ContractError(
            "there is no such dataset",
            found=dataset,
            where=store.uri,
            todo="check the name, or `sdflow ingest`",
        )
    new = load_bundle(store, run.job.bundle)
    old = bundle_in_service(store, dataset) or new
    found = staleness(store, dataset, new)
    run.facts["config"] = {"stale": found.document(), "policy": policy.model_dump(mode="json")}
    return RefreshPlan(
        refresh=refresh_id(dataset, pinned(store, old), new.without_editor.digest, policy),
        old=old.digest,
        new=new.digest,
        due=old != new or found.due,
        paused=is_paused(store, dataset),
        train=_trains_here(store, dataset, bool(found.step("train").stale), old.editor, new.editor),
        rows=sum(found.step(name).todo for name in ("ingest", "invert", "label")),
    )


def _trains_here(store: Store, dataset: str, stale: bool, old: str | None, new: str | None) -> bool:
    """Whether this dataset teaches the editor: as it taught the one before, or when no dataset here did."""
    if stale and (old is None or old in editors_of(store, dataset)):
        return True
    if new is not None or old is None:
        return False
    return not any(old in editors_of(store, name) for name in datasets(store))


# -- recompute


def recompute(job: Job, plan: RefreshPlan) -> bool:
    """Ingest, invert and label what is missing, shard by shard; False when a person paused it."""
    return (
        _unless_paused(ingest_shard, job, plan_reingest(job, plan.old).shards)
        and _unless_paused(invert_shard, job, plan_invert(job).shards)
        and _unless_paused(label_shard, job, plan_label(job).shards)
    )


def _unless_paused(run_step: Any, job: Job, shards: Sequence[PlanRef]) -> bool:
    """As `each_shard`, but looks for a pause before each round of as many shards as run at a time."""
    store = store_at(job.store)
    left = iter(shards)
    for round_ in _rounds(left, at_a_time()):
        if is_paused(store, job.dataset):
            return False
        each_shard(run_step, job, round_)
    return not is_paused(store, job.dataset)


def _rounds(shards: Iterator[PlanRef], size: int) -> Iterator[list[PlanRef]]:
    while chosen := list(islice(shards, size)):
        yield chosen


# -- editor


def retrain(job: Job, plan: RefreshPlan, policy: RefreshPolicy) -> EditorRef:
    """Train the editor of the new models; as the one before was trained, unless the policy says otherwise."""
    config = policy.training
    store = store_at(job.store)
    old = load_bundle(store, plan.old).editor
    recipe = editors_of(store, job.dataset).get(old or "")
    if config is None and recipe:
        config = load_recipe(store, recipe)["config"]
    with device_slot():
        return train_editor_step(job, training_config(config))


@step("finish refresh")
def finish_refresh(run: StepRun, plan: RefreshPlan, editor: str, by: str) -> str:
    """Put the new models into service for this dataset; gives the digest of the bundle in force.

    Raises:
        ContractError: Another bundle was promoted meanwhile; nothing is changed.
    """
    store, bundles = run.store, Bundles(run.store)
    bundle = load_bundle(store, plan.new)
    if editor:
        bundle = bundle.model_copy(update={"editor": editor})
        bundles.complete(bundle, by, f"refresh {plan.refresh} of {run.job.dataset}")
    Refreshes(store).finish(plan.refresh, run.job.dataset, bundle.without_editor.digest, bundle.digest)
    return pinned(store, bundle)


# -- what people are told


def outcome(
    job: Job, plan: RefreshPlan, state: str, gate: Gate | None = None, editor: str = ""
) -> dict[str, Any]:
    """What a refresh came to.

    Args:
        job: Of the story.
        plan: Of the refresh.
        state: "current" (nothing to do), "paused", "waits" (for a person) or "done"; of the last becomes
            "computed" when the new models still lack an editor that another dataset teaches.
        gate: The last gate.
        editor: Digest of the editor that was trained, if any.
    """
    store, dataset = store_at(job.store), job.dataset
    current = Bundles(store).current()
    service = bundle_in_service(store, dataset)
    sheet = f"private/refresh/{plan.refresh}/canary.png"
    if state == "done" and service != current:
        state = "computed"
    todo = {
        "waits": f"look at the figures and the sheet, then: sdflow refresh {dataset} --go --by NAME; "
        "or: sdflow models rollback --by NAME",
        "paused": f"sdflow refresh {dataset} --resume",
        "computed": "refresh the dataset that teaches the editor; see `sdflow stale`",
    }
    return {
        "state": state,
        "dataset": dataset,
        "refresh": plan.refresh,
        "old_bundle": plan.old,
        "new_bundle": current.digest if current else None,
        "in_service": service.digest if service else None,
        "rows": plan.rows,
        "gate": gate.name if gate else None,
        "opened_by": gate.by if gate else None,
        "complaints": list(gate.why) if gate else [],
        "canary": read_figures(store, plan.refresh, "canary"),
        "editor": editor or None,
        "editors": read_figures(store, plan.refresh, f"editor-{editor[:12]}") if editor else None,
        "sheet": store.url(sheet) if store.exists(sheet) else None,
        "todo": todo.get(state, ""),
    }


def ended(job: Job, plan: RefreshPlan, state: str, gate: Gate, editor: str = "") -> dict[str, Any]:
    """`outcome`, with its figures (no addresses) mirrored to the Prefect UI."""
    facts = outcome(job, plan, state, gate, editor)
    names = ("state", "refresh", "rows", "gate", "opened_by", "complaints", "canary", "editors", "todo")
    report(job, "Refresh", {name: facts[name] for name in names if facts[name] not in (None, "", [])})
    return facts


def due_datasets(store_uri: str, bundle: str) -> list[str]:
    """Datasets to refresh; none when the bundle that an event names is no longer in force."""
    store = store_at(store_uri or settings().store)
    current = Bundles(store).current()
    if current is None or (bundle and current.digest != bundle):
        return []
    return refresh_due(store)
