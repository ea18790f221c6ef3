"""Files of encoders, identity networks, classifiers and directions, as their published layouts say.

Names and shapes are written down here by the layouts' own rules, not asked of the networks under test. Every
width can be made small; with the defaults the shapes are those of the published files (draw those on `meta`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

UNITS = (3, 4, 14, 3)
WIDTHS = (64, 128, 256, 512)
SMALL = (8, 16, 24, 32)  # widths of the small files; reduction 8, styles of 32


def norm(shapes: Shapes, name: str, channels: int) -> None:
    for part in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{name}.{part}"] = (channels,)
    shapes[f"{name}.num_batches_tracked"] = ()


def ir_se(
    channels: int = 3, widths: Sequence[int] = WIDTHS, units: Sequence[int] = UNITS, reduction: int = 16
) -> Shapes:
    shapes: Shapes = {"input_layer.0.weight": (widths[0], channels, 3, 3)}
    norm(shapes, "input_layer.1", widths[0])
    shapes["input_layer.2.weight"] = (widths[0],)
    depths = [width for width, count in zip(widths, units, strict=True) for _ in range(count)]
    for k, (before, depth) in enumerate(itertools.pairwise((widths[0], *depths))):
        unit = f"body.{k}.res_layer"
        norm(shapes, f"{unit}.0", before)
        shapes[f"{unit}.1.weight"] = (depth, before, 3, 3)
        shapes[f"{unit}.2.weight"] = (depth,)
        shapes[f"{unit}.3.weight"] = (depth, depth, 3, 3)
        norm(shapes, f"{unit}.4", depth)
        shapes[f"{unit}.5.fc1.weight"] = (depth // reduction, depth, 1, 1)
        shapes[f"{unit}.5.fc2.weight"] = (depth, depth // reduction, 1, 1)
        if before != depth:
            shapes[f"body.{k}.shortcut_layer.0.weight"] = (depth, before, 1, 1)
            norm(shapes, f"body.{k}.shortcut_layer.1", depth)
    return shapes


def style_encoder(
    rows: int = 18,
    *,
    restyle: bool = False,
    widths: Sequence[int] = WIDTHS,
    reduction: int = 16,
    convs: int = 4,
    channels: int | None = None,
) -> Shapes:
    """e4e and pSp, or ReStyle. `convs` of a coarse head: 4 at 256 px, 2 at 64 px."""
    shapes = ir_se(channels or (6 if restyle else 3), widths, UNITS, reduction)
    width = widths[-1]
    for row in range(rows):
        more = 0 if restyle or row < 3 else 1 if row < 7 else 2
        for i in range(convs + more):
            shapes[f"styles.{row}.convs.{2 * i}.weight"] = (width, width, 3, 3)
            shapes[f"styles.{row}.convs.{2 * i}.bias"] = (width,)
        shapes[f"styles.{row}.linear.weight"] = (width, width)
        shapes[f"styles.{row}.linear.bias"] = (width,)
    if not restyle:
        for number, below in ((1, widths[-2]), (2, widths[-3])):
            shapes[f"latlayer{number}.weight"] = (width, below, 1, 1)
            shapes[f"latlayer{number}.bias"] = (width,)
    return shapes


def arcface(widths: Sequence[int] = WIDTHS, reduction: int = 16, small: int = 7, size: int = 512) -> Shapes:
    """`model_ir_se50.pth`; `small` is the side of the last map."""
    shapes = ir_se(3, widths, UNITS, reduction)
    norm(shapes, "output_layer.0", widths[-1])
    shapes["output_layer.3.weight"] = (size, widths[-1] * small**2)
    shapes["output_layer.3.bias"] = (size,)
    norm(shapes, "output_layer.4", size)
    return shapes


def iresnet(
    widths: Sequence[int] = WIDTHS, units: Sequence[int] = UNITS, small: int = 7, size: int = 512
) -> Shapes:
    shapes: Shapes = {"conv1.weight": (widths[0], 3, 3, 3)}
    norm(shapes, "bn1", widths[0])
    shapes["prelu.weight"] = (widths[0],)
    before = widths[0]
    for stage, (width, count) in enumerate(zip(widths, units, strict=True), start=1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            norm(shapes, f"{name}.bn1", before)
            shapes[f"{name}.conv1.weight"] = (width, before, 3, 3)
            norm(shapes, f"{name}.bn2", width)
            shapes[f"{name}.prelu.weight"] = (width,)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            norm(shapes, f"{name}.bn3", width)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (width, before, 1, 1)
                norm(shapes, f"{name}.downsample.1", width)
            before = width
    norm(shapes, "bn2", before)
    shapes["fc.weight"], shapes["fc.bias"] = (size, before * small**2), (size,)
    norm(shapes, "features", size)
    return shapes


def resnet(depth: int, first: int = 64) -> Shapes:
    """torchvision's ResNet-34 or -50 without `fc`."""
    shapes: Shapes = {"conv1.weight": (first, 3, 7, 7)}
    norm(shapes, "bn1", first)
    before, growth = first, 1 if depth == 34 else 4
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        width = first * 2 ** (stage - 1)
        for block in range(blocks):
            name, after = f"layer{stage}.{block}", width * growth
            if depth == 34:
                convolutions = [(before, width, 3), (width, width, 3)]
            else:
                convolutions = [(before, width, 1), (width, width, 3), (width, after, 1)]
            for i, (a, b, side) in enumerate(convolutions, start=1):
                shapes[f"{name}.conv{i}.weight"] = (b, a, side, side)
                norm(shapes, f"{name}.bn{i}", b)
            if block == 0 and before != after:
                shapes[f"{name}.downsample.0.weight"] = (after, before, 1, 1)
                norm(shapes, f"{name}.downsample.1", after)
            before = after
    return shapes


