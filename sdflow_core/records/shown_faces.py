"""Which faces a source shows: one, or several where ingest takes every face of a picture.

A file is one row of `sources`, whatever it shows: its verdict and its consent are about the file. Faces are
rows of `faces`, found by the bytes they lie in. Under the policies that give one face a source, the source's
own row names it, and nothing else is read.
"""

from __future__ import annotations

from typing import Any, cast

import pyarrow as pa

from .errors import NotFoundError
from .lineage import load_recipe
from .store import Store
from .tables import Table

__all__ = ["faces_of_images", "takes_every_face", "with_every_face"]

# A recipe's document never changes: each process reads it once.
_taking: dict[tuple[str, str], bool] = {}


def takes_every_face(store: Store, recipe: str) -> bool:
    """Whether a recipe of ingest takes every face of a picture; not where its document is not kept here."""
    key = (store.uri, recipe)
    if key not in _taking:
        try:
            config = cast("dict[str, Any]", load_recipe(store, recipe)["config"])
        except NotFoundError:
            return False
        _taking[key] = config.get("faces") == "all"
    return _taking[key]


def faces_of_images(store: Store, dataset: str, recipe: str) -> dict[str, list[str]]:
    """Image id -> ids of its kept faces, the largest first; nothing where a source shows one face.

    Args:
        store: The store.
        dataset: Name.
        recipe: Of ingest.
    """
    table = Table(store, dataset, "faces")
    if not takes_every_face(store, recipe) or recipe not in table.recipes():
        return {}
    rows = table.read(recipe=recipe, columns=["image_id", "face_id"], statuses=["kept"])
    found: dict[str, list[str]] = {}
    for image, face in zip(*(rows.column(name).to_pylist() for name in rows.column_names), strict=True):
        found.setdefault(str(image), []).append(str(face))
    for faces in found.values():
        faces.sort(key=lambda face: int(face.rpartition("#")[2]))
    return found


def with_every_face(store: Store, dataset: str, recipe: str, sources: pa.Table) -> pa.Table:
    """Kept sources, each as often as it shows faces, with another `face_id` each time.

    Args:
        store: The store.
        dataset: Name.
        recipe: Of ingest, that made the sources.
        sources: Rows of kept sources with the columns `image_id` and `face_id`.

    Returns:
        The same columns; the same rows where a source shows one face. Faces of a source stand together, the
        largest first.
    """
    shown = faces_of_images(store, dataset, recipe)
    if not shown:
        return sources
    places: list[int] = []
    faces: list[str] = []
    pairs = zip(*(sources.column(name).to_pylist() for name in ("image_id", "face_id")), strict=True)
    for place, (image, face) in enumerate(pairs):
        mine = shown.get(str(image), [str(face)])
        places += [place] * len(mine)
        faces += mine
    taken = sources.take(pa.array(places, pa.int64()))
    at = taken.column_names.index("face_id")
    return taken.set_column(at, "face_id", pa.array(faces, pa.string()))
