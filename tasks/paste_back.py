"""Edits -> their photographs with the edited faces in them, at full resolution; originals are only read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sdflow_core.records.config import DatasetRef
from sdflow_core.records.decisions import read_output
from sdflow_core.records.errors import ApprovalError, ContractError, NotFoundError, PolicyError
from sdflow_core.records.keys import row_key, sha256_hex
from sdflow_core.records.lineage import load_recipe
from sdflow_core.records.store import open_source
from sdflow_core.records.tables import Table, base_schema
from sdflow_core.records.withholding import CONSENT_COLUMNS, refusal
from tasks import recipes
from tasks.consented import today
from tasks.paste_settings import paste_config
from tasks.runtime import store_at
from tasks.step import Job, StepRun, step

__all__ = ["paste_body", "paste_config", "paste_edits"]

_SCHEMA = pa.schema(
    [
        *(column for column in base_schema() if column.name != "run"),
        ("source_id", pa.string()),
        ("image_id", pa.string()),
        ("output", pa.string()),
        ("pixel_sha256", pa.string()),
        ("file_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("boxes", pa.list_(pa.int32())),
    ]
)
_EDIT = (
    *("row_key", "status", "reason", "inputs", "source_id", "image_id", "face_id", "request"),
    *("before", "output", "pixel_sha256"),
)


def paste_body(job: Job, edit_ids: Sequence[str], config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Paste, and say what lies where.

    Returns:
        `{"dataset", "pasted" (row key), "picture" (address), "width", "height", "bytes", "file_sha256",
        "edits": [{"edit_id", "status", "box": [left, top, right, bottom]}], "reused"}`; lengths and boxes in
        px of the photograph. `reused`: it was there already.

    Raises:
        SDFlowError: What `paste_edits` and `paste_config` raise.
    """
    settings, store = paste_config(config), store_at(job.store)
    recipe = recipes.paste(settings).key
    key, table = row_key(recipe, sorted(edit_ids)), Table(store, job.dataset, "pasted")
    before = table.ref(recipe).rows
    paste_edits(job, list(edit_ids), settings)
    row = table.find(key)
    assert row is not None  # the step has committed it
    edits = Table(store, job.dataset, "edits").read(columns=["row_key", "status"], row_keys=row["inputs"])
    status = {edit["row_key"]: edit["status"] for edit in edits.to_pylist()}
    return {
        "dataset": job.dataset,
        "pasted": key,
        "picture": store.url(row["output"]),
        "width": row["width"],
        "height": row["height"],
        "bytes": store.stat(row["output"]).size_bytes,
        "file_sha256": row["file_sha256"],
        "edits": [
            {"edit_id": edit, "status": status[edit], "box": row["boxes"][4 * number : 4 * number + 4]}
            for number, edit in enumerate(row["inputs"])
        ],
        "reused": table.ref(recipe).rows == before,
    }


@step("paste back")
def paste_edits(run: StepRun, edit_ids: Sequence[str], config: Any) -> DatasetRef:
    """Paste edits of one photograph into it: the file first, the row of `pasted` that names it last.

    What is written stays private. The photograph shows everybody who is in it, and no consent list speaks of
    bystanders: releasing it is a decision of its own, which nothing here takes.

    Args:
        run: No model is used: faces are those that the edits' codes were made from, whatever is promoted now.
        edit_ids: Edits (keys of rows of `edits`) of different faces of one source, in any order.
        config: A `PasteConfig`.

    Returns:
        The table `pasted`, with a row for these edits. Its `inputs` are the edits, sorted; `boxes` has four
        numbers for each of them in that order: left, top, right, bottom, px of the upright photograph.

    Raises:
        ContractError: Edits of several photographs, two of one face, an edit without a picture, or a source
            whose bytes are no longer those that were ingested.
        NotFoundError: No such edit, or its source is no longer in the dataset.
        PolicyError: The consent in force for the source does not allow these edits today.
        ApprovalError: A picture is not the one of its row.
    """
    from sdflow_core.faces.decode import Rejected, decode
    from sdflow_core.faces.large_png import photograph_png
    from sdflow_core.faces.paste_back import paste_back
    from sdflow_core.faces.pixels import pixel_digest

    store, ids = run.store, sorted(edit_ids)
    recipe = run.using(recipes.paste(config))
    table = Table(store, run.job.dataset, "pasted")
    edits = _edits(run, ids)
    key = row_key(recipe, ids)
    source = _source(run, edits)
    held = table.find(key)
    if held is not None and store.exists(held["output"]):
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
    if not store.create(output, file):
        file = store.read(output)  # left by a run that was killed, perhaps with another codec
    pixels = pixel_digest(pasted.pixels)
    if held is not None and held["pixel_sha256"] != pixels:
        raise ApprovalError(
            "the photograph was lost, and pasted anew it is another one than was recorded",
            expected=f"pixels {held['pixel_sha256']}",
            found=f"pixels {pixels}",
            where=store.url(output),
            todo="restore the file from a backup",
        )
    height, width = pasted.pixels.shape[:2]
    row = {
        "row_key": key,
        "recipe": recipe,
        "status": "kept",
        "reason": "",
        "inputs": ids,
        "source_id": source["source_id"],
        "image_id": source["image_id"],
        "output": output,
        "pixel_sha256": pixels,
        "file_sha256": sha256_hex(file),
        "width": width,
        "height": height,
        "boxes": [side for box in pasted.boxes for side in box],
    }
    return table.commit(pa.Table.from_pylist([row], _SCHEMA), run=run.run)


