"""`sdflow why`: why a row is there."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.output import result, state

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("why")(why)


def why(
    context: typer.Context,
    row: Annotated[str, typer.Argument(metavar="ROW", help="A row key, its beginning, or a source's name.")],
    dataset: Annotated[str, typer.Option("--dataset", help="Look in this dataset only.")] = "",
) -> None:
    """Explain why a row was computed, reused or dropped, and whether it is stale now."""
    from dataclasses import asdict

    from sdflow_core.records.why import why as explain
    from sdflow_core.weights.model_store import Bundles
    from tasks.recipes import wanted

    now = state(context)
    store = now.store()
    bundle = Bundles(store).current()
    found = explain(store, row, wanted(bundle) if bundle else None, bundle, dataset)
    result(now, asdict(found), found.text)
