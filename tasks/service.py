"""Which bundle a dataset is served by, and which datasets wait for a refresh.

The bundle in force (`Bundles.current`) is what was promoted last. Where it would make other rows than those
a dataset has, or has no editor yet, it is only a candidate for that dataset: the bundle in service stays the
one before, until a refresh has finished. A night that falls into a refresh works with the old models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdflow_core.records.keys import canonical_json
from sdflow_core.records.lookup import datasets
from sdflow_core.records.refreshes import Refreshes
from sdflow_core.records.stale import Staleness
from sdflow_core.records.stale import stale as compare
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table
from sdflow_core.weights.model_store import Bundles
from tasks import recipes

if TYPE_CHECKING:
    from sdflow_core.weights.model_store import Bundle

_MADE_BY = {"sources": recipes.ingest, "latents": recipes.invert, "labels": recipes.label}


def bundle_in_service(store: Store, dataset: str) -> Bundle | None:
    """The bundle that runs over a dataset shall pin; None before the first promotion.

    Walks the promotions that stand, oldest first; one takes over when it has an editor (or none had one) and
    makes the rows that are there, or a refresh has brought the dataset to it.
    """
    service: Bundle | None = None
    for bundle in Bundles(store).standing():
        if service is None or _takes_over(store, dataset, service, bundle):
            service = bundle
    return service


def _takes_over(store: Store, dataset: str, old: Bundle, new: Bundle) -> bool:
    if old.editor is not None and new.editor is None:
        return False
    return not _would_change(store, dataset, old, new) or Refreshes(store).finished(
        dataset, new.without_editor.digest
    )


def _would_change(store: Store, dataset: str, old: Bundle, new: Bundle) -> bool:
    """Whether the dataset has rows that `old` made and `new` would make otherwise."""
    for table, recipe in _MADE_BY.items():
        before = recipe(old).key
        if before != recipe(new).key and before in Table(store, dataset, table).recipes():
            return True
    return False


def pinned(store: Store, bundle: Bundle) -> str:
    """Keep a bundle under its digest, so that steps can be told of it; gives the digest."""
    store.create(f"models/pinned/{bundle.digest}.json", canonical_json(bundle.model_dump(mode="json")))
    return bundle.digest


def staleness(store: Store, dataset: str, bundle: Bundle) -> Staleness:
    """What is stale in a dataset under a bundle."""
    return compare(store, dataset, recipes.wanted(bundle), bundle)


def is_due(store: Store, dataset: str, bundle: Bundle) -> bool:
    """Whether a dataset has to be refreshed before the bundle can serve it."""
    return bundle_in_service(store, dataset) != bundle or staleness(store, dataset, bundle).due


def refresh_due(store: Store) -> list[str]:
    """Datasets that wait for a refresh; the one that taught the editor in service first, the rest by name.

    Cheap: reads plain columns only, and calls no model.
    """
    bundle = Bundles(store).current()
    if bundle is None:
        return []
    due = [name for name in datasets(store) if is_due(store, name, bundle)]
    return sorted(due, key=lambda name: (not teaches(store, name), name))


def teaches(store: Store, dataset: str) -> bool:
    """Whether the editor in service was trained on this dataset."""
    service = bundle_in_service(store, dataset)
    return service is not None and service.editor is not None and service.editor in editors_of(store, dataset)


def editors_of(store: Store, dataset: str) -> dict[str, str]:
    """Editors that were trained on a dataset -> their recipes."""
    table = Table(store, dataset, "editors")
    rows = table.read(columns=["editor", "recipe"]).to_pylist() if table.recipes() else []
    return {row["editor"]: row["recipe"] for row in rows}
