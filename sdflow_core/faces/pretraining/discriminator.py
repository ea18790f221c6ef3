"""Discriminator of the adversarial stage: residual down-blocks with a minibatch-free head. Never shipped."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from sdflow_core.faces.encoder import DownBlock


class Discriminator(nn.Module):
    """Images [B, 3, H, W] -> logits [B]; also gives feature maps for feature matching."""

    def __init__(self, resolution: int, channels: tuple[int, ...] = (32, 64, 96, 128, 128)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList([DownBlock(a, b) for a, b in itertools.pairwise(channels)])
        side = resolution // 2 ** (len(channels) - 1)
        self.neck = nn.Linear(channels[-1] * side * side, 128)
        self.head = nn.Linear(128, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [B] and the feature maps from fine to coarse."""
        x, features = self.stem(images), []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        hidden = F.leaky_relu(self.neck(F.leaky_relu(x, 0.2).flatten(1)), 0.2)
        return self.head(hidden)[:, 0], features
