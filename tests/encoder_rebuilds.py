"""The networks of those files once more, from the names of their tensors alone, in plain torch.

Written from the published layouts without a look at `sdflow_core`: indices are spelled out where the product
computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    shape = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
    weight, bias, mean, var = (
        state[f"{name}.{part}"].reshape(shape) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (var + eps).sqrt() * weight + bias


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * slope.reshape(1, -1, 1, 1))


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)


def ir_se_50(state: State, x: Tensor) -> dict[int, Tensor]:
    """The map after every unit."""
    x = prelu(norm(state, "input_layer.1", conv(state, "input_layer.0", x)), state["input_layer.2.weight"])
    maps: dict[int, Tensor] = {}
    for k in range(24):
        stride, unit = 2 if k in (0, 3, 7, 21) else 1, f"body.{k}.res_layer"
        y = prelu(conv(state, f"{unit}.1", norm(state, f"{unit}.0", x)), state[f"{unit}.2.weight"])
        y = norm(state, f"{unit}.4", conv(state, f"{unit}.3", y, stride))
        gate = conv(state, f"{unit}.5.fc1", y.mean((2, 3), keepdim=True)).clamp_min(0)
        y = y / (1 + torch.exp(-conv(state, f"{unit}.5.fc2", gate)))
        if k in (3, 7, 21):
            short = f"body.{k}.shortcut_layer"
            x = norm(state, f"{short}.1", conv(state, f"{short}.0", x, stride))
        else:
            x = x[:, :, ::stride, ::stride]
        x = x + y
        maps[k] = x
    return maps


def head(state: State, row: int, x: Tensor) -> Tensor:
    i = 0
    while f"styles.{row}.convs.{i}.weight" in state:
        x = conv(state, f"styles.{row}.convs.{i}", x, 2)
        x = torch.where(x > 0, x, x * 0.01)
        i += 2
    weight = state[f"styles.{row}.linear.weight"]
    assert x.shape[2:] == (1, 1)
    return x[:, :, 0, 0] @ (weight / weight.shape[1] ** 0.5).T + state[f"styles.{row}.linear.bias"]


def _up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def codes(state: State, x: Tensor, rows: int, *, e4e: bool) -> Tensor:
    """What the heads say, counted from the start: [B, L, D]."""
    maps = ir_se_50(state, x)
    c1, c2, c3 = maps[6], maps[20], maps[23]
    p2 = p1 = c3
    if "latlayer1.weight" in state:
        p2 = _up(c3) + conv(state, "latlayer1", c2)
        p1 = _up(p2) + conv(state, "latlayer2", c1)
    said = [head(state, row, c3 if row < 3 else p2 if row < 7 else p1) for row in range(rows)]
    if e4e:
        said = [said[0]] + [said[0] + delta for delta in said[1:]]
    return torch.stack(said, dim=1)


def restyle(
    state: State,
    images: Tensor,
    mean: Tensor,
    synthesize: Callable[[Tensor], Tensor],
    *,
    steps: int,
    e4e: bool,
) -> Tensor:
    code = mean[None].repeat(len(images), 1, 1)
    for _ in range(steps):
        shown = F.adaptive_avg_pool2d(synthesize(code), images.shape[2])
        code = code + codes(state, torch.cat([images, shown], dim=1), len(mean), e4e=e4e)
    return code


def arcface(state: State, faces: Tensor) -> Tensor:
    x = norm(state, "output_layer.0", ir_se_50(state, faces)[23]).flatten(1)
    x = norm(state, "output_layer.4", x @ state["output_layer.3.weight"].T + state["output_layer.3.bias"])
    return x / x.norm(dim=1, keepdim=True)


def iresnet(state: State, x: Tensor) -> Tensor:
    """Not normalised; x as the network is fed."""
    x = prelu(norm(state, "bn1", conv(state, "conv1", x), 2e-5), state["prelu.weight"])
    for stage in (1, 2, 3, 4):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name, stride = f"layer{stage}.{block}", 2 if block == 0 else 1
            y = conv(state, f"{name}.conv1", norm(state, f"{name}.bn1", x, 2e-5))
            y = prelu(norm(state, f"{name}.bn2", y, 2e-5), state[f"{name}.prelu.weight"])
            y = norm(state, f"{name}.bn3", conv(state, f"{name}.conv2", y, stride), 2e-5)
            if block == 0:
                x = norm(state, f"{name}.downsample.1", conv(state, f"{name}.downsample.0", x, stride), 2e-5)
            x, block = x + y, block + 1
    x = norm(state, "bn2", x).flatten(1) @ state["fc.weight"].T + state["fc.bias"]
    return norm(state, "features", x)


def resnet(state: State, prefix: str, depth: int, x: Tensor) -> Tensor:
    """Pooled features of a ResNet of torchvision."""
    x = F.max_pool2d(norm(state, f"{prefix}bn1", conv(state, f"{prefix}conv1", x, 2)).relu(), 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name, stride = f"{prefix}layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            count, strided = (2, 1) if depth == 34 else (3, 2)
            y = x
            for i in range(1, count + 1):
                step = stride if i == strided else 1
                y = norm(state, f"{name}.bn{i}", conv(state, f"{name}.conv{i}", y, step))
                y = y.relu() if i < count else y
            if f"{name}.downsample.0.weight" in state:
                x = norm(state, f"{name}.downsample.1", conv(state, f"{name}.downsample.0", x, stride))
            x = (x + y).relu()
    return x.mean((2, 3))


def classifier(state: State, depth: int, x: Tensor, heads: int) -> Tensor:
    """Logits of the heads, then of the ages."""
    features, out = resnet(state, "extractor.", depth, x), []
    for number in range(heads):
        y = features
        for i in (0, 3, 6):
            name = f"attr_heads.{number}"
            y = y @ state[f"{name}.{i}.weight"].T + state[f"{name}.{i}.bias"]
            y = norm(state, f"{name}.{i + 1}", y).clamp_min(0)
        out.append(y @ state[f"attr_heads.{number}.9.weight"].T + state[f"attr_heads.{number}.9.bias"])
    ages = resnet(state, "age_heads.", depth, x)
    return torch.cat([*out, ages @ state["age_heads.fc.weight"].T + state["age_heads.fc.bias"]], dim=1)
