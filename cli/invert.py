"""`sdflow invert`: codes of every kept face, of the quality asked, and what each quality costs."""

from __future__ import annotations

from typing import Any

import typer

from cli import checks
from cli.output import result, state, table
from cli.stories import Dataset, Quality, run_flow, show_facts
from sdflow_core.faces.qualities import check_quality

__all__ = ["invert"]


def invert(context: typer.Context, dataset: Dataset, quality: Quality = "fast") -> None:
    """Encode every kept face to a W+ latent; `good` and `best` refine it, at a cost that is printed."""
    now = state(context)
    check_quality(quality)

    def flow() -> Any:
        from flows.invert import invert as story

        return story(dataset=dataset, store=now.store_uri, quality=quality)

    todo = f"run `sdflow ingest SOURCE --name {dataset} --consent FILE` first"
    facts = run_flow(now, flow, "invert", lambda store: checks.before_work(store, dataset, "faces", todo))
    result(now, facts, lambda: _show_invert(dataset, facts))


def _show_invert(dataset: str, facts: dict[str, Any]) -> None:
    show_facts(f"Latents of {dataset}", {k: v for k, v in facts.items() if k != "costs"})()
    if not facts["costs"]:
        return
    table(
        "What each quality costs: seconds a row of the models, here",
        ("quality", "refinement steps", "seconds a row", "how it is known"),
        [(c["quality"], c["steps"], f"{c['seconds_a_row']:.3g}", c["how"]) for c in facts["costs"]],
    )
    if facts["quality"] != "fast":
        print(f"Edit from these codes: sdflow edit {dataset} --quality {facts['quality']} --set NAME=VALUE")
