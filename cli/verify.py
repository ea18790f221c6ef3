"""`sdflow verify` and `sdflow compact`: are the records whole, and can they be smaller?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.output import progress, result, state, table

if TYPE_CHECKING:
    from sdflow_core.records.compaction import Compacted
    from sdflow_core.records.verification import Finding

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("verify")(verify)
    app.command("compact")(compact)


def verify(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="Only this dataset; default: the whole store.")] = "",
    heads: Annotated[
        Path | None,
        typer.Option("--heads", help="Heads kept from an earlier `sdflow verify --json`, to compare with."),
    ] = None,
) -> None:
    """Read every journal and every shard again; exit code 2 if one is not as it was written."""
    from sdflow_core.records.errors import NotFoundError
    from sdflow_core.records.verification import verify_store

    now = state(context)
    kept = _kept(heads) if heads is not None else None
    found: list[Finding] = []
    with progress(now, "verifying", unit="records") as bar:
        for finding in verify_store(now.store(), dataset, heads=kept):
            found.append(finding)
            bar.advance()
    if dataset and not any(item.count or item.wrong for item in found):
        raise NotFoundError("there is no such dataset", found=dataset, where=now.store_uri)
    good = not any(item.wrong for item in found)
    document: dict[str, Any] = {
        "ok": good,
        "entries": sum(item.count for item in found if item.kind == "journal"),
        "shards": sum(item.count for item in found if item.kind == "table"),
        "wrong": [
            {"name": item.name, "found": item.wrong, "todo": item.todo} for item in found if item.wrong
        ],
        "heads": {
            item.name: {"number": item.count, "sha256": item.head}
            for item in found
            if item.kind == "journal" and not item.wrong
        },
    }
    result(now, document, lambda: _show(found, good))
    if not good:
        raise typer.Exit(2)


def compact(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="Whose tables and journal.")],
) -> None:
    """Merge small shards and make missing snapshots; what is recorded stays the same."""
    from sdflow_core.records.compaction import compact as merge

    now = state(context)
    done = merge(now.store(), dataset)
    document: dict[str, Any] = {
        "tables": {name: {"before": pair[0], "after": pair[1]} for name, pair in done.tables.items()},
        "snapshots": done.snapshots,
    }
    result(now, document, lambda: _show_compacted(done))


def _kept(path: Path) -> dict[str, Any]:
    from sdflow_core.records.errors import ContractError

    try:
        lines = path.read_text("utf-8").strip().splitlines()
        return dict(json.loads(lines[-1])["heads"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ContractError(
            "the file of heads cannot be read",
            expected="what `sdflow verify --json` printed",
            found=type(error).__name__,
            where=path,
        ) from error


def _show(found: Sequence[Finding], good: bool) -> None:
    rows = [
        ("WRONG" if item.wrong else "ok", item.kind, item.name, item.wrong or item.count, item.todo)
        for item in found
    ]
    table("", ("", "what", "name", "entries or shards", "what to do"), rows)
    print("All records are as they were written." if good else "Something is wrong: see above.")


def _show_compacted(done: Compacted) -> None:
    rows = [(name, before, after) for name, (before, after) in done.tables.items()]
    table("", ("table", "shards before", "after"), rows)
    print(
        f"{done.snapshots} snapshots written. `sdflow gc` removes replaced shards when they are old enough."
    )
