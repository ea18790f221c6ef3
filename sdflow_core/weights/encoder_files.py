"""Files of the published encoders: e4e, pSp and ReStyle; HyperStyle is recognised and refused.

A file holds the encoder under `encoder.`, its generator under `decoder.`, options of its training (`opts`)
and often the mean w (`latent_avg`). Sizes are told from shapes, never from the options: there are files whose
options say 512 px beside 18 heads. One thing no shape tells, whether a file is e4e or pSp: both have the same
tensors and mean different things by them. That is read from `opts.encoder_type`, or asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor

from sdflow_core.faces.style_encoder import Flavour, StyleEncoder, StyleEncoderConfig
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.describing import Described
from sdflow_core.weights.fitting import count_parameters, fill, numbers, part
from sdflow_core.weights.generator_layout import mean_w_rows
from sdflow_core.weights.ir_se_files import backbone_sizes

__all__ = ["decoder_tensors", "load", "mean_w_of", "recognise"]

ENCODER, DECODER = "encoder.", "decoder."
LICENCE = (
    "the code of this encoder is MIT; the file says nothing of its weights, and FFHQ, on which such weights "
    "are usually trained, is for non-commercial use"
)
_FLAVOURS: dict[str, Flavour] = {  # opts.encoder_type
    "Encoder4Editing": "e4e",
    "GradualStyleEncoder": "psp",
    "ProgressiveBackboneEncoder": "e4e",
    "BackboneEncoder": "psp",
}
_REFUSED = {
    "hyperstyle": "HyperStyle changes the weights of the generator for every picture; w+ alone does not "
    "hold its result, so neither editing w+ nor storing it would keep what it reconstructs",
    "one code": "this encoder says one code for all rows of the generator (w, not w+); only encoders into w+ "
    "are read",
    "restyle-resnet34": "this ReStyle encoder has the ResNet-34 backbone of domains other than faces; only "
    "the IR-SE-50 backbone of the face encoders is read",
    "psp-input": "this encoder does not take RGB pictures but maps of another number of channels, such as "
    "segmentations or sketches",
}


def recognise(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Described | None:
    """Tell an encoder's file from names and shapes; works on `meta` tensors.

    Args:
        tensors: The state dict.
        plain: What lies beside it: `opts`, `latent_avg`.

    Returns:
        What it is, or None for something else. `resolution` is the side of the pictures that it takes;
        `layers` the heads, which is what a generator must have; `parameters` those of the encoder alone.
    """
    refused = _refused(tensors)
    inner = _encoder_tensors(tensors)
    if refused is not None:
        count = count_parameters(part(tensors, "hypernet.") if refused == "hyperstyle" else inner)
        reason = "refused: " + _REFUSED[refused]
        return Described(kind="encoder", family=refused, parameters=count, notes=(reason,), licence=LICENCE)
    sizes = _sizes(inner)
    if sizes is None:
        return None
    opts = _opts(plain)
    flavour = _FLAVOURS.get(str(opts.get("encoder_type")))
    notes = list(_notes(tensors, plain, sizes))
    if flavour is None:
        notes.append(
            "e4e and pSp have the same tensors, and the options do not say which: say it with --flavour"
        )
    family = flavour or "e4e or psp"
    return Described(
        kind="encoder",
        family=f"restyle-{family}" if sizes["input_channels"] == 6 else family,
        resolution=sizes["resolution"],
        layers=sizes["rows"],
        style_dim=sizes["style_dim"],
        depth=2 * sum(sizes["units"]) + 2,
        parameters=count_parameters(inner),
        notes=tuple(notes),
        licence=LICENCE,
    )


def load(
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    *,
    flavour: Flavour | None = None,
    mean_w: Tensor | None = None,
    iterations: int = 5,
    where: str = "the file",
) -> StyleEncoder:
    """Make the encoder of a file.

    Args:
        tensors: The state dict, with or without the prefix `encoder.`.
        plain: What lies beside it: `opts`, `latent_avg`.
        flavour: e4e or pSp, where the options do not say it.
        mean_w: What codes are counted from, where the file says that there is one but does not hold it: the
            mean w of the generator, [D], [1, D], [L, D] or [1, L, D].
        iterations: Passes of a ReStyle encoder; others have one.
        where: The file, for messages.

    Returns:
        The encoder in evaluation mode, without gradients. A ReStyle encoder also needs its generator: see
        `style_encoder.IteratedEncoder`.

    Raises:
        ContractError: Not such a file; one that is refused, with the reason; no word on e4e or pSp, or two
            that differ; no mean w; another number of heads than the generator in the file has layers; every
            tensor that is missing, unexpected, of another shape or not finite.
    """
    refused = _refused(tensors)
    if refused is not None:
        raise ContractError(
            _REFUSED[refused],
            expected="e4e, pSp or ReStyle",
            found=refused,
            where=where,
            todo="import an e4e, pSp or ReStyle encoder that was trained for the same generator",
        )
    inner = _encoder_tensors(tensors)
    sizes = _sizes(inner)
    if sizes is None:
        raise ContractError(
            "not an encoder into w+",
            expected="input_layer.*, body.* and styles.*, with or without `encoder.` before them",
            found=", ".join(list(tensors)[:8]) or "no tensors",
            where=where,
        )
    _check_beside(tensors, plain, sizes["rows"], where)
    chosen = _choose(plain, flavour, where)
    try:
        config = StyleEncoderConfig(flavour=chosen, iterations=iterations, **sizes)
    except ValidationError as error:
        raise ContractError(
            "an encoder of sizes that do not go together", found=f"{sizes}: {error}", where=where
        ) from error
    mean = mean_w_of(tensors, plain, config.rows, config.style_dim, given=mean_w, where=where)
    with torch.device("meta"):
        encoder = StyleEncoder(config)
    what = "a ReStyle encoder" if config.iterated else f"{'an e4e' if chosen == 'e4e' else 'a pSp'} encoder"
    fill(encoder, {**inner, "mean_w": mean}, what=f"{what} of {config.rows} heads", where=where)
    return encoder


def decoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The generator inside the file, by the names of a rosinality generator; empty where there is none."""
    return part(tensors, DECODER)


