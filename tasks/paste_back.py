"""Edits -> their photographs with the edited faces in them, at full resolution; originals are only read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sdflow_core.records.config import DatasetRef
from sdflow_core.records.decisions import read_output
from sdflow_core.records.errors import ContractError, NotFoundError, PolicyError
from sdflow_core.records.keys import row_key, sha256_hex
from sdflow_core.records.store import open_source
from sdflow_core.records.tables import Table, base_schema
from tasks import recipes
from tasks.consented import ended, kept_table, today
from tasks.runtime import load_bundle
from tasks.step import StepRun, step

_SCHEMA = pa.schema(
    [
        *(column for column in base_schema() if column.name != "run"),
        ("source_id", pa.string()),
        ("image_id", pa.string()),
        ("output", pa.string()),
        ("pixel_sha256", pa.string()),
        ("file_sha256", pa.string()),
        ("boxes", pa.list_(pa.int32())),
    ]
)
_EDIT = ("row_key", "status", "reason", "source_id", "image_id", "face_id", "before", "output")


@step("paste back")
def paste_edits(run: StepRun, edit_ids: Sequence[str], config: Any) -> DatasetRef:
    """Paste edits of one photograph into it: the file first, the row of `pasted` that names it last.

    What is written stays private. The photograph shows everybody who is in it, and no consent list speaks of
    bystanders: releasing it is a decision of its own, which nothing here takes.

    Args:
        run: Its bundle is the one whose ingest found the faces.
        edit_ids: Edits (keys of rows of `edits`) of different faces of one source.
        config: A `PasteConfig`.

    Returns:
        The table `pasted`, with a row for these edits.

    Raises:
        ContractError: Edits of several photographs, two of one face, an edit without a picture, or a source
            whose bytes are no longer those that were ingested.
        NotFoundError: No such edit, or its source is no longer in the dataset.
        PolicyError: The consent of the source has ended.
        ApprovalError: A picture is not the one of its row.
    """
    from sdflow_core.faces.decode import Rejected, decode
    from sdflow_core.faces.large_png import photograph_png
    from sdflow_core.faces.paste_back import paste_back
    from sdflow_core.faces.pixels import pixel_digest

    store = run.store
    recipe = run.using(recipes.paste(config))
    table = Table(store, run.job.dataset, "pasted")
    edits = _edits(run, edit_ids)
    key = row_key(recipe, sorted(edit_ids))
    source = _source(run, edits[0]["source_id"])
    if table.read(recipe=recipe, row_keys=[key], columns=["row_key"]).num_rows:
        reused = table.ref(recipe)
        run.reused(reused)
        return reused
    faces = _faces(run, edits)
    data = _bytes(run, source)
    try:
        photograph = decode(data)
    except Rejected as reason:
        raise ContractError("the source is no picture", found=reason.reason, where=source["uri"]) from None
    pasted = paste_back(photograph, faces, config, in_place=True)
    file, output = photograph_png(pasted.pixels), f"private/pasted/{key[:2]}/{key}.png"
    store.create(output, file)
    row = {
        "row_key": key,
        "recipe": recipe,
        "status": "kept",
        "reason": "",
        "inputs": sorted(edit_ids),
        "source_id": source["source_id"],
        "image_id": source["image_id"],
        "output": output,
        "pixel_sha256": pixel_digest(pasted.pixels),
        "file_sha256": sha256_hex(file),
        "boxes": [side for box in pasted.boxes for side in box],
    }
    return table.commit(pa.Table.from_pylist([row], _SCHEMA), run=run.run)


def _edits(run: StepRun, edit_ids: Sequence[str]) -> list[dict[str, Any]]:
    if not edit_ids or len(set(edit_ids)) != len(edit_ids):
        raise ContractError("edits to paste", expected="each once, at least one", found=list(edit_ids))
    table = Table(run.store, run.job.dataset, "edits")
    columns = [*_EDIT, "pixel_sha256"]
    found = {row["row_key"]: row for row in table.read(row_keys=list(edit_ids), columns=columns).to_pylist()}
    absent = [edit for edit in edit_ids if edit not in found]
    if absent:
        raise NotFoundError("there is no such edit", found=absent[0], where=f"dataset {run.job.dataset}")
    edits = [found[edit] for edit in edit_ids]
    for edit in edits:
        if not edit["output"]:
            raise ContractError(
                "this edit has no picture",
                found=f"{edit['status']}: {edit['reason']}",
                where=f"edit {edit['row_key']}",
            )
    if len({edit["source_id"] for edit in edits}) > 1 or len({e["face_id"] for e in edits}) < len(edits):
        raise ContractError(
            "edits that are pasted together",
            expected="edits of different faces of one photograph",
            found=sorted(f"{edit['source_id'][:12]} {edit['face_id'][-4:]}" for edit in edits),
        )
    return edits


def _source(run: StepRun, source_id: str) -> dict[str, Any]:
    of_ingest = recipes.ingest(load_bundle(run.store, run.job.bundle)).key
    columns = ["source_id", "uri", "name", "image_id", "size_bytes", "consent_expires"]
    rows = kept_table(run.store, run.job.dataset, of_ingest, columns).to_pylist()
    for row in rows:
        if row["source_id"] == source_id:
            over = ended(row, today())
            if over:
                raise PolicyError(over, where=row["uri"], todo="renew the consent and ingest again")
            return row
    raise NotFoundError(
        "the source of this edit is no longer in the dataset",
        where=f"dataset {run.job.dataset}",
        todo=f"run `sdflow ingest {run.job.dataset}` and edit again",
    )


def _faces(run: StepRun, edits: list[dict[str, Any]]) -> list[Any]:
    from sdflow_core.faces.paste_back import EditedFace
    from sdflow_core.faces.pixels import read_png

    bundle = load_bundle(run.store, run.job.bundle)
    of_ingest = recipes.ingest(bundle).key
    keys = {row_key(of_ingest, [edit["face_id"]]): edit["face_id"] for edit in edits}
    rows = Table(run.store, run.job.dataset, "faces").read(
        columns=["face_id", "quad", "points"], row_keys=list(keys)
    )
    known = {row["face_id"]: row for row in rows.to_pylist()}
    absent = [face for face in keys.values() if face not in known]
    if absent:
        raise NotFoundError("the face of an edit is not in the records", found=absent[0])
    offset = recipes.ingest_config(bundle).grid_offset
    faces: list[Any] = []
    for edit in edits:
        face = known[edit["face_id"]]
        faces.append(
            EditedFace(
                np.array(face["quad"]).reshape(4, 2),
                read_output(run.store, edit, edit["pixel_sha256"]),
                read_png(run.store.read(edit["before"])),
                np.array(face["points"]).reshape(5, 2),
                offset,
            )
        )
    return faces


def _bytes(run: StepRun, source: dict[str, Any]) -> bytes:
    """The very bytes that were ingested."""
    folder = open_source(source["uri"], run.store)
    for item in folder.list():
        data = folder.read(item)
        if sha256_hex(data) == source["image_id"]:
            return data
        break
    raise ContractError(
        "the photograph is another one than was ingested",
        expected=f"sha256 {source['image_id']}",
        where=source["uri"],
        todo=f"run `sdflow ingest {run.job.dataset}` and edit again, or restore the file",
    )
