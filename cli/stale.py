"""`sdflow stale`: which rows the bundle in force would compute anew, why, and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import result, state

if TYPE_CHECKING:
    from sdflow_core.records.store import Store
    from sdflow_core.weights.model_store import Bundle

__all__ = ["register"]

MIN_PREFIX = 4


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("stale")(stale)


def stale(
    context: typer.Context,
    dataset: Annotated[
        str, typer.Argument(metavar="[DATASET]", help="Name of a dataset; without one, all of them.")
    ] = "",
    bundle: Annotated[
        str,
        typer.Option("--bundle", metavar="DIGEST", help="As if this bundle or model were in force."),
    ] = "",
) -> None:
    """Say which rows are stale under the bundle in force, why, and what computing them anew would cost."""
    from sdflow_core.records.errors import NotFoundError
    from sdflow_core.records.lookup import datasets
    from sdflow_core.records.stale import stale as compare
    from tasks.recipes import wanted

    now = state(context)
    store = now.store()
    chosen = _bundle(store, bundle)
    known = datasets(store)
    if dataset and dataset not in known:
        raise NotFoundError(
            "there is no such dataset",
            expected=", ".join(known) or "none yet",
            found=dataset,
            where=store.uri,
        )
    found = [compare(store, name, wanted(chosen), chosen) for name in ([dataset] if dataset else known)]
    document = {
        "bundle": chosen.digest,
        "due": [item.dataset for item in found if item.due],
        "datasets": [item.document() for item in found],
    }
    result(now, document, "\n\n".join(item.text for item in found) or "There is no dataset yet.")


def _bundle(store: Store, digest: str) -> Bundle:
    """The bundle in force, an earlier one, or the one in force with one model exchanged."""
    from cli.models import find, joined
    from sdflow_core.records.errors import ContractError
    from sdflow_core.weights.model_store import Bundle, Bundles

    current = Bundles(store).current()
    if not digest:
        if current is None:
            raise ContractError(
                "no models are promoted in this store",
                where=store.uri,
                todo="sdflow models promote embedded --by NAME",
            )
        return current
    found = find(store, digest)
    if isinstance(found, Bundle):
        return found
    if current is None:
        raise ContractError("there is no bundle that this model could join", found=found["kind"])
    return joined(current, found)
