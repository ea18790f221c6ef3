"""The published encoders into w+: e4e, pSp, and ReStyle, which goes on from its own reconstruction.

All share one backbone and one kind of head; `StyleEncoderConfig` says how they differ. Modules carry the
names of the published files.
Sources: Richardson et al., "Encoding in Style" (pSp), arXiv 2008.00951; Tov et al., "Designing an Encoder for
StyleGAN Image Manipulation" (e4e), arXiv 2102.02766; Alaluf et al., "ReStyle", arXiv 2104.02699.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from sdflow_core.faces.ir_se import IrSeBackbone, IrSeConfig
from sdflow_core.faces.scoring import sized
from sdflow_core.records.errors import ContractError

Flavour = Literal["e4e", "psp"]
Synthesize = Callable[[Tensor], Tensor]  # w+ [B, L, D] -> pictures [B, 3, H, W] in [-1, 1]

COARSE, MIDDLE = 3, 7  # first row that reads the 32 px map, and the 64 px map
PYRAMID_STAGES = 3  # the maps of the last three stages are read


class StyleEncoderConfig(IrSeConfig):
    """Which of the encoders, and how large.

    Attributes:
        flavour: `psp`: row i is what head i says. `e4e`: head 0 says one code for all rows, the others what
            to add to theirs. The weights do not tell which.
        pyramid: Heads read maps of three sizes; ReStyle's all read the coarsest.
        rows: L, as many as heads.
        style_dim: D.
        resolution: Side of the input in pixels; larger and smaller pictures are brought to it.
        iterations: Passes of an encoder that also sees its reconstruction.
    """

    flavour: Flavour
    pyramid: bool = True
    rows: PositiveInt = 18
    style_dim: PositiveInt = 512
    resolution: PositiveInt = 256
    iterations: PositiveInt = 5

    @property
    def iterated(self) -> bool:
        """Whether a pass also sees the reconstruction of the one before."""
        return self.input_channels == 6

    @property
    def coarse(self) -> int:
        """Side in pixels of the coarsest map."""
        return self.resolution // 2 ** len(self.widths)

    @model_validator(mode="after")
    def _has_heads(self) -> Self:
        if self.input_channels not in (3, 6):
            raise ValueError("pictures of 3 channels, or of 6 with a reconstruction")
        if self.resolution % 2 ** len(self.widths) or 2 ** int(math.log2(self.coarse)) != self.coarse:
            raise ValueError("a resolution whose coarsest map has a side that is a power of 2")
        if self.coarse < 2 or len(self.widths) < PYRAMID_STAGES:
            raise ValueError("at least three stages, and a coarsest map of 2 px or more")
        return self


class StyleEncoder(IrSeBackbone):
    """Aligned faces -> w+.

    `mean_w` [L, D] is what the codes are counted from: the mean w of the training, or 0 where it was trained
    without.

    Args:
        config: Which of the encoders.
    """

    kind = "style_encoder"
    Config = StyleEncoderConfig

    def __init__(self, config: StyleEncoderConfig) -> None:
        super().__init__(config)
        self.config = config
        width = config.widths[-1]
        convs = int(math.log2(config.coarse))
        self.styles = nn.ModuleList(
            [_Head(width, config.style_dim, convs + self._level(row)) for row in range(config.rows)]
        )
        if config.pyramid:
            self.latlayer1 = nn.Conv2d(config.widths[-2], width, 1)
            self.latlayer2 = nn.Conv2d(config.widths[-3], width, 1)
        self.mean_w: Tensor
        self.register_buffer("mean_w", torch.zeros(config.rows, config.style_dim))

    def encode(self, images: Tensor) -> Tensor:
        """Invert aligned faces in one pass.

        Args:
            images: [B, 3, H, W] RGB in [-1, 1], H = W; brought to `config.resolution`.

        Returns:
            w+ [B, L, D].

        Raises:
            ContractError: Another shape, or an encoder that needs the generator: see `IteratedEncoder`.
        """
        if self.config.iterated:
            raise ContractError(
                "an encoder that works on its own reconstruction",
                expected="the generator beside it",
                found="pictures alone",
                todo="bind it: IteratedEncoder(encoder, generator.synthesize).encode(images)",
            )
        return self.mean_w + self.codes(self.sized(images))

    def forward(self, images: Tensor) -> Tensor:
        """Alias of `encode`."""
        return self.encode(images)

    def sized(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W], H = W, brought to `config.resolution`.

        Raises:
            ContractError: Not a batch of square RGB pictures.
        """
        return sized(images, self.config.resolution, "encoder input")

    def codes(self, images: Tensor) -> Tensor:
        """[B, input_channels, S, S], S = `config.resolution` -> codes [B, L, D] counted from a start."""
        config = self.config
        maps = self.features(images)
        levels = [maps[-1]]
        if config.pyramid:
            levels.append(_up(levels[-1], self.latlayer1(maps[-2])))
            levels.append(_up(levels[-1], self.latlayer2(maps[-3])))
        said = torch.stack([head(levels[self._level(row)]) for row, head in enumerate(self.styles)], dim=1)
        if config.flavour == "psp":
            return said
        return torch.cat([said[:, :1], said[:, :1] + said[:, 1:]], dim=1)

    def _level(self, row: int) -> int:
        """Which map a row reads, 0 the coarsest; also how many more convolutions its head has."""
        return (row >= COARSE) + (row >= MIDDLE) if self.config.pyramid else 0


