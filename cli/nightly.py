"""`sdflow nightly`: one night over all datasets of a policy file."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from cli.fetch import hint
from cli.output import result, state, table
from cli.stories import run_flow

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("nightly")(nightly)


def nightly(
    context: typer.Context,
    policy: Annotated[str, typer.Argument(metavar="POLICY.toml", help="Datasets, requests and limits.")],
) -> None:
    """Take in, encode, label and edit what is new in every dataset; the edits wait for a decision."""
    from sdflow_core.records.policy import load_policy

    now = state(context)
    checked = load_policy(policy)  # before a server is started for nothing

    def flow() -> Any:
        started = time.monotonic()
        from flows.nightly import nightly as story

        done = story(policy=checked, store=now.store_uri)
        return {**done, "seconds": round(time.monotonic() - started, 2)}  # with the report

    facts = run_flow(now, flow, "nightly")
    result(now, facts, lambda: _show(facts))


def _show(facts: dict[str, Any]) -> None:
    rows: list[tuple[object, ...]] = []
    for part in facts["datasets"]:
        sources, edits = part["sources"] or {}, part["edits"] or {}
        rows.append(
            (
                part["dataset"],
                part["state"],
                *(sources.get(name, "") for name in ("in", "new", "dropped", "failed")),
                *(edits.get(name, "") for name in ("rendered", "gated", "waiting", "refused_by_consent")),
                round(sum(part["seconds"].values()), 1),
            )
        )
    columns = ("dataset", "state", "in", "new", "dropped", "failed")
    edited = ("edited", "gated", "waiting", "no consent", "seconds")
    table(f"Night {facts['run'][:8]}", (*columns, *edited), rows)
    for step in facts["todo"]:
        print(f"- {step['text']}")
        if step["command"]:
            print(f"  {step['command']}")
    print(f"Report: {facts['report']}")
    said = hint(facts["report"])
    if said:
        print(said)
