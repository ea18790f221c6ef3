"""What can be known to be wrong before a server is started: one message within a second, not after ten."""

from __future__ import annotations

from typing import Any

from sdflow_core.records.addresses import checked_address
from sdflow_core.records.errors import ContractError
from sdflow_core.records.store import Store

__all__ = ["before_edit", "before_ingest", "before_publish", "before_work"]


def _bundle(store: Store) -> Any:
    from tasks.runtime import pin_bundle

    return pin_bundle(store)


def dataset_name(store: Store, dataset: str) -> None:
    """The name must be usable as a place in the store."""
    from sdflow_core.records.tables import Table

    Table(store, dataset, "sources")


def before_ingest(store: Store, dataset: str, source: str, consent: str) -> None:
    """Models in force, a source with something in it, a consent list that can be read."""
    from sdflow_core.records.consent import ConsentList
    from sdflow_core.records.sources import open_source

    dataset_name(store, dataset)
    checked_address(source, "source")
    checked_address(consent, "consent list")
    _bundle(store)
    ConsentList.load(consent, store)
    if next(iter(open_source(source, store).list()), None) is None:
        raise ContractError(
            "nothing to ingest",
            expected="at least one file",
            found="an empty folder",
            where=source,
            todo="check the address of the source",
        )


def before_work(store: Store, dataset: str, table: str, todo: str) -> None:
    """Models in force, and rows of the step before."""
    from sdflow_core.records.tables import Table

    dataset_name(store, dataset)
    _bundle(store)
    if not Table(store, dataset, table).recipes():
        raise ContractError(f"dataset {dataset} has no {table} yet", where=store.uri, todo=todo)


def before_edit(store: Store, dataset: str, request: dict[str, float | str]) -> None:
    """An editor in force, attributes that it knows, latents."""
    before_work(store, dataset, "latents", f"run `sdflow invert {dataset}` first")
    bundle = _bundle(store)
    if bundle.editor is None:
        raise ContractError(
            "the promoted bundle has no editor",
            todo=f"run `sdflow train {dataset}`; after a promotion of other models "
            f"`sdflow refresh {dataset}` or `sdflow models rollback`",
        )
    unknown = sorted(set(request) - set(bundle.attributes))
    if unknown:
        raise ContractError(
            "unknown attribute",
            expected=", ".join(bundle.attributes),
            found=", ".join(unknown),
            todo="ask for attributes that the promoted models know",
        )


def before_publish(store: Store, edit_run: str, target: str) -> None:
    """Something that may leave, and a target that may receive it."""
    from sdflow_core.records.releases import check_release

    check_release(store, edit_run, target)
