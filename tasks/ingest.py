"""Sources -> rows of `sources` and `faces`. Every source ends as a row; originals are only read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from sdflow_core.records.config import DatasetRef, PlanRef
from sdflow_core.records.errors import AccessError, ContractError, SDFlowError, UnavailableError
from sdflow_core.records.keys import row_key, sha256_hex
from sdflow_core.records.sources import SourceItem
from sdflow_core.records.store import open_source
from sdflow_core.records.tables import Table, base_schema
from tasks import recipes
from tasks.ingest_plan import current_verdicts
from tasks.plans import read_plan
from tasks.runtime import networks_of, tick
from tasks.step import StepRun, step

_BASE = [field for field in base_schema() if field.name != "run"]  # `Table` adds the run


_SOURCES = pa.schema(
    [
        *_BASE,
        ("source_id", pa.string()),
        ("name", pa.string()),
        ("uri", pa.string()),
        ("version", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("image_id", pa.string()),
        ("face_id", pa.string()),
        ("subject", pa.string()),
        ("consent", pa.string()),
        ("consent_attributes", pa.list_(pa.string())),
        ("consent_expires", pa.string()),
    ]
)


_FACES = pa.schema(
    [
        *_BASE,
        ("face_id", pa.string()),
        ("image_id", pa.string()),
        ("quad", pa.list_(pa.float64())),
        ("points", pa.list_(pa.float64())),
        ("crop", pa.string()),
        ("crop_sha256", pa.string()),
        ("score", pa.float64()),
    ]
)


@step("ingest")
def ingest_shard(run: StepRun, plan: PlanRef) -> DatasetRef:
    """Read, decode, detect, align one shard; faces are committed before the sources that point at them."""
    store, dataset = run.store, run.job.dataset
    networks = networks_of(store, run.job.bundle)
    recipe = run.using(recipes.ingest(networks.bundle))
    config = recipes.ingest_config(networks.bundle)

    def find(picture: Any) -> Any:
        networks.calls["detector"] += 1
        return networks.detector.find(picture)

    sources: dict[str, dict[str, Any]] = {}
    faces: dict[str, dict[str, Any]] = {}
    items = read_plan(store, plan)
    table = Table(store, dataset, "sources")
    current, held = current_verdicts(table, recipe), table.held(recipe)
    for number, item in enumerate(items, start=1):
        tick("ingest", number, len(items))
        now = current.get(item["uri"])
        row, face = _one(run, item, recipe, find, config, now)
        if now is not None and row["row_key"] in held and _other(now, row):
            # A consent or a version that was in force before and is again: the old row cannot become the
            # latest once more, so the verdict gets a row of its own. Likewise for the same bytes with
            # another time, which would else be read again every night.
            row["inputs"] = [*row["inputs"], now["row_key"]]
            row["row_key"] = row_key(recipe, row["inputs"])
        sources[row["row_key"]] = row
        if face is not None:
            faces.setdefault(face["row_key"], face)
    if len(sources) != len(items):
        raise ContractError("a source was listed twice", expected=f"{len(items)} rows", found=len(sources))
    if faces:
        Table(store, dataset, "faces").commit(pa.Table.from_pylist(list(faces.values()), _FACES), run=run.run)
    return Table(store, dataset, "sources").commit(
        pa.Table.from_pylist(list(sources.values()), _SOURCES), run=run.run
    )


def _other(now: dict[str, Any], row: dict[str, Any]) -> bool:
    return any(now[name] != row[name] for name in ("row_key", "size_bytes", "mtime_ns"))


def _source_id(uri: str, version: str) -> str:
    return sha256_hex(f"{uri}\n{version}".encode())


def _judge(
    run: StepRun, item: dict[str, Any], find: Any, config: Any, now: dict[str, Any] | None
) -> tuple[Any, str]:
    """Verdict and face id of one source; bytes that were judged before are neither read nor decoded again."""
    from sdflow_core.faces.ingestion import Verdict, judge_source

    known = item["known"]
    if known is not None and item["why"]:
        return Verdict("dropped", item["why"], known["image_id"]), ""
    if known is not None and known["judged"]:
        return Verdict(known["status"], known["reason"], known["image_id"]), known["face_id"]
    folder = open_source(item["source"], run.store)
    listed = SourceItem(
        item["name"], item["uri"], item["size_bytes"], item["mtime_ns"], item["etag"], item["path"]
    )
    try:
        data = folder.read(listed)
    except (AccessError, UnavailableError):
        raise  # no matter of this file: the shard is tried again, or the story ends with one clear message
    except SDFlowError as error:
        return judge_source(_raising(error), find, config), ""
    image_id = sha256_hex(data)
    judged = now is not None and now["image_id"] == image_id and now["consent"] and now["status"] != "failed"
    if now is not None and judged and not item["why"]:
        # another time in the folder's listing, the same bytes: nothing to look at again
        return Verdict(now["status"], now["reason"], image_id), now["face_id"]
    verdict = judge_source(lambda: data, find, config, item["why"])
    return verdict, f"{verdict.image_id}#0" if verdict.face is not None else ""


def _raising(error: SDFlowError) -> Any:
    def read() -> bytes:
        raise error

    return read


def _one(
    run: StepRun, item: dict[str, Any], recipe: str, find: Any, config: Any, now: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Row of one source, and of its face when one was found just now."""
    verdict, face_id = _judge(run, item, find, config, now)
    known = (item["known"] or {}).get("version")
    unread = f"unread-{item['size_bytes']}-{item['mtime_ns']}"
    version = item["etag"] or known or verdict.image_id or unread
    source_id = _source_id(item["uri"], version)
    face = verdict.face
    inputs = [source_id, item["consent"]]
    row = {
        "row_key": row_key(recipe, inputs),
        "recipe": recipe,
        "status": verdict.status,
        "reason": verdict.reason,
        "inputs": inputs,
        "source_id": source_id,
        "name": item["name"],
        "uri": item["uri"],
        "version": version,
        "size_bytes": item["size_bytes"],
        "mtime_ns": item["mtime_ns"] or 0,
        "image_id": verdict.image_id,
        "face_id": face_id,
        "subject": item["subject"],
        "consent": item["consent"],
        "consent_attributes": item["attributes"],
        "consent_expires": item["expires"],
    }
    if face is None:
        return row, None
    return row, _face_row(run, recipe, verdict.image_id, face_id, face)


def _face_row(run: StepRun, recipe: str, image_id: str, face_id: str, face: Any) -> dict[str, Any]:
    from sdflow_core.faces.pixels import pixel_digest, png_bytes

    key = f"private/crops/{recipe[:16]}/{image_id}-0.png"
    run.store.create(key, png_bytes(face.crop, None))
    return {
        "row_key": row_key(recipe, [face_id]),
        "recipe": recipe,
        "status": "kept",
        "reason": "",
        "inputs": [face_id],
        "face_id": face_id,
        "image_id": image_id,
        "quad": np.asarray(face.quad).ravel().tolist(),
        "points": np.asarray(face.points).ravel().tolist(),
        "crop": key,
        "crop_sha256": pixel_digest(face.crop),
        "score": face.score,
    }
