"""Sources -> rows of `sources` and `faces`. Every source ends as a row; originals are only read."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from sdflow_core.records.config import DatasetRef, PlanRef
from sdflow_core.records.consent import ConsentList, subject_hmac
from sdflow_core.records.errors import ContractError, SDFlowError
from sdflow_core.records.keys import row_key, sha256_hex
from sdflow_core.records.sources import SourceItem
from sdflow_core.records.store import Store, open_source
from sdflow_core.records.tables import Table, base_schema
from tasks import recipes
from tasks.plans import Shards, read_plan, write_plans
from tasks.runtime import load_bundle, networks_of, settings, tick
from tasks.step import StepRun, step

_GONE = "gone"  # the version of a file that was never read and is there no more
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


@step("plan ingest")
def plan_ingest(run: StepRun, source: str, consent: str) -> Shards:
    """List the source and plan what the table does not hold; the list of today is the one in force."""
    store = run.store
    bundle = load_bundle(store, run.job.bundle)
    recipe = run.using(recipes.ingest(bundle))
    consents = ConsentList.load(consent, store)
    table = Table(store, run.job.dataset, "sources")
    current = _current(table, recipe)
    today = datetime.now(UTC).date()
    missing: list[dict[str, Any]] = []
    listed: dict[str, str] = {}
    for item in open_source(source, store).list():
        listed[item.uri] = item.name
        now = current.get(item.uri)
        version = item.etag or _unchanged(now, item)
        same = now is not None and now["status"] != "failed" and now["version"] == version
        grant = _grant(store, consents, item.name, today)
        if not same or now is None or now["consent"] != grant["consent"]:
            facts = {
                name: getattr(item, name)
                for name in ("name", "uri", "size_bytes", "mtime_ns", "path", "etag")
            }
            known = _verdict_of(now) if same and now is not None else None
            missing.append({**facts, **grant, "source": source, "known": known})
    if not listed:
        raise ContractError(
            "nothing to ingest",
            expected="at least one file",
            found="an empty folder",
            where=source,
            todo="check the address of the source",
        )
    for now in _gone(current, listed):
        grant = _grant(store, consents, now["name"], today)
        known = _verdict_of(now)
        if now["status"] == "failed":
            grant["why"], known["version"] = "it could not be read, and is not in its folder any more", _GONE
        elif grant["consent"] == now["consent"]:
            continue
        facts = {name: now[name] for name in ("name", "uri", "size_bytes", "mtime_ns")}
        missing.append({**facts, **grant, "path": "", "etag": None, "source": source, "known": known})
        listed[now["uri"]] = now["name"]
    if not missing:
        run.reused(table.ref(recipe))
    return Shards(
        shards=write_plans(run, missing, settings().shard_rows),
        wanted=len(listed),
        held=len(listed) - len(missing),
        recipe=recipe,
        remarks=_remarks(consents, list(listed.values()), bundle.attributes),
    )


def _grant(store: Store, consents: ConsentList, name: str, day: date) -> dict[str, Any]:
    """What the list says about one name, as the plan and the row keep it."""
    allowed = consents.for_source(name, day)
    return {
        "consent": allowed.digest if allowed else "",
        "why": consents.why_not(name, day),
        "subject": subject_hmac(store, allowed.subject) if allowed else "",
        "attributes": list(allowed.attributes) if allowed else [],
        "expires": allowed.expires.isoformat() if allowed and allowed.expires else "",
    }


def _unchanged(now: dict[str, Any] | None, item: SourceItem) -> str:
    """The version that is known of a file whose size and time are those of its last reading."""
    if now is None or (now["size_bytes"], now["mtime_ns"]) != (item.size_bytes, item.mtime_ns or 0):
        return ""
    return "" if now["version"] == _GONE else str(now["version"])


def _verdict_of(now: dict[str, Any]) -> dict[str, Any]:
    """What is known of these very bytes. Without a consent they were never decoded: only their hash is."""
    judged = bool(now["consent"])
    names = ("version", "image_id", "face_id", "status", "reason")
    return {**{name: now[name] for name in names}, "judged": judged}


def _gone(current: dict[str, dict[str, Any]], listed: dict[str, str]) -> list[dict[str, Any]]:
    """Sources of this folder that are not in it any more, named as this folder's list would name them.

    The records still hold the faces of the kept ones, so that a consent that was withdrawn must reach them
    too; and those that could not be read need not be tried again.
    """
    uri, name = next(iter(listed.items()))
    folder = uri.removesuffix(name)
    if folder == uri or (len(listed) == 1 and "/" not in name):
        return []  # one file was named, or one is left: nothing says that the others were its neighbours
    return [
        {**now, "name": uri.removeprefix(folder)}
        for uri, now in current.items()
        if uri not in listed and uri.startswith(folder) and now["status"] in ("kept", "failed")
    ]


def _remarks(consents: ConsentList, names: list[str], attributes: tuple[str, ...]) -> tuple[str, ...]:
    said: list[str] = []
    unused = consents.unused(names)
    if unused:
        shown = ", ".join(map(str, unused[:10])) + (
            f" and {len(unused) - 10} more" if len(unused) > 10 else ""
        )
        said.append(f"lines of the consent list that fit no file: {shown}")
    unknown = consents.unknown_attributes(attributes)
    if unknown:
        said.append(
            f"the consent list allows what these models cannot edit: {', '.join(unknown[:10])}"
            f" (they know {', '.join(attributes)})"
        )
    if len(consents) == 0:
        said.append("the consent list has no line: every source is dropped")
    return tuple(said)


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


_NOW = ("uri", "name", "row_key", "source_id", "version", "size_bytes", "mtime_ns", "image_id", "face_id")


def _current(table: Table, recipe: str) -> dict[str, dict[str, Any]]:
    """The verdict in force of every address: the row committed last."""
    if recipe not in table.recipes():
        return {}
    columns = [*_NOW, "consent", "status", "reason"]
    rows = table.read(recipe=recipe, latest_by="uri", columns=columns)
    return {row["uri"]: row for row in rows.to_pylist()}


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
