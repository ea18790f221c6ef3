"""`sdflow evaluate DATASET`: how well the editor in force edits the faces of a dataset."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import checks
from cli.output import progress, result, state, table

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Whose faces are edited for the trial.")],
    images: Annotated[int, typer.Option("--images", min=1, max=5000, help="How many faces.")] = 100,
    attributes: Annotated[
        str | None,
        typer.Option("--attributes", metavar="A,B", help="To be flipped [default: all the editor knows]."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the choice of faces.")] = 0,
) -> None:
    """Try the editor in force on a dataset: accuracy, what stays, identity, leakage; nothing is released."""
    now = state(context)
    store = now.store()
    store.check_writable()
    asked = (name.strip() for name in (attributes or "").split(","))
    names = tuple(dict.fromkeys(name for name in asked if name))  # each once: twice would cost twice
    checks.before_edit(store, dataset, dict.fromkeys(names, "flip"))
    with progress(now, "evaluate") as bar:
        from tasks.evaluation import evaluate_dataset

        done = [0]

        def looked(count: int, total: int) -> None:
            if not done[0]:
                bar.rename("evaluate", total)
            bar.advance(count - done[0])
            done[0] = count

        facts = evaluate_dataset(store, dataset, images=images, attributes=names, seed=seed, progress=looked)
    result(now, facts, lambda: _show(facts))


def _show(facts: dict[str, Any]) -> None:
    seen = {
        "yes": "the editor was trained on these very faces",
        "no": "the editor was trained on another dataset",
        "perhaps": "the editor was trained on an earlier state of this dataset",
        "unknown": "the editor does not say what it was trained on",
    }[facts["trained_on"]]
    count = len(facts["strengths"])
    print(f"{facts['faces']} faces, flipped one attribute at a time at {count} strengths; {seen}.")
    rows = [
        (name, row["accuracy"], row["judge_accuracy"], row["best"], row["judge_best"], row["linearity"])
        for name, row in facts["attributes"].items()
    ]
    heads = ("attribute", "accuracy", "judge", "best", "best, judge", "linearity")
    table("Edits that succeed at full strength, and at the best strength", heads, rows)
    heads = ("attribute", "at", "kept", "kept, judge", "identity (SFace)", "leakage")
    rows = [
        (name, f"{level} %", *(_cell(row[f"at_{level}"][key]) for key in _KEYS))
        for name, row in facts["attributes"].items()
        for level in (90, 95)
    ]
    table("Where so many edits succeed, by the labeller ('-': not reached)", heads, rows)
    tracked = list(next(iter(facts["matrix"].values())))
    rows = [(name, *(row[other] for other in tracked)) for name, row in facts["matrix"].items()]
    table("Change of every score at full strength, in the direction of the flip", ("edited", *tracked), rows)
    print(f"Report: {facts['report']}\nPlots: {', '.join(facts['plots'])}")


_KEYS = ("preserved", "judge_preserved", "identity", "leakage")


def _cell(value: float | None) -> object:
    return "-" if value is None else value
