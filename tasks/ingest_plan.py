"""What of a source folder is new, changed, gone, or under another consent: the items of the shard tasks."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from sdflow_core.records.consent import ConsentList, subject_hmac
from sdflow_core.records.errors import ContractError
from sdflow_core.records.sources import SourceItem
from sdflow_core.records.store import Store, open_source
from sdflow_core.records.tables import Table
from tasks import recipes
from tasks.plans import Shards, write_plans
from tasks.runtime import load_bundle, settings
from tasks.step import StepRun, step

_GONE = "gone"  # the version of a file that was never read and is there no more


_NOW = ("uri", "name", "row_key", "source_id", "version", "size_bytes", "mtime_ns", "image_id", "face_id")


@step("plan ingest")
def plan_ingest(run: StepRun, source: str, consent: str) -> Shards:
    """List the source and plan what the table does not hold; the list of today is the one in force."""
    store = run.store
    bundle = load_bundle(store, run.job.bundle)
    recipe = run.using(recipes.ingest(bundle))
    consents = ConsentList.load(consent, store)
    table = Table(store, run.job.dataset, "sources")
    current = current_verdicts(table, recipe)
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


def current_verdicts(table: Table, recipe: str) -> dict[str, dict[str, Any]]:
    """The verdict in force of every address: the row committed last."""
    if recipe not in table.recipes():
        return {}
    columns = [*_NOW, "consent", "status", "reason"]
    rows = table.read(recipe=recipe, latest_by="uri", columns=columns)
    return {row["uri"]: row for row in rows.to_pylist()}
