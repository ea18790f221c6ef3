"""Kept sources x variants: millions of wanted edits as numbers, and as items only where one is planned.

Edits are numbered source by source as the records hold them, so that a shard of a plan finds its codes in few
shards of latents; by key they are sorted as their run announces them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import row_key
from sdflow_core.records.row_keys import Keys, Run, encode, sorted_order
from sdflow_core.records.shown_faces import takes_every_face
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table
from tasks import recipes
from tasks.consented import ended, kept_table

__all__ = ["Wanted", "wanted_edits"]

_AT_A_TIME = 1000
_COLUMNS = ("source_id", "image_id", "face_id", "consent", "consent_attributes", "consent_expires")
_NO_LATENT = "its face has no latent: `sdflow invert` has not seen it, or could not encode it"


@dataclass(frozen=True)
class Wanted:
    """All edits that a request asks for: one for each face of a kept source and variant.

    Attributes:
        keys: Sorted.
        order: Number of the edit under each key: place of its face x count of variants + its variant.
    """

    keys: Keys
    order: npt.NDArray[np.int64]
    _sources: pa.Table
    _variants: tuple[Any, ...]
    _recipe: str
    _faces: Table
    _of_ingest: str
    _day: date

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Place of each key in `keys`; -1 where it is not wanted."""
        nothing = np.zeros(0, np.bool_)
        return Run(self.keys, np.zeros(0, np.uint32), nothing).find(keys)

    def numbers(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Numbers of the edits under these keys, ascending."""
        return np.sort(self.order[mask])

    def refused(self, numbers: npt.NDArray[np.int64]) -> int:
        """How many of these edits consent does not cover, or have no latent."""
        return sum(
            bool(_refused(source, variant, self._day))
            for part in self._parts(numbers)
            for source, variant in part
        )

    def items(self, numbers: npt.NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        """The items of these edits, made as they are asked for."""
        texts = {id(variant): variant.text() for variant in self._variants}
        targets = {id(v): v.model_dump(mode="json")["targets"] for v in self._variants}
        for part in self._parts(numbers):
            points = self._points({source["face_id"] for source, _ in part})
            for source, variant in part:
                request = texts[id(variant)]
                inputs = [source["made_of"], source["source_id"], source["consent"], request]
                yield {
                    "row_key": row_key(self._recipe, inputs),
                    "inputs": inputs,
                    "source_id": source["source_id"],
                    "image_id": source["image_id"],
                    "face_id": source["face_id"],
                    "points": points.get(source["face_id"], []),
                    "request": request,
                    "targets": targets[id(variant)],
                    "refused": _refused(source, variant, self._day),
                }

    def _parts(self, numbers: npt.NDArray[np.int64]) -> Iterator[list[tuple[dict[str, Any], Any]]]:
        count = len(self._variants)
        for start in range(0, len(numbers), _AT_A_TIME):
            part = numbers[start : start + _AT_A_TIME]
            places, back = np.unique(part // count, return_inverse=True)
            rows = cast("list[dict[str, Any]]", self._sources.take(pa.array(places)).to_pylist())
            yield [
                (rows[at], self._variants[variant])
                for at, variant in zip(back.tolist(), (part % count).tolist(), strict=True)
            ]

    def _points(self, faces: set[str]) -> dict[str, Any]:
        keys = [row_key(self._of_ingest, [face]) for face in sorted(faces)]
        rows = self._faces.read(columns=["face_id", "points"], statuses=["kept"], row_keys=keys)
        return dict(zip(rows["face_id"].to_pylist(), rows["points"].to_pylist(), strict=True))


def _refused(source: dict[str, Any], variant: Any, day: date) -> str:
    """Why an edit becomes a dropped row; empty when it may be rendered."""
    allowed = source["consent_attributes"]
    barred = [n for n in sorted(variant.targets) if "*" not in allowed and n not in allowed]
    over = ended(source, day)
    if over:
        return over
    if barred:
        return f"consent does not cover {', '.join(barred)}"
    return "" if source["code"] else _NO_LATENT


def wanted_edits(
    store: Store,
    dataset: str,
    variants: Sequence[Any],
    recipe: str,
    bundle: Any,
    day: date,
    quality: str = "fast",
) -> Wanted:
    """Every face of every kept source crossed with every variant.

    `day` counts for consents, codes are of one quality.

    Raises:
        ContractError: There are no latents of the bundle's encoder, or none of this quality.
    """
    of_ingest = recipes.ingest(bundle).key
    latents = _latents(store, dataset, bundle, quality)
    sources = _with_codes(latents, kept_table(store, dataset, of_ingest, _COLUMNS))
    sources = sources.append_column("made_of", _made_of(sources, takes_every_face(store, of_ingest)))
    requests = [variant.text() for variant in variants]
    parts: list[Keys] = []
    for start in range(0, sources.num_rows, 4096):
        some = sources.select(["made_of", "source_id", "consent"]).slice(start, 4096).to_pydict()
        rows = zip(some["made_of"], some["source_id"], some["consent"], strict=True)
        texts = [row_key(recipe, [*row, request]) for row in rows for request in requests]
        parts.append(encode(texts)[0])
    keys = Keys(
        np.concatenate([np.zeros(0, np.uint64), *(part.head for part in parts)]),
        np.concatenate([np.zeros((0, 3), np.uint64), *(part.rest for part in parts)]),
    )
    parts.clear()
    order = sorted_order(keys)
    faces = Table(store, dataset, "faces")
    return Wanted(keys.take(order), order, sources, tuple(variants), recipe, faces, of_ingest, day)


def _with_codes(latents: pa.Table, sources: pa.Table) -> pa.Table:
    """Sources with the key of their face's latent; empty where there is none."""
    import pyarrow.compute

    compute = cast(Any, pyarrow.compute)
    known = latents.combine_chunks()
    value_set: Any = known.column("face_id").combine_chunks()
    place = compute.index_in(sources.column("face_id"), value_set=value_set)
    codes = compute.fill_null(known.column("row_key").take(place), "")
    return sources.append_column("code", codes).combine_chunks()


def _made_of(sources: pa.Table, several: bool) -> Any:
    """First input of each edit: its code. Faces of one source that have none are told apart by their ids."""
    import pyarrow.compute

    codes = sources.column("code")
    if not several:
        return codes
    compute = cast(Any, pyarrow.compute)
    return compute.if_else(compute.equal(codes, ""), sources.column("face_id"), codes)


def _latents(store: Store, dataset: str, bundle: Any, quality: str) -> pa.Table:
    table = Table(store, dataset, "latents")
    of_latents = recipes.invert(bundle, quality).key
    latents = table.read(recipe=of_latents, columns=["row_key", "face_id"], statuses=["kept"])
    if latents.num_rows:
        return latents
    if quality != "fast":
        raise ContractError(
            f"there are no codes of quality {quality} to edit",
            expected="codes that the promoted models gave and refined",
            where=f"dataset {dataset}",
            todo=f"run `sdflow invert {dataset} --quality {quality}`",
        )
    others = [r for r in table.recipes() if r != of_latents]
    if others:
        raise ContractError(
            "the latents of this dataset were made by another encoder than the promoted bundle's",
            expected=f"latents of encoder {str(bundle.encoder)[:12]}",
            found=f"{len(others)} other recipe(s)",
            todo=f"run `sdflow invert {dataset}` again, or `sdflow models rollback`",
        )
    raise ContractError(
        "there are no latents to edit", where=f"dataset {dataset}", todo=f"run `sdflow invert {dataset}`"
    )
