"""`sdflow paste`: edited faces back into their photograph, at its full resolution."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.fetch import hint, written_beside
from cli.output import result, state, table

if TYPE_CHECKING:
    from sdflow_core.records.store import Store

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("paste")(paste)


def paste(
    context: typer.Context,
    edits: Annotated[
        list[str],
        typer.Argument(metavar="EDIT_ID", help="Edits of different faces of one photograph."),
    ],
    dataset: Annotated[str, typer.Option("--dataset", help="Look in this dataset only.")] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Copy the PNG to this new file; it shows people."),
    ] = None,
    blend: Annotated[
        str | None,
        typer.Option("--blend", metavar="change|replace", help="Paste the difference, or the face itself."),
    ] = None,
    fade_detail: Annotated[
        float | None,
        typer.Option("--fade-detail", help="With change: 0 keeps fine detail under the edit, 1 fades it."),
    ] = None,
    keep_grain: Annotated[
        bool | None, typer.Option("--keep-grain/--no-keep-grain", help="Leave the photograph's grain.")
    ] = None,
    match_colour: Annotated[
        bool | None, typer.Option("--match-colour/--no-match-colour", help="With replace: take its colours.")
    ] = None,
    region: Annotated[
        str | None, typer.Option("--region", metavar="face|crop", help="Where the mask lets the edit show.")
    ] = None,
    feather: Annotated[
        float | None, typer.Option("--feather", help="Share of the radius over which the mask falls.")
    ] = None,
    border: Annotated[
        float | None, typer.Option("--border", help="Share of the crop's side over which it falls.")
    ] = None,
) -> None:
    """Paste edits into the photograph that they were made of; it stays private, the original is only read."""
    from cli.stories import run_flow
    from sdflow_core.records.lookup import edits_named

    now = state(context)
    mask = _given(region=region, feather=feather, border=border)
    config = _given(
        blend=blend, fade_detail=fade_detail, keep_grain=keep_grain, match_colour=match_colour, mask=mask
    )
    found: list[Any] = []

    def check(store: Store) -> None:
        from tasks.paste_settings import paste_config

        paste_config(config)
        if out is not None:
            _check_new(store, out)
        found.extend(edits_named(store, edits, dataset))

    def flow() -> Any:
        from flows.paste import paste as story

        return story(dataset=found[0], edit_ids=found[1], config=config, store=now.store_uri)

    facts = run_flow(now, flow, "paste", check)
    copy = _copied(now.store(), facts, out) if out is not None else ""
    facts = {**facts, "out": copy}
    result(now, facts, lambda: _show(facts))


def _given(**options: Any) -> dict[str, Any]:
    """What was asked for; the rest is as `PasteConfig` has it."""
    return {name: value for name, value in options.items() if value not in (None, {})}


def _show(facts: dict[str, Any]) -> None:
    made = "it was there already" if facts["reused"] else "pasted now"
    table(
        f"Photograph of {facts['dataset']}",
        ("what", "found"),
        [
            ("picture", f"{facts['picture']} (private, shows people)"),
            ("size", f"{facts['width']} x {facts['height']} px, {facts['bytes']} bytes"),
            ("row", facts["pasted"]),
            ("reused", f"{'yes' if facts['reused'] else 'no'}: {made}"),
            *([("copy", facts["out"])] if facts["out"] else []),
        ],
    )
    rows = [(edit["edit_id"], edit["status"], *edit["box"]) for edit in facts["edits"]]
    table(
        "Edits in it, and what each may have changed (px)",
        ("edit", "status", "left", "top", "right", "bottom"),
        rows,
    )
    said = "" if facts["out"] else hint(facts["picture"])
    if said:
        print(said)


def _check_new(store: Store, out: Path) -> None:
    """The copy overwrites nothing and lies outside of the store, whose folders are for records."""
    import os

    from sdflow_core.records.errors import ContractError
    from sdflow_core.records.objects import LocalStore

    if os.path.lexists(out):
        raise ContractError(
            "there is something of this name; it was not touched",
            expected="the name of a new file",
            where=out,
            todo="name another --out, or move it away",
        )
    if isinstance(store, LocalStore) and out.resolve().is_relative_to(store.root.resolve()):
        raise ContractError(
            "a copy does not lie inside the store",
            found=out,
            where=store.uri,
            todo="name an --out outside of it",
        )


def _copied(store: Store, facts: dict[str, Any], out: Path) -> str:
    """Writes the copy, readable by its owner alone, all of it or nothing; never over another file."""
    import os

    from sdflow_core.records.errors import ApprovalError, ContractError
    from sdflow_core.records.keys import sha256_hex

    key = f"private/pasted/{facts['pasted'][:2]}/{facts['pasted']}.png"
    data = store.read(key)
    if sha256_hex(data) != facts["file_sha256"]:
        raise ApprovalError(
            "the pasted photograph is not the one of its row; nothing was copied",
            expected=f"file sha256 {facts['file_sha256']}",
            where=facts["picture"],
            todo="restore the file from a backup, or delete it and paste again",
        )
    try:
        with written_beside(out, data) as temporary:
            os.link(temporary, out)  # fails where somebody made the file meanwhile; a rename would not
    except OSError as error:
        raise ContractError(
            "the copy cannot be written; the photograph itself is in the store",
            found=error.strerror,
            where=out,
            todo="name another --out and run the same command again: nothing is pasted twice",
        ) from error
    return str(out.absolute())
