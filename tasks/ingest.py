"""Sources -> rows of `sources` and `faces`. Every source ends as a row; originals are only read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from sdflow_core.records.config import DatasetRef, PlanRef
from sdflow_core.records.consent import ConsentList, subject_hmac
from sdflow_core.records.errors import ContractError, SDFlowError
from sdflow_core.records.keys import row_key, sha256_hex
from sdflow_core.records.sources import SourceItem
from sdflow_core.records.store import Store, open_source
from sdflow_core.records.tables import Table
from tasks import recipes
from tasks.plans import Shards, read_plan, write_plans
from tasks.runtime import load_bundle, networks_of, settings, tick
from tasks.step import StepRun, step

_SOURCES = pa.schema(
    [
        ("row_key", pa.string()),
        ("recipe", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("inputs", pa.list_(pa.string())),
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
        ("row_key", pa.string()),
        ("recipe", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("inputs", pa.list_(pa.string())),
        ("face_id", pa.string()),
        ("image_id", pa.string()),
        ("quad", pa.list_(pa.float64())),
        ("points", pa.list_(pa.float64())),
        ("crop", pa.string()),
        ("crop_sha256", pa.string()),
        ("score", pa.float64()),
    ]
)


def _read_consents(consent: str, store: Store) -> ConsentList:
    folder = open_source(consent, store)
    items = list(folder.list())
    if len(items) != 1:
        raise ContractError(
            "the consent list", expected="one CSV file", found=f"{len(items)} files", where=consent
        )
    return ConsentList.read(folder.read(items[0]))


@step("plan ingest")
def plan_ingest(run: StepRun, source: str, consent: str) -> Shards:
    """List the source and plan what the table does not hold."""
    store = run.store
    recipe = run.using(recipes.ingest(load_bundle(store, run.job.bundle)))
    consents = _read_consents(consent, store)
    table = Table(store, run.job.dataset, "sources")
    held = table.held(recipe)
    known: dict[tuple[str, int, int], str] = {}
    if table.recipes():
        seen = table.read(columns=["uri", "size_bytes", "mtime_ns", "version", "status"])
        for row in seen.to_pylist():
            if row["status"] != "failed" and row["version"]:
                known[(row["uri"], row["size_bytes"], row["mtime_ns"])] = row["version"]
    current = _current(table, recipe)
    today = datetime.now(UTC).date()
    missing: list[dict[str, Any]] = []
    wanted = 0
    for item in open_source(source, store).list():
        wanted += 1
        allowed = consents.for_source(item.name, today)
        version = item.etag or known.get((item.uri, item.size_bytes, item.mtime_ns or 0), "")
        digest = allowed.digest if allowed else ""
        now = current.get(_source_id(item.uri, version)) if version else None
        if now is not None and now["consent"] == digest and now["row_key"] in held:
            continue
        missing.append(
            {
                "name": item.name,
                "uri": item.uri,
                "size_bytes": item.size_bytes,
                "mtime_ns": item.mtime_ns,
                "path": item.path,
                "etag": item.etag,
                "source": source,
                "consent": digest,
                "why": consents.why_not(item.name, today),
                "subject": subject_hmac(store, allowed.subject) if allowed else "",
                "attributes": list(allowed.attributes) if allowed else [],
                "expires": allowed.expires.isoformat() if allowed and allowed.expires else "",
            }
        )
    if wanted == 0:
        raise ContractError(
            "nothing to ingest",
            expected="at least one file",
            found="an empty folder",
            where=source,
            todo="check the address of the source",
        )
    if not missing:
        run.reused(table.ref(recipe))
    shards = write_plans(run, missing, settings().shard_rows)
    return Shards(shards=shards, wanted=wanted, held=wanted - len(missing), recipe=recipe)


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
    current, held = _current(table, recipe), table.held(recipe)
    for number, item in enumerate(items, start=1):
        tick("ingest", number, len(items))
        row, face = _one(run, item, recipe, find, config)
        now = current.get(row["source_id"])
        if now is not None and row["row_key"] in held and now["consent"] != row["consent"]:
            # a consent that was given before, withdrawn, and is given again (or the reverse): the old row
            # cannot become the latest again, so the verdict gets a row of its own
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


def _current(table: Table, recipe: str) -> dict[str, dict[str, Any]]:
    """The verdict in force of every source: the row committed last."""
    if recipe not in table.recipes():
        return {}
    rows = table.read(recipe=recipe, latest_by="source_id", columns=["source_id", "row_key", "consent"])
    return {row["source_id"]: row for row in rows.to_pylist()}


def _source_id(uri: str, version: str) -> str:
    return sha256_hex(f"{uri}\n{version}".encode())


def _one(
    run: StepRun, item: dict[str, Any], recipe: str, find: Any, config: Any
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Row of one source, and of its face when it is kept."""
    from sdflow_core.faces.ingestion import Verdict, judge_source

    folder = open_source(item["source"], run.store)
    listed = SourceItem(
        item["name"], item["uri"], item["size_bytes"], item["mtime_ns"], item["etag"], item["path"]
    )
    data: list[bytes] = []

    def read() -> bytes:
        data.append(folder.read(listed))
        return data[0]

    if item["why"]:
        # the bytes are hashed to know which version was refused, but never decoded
        try:
            verdict = Verdict("dropped", item["why"], sha256_hex(read()))
        except SDFlowError as error:
            verdict = Verdict("failed", error.what)
    else:
        verdict = judge_source(read, find, config)
    version = item["etag"] or verdict.image_id or f"unread-{item['size_bytes']}-{item['mtime_ns']}"
    source_id = _source_id(item["uri"], version)
    face = verdict.face
    face_id = f"{verdict.image_id}#0" if face is not None else ""
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
