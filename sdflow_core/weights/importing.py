"""Weight files that users bring -> models of the store, converted once, each with a card of where it is from.

A file may hold several: an e4e file has its generator inside. What only makes sense beside other models (a
flow, directions) becomes an editor for the models it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.method.editing import FlowEditor
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.records.errors import ContractError
from sdflow_core.weights import direction_files
from sdflow_core.weights.front import Opened
from sdflow_core.weights.model_store import ModelStore
from sdflow_core.weights.sdflow_files import RELEASED_ATTRIBUTES

__all__ = ["Converted", "Options", "converted"]

_LOOK_AT_FILE = "see `sdflow models inspect FILE` and `sdflow models show DIGEST` for what each is"


@dataclass(frozen=True)
class Options:
    """What a file cannot say of itself.

    Attributes:
        flavour: `e4e` or `psp`, where the file has no word of it.
        attributes: Names of scores or directions; of a 40 + 6 classifier, those to keep.
        encoder: Digest of the encoder whose codes an editor will see.
        labeller: Digest of the network that scores the attributes of an editor; of a flow, its own semantic
            encoder.
        iterations: Passes of a ReStyle encoder.
        components: Which of GANSpace's components, one for each name; the first ones if none are named.
    """

    flavour: Any = None
    attributes: tuple[str, ...] = ()
    encoder: str | None = None
    labeller: str | None = None
    iterations: int = 5
    components: tuple[int, ...] = ()


@dataclass(frozen=True)
class Converted:
    """One model, ready for the store.

    Attributes:
        kind: Place in a bundle.
        data: Its file as safetensors.
        card: What is known of it.
    """

    kind: str
    data: bytes
    card: dict[str, Any]


def converted(
    opened: Opened, models: ModelStore, options: Options, source: str, notes: str = ""
) -> list[Converted]:
    """Make the networks of a file and write them in the store's format.

    Args:
        opened: The file.
        models: Where encoder and labeller of an editor are.
        options: See `Options`.
        source: Address that the file was had from.
        notes: Of who imports it.

    Returns:
        One or more models; nothing is stored yet.

    Raises:
        ContractError: Tensors that do not fit, and what is missing in `options`.
    """
    described = opened.described
    card: dict[str, Any] = {
        "title": f"{described.family} ({described.kind.replace('_', ' ')})",
        "source": source,
        "source_sha256": opened.file.sha256,
        "source_size_bytes": opened.file.size,
        "container": opened.file.container,
        "architecture": described.family,
        "parameters": described.parameters,
        "licence": described.licence or "not known: ask where the file is from",
        "notes": "; ".join(filter(None, (*described.notes, notes.strip()))),
    }
    make = {
        "generator": _generator,
        "encoder": _encoder,
        "identity": _identity,
        "attribute_classifier": _classifier,
        "semantic_encoder": _semantic,
        "flow": _flow,
        "directions": _directions,
    }[described.kind]
    return make(opened, models, options, card)


def _generator(opened: Opened, models: ModelStore, options: Options, card: dict[str, Any]) -> list[Converted]:
    del models, options
    network = opened.load("generator")
    config = network.config
    sizes = {"resolution": config.resolution, "rows": config.num_rows, "style_dim": config.style_dim}
    return [Converted("generator", save_model(network), card | sizes)]


def _encoder(opened: Opened, models: ModelStore, options: Options, card: dict[str, Any]) -> list[Converted]:
    inside = _inner_generator(opened, models, options, card)
    network = opened.load("encoder", flavour=options.flavour, iterations=options.iterations)
    config = network.config
    # the tensors do not tell e4e from pSp: what was decided stands in the card
    name = f"restyle-{config.flavour}" if config.iterated else config.flavour
    sizes = {"input_resolution": config.resolution, "rows": config.rows, "style_dim": config.style_dim}
    sizes |= {"architecture": name, "title": f"{name} (encoder)"}
    return [Converted("encoder", save_model(network), card | sizes | {"template_scale": 1.0}), *inside]


def _inner_generator(
    opened: Opened, models: ModelStore, options: Options, card: dict[str, Any]
) -> list[Converted]:
    if not any(name.startswith("decoder.") for name in opened.tensors):
        return []
    inner = card | {
        "title": f"generator inside {card['title']}",
        "architecture": "stylegan2-rosinality",
        "parameters": None,
    }
    return _generator(opened, models, options, inner)


def _identity(opened: Opened, models: ModelStore, options: Options, card: dict[str, Any]) -> list[Converted]:
    del models, options
    network = opened.load("identity")
    return [Converted("identity", save_model(network), card | {"dimensions": network.config.dimensions})]


def _classifier(
    opened: Opened, models: ModelStore, options: Options, card: dict[str, Any]
) -> list[Converted]:
    del models
    network = opened.load("attribute_classifier")
    if options.attributes:
        network = network.only(options.attributes)
    sizes = {"attributes": list(network.attributes), "template_scale": 1.0}
    return [Converted("labeller", save_model(network), card | sizes)]


def _semantic(opened: Opened, models: ModelStore, options: Options, card: dict[str, Any]) -> list[Converted]:
    del models
    _named(options, opened.described.attributes, opened.file.path)
    network = opened.load("semantic_encoder", attributes=options.attributes).network
    sizes = {"attributes": list(options.attributes), "template_scale": 1.0}
    return [Converted("labeller", save_model(network), card | sizes)]


def _flow(opened: Opened, models: ModelStore, options: Options, card: dict[str, Any]) -> list[Converted]:
    where = opened.file.path
    if options.encoder is None or options.labeller is None:
        raise ContractError(
            "a flow alone edits nothing",
            expected="the encoder of its codes, and the semantic encoder that was trained with it",
            found=f"encoder {options.encoder}, semantic encoder {options.labeller}",
            where=where,
            todo="import both first, then this file with --encoder DIGEST --labeller DIGEST",
        )
    rows, dim = _rows_of(models, options.encoder)
    scores = _scorer(models, options.labeller)
    flow = opened.load("flow", rows=rows, dim=dim)
    if flow.attributes != len(scores.attributes):
        raise ContractError(
            "flow and semantic encoder of other attributes",
            expected=f"{flow.attributes} attributes, as the flow has conditions",
            found=f"{len(scores.attributes)}: {', '.join(scores.attributes)}",
            where=where,
        )
    editor = FlowEditor(flow, SemanticEncoder(scores), options.encoder)
    return [_editor_of(editor, options.encoder, card)]


def _directions(
    opened: Opened, models: ModelStore, options: Options, card: dict[str, Any]
) -> list[Converted]:
    where = opened.file.path
    if options.encoder is None or options.labeller is None or not options.attributes:
        raise ContractError(
            "directions alone edit nothing in a pipeline",
            expected="the encoder of the codes, the labeller that says how far an edit went, and a name for "
            "each direction that the labeller knows",
            found=f"encoder {options.encoder}, labeller {options.labeller}, names {list(options.attributes)}",
            where=where,
            todo="--encoder DIGEST --labeller DIGEST --attributes smiling (or use the Python API)",
        )
    rows, dim = _rows_of(models, options.encoder)
    width, components = opened.described.style_dim, None
    if width != dim:
        raise ContractError(
            "directions for another generator",
            expected=f"directions of width {dim}, as the codes of the encoder have",
            found=f"width {width}",
            where=where,
            todo=_LOOK_AT_FILE,
        )
    if opened.described.family == "ganspace":
        components = options.components or tuple(range(len(options.attributes)))
    elif options.components:
        raise ContractError(
            "components of a file that has none",
            expected="GANSpace's comp, mean and std",
            found=", ".join(list(opened.tensors)[:8]),
            where=where,
            todo="leave out --components",
        )
    count = opened.described.attributes if components is None else len(components)
    if count != len(options.attributes):
        raise ContractError(
            "names of directions",
            expected=f"{count} names, one for each direction, in order",
            found=", ".join(options.attributes),
            where=where,
            todo="name all of them with --attributes A,B",
        )
    semantic = SemanticEncoder(_scorer(models, options.labeller).only(options.attributes))
    editor = direction_files.load(
        opened.tensors,
        opened.plain,
        rows=rows,
        encoder_digest=options.encoder,
        names=options.attributes,
        components=components,
        semantic_encoder=semantic,
        where=where,
    )
    return [_editor_of(editor, options.encoder, card)]


def _editor_of(editor: Any, encoder: str, card: dict[str, Any]) -> Converted:
    facts = {"attributes": list(editor.attributes), "encoder": encoder, "editor": editor.kind}
    return Converted(
        "editor", editor.to_bytes(), card | facts | {"rows": editor.rows, "style_dim": editor.dim}
    )


def _named(options: Options, count: int | None, where: str) -> None:
    """Refuse unless there is a name of its own for each of `count` outputs."""
    given = options.attributes
    if len(set(given)) != len(given) or (count is not None and len(given) != count):
        released = f"; of the published one: --attributes {','.join(RELEASED_ATTRIBUTES)}"
        raise ContractError(
            "names of the scores",
            expected=f"{count} names, each once, in the order of the training: no file holds them",
            found=", ".join(given) or "none",
            where=where,
            todo="name them with --attributes A,B" + (released if count == len(RELEASED_ATTRIBUTES) else ""),
        )


def _rows_of(models: ModelStore, digest: str) -> tuple[int, int]:
    card = models.card(digest)
    if card["kind"] != "encoder":
        raise ContractError(
            "the encoder of an editor",
            expected="a model of the kind encoder",
            found=f"{card['kind']} {digest[:12]}",
            todo="see `sdflow models list`",
        )
    if "rows" in card and "style_dim" in card:
        return int(card["rows"]), int(card["style_dim"])
    config = load_model(models.weights(digest), expect="encoder").config
    return int(getattr(config, "num_rows", 0) or config.rows), int(config.style_dim)


def _scorer(models: ModelStore, digest: str) -> Any:
    return load_model(models.weights(digest), expect="labeller")