class IteratedEncoder:
    """A ReStyle encoder with its generator: each pass sees the picture and what the last pass made of it.

    The first pass sees the average face and counts from `mean_w`; each later one counts from the code before.

    Args:
        encoder: With 6 input channels.
        synthesize: Of the generator that belongs to it.
        iterations: Passes; None takes those of the encoder's configuration.

    Raises:
        ContractError: An encoder of one pass, or no pass at all.
    """

    def __init__(self, encoder: StyleEncoder, synthesize: Synthesize, iterations: int | None = None) -> None:
        self.encoder, self.synthesize = encoder, synthesize
        self.iterations = encoder.config.iterations if iterations is None else iterations
        if not encoder.config.iterated or self.iterations < 1:
            raise ContractError(
                "an iterated encoder",
                expected="6 input channels and at least one pass",
                found=f"{encoder.config.input_channels} channels and {self.iterations} passes",
            )

    @property
    def config(self) -> StyleEncoderConfig:
        """Of the encoder."""
        return self.encoder.config

    def encode(self, images: Tensor) -> Tensor:
        """Invert aligned faces [B, 3, H, W] in [-1, 1]: w+ [B, L, D] of the last pass.

        Raises:
            ContractError: Not a batch of square RGB pictures, or a generator that makes none.
        """
        return self.passes(images)[-1]

    def passes(self, images: Tensor) -> list[Tensor]:
        """w+ [B, L, D] of every pass, first to last; see `encode`."""
        images = self.encoder.sized(images)
        code = self.encoder.mean_w.expand(len(images), -1, -1)
        # the average face is one picture for all
        shown = self._render(code[:1]).expand(len(images), -1, -1, -1)
        out: list[Tensor] = []
        for i in range(self.iterations):
            if i:
                shown = self._render(code)
            code = code + self.encoder.codes(torch.cat([images, shown], dim=1))
            out.append(code)
        return out

    def _render(self, w_plus: Tensor) -> Tensor:
        """w+ [B, L, D] -> pictures [B, 3, S, S] as the encoder sees them: whole areas are averaged."""
        pictures = self.synthesize(w_plus)
        if pictures.ndim != 4 or tuple(pictures.shape[:2]) != (len(w_plus), 3):
            raise ContractError(
                "pictures of the generator", expected=f"[{len(w_plus)}, 3, H, W]", found=list(pictures.shape)
            )
        return F.adaptive_avg_pool2d(pictures, self.config.resolution)


class _Head(nn.Module):
    """Map [B, C, S, S], S = 2^convs -> code [B, D]."""

    def __init__(self, width: int, style_dim: int, convs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(convs):
            layers.append(nn.Conv2d(width if i == 0 else style_dim, style_dim, 3, stride=2, padding=1))
            layers.append(nn.LeakyReLU(0.01))  # not the 0.2 of the generator
        self.convs = nn.Sequential(*layers)
        self.linear = _EqualLinear(style_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x).flatten(1))


class _EqualLinear(nn.Module):
    """A linear layer whose stored weight is divided by the root of its inputs."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight.shape[1] ** -0.5, self.bias)


def _up(coarse: Tensor, fine: Tensor) -> Tensor:
    size = (fine.shape[2], fine.shape[3])
    return F.interpolate(coarse, size, mode="bilinear", align_corners=True) + fine
