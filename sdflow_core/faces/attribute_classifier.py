"""The classifier that the original method trusts: 40 attributes of CelebA, and age in seven groups.

One ResNet with a small head for each attribute, a second one for the age. Modules carry the names of the
published files (`r34_a40_age_256_classifier.pth`, `r50_a40_age_256_classifier.pth`).
Source: Huang et al., "Adaptive Nonlinear Latent Transformation for Conditional Face Editing" (AdaTrans),
arXiv 2307.07790; Liu et al., "Deep Learning Face Attributes in the Wild" (CelebA), arXiv 1411.7766.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.faces.resnet import Depth, ResNet
from sdflow_core.faces.scoring import check_names, sized
from sdflow_core.records.errors import ContractError

# The official order of CelebA; 15 eyeglasses, 20 male, 31 smiling, 39 young.
CELEBA_ATTRIBUTES = (
    "5_o_clock_shadow",
    "arched_eyebrows",
    "attractive",
    "bags_under_eyes",
    "bald",
    "bangs",
    "big_lips",
    "big_nose",
    "black_hair",
    "blond_hair",
    "blurry",
    "brown_hair",
    "bushy_eyebrows",
    "chubby",
    "double_chin",
    "eyeglasses",
    "goatee",
    "gray_hair",
    "heavy_makeup",
    "high_cheekbones",
    "male",
    "mouth_slightly_open",
    "mustache",
    "narrow_eyes",
    "no_beard",
    "oval_face",
    "pale_skin",
    "pointy_nose",
    "receding_hairline",
    "rosy_cheeks",
    "sideburns",
    "smiling",
    "straight_hair",
    "wavy_hair",
    "wearing_earrings",
    "wearing_hat",
    "wearing_lipstick",
    "wearing_necklace",
    "wearing_necktie",
    "young",
)
# The age logits are ordinal: each says whether the person is at least so many years old.
AGE_THRESHOLDS = (10, 20, 30, 40, 50, 70)
AGE_ATTRIBUTES = tuple(f"age_{years}_or_more" for years in AGE_THRESHOLDS)
_HEAD_LAYERS = 3  # linear, BatchNorm, ReLU each; then the linear layer that says yes or no


class AttributeClassifierConfig(NetworkConfig):
    """Size of the classifier.

    Attributes:
        depth: Of both ResNets.
        width: Channels of their first stage.
        attributes: Names of the heads, in order.
        ages: Names of the age outputs, in order.
        resolution: Side in px to which pictures are brought.
    """

    depth: Depth = 34
    width: PositiveInt = 64
    attributes: tuple[str, ...] = CELEBA_ATTRIBUTES
    ages: tuple[str, ...] = AGE_ATTRIBUTES
    resolution: PositiveInt = 256


class AttributeClassifier(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> scores [B, A + G]: the attributes, then the ages."""

    kind = "attribute_classifier"
    Config = AttributeClassifierConfig

    def __init__(self, config: AttributeClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.extractor = ResNet(config.depth, None, config.width)
        features = self.extractor.channels
        self.attr_heads = nn.ModuleList([_head(features) for _ in config.attributes])
        self.age_heads = ResNet(config.depth, len(config.ages), config.width) if config.ages else None

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return self.config.attributes + self.config.ages

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] RGB in [-1, 1], any size -> logits [B, A + G].

        Raises:
            ContractError: Not a batch of square RGB pictures.
        """
        images = sized(images, self.config.resolution)
        features = self.extractor(images)
        said = [head(features) for head in self.attr_heads]
        if self.age_heads is not None:
            said.append(self.age_heads(images))
        return torch.cat(said, dim=1)

    def scores(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] RGB in [-1, 1] -> probabilities [B, A + G]."""
        return torch.sigmoid(self.logits(images))

    def age_groups(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> int64 [B] in 0 ... G: 0 to 9 years, 10 to 19, ..., 50 to 69, 70 or more.

        Raises:
            ContractError: A classifier whose ages were left out.
        """
        if self.age_heads is None:
            raise ContractError("age groups", expected="a classifier with its ages", found="without")
        return (self.age_heads(sized(images, self.config.resolution)) > 0).sum(dim=1)

    def only(self, attributes: tuple[str, ...]) -> Self:
        """A classifier for some of the outputs, in this order; without ages the second network goes.

        Raises:
            ContractError: A name that it does not know or that is there twice, an age before an attribute, or
                ages alone.
        """
        own = tuple(name for name in attributes if name in self.config.attributes)
        ages = tuple(name for name in attributes if name in self.config.ages)
        check_names(attributes, self.attributes)
        if own + ages != attributes or not own:
            raise ContractError(
                "attributes of a network",
                expected="at least one attribute, ages behind them",
                found=", ".join(attributes),
            )
        changes = {"attributes": own, "ages": ages}
        network = type(self)(self.config.model_copy(update=changes))
        state: dict[str, Tensor] = {}
        for name, value in self.state_dict().items():
            part, _, rest = name.partition(".")
            if part == "attr_heads":
                number, _, inner = rest.partition(".")
                head = self.config.attributes[int(number)]
                if head in own:
                    state[f"attr_heads.{own.index(head)}.{inner}"] = value
            elif part != "age_heads":
                state[name] = value
            elif ages:
                picked = [self.config.ages.index(age) for age in ages]
                state[name] = value[picked] if rest.startswith("fc.") else value
        network.load_state_dict(state)
        device = next(self.parameters()).device
        return network.to(device).train(self.training).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Alias of `scores`."""
        return self.scores(images)


def _head(features: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(_HEAD_LAYERS):
        layers += [nn.Linear(features, features), nn.BatchNorm1d(features), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(features, 1))
