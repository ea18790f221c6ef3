"""Image -> attribute scores. Two designs on purpose: `Labeller` serves the product, `JudgeNetwork` judges it.

A figure that the labeller gives about an edit that was steered by the labeller proves little; the judge has
another architecture and was trained on other people. It serves nothing else.
"""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.faces.scoring import check_names, sized
from sdflow_core.records.config import Growing
from sdflow_core.records.errors import ContractError


class LabellerConfig(Growing, NetworkConfig):
    """Attributes in output order, and the size of the network.

    Attributes:
        attributes: Names of the outputs.
        resolution: Side in px of what it looks at; other pictures are brought to it.
        channels: Of the blocks.
        crop: Share of a picture's side that it looks at, about the middle: a network that learned on nearer
            crops than those of a bundle looks at the middle of them.
    """

    later = ("crop",)

    attributes: tuple[str, ...]
    resolution: int = 64
    channels: tuple[int, ...] = (24, 48, 96, 160)
    crop: float = Field(default=1.0, gt=0, le=1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm; halves the resolution when `stride` is 2."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.skip = nn.Conv2d(cin, cout, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, Cin, H, W] -> [B, Cout, H/stride, W/stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.skip(F.avg_pool2d(x, self.stride) if self.stride > 1 else x))


class AttributeNetwork(nn.Module):
    """What labeller and judge share: input check, calibration, scores as sigmoid of calibrated logits.

    `slope` and `offset` [A] are fitted after the training on people of its own who were held out. They travel
    with the weights; a file from before there was calibration has none, which is slope 1 and offset 0.
    """

    config: LabellerConfig
    slope: Tensor
    offset: Tensor

    def __init__(self, config: LabellerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("slope", torch.ones(len(config.attributes)))
        self.register_buffer("offset", torch.zeros(len(config.attributes)))
        self.register_load_state_dict_pre_hook(self._as_trained)

    @staticmethod
    def _as_trained(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Before a state is loaded: one from before there was calibration has slope 1 and offset 0."""
        weight: Tensor = state.get(prefix + "head.bias", torch.zeros(0))
        state.setdefault(prefix + "slope", torch.ones_like(weight))
        state.setdefault(prefix + "offset", torch.zeros_like(weight))

    def calibrate(self, slope: Tensor, offset: Tensor) -> None:
        """Set slope [A] > 0 and offset [A] of the logits; `calibrate(1, 0)` is as trained.

        Raises:
            ContractError: A slope that would turn an order round, or a number that is not finite.
        """
        if not bool((slope > 0).all() and torch.isfinite(slope).all() and torch.isfinite(offset).all()):
            raise ContractError(
                "calibration of an attribute network",
                expected="finite slopes above 0 and finite offsets",
                found=f"slopes {slope.tolist()}, offsets {offset.tolist()}",
            )
        with torch.no_grad():
            self.slope.copy_(slope)
            self.offset.copy_(offset)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return self.config.attributes

    def only(self, attributes: tuple[str, ...]) -> Self:
        """A network for some of the outputs, in this order: a copy of the trunk, a slice of the head.

        Raises:
            ContractError: An attribute that it does not know, or one twice.
        """
        check_names(attributes, self.attributes)
        network = type(self)(self.config.model_copy(update={"attributes": attributes}))
        state = dict(self.state_dict())
        index = [self.attributes.index(name) for name in attributes]
        for name in ("head.weight", "head.bias", "slope", "offset"):
            state[name] = state[name][index]
        network.load_state_dict(state)
        return network.to(self.slope.device).train(self.training)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps from fine to coarse; the last is what the head reads."""
        raise NotImplementedError

    def head_of(self, features: Tensor) -> Tensor:
        """Coarsest feature map [B, C, h, w] -> logits [B, A]."""
        raise NotImplementedError

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] RGB in [-1, 1] -> calibrated logits [B, A].

        Raises:
            ContractError: Not a batch of square RGB pictures.
        """
        return self.head_of(self.features(self._fit(images))[-1]) * self.slope + self.offset

    def _fit(self, images: Tensor) -> Tensor:
        """The middle of pictures [B, 3, S, S], brought to the configured resolution."""
        if self.config.crop < 1 and images.ndim == 4:
            width = max(1, round(self.config.crop * images.shape[3]))
            top, left = (images.shape[2] - width) // 2, (images.shape[3] - width) // 2
            images = images[:, :, top : top + width, left : left + width]
        return sized(images, self.config.resolution)

    def scores(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] RGB in [-1, 1] -> probabilities [B, A] in [0, 1]."""
        return torch.sigmoid(self.logits(images))

    def forward(self, images: Tensor) -> Tensor:
        """Alias of `scores`."""
        return self.scores(images)


class Labeller(AttributeNetwork):
    """A small residual network with global average pooling."""

    kind = "labeller"
    Config = LabellerConfig

    def __init__(self, config: LabellerConfig) -> None:
        super().__init__(config)
        c = config.channels
        self.stem = nn.Conv2d(3, c[0], 3, padding=1, stride=2)
        self.blocks = nn.ModuleList()
        for i, width in enumerate(c):
            self.blocks.append(ResidualBlock(c[max(i - 1, 0)], width, 1 if i == 0 else 2))
        self.head = nn.Linear(c[-1], len(config.attributes))

    def features(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> one map a block, [B, C_i, H/2^(i+1), W/2^(i+1)]."""
        x, out = F.relu(self.stem(images)), []
        for block in self.blocks:
            x = block(x)
            out.append(x)
        return out

    def head_of(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, A]."""
        return self.head(features.mean(dim=(2, 3)))


class JudgeNetwork(AttributeNetwork):
    """A plain stack of wide-kernel separable convolutions with group norm and a spatial head.

    Nothing is shared with `Labeller`.
    """

    kind = "judge"
    Config = LabellerConfig

    def __init__(self, config: LabellerConfig) -> None:
        super().__init__(config)
        c = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, c[0], 4, stride=4)]
        for a, b in zip((c[0], *c[:-1]), c, strict=True):
            layers += [_Separable(a, a), _Separable(a, b)]
            if b != c[0]:
                layers.append(nn.MaxPool2d(2))
        self.trunk = nn.Sequential(*layers)
        side = config.resolution // 4 // 2 ** (len(c) - 1)
        self.reduce = nn.Linear(c[-1] * side * side, 128)
        self.head = nn.Linear(128, len(config.attributes))

    def features(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> [the last map]."""
        return [self.trunk(images)]

    def head_of(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, A]; positions are kept apart, unlike in the labeller."""
        return self.head(F.dropout(F.gelu(self.reduce(features.flatten(1))), 0.3, self.training))


class _Separable(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(cin, cin, 5, padding=2, groups=cin)
        self.norm = nn.GroupNorm(4, cin)
        self.expand = nn.Conv2d(cin, 2 * cout, 1)
        self.project = nn.Conv2d(2 * cout, cout, 1)
        self.same = cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(F.gelu(self.expand(self.norm(self.depth(x)))))
        return x + y if self.same else y
