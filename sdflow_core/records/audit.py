"""From a picture back to its source: every step, model, consent and decision that led to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, cast

from .decisions import Decision, EditRun, decisions_of, edit_runs
from .errors import NotFoundError
from .journal import Journal
from .lineage import load_recipe
from .lookup import Found, Picture, datasets, find_edit, lineage_facts
from .releases import Release, ReleasedOutput, locate, releases
from .store import Store
from .tables import Table

__all__ = ["audit"]


def audit(store: Store, query: str | bytes) -> dict[str, Any]:
    """Everything that is known about one picture.

    Args:
        store: The store that it came from.
        query: The picture's bytes, its path or address, a sha256 of its file or its pixels, or an edit id
            (unique beginnings of at least 8 digits will do).

    Returns:
        `{"edit", "picture", "source", "steps", "consent", "decision", "release"}`; a step is `{"name",
        "version", "recipe", "run", "inputs", "models": [{"kind", "digest"}], "config", "code", "row"}`. Steps
        are ingest, invert, label, train, edit and, when released, publish. What does not exist is None.
        Holds personal data.

    Raises:
        NotFoundError: The picture is not known here.
        ApprovalError: The picture claims an edit, but its pixels were changed after it was made.
        ContractError: The beginning of an id is too short or not unique, or the file is no picture.
    """
    found, picture = find_edit(store, query)
    return _document(store, found, picture)


def _document(store: Store, found: Found, picture: Picture | None) -> dict[str, Any]:
    row = found.row
    edit_id = str(row["row_key"])
    runs = [run for run in edit_runs(store) if edit_id in run.edit_ids]
    left = _release_of(store, edit_id, picture)
    decision = _decision_of(store, edit_id, runs, left)
    run = next((item for item in runs if decision is not None and item.edit_run == decision.edit_run), None)
    run = run or next((item for item in runs if item.edit_run == row["edit_run"]), runs[0] if runs else None)
    source = _source(store, found)
    latent = _row(store, found.dataset, "latents", _input(row, 0))
    face = _row(store, found.dataset, "faces", _input(latent, 0))
    edit = _step(store, "edit", [row])
    steps = [
        _step(store, "ingest", [source, face]),
        _step(store, "invert", [latent]),
        _step(store, "label", [_label(store, found.dataset, face, edit)]),
        _train(store, found.dataset, run),
        edit,
    ]
    if left is not None:
        steps.append(_publish(store, *left))
    return {
        "edit": {
            "edit_id": edit_id,
            "dataset": found.dataset,
            "edit_run": run.edit_run if run else row["edit_run"],
            "bundle": run.document.get("bundle") if run else None,
            "request": json.loads(str(row["request"])),
            "status": row["status"],
            "reason": row["reason"],
            "strength": row.get("strength"),
            "identity": row.get("identity"),
            "output": store.url(str(row["output"])) if row["output"] else None,
        },
        "picture": {
            "pixel_sha256": row["pixel_sha256"],
            "file_sha256": picture.file_sha256 if picture else row["file_sha256"],
            "matches": found.matches,
        },
        "source": _shown_source(row, source),
        "steps": [step for step in steps if step is not None],
        "consent": _consent(row, source),
        "decision": _shown_decision(decision),
        "release": _shown_release(store, left, decision),
    }


def _input(row: dict[str, Any] | None, number: int) -> str:
    inputs = cast("list[str]", (row or {}).get("inputs") or [])
    return inputs[number] if number < len(inputs) else ""


def _row(store: Store, dataset: str, table: str, key: str) -> dict[str, Any] | None:
    return Table(store, dataset, table).find(key) if key else None


def _source(store: Store, found: Found) -> dict[str, Any] | None:
    """The row of the source as the edit saw it: the one with the consent that the edit names."""
    table = Table(store, found.dataset, "sources")
    rows = [
        row
        for row in cast("list[dict[str, Any]]", table.read().to_pylist())
        if row["source_id"] == found.row["source_id"]
    ]
    then = [row for row in rows if row["consent"] == _input(found.row, 2)]
    chosen = then or rows
    return chosen[-1] if chosen else None


def _label(
    store: Store, dataset: str, face: dict[str, Any] | None, edit: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The labels of the face: those of the labeller that the edit used, else the latest."""
    table = Table(store, dataset, "labels")
    if face is None or not table.recipes():
        return None
    rows = cast("list[dict[str, Any]]", table.read(columns=["row_key", "inputs"]).to_pylist())
    keys = [str(row["row_key"]) for row in rows if _input(row, 0) == face["row_key"]]
    full = [row for row in (table.find(key) for key in keys) if row is not None]
    used = {model["digest"] for model in (edit or {}).get("models", []) if model["kind"] == "labeller"}
    fitting = [
        row for row in full if used & {m["digest"] for m in _recipe(store, str(row["recipe"]))["models"]}
    ]
    chosen = fitting or full
    return chosen[-1] if chosen else None


