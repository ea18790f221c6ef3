"""`sdflow why`: why a row is there."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.output import result, state

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("why")(why)


def why(
    context: typer.Context,
    row: Annotated[str, typer.Argument(metavar="ROW", help="A row key, its beginning, or a source's name.")],
) -> None:
    """Explain why a row was computed, reused or dropped."""
    from dataclasses import asdict

    from sdflow_core.records.why import why as explain

    now = state(context)
    found = explain(now.store(), row)
    result(now, asdict(found), found.text)
