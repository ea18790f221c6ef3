"""StyleGAN2 written down once more from its published description, one picture at a time, nothing shared.

It takes the tensors of a file as the file names them. Slow and plain on purpose: weights are scaled and
demodulated for each sample, and only library calls of PyTorch's are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def filtered(x: Tensor, before: int, after: int) -> Tensor:
    """[C, H, W] padded and filtered with outer([1,3,3,1])/64*4."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = (taps[:, None] * taps[None] / 64 * 4)[None, None]
    return F.conv2d(F.pad(x, (before, after, before, after))[:, None], kernel)[:, 0]


def doubled(x: Tensor) -> Tensor:
    c, h, w = x.shape
    spread = torch.zeros(c, 2 * h, 2 * w)
    spread[:, ::2, ::2] = x
    return filtered(spread, 2, 1)


def activated(x: Tensor, bias: Tensor) -> Tensor:
    x = x + bias.reshape(-1, 1, 1)
    return torch.where(x >= 0, x, 0.2 * x) * math.sqrt(2)


def linear(x: Tensor, weight: Tensor, bias: Tensor, rate: float = 1.0) -> Tensor:
    return (weight * (rate / math.sqrt(weight.shape[1]))) @ x + bias * rate


def mapped(state: State, z: Tensor) -> Tensor:
    """[D] -> [D] by rosinality's names."""
    x = z * torch.rsqrt((z * z).mean() + 1e-8)
    depth = sum(name.startswith("style.") and name.endswith(".weight") for name in state)
    for i in range(1, depth + 1):
        x = linear(x, state[f"style.{i}.weight"], state[f"style.{i}.bias"], 0.01)
        x = torch.where(x >= 0, x, 0.2 * x) * math.sqrt(2)
    return x


def rosinality(state: State, w: Tensor) -> Tensor:
    """[L, D] -> [3, H, W], by rosinality's names, with the fixed noise."""

    def styled(x: Tensor, name: str, row: Tensor, noise: Tensor, up: bool) -> Tensor:
        weight = state[f"{name}.conv.weight"][0]
        style = linear(row, state[f"{name}.conv.modulation.weight"], state[f"{name}.conv.modulation.bias"])
        weight = weight / math.sqrt(weight[0].numel()) * style[None, :, None, None]
        weight = weight * torch.rsqrt((weight * weight).sum((1, 2, 3)) + 1e-8)[:, None, None, None]
        if up:
            x = filtered(F.conv_transpose2d(x[None], weight.transpose(0, 1), stride=2)[0], 1, 1)
        else:
            x = F.conv2d(x[None], weight, padding=1)[0]
        return activated(x + state[f"{name}.noise.weight"] * noise[0, 0], state[f"{name}.activate.bias"])

    def colour(x: Tensor, name: str, row: Tensor) -> Tensor:
        weight = state[f"{name}.conv.weight"][0]
        style = linear(row, state[f"{name}.conv.modulation.weight"], state[f"{name}.conv.modulation.bias"])
        weight = weight / math.sqrt(weight.shape[1]) * style[None, :, None, None]
        return F.conv2d(x[None], weight)[0] + state[f"{name}.bias"][0]

    x = styled(state["input.input"][0], "conv1", w[0], state["noises.noise_0"], up=False)
    rgb = colour(x, "to_rgb1", w[1])
    for b in range(len(w) // 2 - 1):
        x = styled(x, f"convs.{2 * b}", w[2 * b + 1], state[f"noises.noise_{2 * b + 1}"], up=True)
        x = styled(x, f"convs.{2 * b + 1}", w[2 * b + 2], state[f"noises.noise_{2 * b + 2}"], up=False)
        rgb = doubled(rgb) + colour(x, f"to_rgbs.{b}", w[2 * b + 3])
    return rgb


def nvidia(state: State, w: Tensor, clamp: float = math.inf) -> Tensor:
    """[L, D] -> [3, H, W], by NVIDIA's names and in their order: no 1/sqrt(fan in) before a demodulation."""

    def styled(x: Tensor, name: str, row: Tensor, up: bool) -> Tensor:
        style = linear(row, state[f"{name}.affine.weight"], state[f"{name}.affine.bias"])
        weight = state[f"{name}.weight"] * style[None, :, None, None]
        weight = weight * torch.rsqrt((weight * weight).sum((1, 2, 3)) + 1e-8)[:, None, None, None]
        if up:
            x = filtered(F.conv_transpose2d(x[None], weight.transpose(0, 1), stride=2)[0], 1, 1)
        else:
            x = F.conv2d(x[None], weight, padding=1)[0]
        x = x + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
        return activated(x, state[f"{name}.bias"]).clamp(-clamp, clamp)

    def colour(x: Tensor, name: str, row: Tensor) -> Tensor:
        style = linear(row, state[f"{name}.affine.weight"], state[f"{name}.affine.bias"])
        weight = state[f"{name}.weight"] * (style / math.sqrt(len(style)))[None, :, None, None]
        return (F.conv2d(x[None], weight)[0] + state[f"{name}.bias"][:, None, None]).clamp(-clamp, clamp)

    x = styled(state["synthesis.b4.const"], "synthesis.b4.conv1", w[0], up=False)
    rgb = colour(x, "synthesis.b4.torgb", w[1])
    for b in range(len(w) // 2 - 1):
        block = f"synthesis.b{8 * 2**b}"
        x = styled(x, f"{block}.conv0", w[2 * b + 1], up=True)
        x = styled(x, f"{block}.conv1", w[2 * b + 2], up=False)
        rgb = doubled(rgb) + colour(x, f"{block}.torgb", w[2 * b + 3])
    return rgb
