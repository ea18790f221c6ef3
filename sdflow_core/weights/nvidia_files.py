"""NVIDIA's StyleGAN2 pickles: of stylegan2-ada-pytorch, of the stylegan3 repository, and of TensorFlow.

They hold whole objects with their source text. Here they are records (`weights.pickles`); the tensors are
named as the modules inside them are named, and the source text is never looked at. StyleGAN3's own generators
are another network: they are recognised and refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor

from sdflow_core.faces.generator import Generator, GeneratorConfig
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
from sdflow_core.weights.pickles import Record
from sdflow_core.weights.tensorflow_names import in_torch_names

__all__ = ["load", "recognise"]

FAMILY = "stylegan2-nvidia"
LICENCE = "NVIDIA Source Code License: non-commercial use only"
_STYLEGAN3 = (
    "StyleGAN3 is another network (Fourier input, 16 rows at every size, filtered activations), which no "
    "encoder and no flow here works with"
)
_CONDITIONAL = "this generator is conditional: it needs a class label beside z, which nothing here has"
_MAPPING_RATE = 0.01


def recognise(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Described | None:
    """Tell a generator of NVIDIA's from names and shapes; works on `meta` tensors.

    Args:
        tensors: By the names of its modules.
        plain: What lies beside them: the record of the network, `G_ema`.

    Returns:
        What it is, or None for something else. StyleGAN3 is told too, with the reason why it is refused.
    """
    if _is_stylegan3(tensors):
        names = [
            name.split(".")[1] for name in tensors if re.match(r"synthesis\.L\d+_\d+_\d+\.weight$", name)
        ]
        return Described(
            kind="generator",
            family="stylegan3",
            resolution=max((int(name.split("_")[1]) for name in names[-1:]), default=None),
            layers=16,
            depth=len(numbers(tensors, r"mapping\.fc(\d+)\.")),
            parameters=sum(v.numel() for name, v in tensors.items() if not _is_buffer(name)),
            notes=("refused: " + _STYLEGAN3,),
            licence=LICENCE,
        )
    tensors = in_torch_names(tensors)
    config = _config(tensors, plain)
    if config is None:
        return None
    notes: list[str] = []
    if "mapping.embed.weight" in tensors:
        notes.append("refused: " + _CONDITIONAL)
    if "mapping.w_avg" not in tensors:
        notes.append("holds no w_avg: the mean w is estimated from 10,000 draws")
    if config.conv_clamp is not None:
        notes.append(f"features are clamped to +-{config.conv_clamp:g}, as in its training")
    return Described(
        kind="generator",
        family=FAMILY,
        resolution=config.resolution,
        layers=config.num_rows,
        style_dim=config.style_dim,
        channels={4 * 2**i: config.channels(4 * 2**i) for i in range(config.num_rows // 2)},
        depth=config.mapping_layers,
        parameters=sum(value.numel() for name, value in tensors.items() if not _is_buffer(name)),
        notes=tuple(notes),
        licence=LICENCE,
    )


def load(tensors: Mapping[str, Tensor], plain: Mapping[str, Any], *, where: str = "the file") -> Generator:
    """Make the generator of a file.

    Args:
        tensors: By the names of its modules, or of TensorFlow's variables.
        plain: What lies beside them: the record of the network, `G_ema`.
        where: The file, for messages.

    Returns:
        The generator in evaluation mode, in float32, without gradients.

    Raises:
        ContractError: Not such a file; StyleGAN3; conditional; settings other than those of StyleGAN2; every
            tensor that is missing, unexpected, of another shape or not finite.
    """
    if _is_stylegan3(tensors):
        raise ContractError(
            _STYLEGAN3,
            expected="a StyleGAN2 generator",
            found="StyleGAN3",
            where=where,
            todo="import a StyleGAN2 generator of such pictures; NVIDIA publishes them beside these",
        )
    tensors = in_torch_names(tensors)
    if "mapping.embed.weight" in tensors:
        raise ContractError(
            _CONDITIONAL,
            expected="no mapping.embed",
            found=f"mapping.embed.weight {list(tensors['mapping.embed.weight'].shape)}",
            where=where,
        )
    config = _config(tensors, plain)
    if config is None:
        raise ContractError(
            "not a StyleGAN2 generator of NVIDIA's",
            expected="mapping.fc0 and synthesis.b4 and so on, with the channels of one StyleGAN2",
            found="; ".join(f"{name} {list(value.shape)}" for name, value in list(tensors.items())[:8])
            or "no tensors",
            where=where,
        )
    _check_settings(plain, where)
    given = {name: value for name, value in tensors.items() if name != "mapping.w_avg"}
    return filled(
        config,
        _table(config),
        given,
        tensors.get("mapping.w_avg"),
        filters={name: 1.0 for name in given if name.endswith("resample_filter")},
        what=f"a generator of {config.resolution} px",
        where=where,
    )


def _is_stylegan3(tensors: Mapping[str, Tensor]) -> bool:
    return "synthesis.input.freqs" in tensors or any(
        re.match(r"synthesis\.L\d+_\d+_\d+\.", name) for name in tensors
    )


def _is_buffer(name: str) -> bool:
    ends = (
        "noise_const",
        "resample_filter",
        "w_avg",
        "magnitude_ema",
        "up_filter",
        "down_filter",
        "input.transform",
        "input.freqs",
        "input.phases",
    )
    return name.endswith(ends)


def _config(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> GeneratorConfig | None:
    """Which member of the family a network is; None for something else."""
    sides = numbers(tensors, r"synthesis\.b(\d+)\.")
    if not 2 <= len(sides) <= MOST_BLOCKS + 1 or sides != [4 * 2**i for i in range(len(sides))]:
        return None
    channels: dict[int, int] = {}
    for side in sides:
        weight = tensors.get(f"synthesis.b{side}.torgb.weight")
        if weight is None or weight.ndim != 4 or not weight.shape[1]:
            return None
        channels[side] = weight.shape[1]
    style = tensors.get("synthesis.b4.conv1.affine.weight")
    depths = numbers(tensors, r"mapping\.fc(\d+)\.")
    depth = depths[-1] + 1 if depths else 0
    if style is None or style.ndim != 2 or depth > len(tensors):
        return None
    clamps = {value for record in _records(plain) if (value := record.state.get("conv_clamp")) is not None}
    clamp = clamps.pop() if len(clamps) == 1 else None
    number = float(clamp) if isinstance(clamp, int | float) and 0 < clamp < float("inf") else None
    return config_from_channels(channels, style.shape[1], depth, number)


def _records(plain: Mapping[str, Any]) -> Iterator[Record]:
    """The record of the network and those of all modules inside it."""
    open_ = [plain.get("G_ema")]
    while open_:
        record = open_.pop()
        if isinstance(record, Record):
            yield record
            inner = record.state.get("_modules")
            open_ += list(cast(dict[str, Any], inner).values()) if isinstance(inner, dict) else []


def _check_settings(plain: Mapping[str, Any], where: str) -> None:
    """Refuse what no shape tells and our network does not have."""
    wrong: list[str] = []
    clamps: set[object] = set()
    for record in _records(plain):
        state = record.state
        clamps |= {state["conv_clamp"]} if isinstance(state.get("conv_clamp"), int | float) else set()
        rate = state.get("lr_multiplier")
        if isinstance(rate, int | float) and rate != _MAPPING_RATE:
            wrong.append(f"lr_multiplier {rate}")
        if state.get("architecture") not in (None, "skip"):
            wrong.append(f"architecture {state['architecture']}")
        if state.get("activation") not in (None, "lrelu", "linear"):
            wrong.append(f"activation {state['activation']}")
    if len(clamps) > 1:
        wrong.append(f"several conv_clamp: {sorted(map(str, clamps))}")
    if wrong:
        raise ContractError(
            "a generator with settings of its own",
            expected=f"skip architecture, leaky ReLU, one clamp, mapping at a rate of {_MAPPING_RATE}",
            found=", ".join(dict.fromkeys(wrong))[:400],
            where=where,
        )


def _prefix(layer: Layer) -> str:
    part = {"first": "conv1", "up": "conv0", "conv": "conv1", "rgb": "torgb"}[layer.kind]
    return f"synthesis.b{layer.resolution}.{part}"


def _table(config: GeneratorConfig) -> dict[str, Place]:
    """Where each of our tensors lies, all but the mean w."""
    d, channels = config.style_dim, config.channels
    table: dict[str, Place] = {}
    for i in range(config.mapping_layers):
        table[f"mapping.layers.{i}.weight"] = Place(f"mapping.fc{i}.weight", (d, d))
        table[f"mapping.layers.{i}.bias"] = Place(f"mapping.fc{i}.bias", (d,))
    table["const"] = Place("synthesis.b4.const", (channels(4), 4, 4))
    for layer in layers(config):
        ours, theirs, side = layer.ours, _prefix(layer), layer.resolution
        cin = channels(side // 2 if layer.kind == "up" else side)
        out, kernel = (3, 1) if layer.kind == "rgb" else (channels(side), 3)
        table[f"{ours}.conv.weight"] = Place(f"{theirs}.weight", (out, cin, kernel, kernel))
        table[f"{ours}.conv.affine.weight"] = Place(f"{theirs}.affine.weight", (cin, d))
        table[f"{ours}.conv.affine.bias"] = Place(f"{theirs}.affine.bias", (cin,))
        table[f"{ours}.bias"] = Place(f"{theirs}.bias", (out,))
        if layer.kind != "rgb":
            table[f"{ours}.noise_strength"] = Place(f"{theirs}.noise_strength", ())
            table[f"{ours}.noise"] = Place(f"{theirs}.noise_const", (side, side))
    return table
