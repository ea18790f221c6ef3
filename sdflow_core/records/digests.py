"""What two runs are compared by: everything that a dataset holds, without times, tokens and run ids."""

from __future__ import annotations

from .journal import Journal
from .objects import Store
from .releases import canonical_digest as releases_digest
from .tables import Table
from .verification import journal_roots

__all__ = ["TABLES", "canonical_digests"]

TABLES = ("sources", "faces", "latents", "labels", "editors", "edits", "pasted")


def canonical_digests(store: Store, dataset: str) -> dict[str, str]:
    """Digest per table of a dataset, of all decisions and of all releases of the store."""
    out = {name: Table(store, dataset, name).canonical_digest() for name in TABLES}
    roots = journal_roots(store, "decisions/")
    out |= {root: Journal(store, root).canonical_digest() for root in roots}
    return {**out, "releases": releases_digest(store)}
