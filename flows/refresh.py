"""Another bundle was promoted -> the rows it makes stale, computed anew, and an editor of its own."""

from __future__ import annotations

from typing import Any

from prefect import flow

from sdflow_core.records.refreshes import RefreshPolicy
from tasks.canary import canary, editor_gate
from tasks.refresh import (
    due_datasets,
    ended,
    finish_refresh,
    outcome,
    person,
    plan_refresh,
    recompute,
    retrain,
)
from tasks.story import QUIET, story


@flow(name="refresh", **QUIET)
def refresh(
    dataset: str,
    policy: RefreshPolicy | None = None,
    go: bool = False,
    by: str = "",
    store: str = "",
    parent: str = "",
) -> dict[str, Any]:
    """Bring a dataset to the bundle in force; the bundle before stays in service until this is done."""
    rules, who = policy or RefreshPolicy(), person(go, by)
    with story("refresh", dataset, store, parent) as job:
        plan = plan_refresh(job, rules)
        if not plan.due:
            return outcome(job, plan, "current")
        if plan.paused:
            return outcome(job, plan, "paused")
        gate = canary(job, plan, rules, who)
        if not gate.open:
            return ended(job, plan, "waits", gate)
        if not recompute(job, plan):
            return ended(job, plan, "paused", gate)
        editor = retrain(job, plan, rules).digest if plan.train else ""
        if editor:
            gate = editor_gate(job, plan, editor, rules, who)
            if not gate.open:
                return ended(job, plan, "waits", gate, editor)
        finish_refresh(job, plan, editor, gate.by)
        return ended(job, plan, "done", gate, editor)


@flow(name="refresh due", **QUIET)
def refresh_due_datasets(
    policy: RefreshPolicy | None = None, store: str = "", bundle: str = ""
) -> list[dict[str, Any]]:
    """Refresh every dataset that is due; nothing when `bundle`, from an event, is no longer in force."""
    # states first: one dataset that fails does not keep the others waiting, and fails the run all the same
    ended = [refresh(name, policy, store=store, return_state=True) for name in due_datasets(store, bundle)]
    return [state.result() for state in ended]
