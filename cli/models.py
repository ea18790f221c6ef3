"""`sdflow models`: which models there are, which bundle is in force, which licences were accepted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.cards import print_card
from cli.imports import add_imports
from cli.output import State, result, state, table

if TYPE_CHECKING:
    from sdflow_core.records.store import Store
    from sdflow_core.weights.model_store import Bundle

__all__ = ["find", "joined", "register"]

MIN_PREFIX = 4
_By = Annotated[str, typer.Option("--by", metavar="NAME", help="Who says so.")]
_Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="Why.")]


def register(app: typer.Typer) -> None:
    """Adds the group of commands."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Models, bundles, licences.")
    group.command("list")(list_models)
    group.command("show")(show)
    group.command("promote")(promote)
    group.command("rollback")(rollback)
    group.command("accept-licence")(accept_licence)
    add_imports(group)
    app.add_typer(group, name="models")


def list_models(context: typer.Context) -> None:
    """List the models of the store and the promotions so far."""
    from sdflow_core.weights.model_store import Bundles, Licences, ModelStore
    from sdflow_core.weights.sets import find_sets

    now = state(context)
    store = now.store()
    cards = ModelStore(store).list()
    bundles = Bundles(store)
    current, history = bundles.current(), bundles.history()
    used, accepted = _digests(current), Licences(store).all()
    models: list[dict[str, Any]] = [
        {
            "kind": card["kind"],
            "digest": card["digest"],
            "in_force": used.get(str(card["kind"])) == card["digest"],
            "title": card.get("title"),
            "licence": card.get("licence_id") or card.get("licence"),
            "accepted": not card.get("licence_id") or card["licence_id"] in accepted,
            "size_bytes": card["size_bytes"],
        }
        for card in cards
    ]
    promotions: list[dict[str, Any]] = [
        {"number": entry.number, "what": entry.kind, "time": entry.time, **_who(entry.payload)}
        for entry in history
    ]
    sets = [{"digest": one.digest, **_digests(one), "faces": one.faces} for one in find_sets(store, "")]
    document = {
        "bundle": current.digest if current else None,
        "models": models,
        "promotions": promotions,
        "sets": sets,
    }

    def text() -> None:
        rows = [
            (
                "*" if item["in_force"] else "",
                item["kind"],
                item["digest"][:12],
                item["title"],
                item["licence"],
                "" if item["accepted"] else "not accepted",
            )
            for item in models
        ]
        table("Models (* in force)", ("", "kind", "digest", "title", "licence", ""), rows)
        table(
            "Promotions",
            ("no", "what", "bundle", "by", "note", "time"),
            [(p["number"], p["what"], p["digest"][:12], p["by"], p["note"], p["time"]) for p in promotions],
        )
        if sets:
            shown = ("digest", "generator", "encoder", "labeller", "judge", "editor", "faces")
            rows = [tuple(one.get(name, "")[:12] for name in shown) for one in sets]
            table("Put together, to be promoted", ("bundle", *shown[1:]), rows)
        if not models:
            print("No models yet: `sdflow models promote embedded --by NAME`, or `sdflow demo`.")

    result(now, document, text)


def show(
    context: typer.Context,
    digest: Annotated[str, typer.Argument(help="Digest of a model or a bundle, or its beginning.")],
) -> None:
    """Show a model's card, or what a bundle is made of."""
    from sdflow_core.weights.model_store import Bundle

    now = state(context)
    found = find(now.store(), digest)
    if isinstance(found, Bundle):
        document: dict[str, Any] = {"bundle": found.digest, **found.model_dump(mode="json")}
    else:
        document = dict(found)

    def text() -> None:
        if "bundle" in document:
            rows = [(key, v if isinstance(v, str) else json.dumps(v)) for key, v in document.items()]
            table("Bundle", ("what", "is"), rows)
        else:
            print_card(document)
        notice = _notice(document.get("licence_id"))
        if notice:
            print(notice)

    result(now, document, text)


def promote(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="embedded|DIGEST",
            help="All embedded models, one model, pretrained ones, or an earlier bundle.",
        ),
    ],
    by: _By = "",
    note: _Note = "",
    faces: Annotated[
        str, typer.Option("--faces", metavar="reject|largest|all", help="Of a picture with several faces.")
    ] = "",
) -> None:
    """Put models in force. A single model takes the place of its kind in the current bundle."""
    from sdflow_core.records.errors import ContractError
    from sdflow_core.weights.assembling import check_bundle
    from sdflow_core.weights.model_store import Bundle, Bundles, ModelStore

    now = state(context)
    store = now.store()
    _named(by, "a promotion")
    bundles = Bundles(store)
    if what == "embedded":
        from sdflow_core.weights.embedded import install_embedded

        bundle = install_embedded(store)
    else:
        found = find(store, what)
        if isinstance(found, Bundle):
            bundle = found
        else:
            current = bundles.current()
            if current is None:
                raise ContractError(
                    "there is no bundle that this model could join",
                    found=found["kind"],
                    todo="promote a whole bundle first: `sdflow models assemble` makes one of your own, "
                    "`sdflow models promote embedded --by NAME` takes the embedded one",
                )
            bundle = joined(current, found)
            if found["kind"] != "editor":  # what an editor fits is its card's encoder: `joined` has looked
                check_bundle(ModelStore(store), bundle)
    if faces:
        if faces not in ("reject", "largest", "all"):
            raise ContractError("faces of a picture", expected="reject, largest or all", found=faces)
        bundle = bundle.model_copy(update={"faces": faces})
    entry = bundles.promote(bundle, by, note)
    _announce(now, entry)
    document = {"bundle": bundle.digest, "entry": entry.number, **_digests(bundle)}
    result(now, document, f"Bundle {bundle.digest[:12]} is in force (entry {entry.number}).")


