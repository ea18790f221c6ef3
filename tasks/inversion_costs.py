"""What inversion cost, from the lineage of the runs that did it."""

from __future__ import annotations

from typing import Any

from sdflow_core.faces.qualities import Spent, costs
from sdflow_core.records.journal import Journal
from sdflow_core.records.lineage import Lineage
from tasks.runtime import store_at
from tasks.step import Job

__all__ = ["measured_costs"]

_LATEST_RUNS = 5


def measured_costs(job: Job, recipe: str, quality: str) -> list[dict[str, Any]]:
    """Seconds a row of every quality, by the latest runs that computed rows of this recipe in a dataset.

    Empty where none of them told what it took. A run that found everything there has nothing of its own to
    measure: then it is the runs before that speak.
    """
    store = store_at(job.store)
    runs: list[str] = []
    for entry in reversed(list(Journal(store, f"private/datasets/{job.dataset}/journal").entries())):
        payload = entry.payload
        if entry.kind == "rows" and payload.get("table") == "latents" and payload.get("recipe") == recipe:
            if entry.run and entry.run not in runs:
                runs.append(entry.run)
            if len(runs) == _LATEST_RUNS:
                break
    told = [figures for run in runs if (figures := _figures(Lineage(store), run))]
    rows = sum(int(one["rows"]) for one in told)
    if not rows:
        return []
    names = ("encode_seconds", "render_seconds", "refine_seconds")
    total = {name: sum(float(one[name]) for one in told) for name in names}
    return [cost.document() for cost in costs(Spent(rows, int(told[0]["steps"]), **total), quality)]


def _figures(lineage: Lineage, run: str) -> dict[str, Any]:
    for event in lineage.events(run):
        if event["eventType"] == "COMPLETE":
            figures = event["run"]["facets"]["sdflow"].get("figures", {})
            return figures if "encode_seconds" in figures else {}
    return {}