def _recipe(store: Store, recipe: str | None) -> dict[str, Any]:
    """Version, models and config of a recipe; None and nothing where its document is not kept."""
    if recipe:
        try:
            said = load_recipe(store, recipe)
        except NotFoundError:
            said = None
        if said is not None:
            models = [{"kind": kind, "digest": digest} for kind, digest in sorted(said["models"].items())]
            return {"version": said["version"], "models": models, "config": said["config"]}
    return {"version": None, "models": [], "config": None}


def _step(store: Store, name: str, rows: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """One step of the trail. Rows of several tables (ingest writes two) are told as one; the last leads."""
    there = [row for row in rows if row is not None]
    if not there:
        return None
    said = [_recipe(store, str(row["recipe"])) for row in there]
    lead, last = there[-1], said[-1]
    models = {model["digest"]: model for item in said for model in item["models"]}
    return {
        "name": name,
        "version": last["version"],
        "recipe": lead["recipe"],
        "run": lead["run"],
        "inputs": list(dict.fromkeys(key for row in there for key in cast("list[str]", row["inputs"] or []))),
        "models": sorted(models.values(), key=lambda model: model["kind"]),
        "config": last["config"],
        "code": lineage_facts(store, lead["run"])["code"],
        "row": lead["row_key"],
    }


def _train(store: Store, dataset: str, run: EditRun | None) -> dict[str, Any] | None:
    """How the editor came to be; an editor that was brought in from outside has only its digest."""
    editor = str(run.document.get("editor") or "") if run else ""
    if not editor:
        return None
    for name in [dataset, *(other for other in datasets(store) if other != dataset)]:
        table = Table(store, name, "editors")
        if not table.recipes():
            continue
        rows = cast("list[dict[str, Any]]", table.read().to_pylist())
        made = [row for row in rows if row["editor"] == editor]
        if made:
            step = _step(store, "train", made[-1:])
            assert step is not None
            return {**step, "editor": editor}
    nothing = dict.fromkeys(("version", "recipe", "run", "config", "code", "row"))
    models = [{"kind": "editor", "digest": editor}]
    return {"name": "train", **nothing, "inputs": [], "models": models, "editor": editor}


def _publish(store: Store, item: Release, out: ReleasedOutput) -> dict[str, Any]:
    facts = lineage_facts(store, item.run)
    said = _recipe(store, facts["recipe"])
    return {
        "name": "publish",
        "version": said["version"],
        "recipe": facts["recipe"],
        "run": item.run,
        "inputs": [out.edit_id, out.decision],
        "models": said["models"],
        "config": said["config"] if said["config"] is not None else {"target": item.target},
        "code": facts["code"],
        "row": None,
    }


def _release_of(store: Store, edit_id: str, picture: Picture | None) -> tuple[Release, ReleasedOutput] | None:
    """The release that wrote this very file, else the latest one of the edit."""
    hits = [(item, out) for item in releases(store) for out in item.outputs if out.edit_id == edit_id]
    exact = [hit for hit in hits if picture is not None and hit[1].file_sha256 == picture.file_sha256]
    return (exact or hits or [None])[-1]


def _decision_of(
    store: Store, edit_id: str, runs: Sequence[EditRun], left: tuple[Release, ReleasedOutput] | None
) -> Decision | None:
    said = [found for run in runs if (found := decisions_of(store, run.edit_run).get(edit_id)) is not None]
    if left is not None:
        released = [item for item in said if item.edit_run == left[0].edit_run]
        if released:
            return released[0]
    return max(said, key=lambda item: item.time) if said else None


def _shown_source(row: dict[str, Any], source: dict[str, Any] | None) -> dict[str, Any]:
    shown = {"source_id": row["source_id"], "image_id": row["image_id"], "face_id": row["face_id"]}
    for name in ("name", "uri", "version", "status"):
        shown[name] = source[name] if source else None
    return shown


def _consent(row: dict[str, Any], source: dict[str, Any] | None) -> dict[str, Any] | None:
    digest = _input(row, 2)
    if not digest:
        return None
    expires = str(source["consent_expires"] or "") if source else ""
    return {
        "digest": digest,
        "subject": source["subject"] if source else None,
        "attributes": list(source["consent_attributes"] or []) if source else None,
        "expires": expires or None,
        "valid_today": not expires or date.fromisoformat(expires) >= datetime.now(UTC).date(),
    }


def _shown_decision(decision: Decision | None) -> dict[str, Any] | None:
    return None if decision is None else dict(vars(decision))


def _shown_release(
    store: Store, left: tuple[Release, ReleasedOutput] | None, decision: Decision | None
) -> dict[str, Any] | None:
    if left is None:
        return None
    item, out = left
    # Of the journal, the entry that approved what left may be older than the latest word about the edit.
    entries = Journal(store, f"decisions/{item.edit_run}").entries()
    return {
        "release_id": item.release_id,
        "edit_run": item.edit_run,
        "target": item.target,
        "uri": locate(store, out.uri),
        "pixel_sha256": out.pixel_sha256,
        "file_sha256": out.file_sha256,
        "time": item.time,
        "run": item.run,
        "approved_by": next(
            (entry.payload["who"] for entry in entries if entry.sha256 == out.decision), None
        ),
        "decision": out.decision,
        "revoked": decision is not None and not decision.approved,
        "entry": item.entry,
    }
