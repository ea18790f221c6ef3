"""Why is this row here: what computed it, from what and how, who used it again, or why it was dropped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from .changes import RecipeDocument, row_words
from .decisions import decisions_of, edit_runs
from .errors import ContractError, NotFoundError
from .journal import Journal
from .lineage import Lineage, load_recipe
from .lookup import datasets, lineage_facts
from .releases import releases
from .shown_faces import takes_every_face
from .store import Store
from .tables import Table

if TYPE_CHECKING:
    from sdflow_core.weights.model_store import Bundle

__all__ = ["Explanation", "Reuse", "why"]

MIN_PREFIX = 4
_SHOWN = 12
_DIGITS = re.compile(r"[0-9a-fA-F]+")
_OUTCOMES = {
    "kept": "It was computed and kept",
    "waiting": "It was rendered and waits for a decision",
    "gated": "It was rendered and held back by a quality gate",
    "dropped": "It was dropped for good",
    "failed": "It failed, and is tried again by the next run",
}


@dataclass(frozen=True)
class Reuse:
    """A later run that needed this row and found it."""

    run: str
    job: str
    time: str
    how: str


@dataclass(frozen=True)
class Explanation:
    """The answer. `text` says all of it in words; the other fields are for programs."""

    row_key: str
    dataset: str
    table: str
    status: str
    reason: str
    recipe: str
    step: str | None
    version: int | None
    config: dict[str, Any] | None
    run: str
    time: str | None
    code: str | None
    inputs: list[dict[str, str]]
    reused_by: list[Reuse]
    text: str
    stale: str = ""  # why it is stale, in words; empty when it is current or nothing to compare with is known


def why(
    store: Store,
    query: str,
    wanted: Mapping[str, RecipeDocument] | None = None,
    bundle: Bundle | None = None,
    dataset: str = "",
) -> Explanation:
    """Explains one row.

    Args:
        store: The store.
        query: A row key, a unique beginning of one, or the id or the name of a source.
        wanted: Step -> the recipe wanted now; with it the explanation says whether the row is stale.
        bundle: The bundle that these recipes belong to.
        dataset: Look in this dataset only.

    Raises:
        NotFoundError: Nothing like this is known.
        ContractError: The beginning is too short or fits several rows.
    """
    query = query.strip()
    if not query:
        raise ContractError("no row is named", todo="give a row key, or the name of a source")
    tables = list(_tables(store))
    keys = list(_row_keys(store, tables)) if _DIGITS.fullmatch(query) else []
    found = [hit for hit in keys if hit[2] == query]
    if not found and len(query) >= MIN_PREFIX:
        found = [hit for hit in keys if hit[2].startswith(query.lower())]
    if not found:
        found = _of_source(store, query, tables)
    if dataset:
        found = [hit for hit in found if hit[0] == dataset]
    if not found:
        todo = "check --store; rows are named in the tables, by `sdflow audit` and in the contact sheet"
        if len(query) < MIN_PREFIX:
            todo = f"give at least {MIN_PREFIX} digits of a row key, or the name of a source"
        raise NotFoundError("this row is not known here", found=query, where=store.uri, todo=todo)
    if len(found) > 1:
        shown = ", ".join(f"{table} {key[:_SHOWN]} of dataset {name}" for name, table, key in found[:5])
        todo = "give more digits, or --dataset where datasets share a file"
        raise ContractError("several rows are meant by this", found=shown, todo=todo)
    told = _explain(store, *found[0])
    if wanted is None:
        return told
    row = Table(store, told.dataset, told.table).find(told.row_key) or {}
    said = row_words(store, told.dataset, told.table, row, wanted, bundle)
    return replace(told, stale=said, text=f"{told.text}\n{said}" if said else told.text)


def _tables(store: Store) -> Iterator[tuple[str, str]]:
    for dataset in datasets(store):
        entries = Journal(store, f"private/datasets/{dataset}/journal").entries()
        for name in dict.fromkeys(str(entry.payload["table"]) for entry in entries if entry.kind == "rows"):
            yield dataset, name


def _row_keys(store: Store, tables: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    for dataset, name in tables:
        for key in Table(store, dataset, name).read(columns=["row_key"]).column("row_key").to_pylist():
            yield dataset, name, str(key)


def _of_source(store: Store, query: str, tables: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """The latest row of each source with this id or name."""
    found: list[tuple[str, str, str]] = []
    alike: list[tuple[str, str, str]] = []
    for dataset, name in tables:
        if name != "sources":
            continue
        table = Table(store, dataset, name).read(columns=["row_key", "source_id", "name"], latest_by="uri")
        for row in cast("list[dict[str, Any]]", table.to_pylist()):
            hit = (dataset, name, str(row["row_key"]))
            if query in (row["source_id"], row["name"]):
                found.append(hit)
            elif str(row["name"]).rpartition("/")[2] == query:
                alike.append(hit)
    return found or alike


def _explain(store: Store, dataset: str, table: str, key: str) -> Explanation:
    row = Table(store, dataset, table).find(key)
    assert row is not None  # it was just listed
    recipe, run = str(row["recipe"]), str(row["run"])
    facts = lineage_facts(store, run)
    try:
        document: dict[str, Any] | None = load_recipe(store, recipe)
    except NotFoundError:
        document = None
    committed = _committed(store, dataset, table, run, recipe)
    others = [name for held, name in _tables(store) if held == dataset]
    inputs = [_input(store, dataset, others, str(value)) for value in cast("list[str]", row["inputs"] or [])]
    reused = _reuses(store, dataset, table, recipe, run, facts["parent"], committed or facts["time"])
    step = document["step"] if document else facts["job"]
    version = document["version"] if document else None
    lines = [
        f"Row {key} lies in table {table} of dataset {dataset}.",
        f"{_decided(store, row) or _OUTCOMES.get(str(row['status']), str(row['status']))}"
        + (f": {row['reason']}." if row["reason"] else ".")
        + (
            " Its reason is permanent: no run tries it again under the same recipe."
            if row["status"] == "dropped"
            else ""
        ),
        f"Step {step or 'unknown'}"
        + (f" version {version}" if version is not None else "")
        + f" computed it in run {run}"
        + (f" (part of {facts['parent']})" if facts["parent"] else "")
        + (f" at {committed or facts['time']}" if committed or facts["time"] else "")
        + (f" with code {facts['code']}." if facts["code"] else "."),
        "No row with this key was held then: the key is the hash of the recipe and of the inputs.",
        f"Recipe {recipe}" + _recipe_words(document),
        "Inputs: " + ("; ".join(f"{item['key'][:40]} ({item['is']})" for item in inputs) or "none") + ".",
    ]
    if table == "sources":
        lines += _faces_of(store, dataset, row)
        lines += _edits_of(store, dataset, str(row["source_id"]))
    if reused:
        lines += [f"Run {item.run} ({item.job}, {item.time}) {item.how}." for item in reused]
    else:
        lines.append("No later run has needed it so far.")
    return Explanation(
        row_key=key,
        dataset=dataset,
        table=table,
        status=str(row["status"]),
        reason=str(row["reason"]),
        recipe=recipe,
        step=step,
        version=version,
        config=document["config"] if document else facts["config"],
        run=run,
        time=committed or facts["time"],
        code=facts["code"],
        inputs=inputs,
        reused_by=reused,
        text="\n".join(lines),
    )


def _faces_of(store: Store, dataset: str, source: dict[str, Any]) -> list[str]:
    """What was found in a picture of which every face is taken."""
    if source["status"] != "kept" or not takes_every_face(store, str(source["recipe"])):
        return []
    columns = ["row_key", "image_id", "face_id", "status", "reason"]
    rows = Table(store, dataset, "faces").read(recipe=str(source["recipe"]), columns=columns).to_pylist()
    return [
        f"Face {row['face_id'].rpartition('#')[2]} is row {row['row_key'][:_SHOWN]}, {row['status']}"
        + (f": {row['reason']}." if row["reason"] else ".")
        for row in cast("list[dict[str, Any]]", rows)
        if row["image_id"] == source["image_id"]
    ]


def _edits_of(store: Store, dataset: str, source_id: str) -> list[str]:
    """What was made of a source, and where it went: whom to call back when a consent is withdrawn."""
    edits = Table(store, dataset, "edits")
    if not edits.recipes():
        return []
    rows = edits.read(columns=["row_key", "source_id", "status"]).to_pylist()
    left: dict[str, list[str]] = {}
    for item in releases(store):
        for out in item.outputs:
            left.setdefault(out.edit_id, []).append(out.uri)
    told = [
        f"Edit {row['row_key']} was made of it ({row['status']})"
        + (f" and released to {', '.join(left[row['row_key']])}." if row["row_key"] in left else ".")
        for row in cast("list[dict[str, Any]]", rows)
        if row["source_id"] == source_id
    ]
    table = Table(store, dataset, "pasted")
    pasted = table.read(columns=["row_key", "source_id", "inputs", "output"]) if table.recipes() else None
    return told + [
        f"Photograph {row['row_key']} has {len(row['inputs'])} of these edits pasted in: {row['output']}."
        for row in cast("list[dict[str, Any]]", pasted.to_pylist() if pasted is not None else [])
        if row["source_id"] == source_id
    ]


def _decided(store: Store, row: dict[str, Any]) -> str:
    """What became of an edit that waited; empty for other rows, and while nobody has decided."""
    if row["status"] != "waiting":
        return ""
    key = str(row["row_key"])
    said = [
        decision
        for run in edit_runs(store)
        if key in run.edit_ids and (decision := decisions_of(store, run.edit_run).get(key)) is not None
    ]
    left = [item for item in releases(store) for out in item.outputs if out.edit_id == key]
    text = ""
    if said:
        last = max(said, key=lambda decision: decision.time)
        text = f"It was rendered, and {last.who} said {last.verdict} at {last.time}"
    if left:
        text += f"; it was released to {left[-1].target} at {left[-1].time}"
        if said and not max(said, key=lambda decision: decision.time).approved:
            text += ", and is to be taken back there, as the latest decision rejects it"
    return text


def _recipe_words(document: dict[str, Any] | None) -> str:
    if document is None:
        return "; its document is not kept here."
    models = ", ".join(f"{kind} {digest[:_SHOWN]}" for kind, digest in sorted(document["models"].items()))
    config = json.dumps(document["config"], sort_keys=True)
    return f": config {config}; models {models or 'none'}."


def _committed(store: Store, dataset: str, table: str, run: str, recipe: str) -> str | None:
    """When the row became real: the time of its journal entry."""
    for entry in Journal(store, f"private/datasets/{dataset}/journal").entries():
        said = entry.payload
        if entry.run == run and said.get("table") == table and said.get("recipe") == recipe:
            return entry.time
    return None


def _input(store: Store, dataset: str, tables: Sequence[str], value: str) -> dict[str, str]:
    """What an input is: a row of this dataset, or a value."""
    for name in tables if _DIGITS.fullmatch(value) else ():
        if Table(store, dataset, name).find(value) is not None:
            return {"key": value, "is": f"row of {name}"}
    return {"key": value, "is": "request" if value.startswith("{") else "id or digest"}


def _reuses(
    store: Store, dataset: str, table: str, recipe: str, run: str, parent: str | None, since: str | None
) -> list[Reuse]:
    """Later runs with the same recipe on the same table: they needed the row and did not compute it."""
    place = f"private/datasets/{dataset}/"
    found: dict[str, Reuse] = {}
    for event in Lineage(store).events(types=("COMPLETE", "REUSED"), since=since or ""):
        facets = cast("dict[str, Any]", event["run"]["facets"])
        said = cast("dict[str, Any]", facets.get("sdflow", {}))
        other = str(event["run"]["runId"])
        above = facets.get("parent", {}).get("run", {}).get("runId")
        # Shards of one story run side by side: they share a recipe, and none uses another's rows.
        sibling = other == run or (parent is not None and above == parent)
        if event["eventType"] not in ("COMPLETE", "REUSED") or said.get("recipe") != recipe or sibling:
            continue
        if since is not None and event["eventTime"] < since:
            continue
        places = [str(item["uri"]) for item in event["outputs"] if "uri" in item]
        # A plan that found work names no place: the shards that did the work do, each for itself.
        if not any(f"{place}{table}" in uri for uri in places):
            continue
        if event["eventType"] == "REUSED":
            how = "found everything it needed already computed and used it again"
        else:
            how = "computed other rows of this recipe and left this one as it was"
        if other not in found or event["eventType"] == "REUSED":
            found[other] = Reuse(other, str(event["job"]["name"]), str(event["eventTime"]), how)
    return sorted(found.values(), key=lambda item: item.time)
