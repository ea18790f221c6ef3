"""Models of several files -> a bundle, refused before anything runs where they do not fit each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO, Literal

from sdflow_core.faces.checkpoint import load_model, save_model, serves
from sdflow_core.faces.labeller import AttributeNetwork
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.embedded import install_embedded
from sdflow_core.weights.model_store import Bundle, ModelStore

__all__ = ["PLACES", "assembled", "check_bundle", "header_of"]

PLACES = ("generator", "encoder", "labeller", "judge", "identity", "detector", "prior", "editor")
_HEADER_LIMIT = 16 * 2**20
_LOOK_AT_CARDS = "see `sdflow models show DIGEST` for what each model is"


def assembled(
    models: ModelStore,
    chosen: Mapping[str, str],
    *,
    template_scale: float | None = None,
    faces: Literal["reject", "largest", "all"] = "reject",
) -> Bundle:
    """A bundle of these models, and of the embedded ones where none is given.

    Labeller and judge are the embedded ones by default, detector and identity network too: they work at any
    resolution. There is no embedded encoder or prior for a generator of one's own.

    Args:
        models: The store's models.
        chosen: Place -> digest; a generator and an encoder at least.
        template_scale: Of the crops that are inverted; None takes the encoder's card, else 1 (FFHQ's square).
        faces: What becomes of a picture with several faces.

    Raises:
        ContractError: Places that do not exist, no generator or encoder, or models that do not fit.
    """
    if unknown := [place for place in chosen if place not in PLACES]:
        raise ContractError("places of a bundle", expected=", ".join(PLACES), found=", ".join(unknown))
    if missing := [place for place in ("generator", "encoder") if not chosen.get(place)]:
        raise ContractError(
            "models of a bundle",
            expected="a generator and its encoder",
            found=f"no {' and no '.join(missing)}",
        )
    embedded = install_embedded(models.store)
    places = {place: getattr(embedded, place) for place in ("labeller", "judge", "identity", "detector")}
    places |= {place: digest for place, digest in chosen.items() if digest}
    if template_scale is not None and not 0 < template_scale < float("inf"):
        raise ContractError(
            "scale of the crops", expected="a number above 0; 1 is FFHQ's square", found=template_scale
        )
    scale = template_scale or float(models.card(places["encoder"]).get("template_scale") or 1.0)
    for place in ("labeller", "judge"):
        places[place] = looking_at(models, places[place], scale)
    scorer = header_of(models, places["labeller"])
    generator = header_of(models, places["generator"])["config"]
    bundle = Bundle(
        **places,
        template_scale=scale,
        resolution=int(generator.get("resolution", 1024)),
        attributes=_attributes(scorer),
        framing="ffhq" if header_of(models, places["encoder"])["kind"] == "style_encoder" else "five_points",
        faces=faces,
    )
    check_bundle(models, bundle)
    return bundle


def looking_at(models: ModelStore, digest: str, scale: float) -> str:
    """Digest of a scorer that looks at the middle of wider crops than it learned on; itself where they fit.

    Args:
        models: Where the other version is added.
        digest: Labeller or judge.
        scale: Template scale of the crops that it will be shown.
    """
    card = models.card(digest)
    own = card.get("template_scale")
    if own is None or float(own) >= scale:
        return digest
    network = load_model(models.weights(digest))
    if not isinstance(network, AttributeNetwork):
        return digest
    nearer = type(network)(network.config.model_copy(update={"crop": float(own) / scale}))
    nearer.load_state_dict(network.state_dict())
    told = {**card, "of": digest, "title": f"{card.get('title')}, looking at the middle of wider crops"}
    return models.add(str(card["kind"]), save_model(nearer), {**told, "template_scale": scale})


def check_bundle(models: ModelStore, bundle: Bundle) -> None:
    """Refuse models that do not fit each other; only their headers are read.

    Raises:
        ContractError: A model in a place that its kind cannot take; an encoder with another number of rows or
            another width than the generator has; crops of another size; scores of other attributes; an editor
            for other codes or attributes.
        NotFoundError: A model that is not in the store.
    """
    for place in ("identity", "detector"):  # they may be files of other makers: their cards say what they are
        digest = getattr(bundle, place)
        if digest is not None and (kind := models.card(digest)["kind"]) != place:
            raise ContractError(f"model kind of the {place}", expected=place, found=kind, todo=_LOOK_AT_CARDS)
    headers: dict[str, Any] = {}
    for place in ("generator", "encoder", "labeller", "judge", "prior"):
        digest = getattr(bundle, place)
        if digest is None:
            continue
        headers[place] = header_of(models, digest)
        if not serves(str(headers[place]["kind"]), place):
            raise ContractError(
                f"model kind of the {place}",
                expected=place,
                found=headers[place]["kind"],
                todo=_LOOK_AT_CARDS,
            )
    if "generator" not in headers or "encoder" not in headers:
        return
    wanted, found = _shape(headers["generator"]["config"]), _shape(headers["encoder"]["config"])
    if wanted != found:
        raise ContractError(
            "encoder and generator do not fit",
            expected=f"an encoder of {wanted[0]} rows of {wanted[1]}, as the generator has",
            found=f"{found[0]} rows of {found[1]}",
            todo=_LOOK_AT_CARDS,
        )
    if "prior" in headers and _shape(headers["prior"]["config"]) != wanted:
        raise ContractError(
            "prior and generator do not fit",
            expected=wanted,
            found=_shape(headers["prior"]["config"]),
            todo=_LOOK_AT_CARDS,
        )
    side = headers["generator"]["config"].get("resolution", 1024)
    if side != bundle.resolution:
        raise ContractError(
            "resolution of the bundle", expected=f"{side} px, the generator's", found=bundle.resolution
        )
    if (
        headers["encoder"]["kind"] == "encoder"
        and (size := headers["encoder"]["config"].get("resolution", 64)) != side
    ):
        raise ContractError(
            "encoder and generator of other resolutions",
            expected=f"{side} px",
            found=f"{size} px",
            todo=_LOOK_AT_CARDS,
        )
    names = {place: _attributes(headers[place]) for place in ("labeller", "judge") if place in headers}
    for place, known in names.items():
        if known != bundle.attributes:
            raise ContractError(
                f"attributes of the {place}",
                expected=", ".join(bundle.attributes),
                found=", ".join(known),
                todo="assemble both of the same attributes, in one order: --labeller D --judge D",
            )
    if bundle.editor is not None:
        _check_editor(models.card(bundle.editor), bundle, wanted)


def _check_editor(card: Mapping[str, Any], bundle: Bundle, wanted: tuple[int, int]) -> None:
    if card.get("kind") != "editor" or card.get("encoder") != bundle.encoder:
        raise ContractError(
            "editor and encoder do not fit",
            expected=f"an editor for latents of encoder {bundle.encoder}",
            found=f"{card.get('kind')} for encoder {card.get('encoder')}",
            todo="import or train it for this encoder",
        )
    shape = card.get("rows", wanted[0]), card.get("style_dim", wanted[1])
    if shape != wanted:
        raise ContractError(
            "editor and generator do not fit",
            expected=f"an editor for {wanted[0]} rows of {wanted[1]}, as the generator has",
            found=f"{shape[0]} rows of {shape[1]}",
            todo="import or train it for this encoder",
        )
    unknown = [name for name in card.get("attributes") or () if name not in bundle.attributes]
    if unknown:
        raise ContractError(
            "attributes of the editor",
            expected=f"some of {', '.join(bundle.attributes)}, which the labeller scores",
            found=", ".join(unknown),
        )


def header_of(models: ModelStore, digest: str) -> dict[str, Any]:
    """`{"kind", "config"}` of a model, from the first bytes of its file.

    Raises:
        ContractError: Not a file of this project's networks.
        NotFoundError: Not in the store.
    """
    models.card(digest)  # a digest that is not there is said in these words
    key = f"models/{digest}/weights.bin"
    with models.store.open_input(key) as stream:
        size = int.from_bytes(_exactly(stream, 8), "little")
        if not 0 < size <= _HEADER_LIMIT:
            size = 0
        start = _exactly(stream, size)
    try:
        return json.loads(json.loads(start)["__metadata__"]["sdflow"])
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(
            "not a model file of this project",
            expected="safetensors with an `sdflow` header",
            found=str(models.card(digest).get("title")),
            where=models.store.url(key),
        ) from error


def _exactly(stream: BinaryIO, count: int) -> bytes:
    out = b""
    while len(out) < count and (more := stream.read(count - len(out))):
        out += more
    return out


def _shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """(L, D) of a network's configuration; a generator's follow from its resolution."""
    rows = config.get("num_rows") or config.get("rows")
    if rows is None:
        rows = 2 * (int(config.get("resolution", 1024)).bit_length() - 1) - 2
    return int(rows), int(config.get("style_dim", 512))


def _attributes(header: Mapping[str, Any]) -> tuple[str, ...]:
    config = header["config"]
    return tuple(config.get("attributes") or ()) + tuple(config.get("ages") or ())
