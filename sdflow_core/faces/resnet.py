"""ResNet-34 and ResNet-50 with the parameter names of torchvision, as a scorer of attributes.

The original's semantic encoder is such a network. Built here so that its files can be read without
torchvision.
Source: He et al., "Deep residual learning", arXiv 1512.03385; stride on the 3x3 convolution of a bottleneck,
as in torchvision.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.faces.scoring import check_names, sized

Depth = Literal[34, 50]
STAGES = (3, 4, 6, 3)  # blocks a stage, the same for both depths


class ResNetConfig(NetworkConfig):
    """Attributes in output order, depth, and the side in px to which pictures are brought."""

    attributes: tuple[str, ...]
    depth: Depth = 34
    resolution: int = 256


class ResNetScorer(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> scores [B, A]; fits `method.semantic_encoder.SemanticEncoder`.

    Args:
        config: Attributes and depth.
    """

    kind = "resnet_scorer"
    Config = ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.depth, len(config.attributes))

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return self.config.attributes

    def only(self, attributes: tuple[str, ...]) -> Self:
        """A network for some of the outputs, in this order.

        Raises:
            ContractError: An attribute that it does not know, or one twice.
        """
        check_names(attributes, self.attributes)
        network = type(self)(self.config.model_copy(update={"attributes": attributes}))
        state = dict(self.state_dict())
        index = [self.attributes.index(name) for name in attributes]
        for name in ("backbone.fc.weight", "backbone.fc.bias"):
            state[name] = state[name][index]
        network.load_state_dict(state)
        device = next(self.parameters()).device
        return network.to(device).train(self.training).requires_grad_(False)

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] RGB in [-1, 1], any size -> logits [B, A].

        Raises:
            ContractError: Not a batch of square RGB pictures.
        """
        return self.backbone(sized(images, self.config.resolution))

    def scores(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] RGB in [-1, 1] -> probabilities [B, A]."""
        return torch.sigmoid(self.logits(images))

    def forward(self, images: Tensor) -> Tensor:
        """Alias of `scores`."""
        return self.scores(images)


class ResNet(nn.Module):
    """The bare network, with the names of torchvision.

    Args:
        depth: 34 or 50.
        outputs: Of the last linear layer; None leaves it out, and the pooled features come out.
        first: Channels of the first stage; each later one has twice as many.
    """

    def __init__(self, depth: Depth, outputs: int | None, first: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, first, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        kind, channels = (_Basic if depth == 34 else _Bottleneck), first
        for stage, blocks in enumerate(STAGES):
            width, layers = first * 2**stage, list[nn.Module]()
            for block in range(blocks):
                layers.append(kind(channels, width, 2 if stage and block == 0 else 1))
                channels = width * kind.EXPANSION
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.channels = channels
        self.fc = nn.Identity() if outputs is None else nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, outputs], or features [B, channels]."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(x.mean(dim=(2, 3)))


def _shortcut(cin: int, cout: int, stride: int) -> nn.Module | None:
    if stride == 1 and cin == cout:
        return None
    return nn.Sequential(nn.Conv2d(cin, cout, 1, stride=stride, bias=False), nn.BatchNorm2d(cout))


class _Basic(nn.Module):
    EXPANSION = 1

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(cin, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class _Bottleneck(nn.Module):
    EXPANSION = 4

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.EXPANSION
        self.conv1 = nn.Conv2d(cin, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _shortcut(cin, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))
