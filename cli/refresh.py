"""`sdflow refresh`: bring a dataset to the bundle in force, or say what a person has to decide first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.fetch import hint
from cli.output import State, progress, result, state, table

if TYPE_CHECKING:
    from sdflow_core.records.refreshes import RefreshPolicy

__all__ = ["read_policy", "register"]

WAITS = 3  # the exit code when a person must decide


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("refresh")(refresh)


def refresh(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Name of the dataset.")],
    go: Annotated[bool, typer.Option("--go", help="Go on whatever the policy says; needs --by.")] = False,
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who says so.")] = "",
    policy: Annotated[str, typer.Option("--policy", metavar="FILE", help="Bounds, as JSON or TOML.")] = "",
    pause: Annotated[
        bool, typer.Option("--pause", help="Stop a running refresh after its present shards; needs --by.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Take a pause back and go on.")] = False,
) -> None:
    """Compute anew what the bundle in force makes stale, retrain the editor, and put both into service."""
    from sdflow_core.records import refreshes
    from sdflow_core.records.errors import ContractError, NotFoundError
    from sdflow_core.records.lookup import datasets

    now = state(context)
    store = now.store()
    rules = read_policy(policy) if policy else None
    if dataset not in (known := datasets(store)):
        raise NotFoundError(
            "there is no such dataset",
            expected=", ".join(known) or "none yet",
            found=dataset,
            where=store.uri,
        )
    if go and not by.strip():
        raise ContractError("a go needs a name", expected="who says so", todo="pass --by NAME")
    if pause:
        refreshes.pause(store, dataset, by)
        text = f"Refreshes of {dataset} stop after the shards they are at; `--resume` goes on."
        result(now, {"dataset": dataset, "state": "paused"}, text)
        return
    if resume:
        refreshes.resume(store, dataset)
    facts = _run(now, dataset, rules, go, by)
    result(now, facts, lambda: _show(facts))
    if facts["state"] in ("waits", "paused"):
        raise typer.Exit(WAITS)


def _run(now: State, dataset: str, rules: RefreshPolicy | None, go: bool, by: str) -> dict[str, Any]:
    from cli.server import prefect_server

    now.store().check_writable()
    with prefect_server(now.store_uri), progress(now, "refresh") as bar:
        from flows.refresh import refresh as story
        from tasks.runtime import listening, pace_of

        seen = ["", 0]

        def listen(what: str, done: int, total: int) -> None:
            if seen[0] != what or done < int(seen[1]):
                bar.rename(what, total, "steps" if what == "train" else "images")
                seen[:] = [what, 0]
            bar.advance(done - int(seen[1]))
            if (pace := pace_of(what)) is not None:
                bar.busy(pace.busy_share())
            seen[1] = done

        with listening(listen):
            return story(dataset=dataset, policy=rules, go=go, by=by, store=now.store_uri)


def read_policy(path: str) -> RefreshPolicy:
    """A policy from a JSON or TOML file.

    Raises:
        ContractError: It cannot be read; or an option is unknown or out of bounds, naming option and bound.
    """
    import json
    import tomllib

    from pydantic import ValidationError

    from sdflow_core.records.errors import ContractError
    from sdflow_core.records.policy import read_policy_text
    from sdflow_core.records.refreshes import RefreshPolicy

    text, _ = read_policy_text(path)
    try:
        said = tomllib.loads(text) if path.endswith(".toml") else json.loads(text)
        return RefreshPolicy.model_validate(said)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ContractError("the refresh policy", found=found, where=path) from None
    except ValueError as error:
        raise ContractError("the refresh policy cannot be read", found=error, where=path) from None


def _show(facts: dict[str, Any]) -> None:
    words = {
        "current": "Nothing is stale.",
        "paused": "Paused.",
        "waits": "Waits for a person.",
        "done": "Done: the bundle in force is in service.",
        "computed": "Computed; the editor is still to come.",
    }
    print(f"Refresh of {facts['dataset']}: {words[facts['state']]}")
    for text in facts["complaints"]:
        print(f"  {text}")
    for title, name in (("Old and new models", "canary"), ("Old and new editor", "editors")):
        figures = facts[name]
        if figures and figures.get("new"):
            old, new = figures.get("old") or {}, figures["new"]
            table(title, ("figure", "old", "new"), [(key, old.get(key), new[key]) for key in new])
            rest = {k: v for k, v in figures.items() if isinstance(v, int | float)}
            print(", ".join(f"{key} {value}" for key, value in rest.items()))
    if facts["sheet"]:
        print(f"Side by side: {facts['sheet']}")
        said = hint(facts["sheet"])
        if said:
            print(said)
    if facts["todo"]:
        print(f"What to do: {facts['todo']}")
