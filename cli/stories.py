"""`sdflow demo | ingest | label | train | edit | publish`: each runs one flow.

On a quiet server of its own if need be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import checks
from cli.fetch import hint
from cli.output import State, in_words, progress, result, state, table
from sdflow_core.faces.qualities import check_quality

if TYPE_CHECKING:
    from sdflow_core.records.store import Store

__all__ = ["Dataset", "Quality", "register", "run_flow", "show_facts"]

NOT_KEPT_SHOWN = 20
# the phases whose ticks are optimiser steps
_COUNTED_IN_STEPS = ("train", "features", "autoencoder", "labeller", "judge")
Quality = Annotated[
    str,
    typer.Option(
        "--quality",
        metavar="fast|good|best",
        help="Of the codes: as the encoder gives them, or refined in few or many steps.",
    ),
]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Name of the dataset.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    from cli.invert import invert  # it is built on this module

    for command in (demo, ingest, invert, label, train, edit, publish):
        app.command(command.__name__)(command)


def run_flow(
    now: State, flow: Callable[[], Any], title: str, check: Callable[[Store], None] | None = None
) -> Any:
    """Run a flow under a server, with a progress bar where somebody waits."""
    from cli.server import prefect_server
    from tasks.runtime import settings

    settings()  # a wrong one is said before a server is started
    store = now.store()
    store.check_writable()  # before a server is started for nothing, as what `check` looks at
    if check is not None:
        check(store)
    with prefect_server(now.store_uri), progress(now, title) as bar:
        from tasks.runtime import listening, pace_of

        phase = ["", 0]

        def listen(what: str, done: int, total: int) -> None:
            if phase[0] != what or done < int(phase[1]):
                bar.rename(what, total, "steps" if what in _COUNTED_IN_STEPS else "images")
                phase[:] = [what, 0]
            bar.advance(done - int(phase[1]))
            if (pace := pace_of(what)) is not None:
                bar.busy(pace.busy_share())
            phase[1] = done

        with listening(listen):
            return flow()


def _peak_mb() -> int:
    import resource
    import sys

    # this process and, beside it, the greatest it started: the Prefect server
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def show_facts(title: str, facts: dict[str, Any]) -> Callable[[], None]:
    def show() -> None:
        table(title, ("what", "found"), [(name, in_words(value)) for name, value in facts.items()])

    return show


def demo(
    context: typer.Context,
    images: Annotated[
        int, typer.Option("--images", min=8, max=5000, help="How many synthetic people.")
    ] = 200,
    steps: Annotated[int | None, typer.Option("--training-steps", min=1, hidden=True)] = None,
) -> None:
    """Run it all on people who do not exist: ingest, invert, label, train, edit, decide, publish, audit."""
    now = state(context)
    started = time.monotonic()

    def flow() -> Any:
        from flows.demo import demo as story

        small = {"training": {"steps": steps, "checkpoint_every": 2}, "prior_samples": 200} if steps else None
        return story(images=images, store=now.store_uri, training=small)

    facts = run_flow(now, flow, "demo")
    facts = {**facts, "seconds": round(time.monotonic() - started, 1), "peak_mb": _peak_mb()}
    result(now, facts, lambda: _show_demo(now, facts))


def _show_demo(now: State, facts: dict[str, Any]) -> None:
    from cli.audit import show
    from sdflow_core.records.audit import audit

    sources, edits = facts["sources"], facts["edits"]
    reasons = "; ".join(f"{count} {reason}" for reason, count in sorted(sources["reasons"].items()))
    table(
        "The demo",
        ("what", "found"),
        [
            (
                "sources",
                f"{sources['in']} in = {sources['kept']} kept + {sources['dropped']} dropped"
                f" + {sources['failed']} to try again",
            ),
            ("dropped because", reasons),
            ("edits", f"{edits['n']}: " + ", ".join(f"{n} {s}" for s, n in edits["status"].items())),
            ("contact sheet", facts["contact_sheet"]),
            ("released", f"{len(facts['released'])} pictures, release {facts['release']}"),
            (
                "cost",
                f"{facts['seconds']} s, {facts['peak_mb']} MB at most, {facts['model_calls']} model calls",
            ),
        ],
    )
    rows = [
        (n, m["n"], m["accuracy"], m["judge_accuracy"], m["preservation"], m["identity"])
        for n, m in edits["attributes"].items()
    ]
    rows.append(
        (
            "all",
            edits["n"],
            edits["accuracy"],
            edits["judge_accuracy"],
            edits["preservation"],
            edits["identity"],
        )
    )
    table(
        "Edits: accuracy by the labeller and by a judge it never met, others preserved (judge), "
        "identity (SFace cosine, median)",
        ("attribute", "edits", "accuracy", "judge", "preserved", "identity"),
        rows,
    )
    _say_how_to_look(facts)
    if facts["released"]:
        print("One released picture, walked back:\n")
        show(audit(now.store(), facts["released"][0]))


def ingest(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder or prefix of pictures.")],
    name: Annotated[str, typer.Option("--name", metavar="DATASET", help="Name of the dataset.")],
    consent: Annotated[
        str,
        typer.Option("--consent", metavar="FILE", help="CSV: source,subject,attributes,expires,evidence."),
    ],
) -> None:
    """Take pictures in: every file becomes a row, kept or dropped with a reason."""
    now = state(context)

    def flow() -> Any:
        from flows.ingest import ingest as story

        return story(dataset=name, source=source, consent=consent, store=now.store_uri)

    facts = run_flow(now, flow, "ingest", lambda store: checks.before_ingest(store, name, source, consent))
    facts = {**facts, "not_kept": _not_kept(now, name)}
    result(now, facts, lambda: _show_ingest(name, facts))
    if facts["failed"] and facts["failed"] == facts["in"]:
        from sdflow_core.records.errors import ContractError

        raise ContractError(
            "not one of the sources could be read",
            found=f"{facts['failed']} rows, the first: {facts['not_kept'][0]['reason']}",
            where=source,
            todo="check the permission to read (on S3: s3:GetObject), then run the same command again",
        )


def _not_kept(now: State, dataset: str) -> list[dict[str, str]]:
    """Sources that were not kept, by name: for the screen of who handed them over, not for Prefect."""
    from sdflow_core.records.tables import Table

    rows = Table(now.store(), dataset, "sources").read(
        latest_by="uri", statuses=["dropped", "failed"], columns=["name", "status", "reason"]
    )
    return sorted(rows.to_pylist(), key=lambda row: row["name"])


def _show_ingest(dataset: str, facts: dict[str, Any]) -> None:
    names = ("in", "kept", "dropped", "failed", "new")
    table(f"Ingested into {dataset}", names, [[facts[name] for name in names]])
    rows = facts["not_kept"]
    if rows:
        shown = rows[:NOT_KEPT_SHOWN]
        left = len(rows) - len(shown)
        table(
            "Not kept", ("status", "reason", "source"), [(r["status"], r["reason"], r["name"]) for r in shown]
        )
        if left:
            print(f"and {left} more; --json lists all of them.")
    if "faces" in facts:
        faces = facts["faces"]
        why = "; ".join(f"{count} {reason}" for reason, count in sorted(faces["reasons"].items()))
        said = f"{faces['dropped']} dropped" + (f" ({why})" if why else "")
        print(f"Faces of the kept files: {faces['kept']} kept, {said}.")
    for remark in facts["remarks"]:
        print(f"Note: {remark}.")


def label(context: typer.Context, dataset: Dataset) -> None:
    """Score every kept face."""
    now = state(context)

    def flow() -> Any:
        from flows.label import label as story

        return story(dataset=dataset, store=now.store_uri)

    todo = f"run `sdflow ingest SOURCE --name {dataset} --consent FILE` first"
    facts = run_flow(now, flow, "label", lambda store: checks.before_work(store, dataset, "faces", todo))
    result(now, facts, show_facts(f"Labels of {dataset}", facts))


def train(
    context: typer.Context,
    dataset: Dataset,
    config_name: Annotated[
        str,
        typer.Option(
            "--config",
            metavar="default|paper",
            help="How it is trained. `paper`: the published setting (rows alone, likelihood by dopri5, all "
            "terms, batch 8, 10,000 steps), the reference to compare with; without a GPU it takes days, "
            "--steps shortens it. The recipe of the editor holds every value.",
        ),
    ] = "default",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")] = None,
    prior_samples: Annotated[
        int | None, typer.Option("--prior-samples", min=0, help="People drawn from the prior.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of every random draw.")] = None,
    attributes: Annotated[
        str | None,
        typer.Option(
            "--attributes",
            metavar="A,B",
            help="What it shall edit; `all`: everything that the labeller knows "
            "[default: smiling,young,male,eyeglasses where it knows them, else all].",
        ),
    ] = None,
) -> None:
    """Train an editor on the dataset and promote it; a killed training goes on where it stopped."""
    now = state(context)
    training = {k: v for k, v in (("steps", steps), ("seed", seed)) if v is not None}
    config: dict[str, Any] = {"training": training} if training else {}
    if config_name != "default":
        checks.training_to_start_from(config_name)
        config["config"] = config_name
    if prior_samples is not None:
        config["prior_samples"] = prior_samples

    def check(store: Any) -> None:
        checks.before_work(store, dataset, "latents", f"run `sdflow invert {dataset}` first")
        if attributes is not None:
            config["attributes"] = checks.attributes_to_train(store, attributes)

    def flow() -> Any:
        from flows.train import train as story

        return story(dataset=dataset, config=config, store=now.store_uri)

    facts = run_flow(now, flow, "train", check)
    result(now, facts, show_facts(f"Editor of {dataset}", facts))


def edit(
    context: typer.Context,
    dataset: Dataset,
    targets: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="smiling=0.9, smiling=+0.3, smiling=-0.2 or smiling=flip; repeat for several together.",
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many rows it would be; write no edit.")
    ] = False,
    quality: Quality = "fast",
) -> None:
    """Edit every source by the request its consent covers; the edits wait for a decision."""
    now = state(context)
    request = _request(targets)
    check_quality(quality)

    def flow() -> Any:
        from flows.edit import edit as story

        return story(
            dataset=dataset, requests=[request], dry_run=dry_run, store=now.store_uri, quality=quality
        )

    facts = run_flow(now, flow, "edit", lambda store: checks.before_edit(store, dataset, request))
    result(now, facts, lambda: _show_edit(dataset, facts))


def _show_edit(dataset: str, facts: dict[str, Any]) -> None:
    show_facts(f"Edits of {dataset}", facts)()
    if facts.get("dry_run"):
        return
    if facts["status"].get("waiting"):
        _say_how_to_look(facts)
        print(
            f"Look at the contact sheet and the pages beside it, then:\n"
            f"sdflow decide {facts['edit_run']} --approve all|ID --reject ID --by NAME"
        )
    else:
        print(
            "Nothing waits for a decision: `sdflow why FILE` names the edits that were made of a picture, "
            "`sdflow why EDIT_ID` tells why one was held or dropped."
        )


def _say_how_to_look(facts: dict[str, Any]) -> None:
    said = hint(facts["contact_sheet"], facts["edit_run"])
    if said:
        print(said)


def _request(targets: list[str]) -> dict[str, float | str]:
    from sdflow_core.method.request import checked_target
    from sdflow_core.records.errors import ContractError

    request: dict[str, float | str] = {}
    for target in targets:
        name, equals, value = (part.strip() for part in target.partition("="))
        if not equals or not name or not value or name in request:
            raise ContractError("--set", expected="NAME=VALUE, each name once", found=target)
        try:
            # a sign makes it a change of the score that is read now
            request[name] = checked_target(value if value == "flip" or value[0] in "+-" else float(value))
        except ValueError:
            raise ContractError(
                f"what is asked of {name}",
                expected="a value in [0, 1]; or a change such as +0.3 or -0.2, at most 1; or flip",
                found=value,
                where="--set",
                todo="0 is certainly absent, 1 certainly present, as the labeller reads it",
            ) from None
    return request


def publish(
    context: typer.Context,
    edit_run: Annotated[str, typer.Argument(metavar="EDIT_RUN", help="Id of the edit run.")],
    to: Annotated[str, typer.Option("--to", metavar="URI", help="Folder or prefix that receives the files.")],
) -> None:
    """Release what was approved, and nothing else."""
    now = state(context)

    def flow() -> Any:
        from flows.publish import publish as story

        return story(edit_run=edit_run, target=to, store=now.store_uri)

    facts = run_flow(now, flow, "publish", lambda store: checks.before_publish(store, edit_run, to))
    result(now, facts, show_facts("Released", facts))
