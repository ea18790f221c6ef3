"""IR-SE-50: the backbone of the e4e, pSp and ReStyle encoders, and with a head the ArcFace identity network.

Residual units that begin with BatchNorm and end with squeeze-and-excitation. Modules carry the names of the
published files (`model_ir_se50.pth`). Widths and numbers of units can be set, so that tests stay small; the
defaults are those of the files.
Source: Deng et al., "ArcFace", arXiv 1801.07698 (section 3.2.2); Hu et al., "Squeeze-and-excitation
networks", arXiv 1709.01507.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.faces.identity_network import IdentityNetwork


class IrSeConfig(NetworkConfig):
    """Size of the backbone.

    Attributes:
        input_channels: 3; 6 for an encoder that also sees its last reconstruction.
        stem: Channels after the first convolution.
        widths: Channels of the stages, each of which halves the picture; neighbours differ.
        units: Residual units of each stage.
        reduction: By how much squeeze-and-excitation narrows.
    """

    input_channels: PositiveInt = 3
    stem: PositiveInt = 64
    widths: tuple[PositiveInt, ...] = (64, 128, 256, 512)
    units: tuple[PositiveInt, ...] = (3, 4, 14, 3)
    reduction: PositiveInt = 16

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.widths) != len(self.units) or len(self.widths) < 1:
            raise ValueError("one number of units for each stage")
        if any(width % self.reduction for width in self.widths):
            raise ValueError(f"widths that {self.reduction} divides")
        return self


class IrSeBackbone(nn.Module):
    """Pictures [B, C, H, W] -> feature maps; `input_layer` and `body` are named as in the files."""

    def __init__(self, config: IrSeConfig) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(config.input_channels, config.stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(config.stem),
            nn.PReLU(config.stem),
        )
        units: list[nn.Module] = []
        ends: list[int] = []
        channels = config.stem
        for width, count in zip(config.widths, config.units, strict=True):
            for i in range(count):
                units.append(_Unit(channels, width, 2 if i == 0 else 1, config.reduction))
                channels = width
            ends.append(len(units) - 1)
        self.body = nn.Sequential(*units)
        self._ends = tuple(ends)

    def features(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] -> one map a stage, [B, widths[i], H / 2^(i+1), W / 2^(i+1)], fine to coarse."""
        x = self.input_layer(images)
        maps: list[Tensor] = []
        for i, unit in enumerate(self.body):
            x = unit(x)
            if i in self._ends:
                maps.append(x)
        return maps


class ArcFaceConfig(IrSeConfig):
    """The identity network.

    Attributes:
        side: Pixels of the face it looks at.
        dimensions: Length of the embedding.
    """

    side: PositiveInt = 112
    dimensions: PositiveInt = 512


class ArcFace(IdentityNetwork, IrSeBackbone):
    """IR-SE-50 with the embedding head of `model_ir_se50.pth`; takes [-1, 1]."""

    kind = "arcface"
    Config = ArcFaceConfig

    def __init__(self, config: ArcFaceConfig) -> None:
        super().__init__(config)
        self.config = config
        width, small = config.widths[-1], config.side // 2 ** len(config.widths)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(width * small * small, config.dimensions),
            nn.BatchNorm1d(config.dimensions),
        )

    def describe(self, faces: Tensor) -> Tensor:
        """See `IdentityNetwork.describe`."""
        return self.output_layer(self.features(faces)[-1])


class _Unit(nn.Module):
    def __init__(self, cin: int, width: int, stride: int, reduction: int) -> None:
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(cin),
            nn.Conv2d(cin, width, 3, padding=1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            _SqueezeExcite(width, reduction),
        )
        self.shortcut_layer = (
            nn.MaxPool2d(1, stride)  # picks every second pixel, no parameters
            if cin == width
            else nn.Sequential(nn.Conv2d(cin, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class _SqueezeExcite(nn.Module):
    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(width // reduction, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))))