def _edits(run: StepRun, edit_ids: Sequence[str]) -> list[dict[str, Any]]:
    if not edit_ids or len(set(edit_ids)) != len(edit_ids):
        raise ContractError("edits to paste", expected="each once, at least one", found=list(edit_ids))
    table = Table(run.store, run.job.dataset, "edits")
    rows = table.read(row_keys=list(edit_ids), columns=_EDIT).to_pylist() if table.recipes() else []
    found = {row["row_key"]: row for row in rows}
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
            found=", ".join(
                f"face {edit['face_id'].rpartition('#')[2]} of {edit['source_id'][:12]}" for edit in edits
            ),
            todo="give one edit of each face; `sdflow audit EDIT_ID` names the photograph",
        )
    return edits


def _source(run: StepRun, edits: list[dict[str, Any]]) -> dict[str, Any]:
    """The source as it is in force now, by the rule of `publish`: whichever models looked at it last."""
    columns = ["source_id", "uri", "image_id", *CONSENT_COLUMNS]
    rows = Table(run.store, run.job.dataset, "sources").read(latest_by="uri", columns=columns).to_pylist()
    mine = [row for row in rows if row["source_id"] == edits[0]["source_id"]]
    if not mine:
        raise NotFoundError(
            "the source of this edit is no longer in the dataset",
            where=f"dataset {run.job.dataset}",
            todo=f"run `sdflow ingest SOURCE --name {run.job.dataset} --consent FILE` and edit again",
        )
    for edit in edits:
        why = refusal(mine[0], edit, today())
        if why:
            raise PolicyError(
                f"nothing is pasted: {why}", where=mine[0]["uri"], todo="renew the consent and ingest again"
            )
    return mine[0]


def _faces(run: StepRun, edits: list[dict[str, Any]]) -> list[Any]:
    """The faces that the edits' codes were encoded from, with the edits."""
    from sdflow_core.faces.ingestion import IngestConfig
    from sdflow_core.faces.paste_back import EditedFace
    from sdflow_core.faces.pixels import read_png

    faces: list[Any] = []
    for edit in edits:
        code = Table(run.store, run.job.dataset, "latents").find(edit["inputs"][0]) or {"inputs": [""]}
        face = Table(run.store, run.job.dataset, "faces").find(code["inputs"][0])
        if face is None or face["status"] != "kept":
            raise NotFoundError(
                "the face of this edit is not in the records",
                where=f"edit {edit['row_key']}",
                todo=f"`sdflow verify {run.job.dataset}` tells what is missing",
            )
        framing = load_recipe(run.store, face["recipe"])["config"].get("framing", "five_points")
        faces.append(
            EditedFace(
                np.array(face["quad"]).reshape(4, 2),
                read_output(run.store, edit, edit["pixel_sha256"]),
                read_png(run.store.read(edit["before"])),
                np.array(face["points"]).reshape(5, 2),
                IngestConfig(framing=framing).grid_offset,
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
        todo="restore the file, or ingest it again and edit what it shows now",
    )
