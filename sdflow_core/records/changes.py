"""What makes a row stale: the difference between the recipe that made it and the recipe wanted now, in words.

A wanted recipe is its document (`keys.recipe_document`). A document whose config is None means "as it was
asked for then": how a person asked for an edit does not grow old, the models that carried it out do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from .errors import NotFoundError
from .keys import canonical_json, row_key, sha256_hex
from .lineage import load_recipe
from .store import Store
from .tables import Table

if TYPE_CHECKING:
    from sdflow_core.weights.model_store import Bundle

__all__ = ["STEP_OF", "RecipeDocument", "changes", "digest_of", "document_of", "row_words", "since"]

RecipeDocument = Mapping[str, Any]

STEP_OF = {
    "sources": "ingest",
    "faces": "ingest",
    "latents": "invert",
    "labels": "label",
    "editors": "train",
    "edits": "edit",
    "pasted": "paste",
}
_SHOWN = 12


def digest_of(document: RecipeDocument) -> str:
    """The recipe of a full document; empty where its config is left open."""
    return "" if document["config"] is None else sha256_hex(canonical_json(dict(document)))


def document_of(store: Store, recipe: str) -> RecipeDocument | None:
    """The document of a recipe that rows name, or None where it is not kept."""
    try:
        return load_recipe(store, recipe)
    except NotFoundError:
        return None


def changes(made: RecipeDocument | None, wanted: RecipeDocument) -> tuple[str, ...]:
    """How two recipes of one step differ, each difference in words; nothing when they are the same.

    Args:
        made: Of the rows that are there; None when it is not known.
        wanted: Of the rows that shall be there.

    Example:
        >>> old = {"version": 1, "config": {"micro_batch": 16}, "models": {"encoder": "a" * 64}}
        >>> changes(old, {**old, "models": {"encoder": "b" * 64}, "version": 2})
        ('step version 1 -> 2', 'encoder changed aaaaaaaaaaaa -> bbbbbbbbbbbb')
        >>> changes(old, {**old, "config": {"micro_batch": 8}})
        ('config micro_batch 16 -> 8',)
        >>> changes(old, {**old, "config": None})
        ()
    """
    if made is None:
        return ("its recipe is not known here",)
    said: list[str] = []
    if made["version"] != wanted["version"]:
        said.append(f"step version {made['version']} -> {wanted['version']}")
    before, after = cast("dict[str, str]", made["models"]), cast("dict[str, str]", wanted["models"])
    for kind in sorted({*before, *after}):
        if before.get(kind, "") != after.get(kind, ""):
            said.append(f"{kind} changed {_short(before.get(kind))} -> {_short(after.get(kind))}")
    if wanted["config"] is not None:
        old, new = _flat(made["config"]), _flat(wanted["config"])
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                said.append(f"config {name} {old.get(name, 'not there')} -> {new.get(name, 'not there')}")
    return tuple(said)


def since(store: Store, wanted: RecipeDocument, made: RecipeDocument | None) -> str:
    """Digest of the promoted bundle that brought the models in which two recipes differ.

    Empty when no promotion did: the step's version or config changed, or the models were never promoted.
    """
    from sdflow_core.weights.model_store import Bundles

    before = cast("dict[str, str]", made["models"]) if made else {}
    kinds = {k: v for k, v in wanted["models"].items() if before.get(k, "") != v}
    if not kinds:
        return ""
    found = ""
    for entry in reversed(Bundles(store).history()):
        bundle = entry.payload["bundle"]
        if any((bundle.get(kind) or "") != digest for kind, digest in kinds.items()):
            break
        found = str(entry.payload["digest"])
    return found


def row_words(
    store: Store,
    dataset: str,
    table: str,
    row: Mapping[str, Any],
    wanted: Mapping[str, RecipeDocument],
    bundle: Bundle | None = None,
) -> str:
    """Whether one row is stale and why, as a sentence; empty when it is current.

    Args:
        store: The store.
        dataset: Of the row.
        table: Of the row.
        row: With `recipe` and `inputs`.
        wanted: Step -> the recipe wanted now.
        bundle: In force; named where no promotion can be.
    """
    step = STEP_OF.get(table)
    if step is None or step not in wanted:
        return ""
    made = document_of(store, str(row["recipe"]))
    found = changes(made, wanted[step])
    place = "It is"
    if not found:
        # itself as wanted; but a row it was computed from may not be
        for name in ("edits", "latents", "faces"):
            above = Table(store, dataset, name)
            for key in cast("list[str]", row["inputs"] or []):
                origin = above.find(key) if name != table and above.recipes() else None
                if origin is not None:
                    said = row_words(store, dataset, name, origin, wanted, bundle)
                    if said:
                        return said.replace("It is", f"The row of {name} that it was made from is", 1)
        return ""
    brought = since(store, wanted[step], made) or (bundle.digest if bundle else "")
    text = f"{place} stale" + (f" since bundle {brought[:_SHOWN]}" if brought else "")
    text += f": {'; '.join(found)}."
    recipe = digest_of(wanted[step])
    newer = row_key(recipe, cast("list[str]", row["inputs"])) if recipe and row["inputs"] else ""
    if newer and newer in Table(store, dataset, table).held(recipe):
        text += f" Row {newer} holds the same, computed as wanted now; this one is kept as an old version."
    return text


def _short(digest: str | None) -> str:
    return digest[:_SHOWN] if digest else "none"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as dotted names."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            out |= _flat(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out
