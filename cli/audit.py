"""`sdflow audit`: from a picture back to its source."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from cli.output import result, state, table

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("audit")(audit)


def audit(
    context: typer.Context,
    picture: Annotated[str, typer.Argument(metavar="PICTURE|SHA256|EDIT_ID", help="What to look up.")],
) -> None:
    """Print how a picture came to be: source, consent, every step with its models, decision, release."""
    from sdflow_core.records import audit as records

    now = state(context)
    document = records.audit(now.store(), picture)
    result(now, document, lambda: show(document))


def show(document: dict[str, Any]) -> None:
    """The trail for people, newest first: a picture walked backwards."""
    edit, source = document["edit"], document["source"]
    facts: list[tuple[str, str]] = [
        ("edit", f"{edit['edit_id']} ({edit['status']})"),
        ("request", json.dumps(edit["request"], sort_keys=True)),
        ("pixels", f"{document['picture']['pixel_sha256']} (found by {document['picture']['matches']})"),
        ("release", _release(document["release"])),
        ("decision", _decision(document["decision"])),
        ("consent", _consent(document["consent"])),
        ("source", f"{source['name'] or source['source_id']} ({source['uri']})"),
        ("image", str(source["image_id"])),
    ]
    table("Audit", ("what", "found"), facts)
    rows = [
        (
            step["name"],
            step["version"],
            (step["recipe"] or "")[:12],
            (step["run"] or "")[:12],
            ", ".join(f"{model['kind']} {model['digest'][:12]}" for model in step["models"]) or "none",
            step["code"] or "unknown",
        )
        for step in reversed(document["steps"])
    ]
    table("Steps, last one first", ("step", "version", "recipe", "run", "models", "code"), rows)


def _release(found: dict[str, Any] | None) -> str:
    if not found:
        return "not released"
    revoked = ", REVOKED: the latest decision rejects it, take it back there" if found["revoked"] else ""
    return f"{found['release_id']} at {found['time']}: {found['uri']}{revoked}"


def _decision(found: dict[str, Any] | None) -> str:
    if not found:
        return "not decided"
    note = f": {found['note']}" if found["note"] else ""
    who = f"{found['who']} ({found['identity']}, {found['role']})"
    return f"{found['verdict']} by {who} at {found['time']}{note}"


def _consent(found: dict[str, Any] | None) -> str:
    if not found:
        return "none recorded"
    until = found["expires"] or "no end"
    valid = "" if found["valid_today"] else ", ENDED"
    allowed = ", ".join(found["attributes"] or []) or "nothing"
    return f"{found['digest'][:12]} for {allowed}, until {until}{valid}"
