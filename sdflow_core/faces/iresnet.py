"""iresnet: insightface's identity network, with which the original method measures who is who.

Modules carry the names of the published files (`iresnet50-7f187506.pth`).
Source: Deng et al., "ArcFace", arXiv 1801.07698. Constants as the original method runs it: BatchNorm's eps is
2e-5, but 1e-5 in the two layers around the last linear one.
"""

from __future__ import annotations

import itertools
from typing import Self

from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.faces.identity_network import IdentityNetwork

_EPS = 2e-5
_MOMENTUM = 0.9


class IResNetConfig(NetworkConfig):
    """Size of the network, and how it is fed.

    Attributes:
        stem: Channels after the first convolution.
        widths: Channels of the four stages, each of which halves the picture.
        units: Blocks of each stage; (3, 4, 14, 3) is iresnet50.
        side: Pixels of the face it looks at.
        dimensions: Length of the embedding.
        unit_range: Feed [0, 1] instead of [-1, 1], as the original method does: identity figures can be
            compared with its own only when this is on.
    """

    stem: PositiveInt = 64
    widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (64, 128, 256, 512)
    units: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 4, 14, 3)
    side: PositiveInt = 112
    dimensions: PositiveInt = 512
    unit_range: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.side % 2 ** len(self.widths):
            raise ValueError(f"a side that {2 ** len(self.widths)} divides")
        return self


class IResNet(IdentityNetwork):
    """Faces [B, 3, side, side] in [-1, 1] -> embedding; `config.unit_range` says what the network is fed."""

    kind = "iresnet"
    Config = IResNetConfig

    def __init__(self, config: IResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(3, config.stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.stem, eps=_EPS, momentum=_MOMENTUM)
        self.prelu = nn.PReLU(config.stem)
        channels = (config.stem, *config.widths)
        for stage, (cin, width) in enumerate(itertools.pairwise(channels), start=1):
            blocks = [_Block(cin, width, 2)]
            blocks += [_Block(width, width, 1) for _ in range(1, config.units[stage - 1])]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        small = config.side // 2 ** len(config.widths)
        self.bn2 = nn.BatchNorm2d(config.widths[-1], eps=1e-5, momentum=_MOMENTUM)
        self.dropout = nn.Dropout2d(0.4)
        self.fc = nn.Linear(config.widths[-1] * small * small, config.dimensions)
        self.features = nn.BatchNorm1d(config.dimensions, eps=1e-5, momentum=_MOMENTUM)

    def describe(self, faces: Tensor) -> Tensor:
        """See `IdentityNetwork.describe`."""
        x = faces * 0.5 + 0.5 if self.config.unit_range else faces
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.features(self.fc(self.dropout(self.bn2(x)).flatten(1)))


class _Block(nn.Module):
    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(cin, eps=_EPS, momentum=_MOMENTUM)
        self.conv1 = nn.Conv2d(cin, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=_EPS, momentum=_MOMENTUM)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width, eps=_EPS, momentum=_MOMENTUM)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(cin, width, 1, stride=stride, bias=False),
                nn.BatchNorm2d(width, eps=_EPS, momentum=_MOMENTUM),
            )
            if stride != 1 or cin != width
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv1(self.bn1(x)))
        y = self.bn3(self.conv2(self.prelu(y)))
        return y + (x if self.downsample is None else self.downsample(x))
