"""A small store with a finished edit run, made by hand through the real tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sdflow_core.faces.pixels import pixel_digest, png_bytes
from sdflow_core.records.keys import canonical_json, recipe_document, row_key, sha256_hex
from sdflow_core.records.lineage import Lineage, save_recipe
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table

EDIT_RUN = "0123456789ab"
EDITOR = "e" * 64
MODELS = {
    "ingest": {"detector": "d" * 64},
    "invert": {"encoder": "c" * 64},
    "label": {"labeller": "a" * 64},
    "train": {"generator": "b" * 64},
    "edit": {"editor": EDITOR, "labeller": "a" * 64},
}
RUNS = {name: f"run-{name}" for name in MODELS}


@dataclass(frozen=True)
class Edited:
    """What `make_edits` made. The last edit is gated, all others wait."""

    edit_run: str
    edit_ids: list[str]
    source_ids: list[str]
    rows: dict[str, str]

    @property
    def waiting(self) -> list[str]:
        """Edits that may be approved."""
        return self.edit_ids[:-1]


def picture(number: int) -> NDArray[np.uint8]:
    """[8, 8, 3] uint8, another one for each number."""
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def _recipe(store: Store, step: str) -> str:
    return save_recipe(store, recipe_document(step, 1, {"of": step}, MODELS[step]))


def _commit(store: Store, table: str, step: str, rows: list[dict[str, Any]]) -> list[str]:
    recipe = _recipe(store, step)
    for row in rows:
        row["recipe"] = recipe
        row["row_key"] = row_key(recipe, [*row["inputs"], table])
        row.setdefault("status", "kept")
        row.setdefault("reason", "")
    Table(store, "people", table).commit(pa.Table.from_pylist(rows), run=RUNS[step])
    return [row["row_key"] for row in rows]


def _told(store: Store) -> None:
    for step, run in RUNS.items():
        for event in ("START", "COMPLETE"):
            Lineage(store).emit(
                event, run=run, job=step, parent="story", inputs=[], outputs=[], recipe=_recipe(store, step),
                bundle=None, config=None,
            )  # fmt: skip


def consent_again(
    store: Store, edited: Edited, number: int, *, expires: str = "", attributes: str = "*"
) -> None:
    """Ingests one source once more, with another consent."""
    digest = sha256_hex(f"again {expires} {attributes}".encode())
    _commit(
        store,
        "sources",
        "ingest",
        [_source(edited.source_ids[number], number, digest, expires, [attributes])],
    )


def replace_source(store: Store, edited: Edited, number: int) -> None:
    """Ingests another file under the address of one source."""
    other = sha256_hex(f"another {number}".encode())
    row = {**_source(other, number, sha256_hex(b"consent"), "", ["*"]), "version": "2"}
    _commit(store, "sources", "ingest", [row])


def _source(source_id: str, number: int, consent: str, expires: str, attributes: list[str]) -> dict[str, Any]:
    return {
        "inputs": [source_id, consent],
        "source_id": source_id,
        "name": f"person-{number}.png",
        "uri": f"store:people/person-{number}.png",
        "version": "1",
        "image_id": sha256_hex(f"image {number}".encode()),
        "face_id": sha256_hex(f"image {number}".encode()) + "#0",
        "subject": sha256_hex(f"subject {number}".encode()),
        "consent": consent,
        "consent_attributes": attributes,
        "consent_expires": expires,
    }


def make_edits(store: Store, count: int = 3) -> Edited:
    """Everything from sources to an edit run of `count` edits, all of attribute smiling."""
    numbers = range(count)
    source_ids = [sha256_hex(f"source {number}".encode()) for number in numbers]
    consents = [sha256_hex(f"consent {number}".encode()) for number in numbers]
    sources = [_source(source_ids[n], n, consents[n], "", ["*"]) for n in numbers]
    dropped = {
        **_source("f" * 64, 99, "", "", []),
        "status": "dropped",
        "reason": "no face found",
        "face_id": "",
    }
    rows = {"sources": _commit(store, "sources", "ingest", [*sources, dropped])[0]}
    rows["dropped"] = _commit(store, "sources", "ingest", [dropped])[0]
    faces = [{"inputs": [s["face_id"]], "face_id": s["face_id"], "image_id": s["image_id"]} for s in sources]
    face_keys = _commit(store, "faces", "ingest", faces)
    latent_keys = _commit(
        store,
        "latents",
        "invert",
        [{"inputs": [key], "face_id": faces[n]["face_id"]} for n, key in enumerate(face_keys)],
    )
    labels = [
        {"inputs": [k], "face_id": f["face_id"], "smiling": 0.1}
        for k, f in zip(face_keys, faces, strict=True)
    ]
    _commit(store, "labels", "label", labels)
    _commit(store, "editors", "train", [{"inputs": ["latents", "labels"], "editor": EDITOR, "metrics": "{}"}])
    rows["latents"] = latent_keys[0]
    request = canonical_json({"smiling": 0.9}).decode()
    edits: list[dict[str, Any]] = []
    for number in numbers:
        data = png_bytes(picture(number))
        output = f"private/edits/{number}.png"
        store.create(output, data)
        last = number == count - 1
        edits.append(
            {
                "inputs": [latent_keys[number], source_ids[number], consents[number], request],
                "status": "gated" if last else "waiting",
                "reason": "identity 0.10 is below the gate" if last else "",
                "edit_run": EDIT_RUN,
                "source_id": source_ids[number],
                "image_id": sources[number]["image_id"],
                "face_id": sources[number]["face_id"],
                "request": request,
                "attributes": ["smiling"],
                "strength": 1.0,
                "identity": 0.8,
                "output": output,
                "pixel_sha256": pixel_digest(picture(number)),
                "file_sha256": sha256_hex(data),
            }
        )
    edit_ids = _commit(store, "edits", "edit", edits)
    document = {
        "edit_run": EDIT_RUN,
        "dataset": "people",
        "recipe": _recipe(store, "edit"),
        "requests": [json.loads(request)],
        "edit_ids": edit_ids,
        "bundle": "9" * 64,
        "editor": EDITOR,
        "attributes": ["smiling"],
        "sheet": "sheet.png",
    }
    store.create(f"private/edit_runs/{EDIT_RUN}.json", canonical_json(document))
    store.put(f"private/edit_runs/{EDIT_RUN}/note.json", b"{}")
    _told(store)
    return Edited(EDIT_RUN, edit_ids, source_ids, rows)
