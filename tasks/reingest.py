"""Sources read again from where their rows say they lie: what a changed detector or template asks for.

A refresh knows no folder and no consent list. The latest row of each source names its file and its consent,
and that is what counts: nothing new is listed, and a consent that has ended since is not carried over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sdflow_core.records.errors import NotFoundError
from sdflow_core.records.sources import SourceItem, open_source
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table
from tasks import recipes
from tasks.consented import ended, kept_sources, today
from tasks.plans import Shards, write_plans
from tasks.runtime import load_bundle, settings
from tasks.step import StepRun, step


@dataclass(frozen=True)
class Origin:
    """A source that is kept, and a face that it shows."""

    uri: str
    face_id: str


def origins(store: Store, dataset: str, recipe: str) -> list[Origin]:
    """Sources whose latest row under a recipe is kept and whose consent holds today, by ids; once a face."""
    day = today()
    kept = [source for source in kept_sources(store, dataset, recipe) if not ended(source, day)]
    return [Origin(row["uri"], row["face_id"]) for row in sorted(kept, key=lambda row: row["source_id"])]


def read_again(store: Store, origin: Origin) -> bytes:
    """Bytes of a source.

    Raises:
        NotFoundError: It is gone.
    """
    return open_source(origin.uri, store).read(_listed(store, origin.uri))


def _listed(store: Store, uri: str) -> SourceItem:
    """One file as a listing of its place says; a remote one is only looked for when it is read.

    Raises:
        NotFoundError: A local file is gone.
    """
    folder = open_source(uri, store)
    if "://" in folder.uri:
        return SourceItem("", uri, 0, None, None, folder.uri.partition("://")[2])
    return next(iter(folder.list()))


@step("plan reingest")
def plan_reingest(run: StepRun, old: str) -> Shards:
    """Which sources have no row under the recipe wanted now; gives shards for the ingest step."""
    store = run.store
    recipe = run.using(recipes.ingest(load_bundle(store, run.job.bundle)))
    before = recipes.ingest(load_bundle(store, old)).key
    table = Table(store, run.job.dataset, "sources")
    seen = {row["uri"] for row in _latest(table, recipe) if row["status"] != "failed"}
    rows = [] if before == recipe else _latest(table, before)
    missing = [_item(store, row) for row in rows if row["uri"] not in seen]
    if not missing and recipe in table.recipes():
        run.reused(table.ref(recipe))
    shards = write_plans(run, missing, settings().shard_rows)
    return Shards(shards=shards, wanted=len(rows), held=len(rows) - len(missing), recipe=recipe)


def _latest(table: Table, recipe: str) -> list[dict[str, Any]]:
    if recipe not in table.recipes():
        return []
    return table.read(recipe=recipe, latest_by="uri").to_pylist()


def _item(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    """A row as ingest plans it."""
    over = ended(row, today())
    consented = bool(row["consent"]) and not over
    why = over or row["reason"]
    try:
        listed = _listed(store, row["uri"])
    except NotFoundError:
        listed = SourceItem("", row["uri"], row["size_bytes"], row["mtime_ns"], None, quote(row["uri"]))
    # a version that is neither the bytes' hash nor a stand-in for it is the server's own name of them
    own = row["version"] in ("", row["image_id"]) or row["version"].startswith("unread-")
    return {
        "name": row["name"],
        "uri": row["uri"],
        "size_bytes": listed.size_bytes or row["size_bytes"],
        "mtime_ns": listed.mtime_ns or row["mtime_ns"],
        "path": listed.path,
        "etag": None if own else row["version"],
        "source": row["uri"],
        "consent": row["consent"] if consented else "",
        "why": "" if consented else why or "no consent for this source",
        "subject": row["subject"] if consented else "",
        "attributes": list(row["consent_attributes"] or []) if consented else [],
        "expires": row["consent_expires"] if consented else "",
        "known": None,  # judged by another detector: the picture has to be looked at again
    }