def _announce(now: State, entry: Any) -> None:
    """Tell the server that is up for this store, if any; nothing waits for it."""
    from cli.server import point_to_live_server
    from tasks.announce import announce_promotion

    point_to_live_server(now.store_uri)
    announce_promotion(entry)


def rollback(context: typer.Context, by: _By = "", note: _Note = "") -> None:
    """Go back to the bundle that was in force before the current one."""
    from sdflow_core.weights.model_store import Bundles

    now = state(context)
    _named(by, "a rollback")
    entry = Bundles(now.store()).rollback(by, note)
    _announce(now, entry)
    digest = str(entry.payload["digest"])
    result(now, {"bundle": digest, "entry": entry.number}, f"Bundle {digest[:12]} is in force again.")


def accept_licence(
    context: typer.Context,
    licence: Annotated[str, typer.Argument(help="Id of the licence, as the model's card names it.")],
    by: _By = "",
    note: _Note = "",
) -> None:
    """Record that a licence is accepted for this store."""
    from sdflow_core.records.errors import NotFoundError
    from sdflow_core.weights.embedded import LICENCE_ID
    from sdflow_core.weights.model_store import Licences, ModelStore

    now = state(context)
    store = now.store()
    _named(by, "an acceptance")
    cards = ModelStore(store).list()
    known = {LICENCE_ID, *(str(card["licence_id"]) for card in cards if card.get("licence_id"))}
    if licence not in known:
        raise NotFoundError("no model has this licence", expected=" or ".join(sorted(known)), found=licence)
    entry = Licences(store).accept(licence, by, note)
    document = {"licence": licence, "by": entry.payload["by"], "time": entry.time}
    result(now, document, f"Licence {licence} is accepted for this store (by {entry.payload['by']}).")


# -- inside


def _named(by: str, what: str) -> None:
    from sdflow_core.records.errors import ContractError

    if not by.strip():
        raise ContractError(f"{what} needs a name", expected="who says so", todo="pass --by NAME")


def _who(payload: dict[str, Any]) -> dict[str, Any]:
    return {"digest": payload["digest"], "by": payload["by"], "note": payload["note"]}


def _digests(bundle: Bundle | None) -> dict[str, str]:
    from sdflow_core.weights.model_store import NO_MODELS

    if bundle is None:
        return {}
    fields = bundle.model_dump(mode="json").items()
    return {kind: digest for kind, digest in fields if kind not in NO_MODELS and digest}


def find(store: Store, digest: str) -> dict[str, Any] | Bundle:
    """The card of a model, or a bundle, by a unique beginning of its digest.

    Bundles are those that were once promoted, and sets of models that were made together.
    """
    from sdflow_core.records.errors import ContractError, NotFoundError
    from sdflow_core.weights.model_store import Bundle, Bundles, ModelStore
    from sdflow_core.weights.sets import find_sets

    found: dict[str, dict[str, Any] | Bundle] = {}
    if len(digest) >= MIN_PREFIX:
        cards = ModelStore(store).list()
        found = {card["digest"]: card for card in cards if card["digest"].startswith(digest)}
        for entry in Bundles(store).history():
            if str(entry.payload["digest"]).startswith(digest):
                found[str(entry.payload["digest"])] = Bundle.model_validate(entry.payload["bundle"])
        found |= {bundle.digest: bundle for bundle in find_sets(store, digest)}
    if not found:
        todo = "see `sdflow models list`"
        raise NotFoundError("there is no such model or bundle", found=digest, where=store.uri, todo=todo)
    if len(found) > 1:
        raise ContractError("several models begin like this", found=", ".join(found), todo="give more digits")
    return next(iter(found.values()))


def joined(current: Bundle, card: dict[str, Any]) -> Bundle:
    """The current bundle with one model exchanged; an editor must have been trained for the encoder."""
    from sdflow_core.records.errors import ContractError
    from sdflow_core.weights.model_store import NO_MODELS

    kind, digest = str(card["kind"]), str(card["digest"])
    if kind not in type(current).model_fields or kind in NO_MODELS:
        raise ContractError("a bundle has no place for this kind of model", found=kind)
    encoder = card.get("encoder")
    if kind == "editor" and encoder and encoder != current.encoder:
        raise ContractError(
            "this editor was trained on latents of another encoder",
            expected=f"encoder {current.encoder}",
            found=f"encoder {encoder}",
            todo="promote the bundle that it belongs to, or train again with `sdflow train`",
        )
    changes: dict[str, str | None] = {kind: digest}
    if kind in ("encoder", "generator") and getattr(current, kind) != digest:
        # The editor speaks the language of the latents that it was trained on.
        changes["editor"] = None
    return current.model_copy(update=changes)


def _notice(licence_id: object) -> str:
    """The licence notice of the embedded models, where the package carries one."""
    from importlib.resources import files

    from sdflow_core.weights.embedded import LICENCE_ID

    if licence_id != LICENCE_ID:
        return ""
    for name in ("NOTICE", "NOTICE.md", "NOTICE.txt", "LICENSE"):
        try:
            return files("embedded_models").joinpath(name).read_text("utf-8")
        except (ModuleNotFoundError, FileNotFoundError):
            continue
    return ""
