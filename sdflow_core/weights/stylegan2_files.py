"""rosinality's generators (`stylegan2-ffhq-config-f.pt` and its kin), both ways.

The file is a dict of `torch.save` with the averaged generator under `g_ema` and, in converted files, the mean
w under `latent_avg`. Files of a training have none: it is then estimated. Sizes are told from shapes. The
names are those of a `decoder.` inside an encoder's file, too.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdflow_core.faces.generator import Generator, GeneratorConfig, fir_kernel
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.describing import Described
from sdflow_core.weights.fitting import numbers
from sdflow_core.weights.generator_layout import (
    MOST_BLOCKS,
    Layer,
    Place,
    config_from_channels,
    filled,
    layers,
)

__all__ = ["load", "recognise", "write"]

FAMILY = "stylegan2-rosinality"
LICENCE = "the code of this layout is MIT; weights that come from NVIDIA's are for non-commercial use"
_NO_NOISES = "holds no fixed noises: they are drawn, the same at every import"


def recognise(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Described | None:
    """Tell a generator of this layout from names and shapes; works on `meta` tensors.

    Args:
        tensors: The state dict.
        plain: What lies beside it: `latent_avg`.

    Returns:
        What it is, or None for something else.
    """
    config = _config(tensors)
    if config is None:
        return None
    notes: list[str] = []
    if not isinstance(_mean_w(tensors, plain), Tensor):
        notes.append("holds no latent_avg: the mean w is estimated from 10,000 draws")
    if not any(name.startswith("noises.") for name in tensors):
        notes.append(_NO_NOISES)
    filters = _filters(config)
    return Described(
        kind="generator",
        family=FAMILY,
        resolution=config.resolution,
        layers=config.num_rows,
        style_dim=config.style_dim,
        channels={4 * 2**i: config.channels(4 * 2**i) for i in range(config.num_rows // 2)},
        depth=config.mapping_layers,
        parameters=sum(
            value.numel()
            for name, value in tensors.items()
            if not name.startswith("noises.") and name not in filters and name != "latent_avg"
        ),
        notes=tuple(notes),
        licence=LICENCE,
    )


def load(tensors: Mapping[str, Tensor], plain: Mapping[str, Any], *, where: str = "the file") -> Generator:
    """Make the generator of a file.

    Args:
        tensors: The state dict.
        plain: What lies beside it: `latent_avg` of shape [D], [1, D], [L, D] or [1, L, D]. Without it the
            mean w is that of 10,000 draws.
        where: The file, for messages.

    Returns:
        The generator in evaluation mode, without gradients. Its tensors are those of the file, not copies.

    Raises:
        ContractError: Not such a file; another resampling filter; a mean w of another generator; every tensor
            that is missing, unexpected, of another shape or not finite.
    """
    config = _config(tensors)
    if config is None:
        raise ContractError(
            "not a generator of rosinality's layout",
            expected="to_rgb1, to_rgbs.0 and so on, with the channels of one StyleGAN2",
            found="; ".join(f"{name} {list(value.shape)}" for name, value in list(tensors.items())[:8])
            or "no tensors",
            where=where,
        )
    table = _table(config)
    given = {name: value for name, value in tensors.items() if name != "latent_avg"}
    if not any(name.startswith("noises.") for name in given):
        rng = torch.Generator().manual_seed(0)
        given |= {
            place.name: torch.randn(place.shape, generator=rng)
            for name, place in table.items()
            if name.endswith(".noise")
        }
    mean = _mean_w(tensors, plain)
    return filled(
        config,
        table,
        given,
        mean,
        filters=_filters(config),
        what=f"a generator of {config.resolution} px",
        where=where,
    )


def write(generator: Generator) -> bytes:
    """The generator as rosinality's loader reads it: `g_ema` and `latent_avg`, no number changed.

    A clamp of the features (`conv_clamp`) has no place in this layout and is lost. The mean w is written as
    [D] where all rows are the same, as [L, D] otherwise.
    """
    ours = generator.state_dict()
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, place in _table(generator.config).items():
        state[place.name] = ours[name].detach().cpu().reshape(place.shape).clone()
    for name, total in _filters(generator.config).items():
        state[name] = fir_kernel() * (total / float(fir_kernel().sum()))
    mean = generator.mean_w.detach().cpu()
    mean = mean[0] if bool((mean == mean[0]).all()) else mean
    buffer = io.BytesIO()
    torch.save({"g_ema": state, "latent_avg": mean.clone()}, buffer)
    return buffer.getvalue()


def _mean_w(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Tensor | None:
    mean = plain.get("latent_avg", tensors.get("latent_avg"))
    return mean if isinstance(mean, Tensor) else None


def _config(tensors: Mapping[str, Tensor]) -> GeneratorConfig | None:
    """Which member of the family a state dict is; None for something else."""
    colours = numbers(tensors, r"to_rgbs\.(\d+)\.")
    if not colours or colours[-1] >= MOST_BLOCKS:
        return None
    channels: dict[int, int] = {}
    for block in range(-1, colours[-1] + 1):
        weight = tensors.get("to_rgb1.conv.weight" if block < 0 else f"to_rgbs.{block}.conv.weight")
        if weight is None or weight.ndim != 5 or not weight.shape[2]:
            return None
        channels[8 * 2**block if block >= 0 else 4] = weight.shape[2]
    style = tensors.get("conv1.conv.modulation.weight")
    depths = numbers(tensors, r"style\.(\d+)\.")
    depth = depths[-1] if depths else 0
    if style is None or style.ndim != 2 or depth > len(tensors):
        return None
    return config_from_channels(channels, style.shape[1], depth)


def _prefix(layer: Layer) -> str:
    if layer.kind == "first":
        return "conv1"
    if layer.kind == "rgb":
        return "to_rgb1" if layer.block < 0 else f"to_rgbs.{layer.block}"
    return f"convs.{2 * layer.block + (layer.kind == 'conv')}"


def _table(config: GeneratorConfig) -> dict[str, Place]:
    """Where each of our tensors lies, all but the mean w."""
    d, channels = config.style_dim, config.channels
    table: dict[str, Place] = {}
    for i in range(config.mapping_layers):
        table[f"mapping.layers.{i}.weight"] = Place(f"style.{i + 1}.weight", (d, d))
        table[f"mapping.layers.{i}.bias"] = Place(f"style.{i + 1}.bias", (d,))
    table["const"] = Place("input.input", (1, channels(4), 4, 4))
    noise = 0
    for layer in layers(config):
        ours, theirs, side = layer.ours, _prefix(layer), layer.resolution
        cin = channels(side // 2 if layer.kind == "up" else side)
        out, kernel = (3, 1) if layer.kind == "rgb" else (channels(side), 3)
        table[f"{ours}.conv.weight"] = Place(f"{theirs}.conv.weight", (1, out, cin, kernel, kernel))
        table[f"{ours}.conv.affine.weight"] = Place(f"{theirs}.conv.modulation.weight", (cin, d))
        table[f"{ours}.conv.affine.bias"] = Place(f"{theirs}.conv.modulation.bias", (cin,))
        if layer.kind == "rgb":
            table[f"{ours}.bias"] = Place(f"{theirs}.bias", (1, 3, 1, 1))
            continue
        table[f"{ours}.noise_strength"] = Place(f"{theirs}.noise.weight", (1,))
        table[f"{ours}.bias"] = Place(f"{theirs}.activate.bias", (out,))
        table[f"{ours}.noise"] = Place(f"noises.noise_{noise}", (1, 1, side, side))
        noise += 1
    return table


def _filters(config: GeneratorConfig) -> dict[str, float]:
    """Names of the constant filters, and their sum: they are written with the gain of upsampling in them."""
    blocks = range(config.num_rows // 2 - 1)
    return {f"convs.{2 * block}.conv.blur.kernel": 4.0 for block in blocks} | {
        f"to_rgbs.{block}.upsample.kernel": 4.0 for block in blocks
    }
