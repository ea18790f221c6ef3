"""`sdflow models inspect|import|assemble`: weight files of one's own, told, converted and put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.output import result, state, table

if TYPE_CHECKING:
    from sdflow_core.records.store import Store

__all__ = ["add_imports"]

_Uri = Annotated[str, typer.Argument(metavar="URI", help="A path, file://, s3:// or https://.")]
_Sha = Annotated[str, typer.Option("--sha256", metavar="HEX", help="Digest that the file must have.")]
_HELP = "Digest of the {}, or its beginning."


def add_imports(group: typer.Typer) -> None:
    """Adds the commands to `sdflow models`."""
    group.command("inspect")(inspect)
    group.command("import")(import_weights)
    group.command("assemble")(assemble)


def inspect(context: typer.Context, uri: _Uri, sha256: _Sha = "") -> None:
    """Say what a weight file is, by its tensors. Nothing in it is run, nothing is stored."""
    from sdflow_core.weights.front import inspect as inspected
    from tasks.weight_files import public_address, weight_file

    now = state(context)
    with weight_file(uri, sha256 or None) as path:
        found = inspected(path)
    document: dict[str, Any] = {
        "source": public_address(uri),
        "container": found.container,
        "sha256": found.sha256,
        "size_bytes": found.size,
        **found.described.model_dump(mode="json"),
    }

    def text() -> None:
        rows = [(name, _said(name, value)) for name, value in document.items() if value not in (None, [], ())]
        table("Weight file", ("what", "is"), rows)

    result(now, document, text)


def import_weights(
    context: typer.Context,
    uri: _Uri,
    flavour: Annotated[str, typer.Option("--flavour", metavar="e4e|psp", help="Where no file says it.")] = "",
    attributes: Annotated[
        str, typer.Option("--attributes", metavar="A,B", help="Names of scores or directions, in order.")
    ] = "",
    encoder: Annotated[str, typer.Option("--encoder", help=_HELP.format("encoder of an editor"))] = "",
    labeller: Annotated[str, typer.Option("--labeller", help=_HELP.format("labeller of an editor"))] = "",
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="Passes of a ReStyle encoder.")] = 5,
    components: Annotated[
        str, typer.Option("--components", metavar="3,7", help="Of a GANSpace file, one for each attribute.")
    ] = "",
    sha256: _Sha = "",
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="Kept in the card.")] = "",
) -> None:
    """Convert a weight file to the store's format. Nothing is put in force: see `assemble` and `promote`."""
    from sdflow_core.records.errors import ContractError
    from sdflow_core.weights.front import open_weights
    from sdflow_core.weights.importing import Options, converted
    from sdflow_core.weights.model_store import ModelStore
    from tasks.weight_files import public_address, weight_file

    now = state(context)
    store = now.store()
    if flavour not in ("", "e4e", "psp"):
        raise ContractError("flavour of an encoder", expected="e4e or psp", found=flavour)
    models = ModelStore(store)
    options = Options(
        flavour=flavour or None,
        attributes=tuple(name.strip() for name in attributes.split(",") if name.strip()),
        encoder=_digest(store, encoder),
        labeller=_digest(store, labeller),
        iterations=iterations,
        components=_numbers(components),
    )
    with weight_file(uri, sha256 or None) as path:
        opened = open_weights(path)
        made = converted(opened, models, options, public_address(uri), note)
        added = [(one.kind, models.add(one.kind, one.data, one.card), one.card) for one in made]
    document = {
        "source": public_address(uri),
        "sha256": opened.file.sha256,
        "models": [{"kind": kind, "digest": digest, "title": card["title"]} for kind, digest, card in added],
    }

    def text() -> None:
        rows = [(kind, digest[:12], card["title"], card["licence"]) for kind, digest, card in added]
        table("Imported", ("kind", "digest", "what", "licence"), rows)
        print(f"Next: {_next({kind: digest[:12] for kind, digest, _ in added})}")

    result(now, document, text)


def assemble(
    context: typer.Context,
    generator: Annotated[str, typer.Option("--generator", help=_HELP.format("generator"))],
    encoder: Annotated[str, typer.Option("--encoder", help=_HELP.format("encoder"))],
    labeller: Annotated[str, typer.Option("--labeller", help=_HELP.format("labeller"))] = "",
    judge: Annotated[str, typer.Option("--judge", help=_HELP.format("judge"))] = "",
    identity: Annotated[str, typer.Option("--identity", help=_HELP.format("identity network"))] = "",
    prior: Annotated[str, typer.Option("--prior", help=_HELP.format("prior"))] = "",
    editor: Annotated[str, typer.Option("--editor", help=_HELP.format("editor"))] = "",
    faces: Annotated[
        str, typer.Option("--faces", metavar="reject|largest|all", help="Of a picture with several faces.")
    ] = "reject",
    template_scale: Annotated[
        float, typer.Option("--template-scale", help="Of the crops; 0 takes the encoder's, else 1 (FFHQ).")
    ] = 0.0,
) -> None:
    """Put models together and check that they fit. Where none is given, the embedded observers serve."""
    from sdflow_core.records.errors import ContractError
    from sdflow_core.weights.assembling import assembled
    from sdflow_core.weights.model_store import ModelStore
    from sdflow_core.weights.sets import keep_set

    now = state(context)
    store = now.store()
    given = {
        "generator": generator,
        "encoder": encoder,
        "labeller": labeller,
        "judge": judge,
        "identity": identity,
        "prior": prior,
        "editor": editor,
    }
    chosen = {place: digest for place, word in given.items() if (digest := _digest(store, word))}
    if faces not in ("reject", "largest", "all"):
        raise ContractError("faces of a picture", expected="reject, largest or all", found=faces)
    bundle = assembled(ModelStore(store), chosen, template_scale=template_scale or None, faces=faces)
    digest = keep_set(store, bundle)
    document = {"bundle": digest, **bundle.model_dump(mode="json")}
    words = (
        f"Bundle {digest[:12]} fits together. In force with: sdflow models promote {digest[:12]} --by NAME"
    )
    result(now, document, words)


def _next(made: Mapping[str, str]) -> str:
    """What is done with models of these kinds, kind -> digest."""
    others = {kind: digest for kind, digest in made.items() if kind not in ("generator", "encoder")}
    chosen = {"generator": "DIGEST", "encoder": "DIGEST", **made}
    if "labeller" in others:
        chosen["judge"] = "DIGEST"  # of the same attributes; the embedded one has its own
    return "sdflow models assemble " + " ".join(f"--{kind} {digest}" for kind, digest in chosen.items())


def _numbers(words: str) -> tuple[int, ...]:
    from sdflow_core.records.errors import ContractError

    try:
        return tuple(int(word) for word in words.split(",") if word.strip())
    except ValueError:
        raise ContractError("components", expected="numbers such as 3,7", found=words) from None


def _digest(store: Store, beginning: str) -> str | None:
    """Full digest of a model by its beginning; None for nothing."""
    from cli.models import find
    from sdflow_core.records.errors import ContractError
    from sdflow_core.weights.model_store import Bundle

    if not beginning:
        return None
    found = find(store, beginning)
    if isinstance(found, Bundle):
        raise ContractError(
            "a model is wanted", found=f"bundle {found.digest[:12]}", todo="give a model's digest"
        )
    return str(found["digest"])


def _said(name: str, value: Any) -> str:
    if name == "notes":
        return "; ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(str(item) for item in value)
    return f"{value:,}" if isinstance(value, int) else str(value)
