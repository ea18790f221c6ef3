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


def attributes_to_train(store: Store, asked: str) -> tuple[str, ...]:
    """`--attributes` of a training: names that the promoted labeller knows; `all` is all of them."""
    known: tuple[str, ...] = _bundle(store).attributes
    names = tuple(name.strip() for name in asked.split(",") if name.strip())
    if names == ("all",):
        return known
    unknown = sorted(set(names) - set(known))
    if not names or unknown:
        raise ContractError(
            "attributes to train an editor for",
            expected=f"all, or some of {', '.join(known)}",
            found=", ".join(unknown) if names else "none",
            where="--attributes",
            todo="choose some of the expected, or promote models that know them",
        )
    return names


def training_to_start_from(name: str) -> None:
    """`--config` of a training: a setting that there is."""
    from sdflow_core.method.training_set import CONFIGS

    if name not in CONFIGS:
        raise ContractError(
            "the setting to train with", expected=" or ".join(CONFIGS), found=name, where="--config"
        )


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
    from sdflow_core.weights.model_store import edited_attributes

    known = edited_attributes(store, bundle)
    unknown = sorted(set(request) - set(known))
    if unknown:
        raise ContractError(
            "unknown attribute",
            expected=", ".join(known),
            found=", ".join(unknown),
            todo=f"ask for some of the expected, or run `sdflow train {dataset} --attributes "
            f"{','.join((*known, *unknown))}`"
            if set(unknown) <= set(bundle.attributes)
            else "ask for some of the expected, or promote models that know it",
        )


def before_publish(store: Store, edit_run: str, target: str) -> None:
    """Something that may leave, and a target that may receive it."""
    from sdflow_core.records.releases import check_release

    check_release(store, edit_run, target)
