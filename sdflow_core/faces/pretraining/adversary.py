"""The adversary of the pretraining: losses, R1, augmentation that grows when it learns the set by heart.

Sources: R1 by Mescheder et al., arXiv 1801.04406, taken every few steps as in arXiv 1912.04958; adaptive
augmentation after Karras et al., "Training GANs with Limited Data", arXiv 2006.06676.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.faces.pretraining.discriminator import Discriminator

__all__ = ["Adversary", "AdversaryConfig", "augmented"]


class AdversaryConfig(NetworkConfig):
    """What the adversary is and how it learns.

    Attributes:
        channels: Feature channels from full resolution down, at least two.
        learning_rate: Of Adam with betas (0, 0.99).
        r1: Weight gamma of the gradient penalty on real pictures, gamma / 2 * |grad|^2 a step on average.
        r1_every: It is taken every so many steps, and counts so many times as much.
        every: The adversary learns every so many steps of the generator.
        aim: Mean sign of its logits of real pictures, in [-1, 1]. Above it, it has learned the set by heart
            and augmentation grows; below, it shrinks. Negative: no augmentation.
        grow_images: Real pictures it takes for the probability of augmentation to go from 0 to 1.
    """

    channels: tuple[PositiveInt, ...] = Field(default=(32, 64, 96, 128, 128), min_length=2)
    learning_rate: float = Field(default=1e-3, gt=0, le=1, allow_inf_nan=False)
    r1: float = Field(default=0.25, ge=0, allow_inf_nan=False)
    r1_every: int = Field(default=16, ge=1)
    every: int = Field(default=2, ge=1)
    aim: float = Field(default=0.6, ge=-1, le=1)
    grow_images: int = Field(default=100_000, ge=1)


def augmented(images: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Each of three changes with this probability: shifted, other light and colour, a patch cut out.

    Args:
        images: [B, 3, H, W] in [-1, 1]; gradients go through.
        probability: In [0, 1].
        rng: CPU generator.

    Returns:
        [B, 3, H, W].
    """
    if probability <= 0:
        return images
    count, _, height, width = images.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng).to(images.device)

    def chosen() -> Tensor:
        return (draw(count, 1, 1, 1) < probability).to(images.dtype)

    gain = 1 + chosen() * (draw(count, 1, 1, 1) - 0.5).to(images.dtype)
    light = chosen() * (draw(count, 1, 1, 1) - 0.5).to(images.dtype)
    saturation = 1 + chosen() * (2 * draw(count, 1, 1, 1) - 1).to(images.dtype)
    grey = images.mean(1, keepdim=True)
    out = (grey + (images - grey) * saturation) * gain + light
    reach = height // 8
    padded = F.pad(out, (reach, reach, reach, reach), mode="reflect")
    moved = (draw(count) < probability).cpu()
    places = torch.randint(0, 2 * reach + 1, (count, 2), generator=rng)
    places = torch.where(moved[:, None], places, torch.full_like(places, reach))
    rows: list[Tensor] = []
    for number, (top, left) in enumerate(places.tolist()):
        rows.append(padded[number, :, top : top + height, left : left + width])
    out = torch.stack(rows)
    side = height // 3
    hole = torch.ones(count, 1, height, width, dtype=out.dtype)
    cut = torch.rand(count, generator=rng) < probability
    corners = torch.randint(0, height - side + 1, (count, 2), generator=rng)
    for number, (top, left) in enumerate(corners.tolist()):
        if cut[number]:
            hole[number, :, top : top + side, left : left + side] = 0
    return out * hole.to(out.device)


class Adversary:
    """Discriminator, its optimiser and its augmentation; `learn` is one step of it.

    Args:
        resolution: Side of the pictures in px.
        config: What it is.
        device: Where it computes.
        seed: Of the augmentation.
    """

    def __init__(self, resolution: int, config: AdversaryConfig, device: torch.device, seed: int) -> None:
        self.config, self.device = config, device
        self.network: nn.Module = Discriminator(resolution, config.channels).to(device)
        self.network = self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=config.learning_rate, betas=(0.0, 0.99)
        )
        self.rng = torch.Generator().manual_seed(seed)
        self.steps = 0
        self.probability = 0.0
        self.confidence = 0.0

    def looks(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [B] float32 and feature maps of pictures as the adversary sees them, augmented."""
        with torch.autocast(self.device.type, torch.bfloat16):
            logits, maps = self.network(augmented(images, self.probability, self.rng))
        return logits.float(), maps

    def maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same of pictures as they are: for comparing two of them."""
        with torch.autocast(self.device.type, torch.bfloat16):
            logits, maps = self.network(images)
        return logits.float(), maps

    def learn(self, real: Tensor, fake: Tensor, rate: float) -> dict[str, float]:
        """One step on real and rendered pictures [B, 3, H, W], at this share of the learning rate."""
        c = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = c.learning_rate * rate
        self.network.requires_grad_(True)
        penalised = c.r1 > 0 and self.steps % c.r1_every == 0
        real = augmented(real, self.probability, self.rng).detach()
        fake = augmented(fake, self.probability, self.rng).detach()
        penalty = torch.zeros((), device=self.device)
        if penalised:
            real.requires_grad_(True)
            scores, _ = self.network(real)  # fp32: the penalty's double backward wants it
            (gradient,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
            penalty = gradient.square().sum(dim=(1, 2, 3)).mean()
        else:
            scores, _ = self.maps(real)
        fakes, _ = self.maps(fake)
        loss = F.softplus(-scores.float()).mean() + F.softplus(fakes).mean()
        total = loss + 0.5 * c.r1 * c.r1_every * penalty
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimiser.step()
        self.network.requires_grad_(False)
        self.steps += 1
        self._adapt(float(scores.detach().float().sign().mean()), len(real))
        return {
            "adversary": float(loss.detach()),
            "called_real": self.confidence,
            "augmentation": self.probability,
        }

    def _adapt(self, signs: float, count: int) -> None:
        # the mean sign of the logits of real pictures, over some 50 steps
        self.confidence = 0.98 * self.confidence + 0.02 * signs
        if self.config.aim >= 0:
            change = count / self.config.grow_images
            grown = self.probability + (change if self.confidence > self.config.aim else -change)
            self.probability = min(max(grown, 0.0), 0.8)

    def state(self) -> dict[str, object]:
        """Everything needed to go on; `restore` takes it."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rng": self.rng.get_state(),
            "steps": self.steps,
            "probability": self.probability,
            "confidence": self.confidence,
        }

    def restore(self, saved: dict[str, object]) -> None:
        """Go on from `state()`."""
        self.network.load_state_dict(saved["network"])  # pyright: ignore[reportArgumentType]
        self.optimiser.load_state_dict(saved["optimiser"])  # pyright: ignore[reportArgumentType]
        self.rng.set_state(saved["rng"])  # pyright: ignore[reportArgumentType]
        self.steps = int(str(saved["steps"]))
        self.probability, self.confidence = float(str(saved["probability"])), float(str(saved["confidence"]))
