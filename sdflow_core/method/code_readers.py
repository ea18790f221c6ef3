"""Small networks that read attributes and identity from codes: an edit map is taught without rendering.

A generator and a labeller in the loop cost a hundred times the map itself. Readers are taught once, on the
training set's own scores and on embeddings of its own renderings, and then asked millions of times. One
reader alone is exploited: a map finds what fools it and no picture shows. So there are several, which learned
with different noise, and every one of them is asked; what keeps the map honest besides is z (`edit_map`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sdflow_core.method.condition import features
from sdflow_core.records.config import Config


class ReaderConfig(Config):
    """Numbers of the readers.

    Attributes:
        attribute_readers: How many networks read attributes.
        linear_readers: How many of these have no hidden layer: they cannot be fooled in the same places.
        identity_readers: How many networks read the identity embedding.
        width: Hidden width.
        noise: Greatest standard deviation of the noise on the whitened input while learning; the members get
            evenly spaced ones.
        steps: Optimizer steps of each kind; None is two thirds of the flow's.
        batch: Codes a step.
        learning_rate: Of Adam.
        weight_decay: Of AdamW.
    """

    attribute_readers: int = Field(default=6, ge=1)
    linear_readers: int = Field(default=2, ge=0)
    identity_readers: int = Field(default=3, ge=1)
    width: int = Field(default=256, ge=1)
    noise: float = Field(default=0.4, ge=0)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=256, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)

    def steps_of(self, flow_steps: int) -> int:
        """Optimizer steps of each kind of readers after a flow of so many."""
        return self.steps or max(1, round(flow_steps * 2 / 3))


class Readers(nn.Module):
    """An ensemble of E two-layer networks on whitened principal numbers, computed together.

    Args:
        members: E.
        size: K, numbers read.
        out: Numbers each member gives.
        width: Hidden width.
        linear: The last so many members have no hidden layers.
    """

    def __init__(self, members: int, size: int, out: int, width: int, *, linear: int = 0) -> None:
        super().__init__()
        self.members, self.linear = members, min(linear, members - 1)
        deep = members - self.linear
        self.first = nn.Parameter(torch.randn(deep, size, width) * size**-0.5)
        self.first_bias = nn.Parameter(torch.zeros(deep, 1, width))
        self.second = nn.Parameter(torch.randn(deep, width, width) * (2.0 / width) ** 0.5)
        self.second_bias = nn.Parameter(torch.zeros(deep, 1, width))
        self.third = nn.Parameter(torch.randn(deep, width, out) * width**-0.5)
        self.third_bias = nn.Parameter(torch.zeros(deep, 1, out))
        self.straight = nn.Parameter(torch.randn(self.linear, size, out) * 0.1 * size**-0.5)
        self.straight_bias = nn.Parameter(torch.zeros(self.linear, 1, out))

    def forward(self, x: Tensor) -> Tensor:
        """Whitened numbers [B, K] for all, or [E, B, K] -> [E, B, out]."""
        every = x.expand(self.members, *x.shape[-2:])
        deep = self.members - self.linear
        h = F.silu(torch.baddbmm(self.first_bias, every[:deep], self.first))
        h = F.silu(torch.baddbmm(self.second_bias, h, self.second))
        out = torch.baddbmm(self.third_bias, h, self.third)
        if self.linear:
            out = torch.cat([out, torch.baddbmm(self.straight_bias, every[deep:], self.straight)])
        return out


def attribute_loss(read: Tensor, scores: Tensor) -> Tensor:
    """Readers' phi [E, B, A] against scores [B, A] in [0, 1]: Huber loss in phi, where an edit is aimed.

    Scores that nobody knows are NaN and have no part in it.
    """
    known = ~scores.isnan()
    wanted = features(torch.where(known, scores, torch.full_like(scores, 0.5)))
    error = F.smooth_l1_loss(read, wanted.expand_as(read), beta=0.5, reduction="none")
    return (error * known).sum() / (known.sum() * len(read)).clamp_min(1)


def identity_loss(read: Tensor, embeddings: Tensor) -> Tensor:
    """1 - cosine of read [E, B, F] and embeddings [B, F]."""
    return 1.0 - F.cosine_similarity(read, embeddings.expand_as(read), dim=-1).mean()


def member_noise(config: ReaderConfig, members: int, like: Tensor, rng: torch.Generator) -> Tensor:
    """Noise [E, B, K] on whitened inputs: member e gets the standard deviation noise * e / (E - 1)."""
    levels = torch.linspace(0.0, config.noise, members)[:, None, None]
    return (levels * torch.randn(members, *like.shape, generator=rng)).to(like)


def advance_readers(
    readers: Readers,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    wanted: Tensor,
    kind: str,
    config: ReaderConfig,
    rng: torch.Generator,
    factor: float,
) -> float:
    """One step of `readers` on whitened codes x [B, K]; returns the loss, or what is not finite.

    Args:
        readers: To be taught.
        optimizer: Of their parameters.
        x: [B, K].
        wanted: Scores [B, A], NaN where unknown (kind `attributes`), or unit embeddings [B, F] (kind
            `identity`).
        kind: Which loss.
        config: Noise and rate.
        rng: CPU generator of the noise.
        factor: Of the learning rate at this step.
    """
    seen = readers(x + member_noise(config, readers.members, x, rng))
    loss = attribute_loss(seen, wanted) if kind == "attributes" else identity_loss(seen, wanted)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * factor
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(readers.parameters(), math.inf))  # measured, nothing is clipped
    if not math.isfinite(norm):  # before the step: a checkpoint must never hold what it would make
        return norm
    optimizer.step()
    return float(loss.detach())


def reader_optimizer(readers: Readers, config: ReaderConfig) -> torch.optim.Optimizer:
    """AdamW with the configured rate and decay."""
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    return torch.optim.AdamW(readers.parameters(), **options)
