"""Blocks of the generator whose feature maps are large: the same function, computed in other orders.

From 128 px up a block of the full model is bound by memory as much as by arithmetic: features of one 1024 px
picture take 128 MiB, and an activation written as five passes moves them ten times. Three forms of one block:

* `banded` (CPUs): one picture at a time, in bands of rows that stay in the cache, style, demodulation and the
  gain of the activation folded into the weights. The features of the last resolution never exist as a whole.
* `factorised`: the batch at once; style and demodulation scale the activations.
* `grouped`: the batch at once; one convolution with a group for each picture, style folded into the weights.

`FORMS` names the one to take on a device; `benchmarks/bench_generator.py` measures all three. Half precision
follows the training of the family: features within plus and minus 256, styles and weights brought to a
largest value of one before they are multiplied, colours summed in fp32.

Source: Karras et al., arXiv 1912.04958, appendix B; arXiv 2006.06676, appendix on mixed precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from sdflow_core.faces.generator import NoiseMode, StyledConv, ToRGB

Precision = Literal["fp32", "fp16", "bf16"]
Form = Literal["banded", "factorised", "grouped"]

LARGE = 128
"""Side in pixels from which features count as large: smaller models keep the bytes of their pictures."""
HALF_RESOLUTIONS = 4
"""So many of the last resolutions are computed in half precision when that is asked for."""
HALF_BOUND = 256.0
BAND = 2**20
"""Feature values (rows x width x channels) in a band: 4 MiB in fp32."""
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORMS: dict[str, Form] = {"cpu": "banded"}
"""By type of device; others are given the factorised form."""
_GAIN = math.sqrt(2.0)


class Block(NamedTuple):
    """The layers of one resolution, and how to compute them.

    Attributes:
        up, conv, rgb: Layers.
        rows: Rows of w+ that they read, [B, 3, D].
        noise: As for `Generator.synthesize`.
        dtype: Of the features.
        bound: Features and colours stay within plus and minus this; None for no bound.
    """

    up: StyledConv
    conv: StyledConv
    rgb: ToRGB
    rows: Tensor
    noise: NoiseMode
    dtype: torch.dtype
    bound: float | None

    def of_one(self, index: int) -> Block:
        """The block for one picture of the batch."""
        return self._replace(rows=self.rows[index : index + 1])


class _Folded(NamedTuple):
    weight: Tensor  # [Cout, Cin, 3, 3]
    bias: Tensor  # [Cout]
    noise: Tensor | None  # [H, W]


def finished(blocks: list[Block], x: Tensor, skip: Tensor, fir: Tensor, form: Form | None) -> Tensor:
    """The rest of the network.

    Args:
        blocks: Resolutions still to come, ascending; not empty.
        x: [B, C, H, W] features.
        skip: [B, 3, H, W], the picture so far.
        fir: [4, 4].
        form: None takes what is fastest on the device.

    Returns:
        [B, 3, H', W'], the picture at the resolution of the last block.
    """
    form = form or FORMS.get(x.device.type, "factorised")
    if form != "banded":
        x = x.contiguous(memory_format=torch.channels_last)
        for block in blocks:
            x, skip = whole_block(block, x, skip, fir, form)
        return skip
    pictures: list[Tensor] = []
    for row in range(len(x)):  # to the end one by one: the features of one picture at a time
        features = x[row : row + 1].contiguous(memory_format=torch.channels_last)
        picture = skip[row : row + 1]
        for block in blocks:
            features, picture = banded_block(
                block.of_one(row), features, picture, fir, keep=block is not blocks[-1]
            )
        pictures.append(picture)
    return torch.cat(pictures)


def doubled(skip: Tensor) -> Tensor:
    """The FIR upsampling of `generator.upsample` without the zeros: [B, C, H, W] -> [B, C, 2H, 2W].

    Its filter [1, 3, 3, 1] is linear interpolation between pixel centres, with black beyond the border.
    """
    wide = F.interpolate(F.pad(skip, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)
    return wide[:, :, 2:-2, 2:-2].contiguous()


def banded_block(block: Block, x: Tensor, skip: Tensor, fir: Tensor, *, keep: bool) -> tuple[Tensor, Tensor]:
    """One block for one picture, band by band. Without gradients.

    Args:
        block: Layers, for one picture.
        x: [1, Cin, H, W] features, channels last.
        skip: [1, 3, H, W] fp32, the picture so far.
        fir: [4, 4].
        keep: Whether a block follows, which needs the features.

    Returns:
        Features [1, Cout, 2H, 2W], empty unless `keep`, and the picture [1, 3, 2H, 2W].
    """
    x = x.to(block.dtype)
    up = _folded(block.up, block.rows[:, 0], block)
    conv = _folded(block.conv, block.rows[:, 1], block)
    colour, colour_bias = _colour(block, 0)
    cout, side = up.weight.shape[0], 2 * x.shape[3]
    filters = fir.to(block.dtype)[None, None].expand(cout, 1, 4, 4).contiguous()
    up = up._replace(weight=up.weight.transpose(0, 1))
    picture = doubled(skip)
    features = x.new_empty((1, cout, side, side) if keep else (0,))
    if keep:
        features = features.contiguous(memory_format=torch.channels_last)
    for first, last in bands(side, cout):
        above, below = max(first - 2, 0), min(last + 2, side)  # a margin that the second convolution reads
        y = _up_rows(x, up, filters, above, below)
        y = _activated(y, up, slice(above, below), block.bound)
        y = y[:, :, max(first - 1 - above, 0) : min(last + 1, side) - above]
        y = F.conv2d(_edged(y, first == 0, last == side), conv.weight, conv.bias, padding=(0, 1))
        y = _activated(y, conv, slice(first, last), block.bound)
        if keep:
            features[:, :, first:last] = y
        rgb = F.conv2d(y, colour, colour_bias).float()
        picture[:, :, first:last] += rgb if block.bound is None else rgb.clamp_(-block.bound, block.bound)
    return features, picture


def bands(side: int, channels: int) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) rows of the bands of a feature map: even numbers.

    Example:
        >>> list(bands(1024, 32))[:2], list(bands(128, 64))
        ([(0, 32), (32, 64)], [(0, 128)])
    """
    rows = max(8, BAND // (side * channels) // 2 * 2)
    for first in range(0, side, rows):
        yield first, min(first + rows, side)


def _up_rows(x: Tensor, up: _Folded, filters: Tensor, first: int, last: int) -> Tensor:
    """Rows `first` to `last` (even) of the doubled, convolved and filtered features, with the bias."""
    height = x.shape[2]
    start, end = max(first // 2 - 1, 0), min(last // 2 + 1, height)
    spread = F.conv_transpose2d(x[:, :, start:end], up.weight, stride=2)  # its row 0 is row 2 start of all
    spread = spread[:, :, max(first - 1, 0) - 2 * start : min(last + 2, 2 * height + 1) - 2 * start]
    return F.conv2d(
        _edged(spread, first == 0, last == 2 * height),
        filters,
        up.bias,
        padding=(0, 1),
        groups=filters.shape[0],
    )


def _edged(x: Tensor, top: bool, bottom: bool) -> Tensor:
    """A row of zeros above and below, where the map ends there."""
    return F.pad(x, (0, 0, int(top), int(bottom))) if top or bottom else x


def _activated(y: Tensor, layer: _Folded, rows: slice, bound: float | None) -> Tensor:
    """Noise, leaky ReLU and bound in place; bias and gain are in `layer` already."""
    if layer.noise is not None:
        y.add_(layer.noise[rows])
    F.leaky_relu_(y, 0.2)
    return y if bound is None else y.clamp_(-bound, bound)


def _folded(layer: StyledConv, w: Tensor, block: Block) -> _Folded:
    """The weights of one picture: w [1, D]. The gain of the activation scales all that goes into it."""
    conv = layer.conv
    weight = conv.weight * (conv.affine(w)[0] * conv.gain)[None, :, None, None]
    weight = weight * (torch.rsqrt(weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8) * _GAIN)
    noise = _noise(layer, block.noise, 1)
    return _Folded(
        weight.to(block.dtype, memory_format=torch.channels_last),
        (layer.bias * _GAIN).to(block.dtype),
        None if noise is None else (noise * _GAIN).to(block.dtype)[0, 0],
    )


def _colour(block: Block, index: int) -> tuple[Tensor, Tensor]:
    """Weights [3, C, 1, 1] and bias [3] of the colours of one picture."""
    conv = block.rgb.conv
    weight = conv.weight * (conv.affine(block.rows[index : index + 1, 2])[0] * conv.gain)[None, :, None, None]
    return weight.to(block.dtype), block.rgb.bias.to(block.dtype)


def _noise(layer: StyledConv, mode: NoiseMode, batch: int) -> Tensor | None:
    """[1 or batch, 1, H, W], scaled."""
    if mode == "none":
        return None
    noise = layer.noise[None, None]
    if mode == "random":
        noise = torch.randn_like(noise.expand(batch, -1, -1, -1))
    return noise * layer.noise_strength


def whole_block(block: Block, x: Tensor, skip: Tensor, fir: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """One block for a whole batch; gradients flow.

    Args:
        block: Layers.
        x: [B, Cin, H, W] features.
        skip: [B, 3, H, W] fp32, the picture so far.
        fir: [4, 4].
        form: `factorised` or `grouped`.

    Returns:
        Features [B, Cout, 2H, 2W] and the picture [B, 3, 2H, 2W].
    """
    x = x.to(block.dtype)
    convolved = _grouped if form == "grouped" else _factorised
    for place, layer in enumerate((block.up, block.conv)):
        y = convolved(layer, x, block.rows[:, place], fir)
        noise = _noise(layer, block.noise, len(x))
        add = (layer.bias * _GAIN)[None, :, None, None].to(y.dtype)
        y = y + add if noise is None else y + (noise * _GAIN).to(y.dtype) + add
        x = F.leaky_relu(y, 0.2)
        if block.bound is not None:
            x = x.clamp(-block.bound, block.bound)
    style = block.rgb.conv.affine(block.rows[:, 2]) * block.rgb.conv.gain
    weights = (block.rgb.conv.weight[None, :, :, 0, 0] * style[:, None]).to(x.dtype)  # [B, 3, C]
    rgb = torch.einsum("boc,bchw->bohw", weights, x).float() + block.rgb.bias[None, :, None, None]
    if block.bound is not None:
        rgb = rgb.clamp(-block.bound, block.bound)
    return x, doubled(skip) + rgb


def _factorised(layer: StyledConv, x: Tensor, w: Tensor, fir: Tensor) -> Tensor:
    """Demodulated convolution times the gain; the largest style and weight are one, for half precision."""
    conv = layer.conv
    style = conv.affine(w)
    style = style / style.abs().amax(dim=1, keepdim=True).clamp_min(1e-8)
    weight = conv.weight / conv.weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-8) * conv.gain
    scale = torch.rsqrt(style.square() @ weight.square().sum(dim=(2, 3)).T + 1e-8) * _GAIN
    y = _spatial(layer, x * style[:, :, None, None].to(x.dtype), weight.to(x.dtype), fir, 1)
    return y * scale[:, :, None, None].to(y.dtype)


def _grouped(layer: StyledConv, x: Tensor, w: Tensor, fir: Tensor) -> Tensor:
    """The same with a weight for each picture: [B, Cin, H, W] as one picture of B groups."""
    conv, batch = layer.conv, len(x)
    weight = conv.weight[None] * (conv.affine(w) * conv.gain)[:, None, :, None, None]
    weight = weight * (torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8) * _GAIN)
    one = x.reshape(1, -1, *x.shape[2:])
    y = _spatial(layer, one, weight.flatten(0, 1).to(x.dtype), fir, batch)
    return y.reshape(batch, -1, *y.shape[2:])


def _spatial(layer: StyledConv, x: Tensor, weight: Tensor, fir: Tensor, groups: int) -> Tensor:
    """Convolution, or upsampling convolution and filter. weight [groups * Cout, Cin, 3, 3]."""
    if not layer.conv.up:
        return F.conv2d(x, weight, padding=1, groups=groups)
    if groups > 1:  # [groups * Cin, Cout, 3, 3], as a transposed convolution wants them
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    else:
        weight = weight.transpose(0, 1)
    y = F.conv_transpose2d(x, weight, stride=2, groups=groups)
    channels = y.shape[1]
    filters = fir.to(y.dtype)[None, None].expand(channels, 1, 4, 4)
    return F.conv2d(y, filters, padding=1, groups=channels)
