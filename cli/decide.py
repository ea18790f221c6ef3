"""`sdflow decide`: a person says yes or no to the very pictures that an edit run made."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.output import result, state, table

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("decide")(decide)


def decide(
    context: typer.Context,
    edit_run: Annotated[str, typer.Argument(help="Id of the edit run.")],
    approve: Annotated[
        list[str] | None, typer.Option(metavar="all|ID", help="All that wait, or one edit; may be repeated.")
    ] = None,
    reject: Annotated[list[str] | None, typer.Option(metavar="ID", help="One edit; may be repeated.")] = None,
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who decides. Recorded as asserted.")] = "",
    note: Annotated[str, typer.Option(help="Why.")] = "",
    role: Annotated[str, typer.Option(help="In which role.")] = "reviewer",
) -> None:
    """Approve or reject edits; freezes the very pixels that are listed. Commas may separate ids."""
    from sdflow_core.records import decisions as records
    from sdflow_core.records.errors import ContractError

    now = state(context)
    store = now.store()
    yes, no = _ids(approve), _ids(reject)
    if "all" in no or ("all" in yes and len(yes) > 1):
        raise ContractError('"all" stands alone, and only after --approve', todo="name the edits one by one")
    run = records.load_edit_run(store, edit_run)
    latest = records.decide(
        store, run.edit_run, approve="all" if yes == ["all"] else yes, reject=no, who=by, note=note, role=role
    )
    rows = records.edit_rows(store, run)
    counts = {"approved": 0, "rejected": 0, "undecided": 0}
    for edit_id, row in rows.items():
        said = latest.get(edit_id)
        if said is not None:
            counts["approved" if said.approved else "rejected"] += 1
        elif row["status"] == "waiting":
            counts["undecided"] += 1
    document = {
        "edit_run": run.edit_run,
        **counts,
        "by": by,
        "identity": "asserted",
        "decisions": [
            {"edit_id": key, "verdict": said.verdict, "pixel_sha256": said.pixel_sha256, "by": said.who}
            for key, said in latest.items()
        ],
    }

    def show() -> None:
        table(f"Edit run {run.edit_run}", ("approved", "rejected", "undecided"), [list(counts.values())])
        print(f"Recorded for {by} (name asserted, not proven).")
        if counts["approved"]:
            print(f"Next: sdflow publish {run.edit_run} --to TARGET")

    result(now, document, show)


def _ids(values: list[str] | None) -> list[str]:
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]
