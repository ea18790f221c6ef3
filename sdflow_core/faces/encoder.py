"""Image -> w+, in the manner of e4e: one code for all rows, plus a delta per row, added to the mean w.

Source: Tov et al., "Designing an Encoder for StyleGAN Image Manipulation", arXiv 2102.02766.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.records.errors import ContractError


class EncoderConfig(NetworkConfig):
    """Size of a compact encoder.

    Attributes:
        resolution: Side of the input in pixels.
        num_rows: L of the generator it serves.
        style_dim: D of that generator.
        channels: Feature channels from full resolution down to 4x4.
        hidden: Width of the layer between the 4x4 features and the codes.
    """

    resolution: PositiveInt = 64
    num_rows: PositiveInt = 10
    style_dim: PositiveInt = 128
    channels: tuple[PositiveInt, ...] = Field(default=(32, 64, 96, 128, 160), min_length=1)
    hidden: PositiveInt = 320


class DownBlock(nn.Module):
    """Residual block that halves the resolution."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cin, 3, padding=1)
        self.conv2 = nn.Conv2d(cin, cout, 3, padding=1, stride=2)
        self.skip = nn.Conv2d(cin, cout, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, Cin, H, W] -> [B, Cout, H/2, W/2]."""
        y = self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, 0.2)), 0.2))
        return (y + self.skip(F.avg_pool2d(x, 2))) * 0.7071


class Encoder(nn.Module):
    """Aligned faces [B, 3, H, W] in [-1, 1] -> w+ [B, L, D]."""

    kind = "encoder"
    Config = EncoderConfig

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.stem = nn.Conv2d(3, c[0], 3, padding=1)
        self.blocks = nn.ModuleList([DownBlock(a, b) for a, b in itertools.pairwise(c)])
        side = config.resolution // 2 ** (len(c) - 1)
        self.neck = nn.Linear(c[-1] * side * side, config.hidden)
        self.head = nn.Linear(config.hidden, config.style_dim)
        self.deltas = nn.Linear(config.hidden, (config.num_rows - 1) * config.style_dim)
        # deltas start at zero: training begins with one code for all rows
        nn.init.zeros_(self.deltas.weight)
        nn.init.zeros_(self.deltas.bias)
        self.mean_w: Tensor
        self.register_buffer("mean_w", torch.zeros(config.num_rows, config.style_dim))

    def encode(self, images: Tensor) -> Tensor:
        """Invert aligned images.

        Args:
            images: [B, 3, H, W] RGB float in [-1, 1], H = W = `config.resolution`.

        Returns:
            w+ [B, L, D] float, same order as the input.

        Raises:
            ContractError: Another shape.
        """
        size = self.config.resolution
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ContractError("encoder input", expected=f"[B, 3, {size}, {size}]", found=list(images.shape))
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        hidden = F.leaky_relu(self.neck(F.leaky_relu(x, 0.2).flatten(1)), 0.2)
        w0 = self.head(hidden)[:, None, :]  # [B, 1, D]
        delta = self.deltas(hidden).unflatten(1, (-1, self.config.style_dim))  # [B, L-1, D]
        return self.mean_w + w0 + torch.cat([torch.zeros_like(w0), delta], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Alias of `encode`."""
        return self.encode(images)
