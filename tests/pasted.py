"""A photograph with two faces, and edits of both as records: made by hand, without a model."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from sdflow_core.faces.align import crop, points_in_crop, quad_from_points
from sdflow_core.faces.decode import decode
from sdflow_core.faces.paste_back import PasteConfig
from sdflow_core.faces.pixels import pixel_digest, png_bytes
from sdflow_core.records.keys import row_key, sha256_hex
from sdflow_core.records.lineage import save_recipe
from sdflow_core.records.sources import open_source
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table
from sdflow_core.weights.model_store import Bundle
from tasks import recipes
from tasks.ingest import _FACES, _SOURCES
from tasks.paste_back import paste_edits
from tasks.step import Job
from tests.photographs import background

BUNDLE = Bundle(detector="d" * 64, template_scale=0.7, resolution=64, attributes=("smiling",))
POINTS = np.array([[-33.0, -18], [33, -18], [0, 20], [-28, 57], [28, 57]])


@dataclass(frozen=True)
class World:
    """One photograph on its side, with two faces and an edit of each, made by hand."""

    store: Store
    job: Job
    path: Path
    edits: tuple[str, ...]
    outputs: tuple[str, ...]

    def paste(self, *edits: str, config: PasteConfig | None = None) -> dict[str, Any]:
        paste_edits.fn(self.job, edits or self.edits, config or PasteConfig())
        return Table(self.store, "people", "pasted").read().to_pylist()[-1]

    def consent_again(self, *, consent: str = "d", attributes: list[str] | None = None) -> None:
        """As if another detector had looked at the photograph under another consent list."""
        table = Table(self.store, "people", "sources")
        row = table.read(latest_by="uri").to_pylist()[0]
        row |= {"consent": consent, "consent_attributes": attributes or [], "recipe": "another"}
        row |= {"row_key": row_key("another", [consent, *(attributes or [])])}
        table.commit(pa.Table.from_pylist([row]), run="ingest again")


def make(store: Store, folder: Path, *, expires: str = "") -> World:
    folder.mkdir()
    path, out, exif = folder / "ann.jpg", io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(background(500, 700)).save(out, "JPEG", exif=exif)
    path.write_bytes(out.getvalue())
    picture, image_id = decode(out.getvalue()), sha256_hex(out.getvalue())
    recipe = recipes.ingest(BUNDLE)
    save_recipe(store, recipe.document)
    (item,) = open_source(str(path), store).list()
    faces: list[dict[str, Any]] = []
    codes: list[dict[str, Any]] = []
    edits: list[dict[str, Any]] = []
    for number, middle in enumerate(((220, 230), (520, 260))):
        points = POINTS + middle
        quad = quad_from_points(points, BUNDLE.template_scale)
        face_id = f"{image_id}#{number}"
        faces.append(
            {
                "row_key": row_key(recipe.key, [face_id]), "recipe": recipe.key, "status": "kept",
                "reason": "", "inputs": [face_id], "face_id": face_id, "image_id": image_id,
                "quad": quad.ravel().tolist(),
                "points": points_in_crop(points, quad, 64).ravel().tolist(), "crop": "", "crop_sha256": "",
                "score": 0.9,
            }
        )  # fmt: skip
        before = crop(picture, quad, 64)
        after = np.clip(before + np.array([40, 0, -20]), 0, 255).astype(np.uint8)
        for name, pixels in (("before", before), ("after", after)):
            store.create(f"private/edits/{number}-{name}.png", png_bytes(pixels))
        code = row_key("invert", [face_id])
        codes.append(
            {
                "row_key": code, "recipe": "invert", "status": "kept", "reason": "",
                "inputs": [faces[-1]["row_key"]], "face_id": face_id,
            }
        )  # fmt: skip
        edits.append(
            {
                "row_key": row_key("edit", [face_id]), "recipe": "edit", "status": "waiting", "reason": "",
                "inputs": [code, "ann", "c", '{"smiling":0.9}'], "source_id": "ann", "image_id": image_id,
                "face_id": face_id, "request": '{"smiling":0.9}',
                "before": f"private/edits/{number}-before.png", "output": f"private/edits/{number}-after.png",
                "pixel_sha256": pixel_digest(after), "file_sha256": sha256_hex(png_bytes(after)),
            }
        )  # fmt: skip
    dropped = {**edits[0], "row_key": row_key("edit", ["dropped"]), "status": "dropped", "reason": "no smile"}
    edits.append({**dropped, "before": "", "output": "", "pixel_sha256": "", "file_sha256": ""})
    source = {
        "row_key": row_key(recipe.key, ["ann"]), "recipe": recipe.key, "status": "kept", "reason": "",
        "inputs": ["ann"], "source_id": "ann", "name": "ann.jpg", "uri": item.uri, "version": image_id,
        "size_bytes": item.size_bytes, "mtime_ns": item.mtime_ns, "image_id": image_id, "face_id": "",
        "subject": "", "consent": "c", "consent_attributes": ["smiling"], "consent_expires": expires,
    }  # fmt: skip
    for table, rows, schema in (("faces", faces, _FACES), ("sources", [source], _SOURCES)):
        Table(store, "people", table).commit(pa.Table.from_pylist(rows, schema), run="ingest")
    Table(store, "people", "latents").commit(pa.Table.from_pylist(codes), run="invert")
    Table(store, "people", "edits").commit(pa.Table.from_pylist(edits), run="edit")
    job = Job(store=store.uri, dataset="people", parent="story")
    keys, outputs = [edit["row_key"] for edit in edits], [edit["output"] for edit in edits]
    return World(store, job, path, tuple(keys[:2]), (*outputs[:2], keys[2]))