def classifier(depth: int = 34, first: int = 64, heads: int = 40, ages: int = 6) -> Shapes:
    """`r34_a40_age_256_classifier.pth`, or its ResNet-50 sister."""
    trunk = resnet(depth, first)
    width = first * 8 * (1 if depth == 34 else 4)
    shapes = {f"extractor.{name}": shape for name, shape in trunk.items()}
    for head in range(heads):
        for i in (0, 3, 6):
            shapes[f"attr_heads.{head}.{i}.weight"] = (width, width)
            shapes[f"attr_heads.{head}.{i}.bias"] = (width,)
            norm(shapes, f"attr_heads.{head}.{i + 1}", width)
        shapes[f"attr_heads.{head}.9.weight"], shapes[f"attr_heads.{head}.9.bias"] = (1, width), (1,)
    shapes |= {f"age_heads.{name}": shape for name, shape in trunk.items()}
    shapes["age_heads.fc.weight"], shapes["age_heads.fc.bias"] = (ages, width), (ages,)
    return shapes


def on_meta(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors that have a shape and no memory."""
    return {
        name: torch.empty(
            shape, device="meta", dtype=torch.int64 if name.endswith("_tracked") else torch.float32
        )
        for name, shape in shapes.items()
    }


def draw(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random weights whose signals neither die nor explode, and BatchNorm statistics that are not 0 and 1."""
    rng = torch.Generator().manual_seed(seed)
    out: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            out[name] = torch.tensor(7)
        elif name.endswith(("running_mean", "bias")):
            out[name] = torch.randn(shape, generator=rng) * 0.2
        elif name.endswith("running_var"):
            out[name] = 0.5 + torch.rand(shape, generator=rng)
        elif len(shape) == 1:  # scales of BatchNorm, slopes of PReLU
            out[name] = 0.2 + 0.6 * torch.rand(shape, generator=rng)
        elif ".linear." in name:  # stored without the factor that is applied at run time
            out[name] = torch.randn(shape, generator=rng)
        else:
            out[name] = torch.randn(shape, generator=rng) * torch.Size(shape[1:]).numel() ** -0.5
    return out


def with_small_variances(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the same size of signal, but BatchNorm's variances so small that its eps can be seen."""
    out = dict(state)
    for name, value in state.items():
        if name.endswith("running_var"):
            out[name] = value * 1e-4
            weight = name.replace("running_var", "weight")
            out[weight] = state[weight] * 1e-2
            mean = name.replace("running_var", "running_mean")
            out[mean] = state[mean] * 1e-2
    return out


def small_encoder(rows: int = 18, *, restyle: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """An encoder for 64 px pictures with styles of 32."""
    return draw(style_encoder(rows, restyle=restyle, widths=SMALL, reduction=8, convs=2), seed)


def encoder_content(
    encoder: Mapping[str, Tensor],
    *,
    encoder_type: str | None = "Encoder4Editing",
    latent_avg: Tensor | None = None,
    decoder: Mapping[str, Tensor] | None = None,
    **opts: Any,
) -> dict[str, Any]:
    """What `torch.save` is given for an encoder: `state_dict`, `opts`, and `latent_avg` if there is one."""
    options = {"device": "cuda:0", "start_from_latent_avg": latent_avg is not None, **opts}
    if encoder_type is not None:
        options["encoder_type"] = encoder_type
    state = {f"encoder.{name}": value for name, value in encoder.items()}
    state |= {f"decoder.{name}": value for name, value in (decoder or {}).items()}
    content: dict[str, Any] = {"state_dict": state, "opts": options}
    return content if latent_avg is None else {**content, "latent_avg": latent_avg}


def split(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict, and what lies beside it: the two arguments of every family's `recognise` and `load`."""
    return content["state_dict"], {name: value for name, value in content.items() if name != "state_dict"}
