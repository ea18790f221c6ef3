"""`sdflow gc`: what nobody will ask for again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.output import result, state, table

if TYPE_CHECKING:
    from sdflow_core.records.gc import Collected

__all__ = ["register"]

_SHOWN = 10  # keys of each kind, for people


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("gc")(gc)


def gc(
    context: typer.Context,
    delete: Annotated[bool, typer.Option("--delete", help="Remove; otherwise only say what may go.")] = False,
    older_than_hours: Annotated[
        float,
        typer.Option(
            "--older-than-hours", min=0.0, help="Touch nothing younger; 0 only while nothing else runs."
        ),
    ] = 24.0,
) -> None:
    """Find what killed runs and compactions left behind; remove it with --delete."""
    from sdflow_core.records.gc import collect

    now = state(context)
    found = collect(now.store(), delete=delete, older_than_hours=older_than_hours)
    keys: dict[str, list[str]] = {}
    for item in found.found:
        keys.setdefault(item.kind, []).append(item.key)
    document: dict[str, Any] = {
        "deleted": delete,
        "removed": found.removed,
        "kinds": found.by_kind(),
        "bytes": sum(item.size_bytes for item in found.found),
        "alive": found.alive,
        "held_back": found.held_back,
        "keys": keys,
    }
    result(now, document, lambda: _show(found, keys, delete))


def _show(found: Collected, keys: dict[str, list[str]], delete: bool) -> None:
    rows = [
        (kind, said["count"], f"{said['bytes'] / 1e6:.2f} MB", "\n".join(keys[kind][:_SHOWN]))
        for kind, said in found.by_kind().items()
    ]
    if rows:
        table("", ("what", "how many", "size", f"the first {_SHOWN}"), rows)
    if found.alive:
        left = ", ".join(found.held_back)
        print(f"{len(found.alive)} runs may be alive: {left} were left alone, and whatever is younger.")
    if not found.found:
        print("Nothing is left over.")
    elif delete:
        print(f"{found.removed} of {len(found.found)} objects removed.")
    else:
        print(f"{len(found.found)} objects may go. Nothing was removed: run it again with --delete.")