def mean_w_of(
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    rows: int,
    dim: int,
    *,
    given: Tensor | None = None,
    where: str = "the file",
) -> Tensor:
    """What the codes of an encoder are counted from.

    Args:
        tensors: The state dict.
        plain: What lies beside it.
        rows: L.
        dim: D.
        given: Used where the file holds none but was trained with one.
        where: The file, for messages.

    Returns:
        [L, D] float32; 0 where the options say that the training started from none.

    Raises:
        ContractError: There is none although the training may have started from one, or it has another
            shape.
    """
    starts = _opts(plain).get("start_from_latent_avg")
    if starts is not None and not starts:
        return torch.zeros(rows, dim)
    held = plain.get("latent_avg", tensors.get("latent_avg"))
    mean = held if isinstance(held, Tensor) else given
    if mean is None:
        raise ContractError(
            "an encoder without its mean w",
            expected=f"latent_avg [{rows}, {dim}]"
            + (": its options say that it starts from one" if starts else ""),
            found="none in the file",
            where=where,
            todo="add the mean w of its generator to the file as `latent_avg` (zeros if it was trained "
            "without one), or give it in Python: `load_encoder(file, mean_w=...)`",
        )
    return mean_w_rows(mean, rows, dim, where)


def _opts(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    opts = plain.get("opts")
    return cast(Mapping[str, Any], opts) if isinstance(opts, Mapping) else {}


def _encoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    inner = part(tensors, ENCODER)
    if inner:
        return inner
    return {name: value for name, value in tensors.items() if name != "latent_avg"}


def _refused(tensors: Mapping[str, Tensor]) -> str | None:
    """Why a file that is an encoder of this kin is not read; None when it is read, or is something else."""
    if any(name.startswith("hypernet.") for name in tensors):
        return "hyperstyle"
    inner = _encoder_tensors(tensors)
    if "input_layer.0.weight" not in inner:
        first = inner.get("conv1.weight")
        heads = any(name.startswith("styles.") for name in inner)
        return "restyle-resnet34" if heads and first is not None else None
    if not any(name.startswith("styles.") for name in inner):
        return "one code" if "linear.weight" in inner else None
    first = inner["input_layer.0.weight"]
    return "psp-input" if first.ndim == 4 and first.shape[1] not in (3, 6) else None


def _sizes(inner: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Sizes of an encoder by the names of `StyleEncoderConfig`; None for something else."""
    sizes = backbone_sizes(inner)
    heads = numbers(inner, r"styles\.(\d+)\.")
    linears = [inner[name] for row in heads if (name := f"styles.{row}.linear.weight") in inner]
    if sizes is None or not linears or linears[0].ndim != 2 or heads[-1] >= len(inner):
        return None
    convs = numbers(inner, rf"styles\.{heads[0]}\.convs\.(\d+)\.")
    if convs and convs[-1] >= len(inner):
        return None
    coarse = 2 ** (convs[-1] // 2 + 1) if convs else 1
    return {
        **sizes,
        "rows": heads[-1] + 1,
        "style_dim": linears[0].shape[0],
        "pyramid": any(name.startswith("latlayer") for name in inner),
        "resolution": coarse * 2 ** len(sizes["widths"]),
    }


def _choose(plain: Mapping[str, Any], flavour: Flavour | None, where: str) -> Flavour:
    """e4e or pSp, by the argument and the options, which must not differ."""
    said = _opts(plain).get("encoder_type")
    known = _FLAVOURS.get(str(said))
    if flavour is not None and known is not None and flavour != known:
        raise ContractError(
            "what the options of the file say of it and what was asked for differ",
            expected=f"{known}, for encoder_type {said}",
            found=flavour,
            where=where,
        )
    chosen = flavour or known
    if chosen is None:
        raise ContractError(
            "an encoder that may be e4e or pSp: the tensors of both are the same",
            expected=f"opts.encoder_type, one of {', '.join(_FLAVOURS)}",
            found="no encoder_type" if said is None else said,
            where=where,
            todo="say which it is: --flavour e4e or psp",
        )
    return chosen


def _decoder_layers(tensors: Mapping[str, Tensor]) -> int | None:
    colours = numbers(tensors, r"decoder\.to_rgbs\.(\d+)\.")
    return 2 * (len(colours) + 2) - 2 if colours else None


def _check_beside(tensors: Mapping[str, Tensor], plain: Mapping[str, Any], rows: int, where: str) -> None:
    """Refuse what lies beside the encoder and does not fit it."""
    if any(name.startswith(ENCODER) for name in tensors):
        more = [
            f"{name} {list(value.shape)}"
            for name, value in tensors.items()
            if not name.startswith((ENCODER, DECODER)) and name != "latent_avg"
        ]
        if more:
            raise ContractError(
                f"{len(more)} unexpected tensors",
                expected="tensors of `encoder.` and `decoder.`",
                found="; ".join(more),
                where=where,
            )
    layers = _decoder_layers(tensors)
    if layers is not None and layers != rows:
        raise ContractError(
            "encoder and generator of one file do not fit",
            expected=f"{layers} heads, as many as the generator has layers",
            found=f"{rows} heads",
            where=where,
        )
    if _opts(plain).get("learn_in_w"):
        raise ContractError(_REFUSED["one code"], expected="w+", found="opts.learn_in_w", where=where)


def _notes(tensors: Mapping[str, Tensor], plain: Mapping[str, Any], sizes: Mapping[str, Any]) -> list[str]:
    notes: list[str] = []
    opts, rows = _opts(plain), sizes["rows"]
    size = opts.get("stylegan_size", opts.get("output_size"))
    if isinstance(size, int) and size > 1 and 2 * (size.bit_length() - 1) - 2 != rows:
        notes.append(f"the options say a generator of {size} px; the {rows} heads say otherwise, and count")
    if any(name.startswith(DECODER) for name in tensors):
        notes.append(f"holds its generator too, of {_decoder_layers(tensors)} layers")
    if not isinstance(plain.get("latent_avg", tensors.get("latent_avg")), Tensor):
        starts = opts.get("start_from_latent_avg")
        if starts is None or starts:
            notes.append("holds no latent_avg: give the mean w of its generator")
    if sizes["input_channels"] == 6:
        notes.append("works on its own reconstruction: needs its generator beside it")
    return notes
