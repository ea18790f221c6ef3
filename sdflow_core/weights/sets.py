"""Sets of models that were made together, so that they can be promoted together."""

from __future__ import annotations

import json

from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import canonical_json
from sdflow_core.records.objects import Store
from sdflow_core.weights.model_store import Bundle

__all__ = ["find_sets", "keep_set"]

_ROOT = "models/sets/"


def keep_set(store: Store, bundle: Bundle) -> str:
    """Keep which models belong together; nothing is promoted. Gives the bundle's digest."""
    store.create(f"{_ROOT}{bundle.digest}.json", canonical_json(bundle.model_dump(mode="json")))
    return bundle.digest


def find_sets(store: Store, beginning: str) -> list[Bundle]:
    """Sets whose digest begins like this.

    Raises:
        ContractError: One was changed.
    """
    out: list[Bundle] = []
    for key in store.list(_ROOT):
        digest = key.removeprefix(_ROOT).removesuffix(".json")
        if not digest.startswith(beginning):
            continue
        bundle = Bundle.model_validate(json.loads(store.read(key)))
        if bundle.digest != digest:
            raise ContractError(
                "a set of models was changed",
                expected=f"digest {digest[:12]}",
                found=bundle.digest[:12],
                where=store.url(key),
            )
        out.append(bundle)
    return out
