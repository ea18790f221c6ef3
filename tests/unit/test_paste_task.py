"""Edits in the records go back into the very photograph they came from, and no further than a consent."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sdflow_core.faces.align import crop, points_in_crop, quad_from_points
from sdflow_core.faces.decode import decode
from sdflow_core.faces.paste_back import PasteConfig
from sdflow_core.faces.pixels import pixel_digest, png_bytes, read_png
from sdflow_core.records.errors import ApprovalError, ContractError, NotFoundError, PolicyError
from sdflow_core.records.keys import canonical_json, row_key, sha256_hex
from sdflow_core.records.lineage import Lineage, save_recipe
from sdflow_core.records.sources import open_source
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table
from sdflow_core.weights.model_store import Bundle
from tasks import recipes
from tasks.ingest import _FACES, _SOURCES
from tasks.paste_back import paste_edits
from tasks.step import Job
from tests.photographs import background

pytestmark = pytest.mark.weights

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


def make(store: Store, folder: Path, *, expires: str = "") -> World:
    folder.mkdir()
    path, out, exif = folder / "ann.jpg", io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(background(500, 700)).save(out, "JPEG", exif=exif)
    path.write_bytes(out.getvalue())
    picture, image_id = decode(out.getvalue()), sha256_hex(out.getvalue())
    store.create(f"models/pinned/{BUNDLE.digest}.json", canonical_json(BUNDLE.model_dump(mode="json")))
    recipe = recipes.ingest(BUNDLE)
    save_recipe(store, recipe.document)
    (item,) = open_source(str(path), store).list()
    faces: list[dict[str, Any]] = []
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
        edits.append(
            {
                "row_key": row_key("edit", [face_id]), "recipe": "edit", "status": "waiting", "reason": "",
                "inputs": [face_id], "source_id": "ann", "image_id": image_id, "face_id": face_id,
                "before": f"private/edits/{number}-before.png", "output": f"private/edits/{number}-after.png",
                "pixel_sha256": pixel_digest(after),
            }
        )  # fmt: skip
    dropped = {**edits[0], "row_key": row_key("edit", ["dropped"]), "status": "dropped", "reason": "no smile"}
    edits.append({**dropped, "before": "", "output": "", "pixel_sha256": ""})
    source = {
        "row_key": row_key(recipe.key, ["ann"]), "recipe": recipe.key, "status": "kept", "reason": "",
        "inputs": ["ann"], "source_id": "ann", "name": "ann.jpg", "uri": item.uri, "version": image_id,
        "size_bytes": item.size_bytes, "mtime_ns": item.mtime_ns, "image_id": image_id, "face_id": "",
        "subject": "", "consent": "c", "consent_attributes": ["smiling"], "consent_expires": expires,
    }  # fmt: skip
    for table, rows, schema in (("faces", faces, _FACES), ("sources", [source], _SOURCES)):
        Table(store, "people", table).commit(pa.Table.from_pylist(rows, schema), run="ingest")
    Table(store, "people", "edits").commit(pa.Table.from_pylist(edits), run="edit")
    job = Job(store=store.uri, dataset="people", bundle=BUNDLE.digest, parent="story")
    keys, outputs = [edit["row_key"] for edit in edits], [edit["output"] for edit in edits]
    return World(store, job, path, tuple(keys[:2]), (*outputs[:2], keys[2]))


@pytest.fixture
def world(store: Store, tmp_path: Path) -> World:
    return make(store, tmp_path / "photos")


def test_edits_are_pasted_into_the_upright_photograph_and_the_original_is_only_read(world: World) -> None:
    original = world.path.read_bytes()
    row = world.paste()
    pasted, photograph = read_png(world.store.read(row["output"])), decode(original)
    assert pasted.shape == photograph.shape == (500, 700, 3)
    changed = (pasted != photograph).any(axis=2)
    assert changed[230, 220] and changed[260, 520] and not changed[:, 350:370].any()
    rise = pasted[225:245, 210:230].astype(float) - photograph[225:245, 210:230]
    assert np.abs(rise.mean((0, 1)) - [40, 0, -20]).max() < 4
    assert world.path.read_bytes() == original
    assert row["inputs"] == sorted(world.edits) and row["pixel_sha256"] == pixel_digest(pasted)
    assert row["file_sha256"] == sha256_hex(world.store.read(row["output"])) and len(row["boxes"]) == 8


def test_pasting_twice_is_pasting_once_and_is_told(world: World) -> None:
    first, second = world.paste(), world.paste(*world.edits[::-1])
    assert first == second
    other = world.paste(world.edits[0])
    third = world.paste(config=PasteConfig(blend="replace"))
    assert len({first["output"], other["output"], third["output"]}) == 3
    told = [event["eventType"] for event in Lineage(world.store).events()]
    assert told.count("REUSED") == 1 and told.count("COMPLETE") == 4


def test_what_is_not_the_one_photograph_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such edit"):
        world.paste("0" * 64)
    with pytest.raises(ContractError, match="no picture.*no smile"):
        world.paste(world.outputs[2])
    with pytest.raises(ContractError, match="each once"):
        world.paste(world.edits[0], world.edits[0])
    kept = world.path.read_bytes()
    world.path.write_bytes(kept + b"\n")
    with pytest.raises(ContractError, match="another one than was ingested"):
        world.paste()
    world.path.write_bytes(kept)
    world.store.put(world.outputs[0], png_bytes(np.zeros((64, 64, 3), np.uint8)))
    with pytest.raises(ApprovalError):
        world.paste()
    assert not Table(world.store, "people", "pasted").recipes()


def test_nothing_is_pasted_when_the_consent_has_ended(store: Store, tmp_path: Path) -> None:
    world = make(store, tmp_path / "photos", expires="2020-01-31")
    with pytest.raises(PolicyError, match="2020-01-31"):
        world.paste()
