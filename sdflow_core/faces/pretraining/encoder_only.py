"""A new encoder for a generator that stays: trained on people that do not exist, so that it needs no dataset.

The prior draws codes, the generator renders them, the encoder learns to read the code back and to give the
same picture. Pictures are also shown a little shifted, blurred and noisy: real crops are never as clean.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.faces.encoder import Encoder, EncoderConfig
from sdflow_core.faces.pretraining.autoencoder import channels_last
from sdflow_core.records.errors import ContractError

__all__ = ["EncoderTraining", "reconstruction_psnr", "train_encoder"]

Progress = Callable[[int, int], None]
_MEASURED = 64


class EncoderTraining(NetworkConfig):
    """Everything that changes the encoder.

    Attributes:
        start: `given` goes on from the weights of an encoder, `random` begins anew.
        shake: With `given`, standard deviation of the noise added to each weight, in units of the standard
            deviation of its tensor: how far the new encoder starts from the given one.
        steps: Optimiser steps.
        batch: People a step.
        learning_rate: Of Adam; falls to zero as a half cosine.
        weight_code: Of the distance between codes, in units of the prior's spread.
        weight_pixel: Of the distance between pictures, at full, half and quarter size.
        truncation: Of the prior.
        noise: Greatest standard deviation of the noise on the pictures, in the range [-1, 1].
        seed: Of every random draw.
    """

    start: Literal["given", "random"] = "given"
    shake: float = Field(default=0.05, ge=0)
    steps: int = Field(default=150, ge=1)
    batch: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    weight_code: float = Field(default=0.1, ge=0)
    weight_pixel: float = Field(default=4.0, ge=0)
    truncation: float = Field(default=0.9, gt=0, le=1.5)
    noise: float = Field(default=0.03, ge=0)
    seed: int = 0


def train_encoder(
    generator: Any,
    prior: Any,
    given: Encoder,
    config: EncoderTraining,
    progress: Progress | None = None,
) -> tuple[Encoder, dict[str, float]]:
    """Train an encoder against a fixed generator.

    Args:
        generator: `faces.generator.Generator`; not changed.
        prior: `faces.prior.Prior` of that generator.
        given: The encoder so far: gives the architecture, the mean code and, with `start="given"`, the
            weights.
        config: What to do.
        progress: Called after each step with (steps done, steps in all).

    Returns:
        The encoder in evaluation mode, and `{"psnr_db", "given_psnr_db"}` on people that taught nothing.

    Raises:
        ContractError: The training diverged.
    """
    rng = torch.Generator().manual_seed(config.seed)
    encoder = _start(given, config, rng)
    generator = generator.eval().requires_grad_(False)
    spread = prior.factors.square().sum(0).sqrt().clamp_min(1e-3)  # [L, D]
    optimiser = torch.optim.Adam(encoder.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    for step in range(config.steps):
        codes = prior.sample(config.batch, rng, truncation=config.truncation)
        with torch.no_grad():
            clean = generator.synthesize(codes).clamp(-1, 1)
        read = encoder.encode(_awkward(clean, config.noise, rng))
        loss = config.weight_code * F.smooth_l1_loss(read / spread, codes / spread)
        if config.weight_pixel:
            loss = loss + config.weight_pixel * _distance(generator.synthesize(read), clean)
        if not bool(torch.isfinite(loss)):
            raise ContractError(
                "the training of the encoder diverged",
                found="a loss that is not finite",
                where=f"step {step}",
                todo="lower the learning rate",
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 2.0)
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, config.steps)
    encoder = encoder.eval().requires_grad_(False)
    held = prior.sample(
        _MEASURED, torch.Generator().manual_seed(config.seed + 1), truncation=config.truncation
    )
    return encoder, {
        "psnr_db": round(reconstruction_psnr(generator, encoder, held), 2),
        "given_psnr_db": round(reconstruction_psnr(generator, given, held), 2),
    }


@torch.no_grad()
def reconstruction_psnr(generator: Any, encoder: Encoder, codes: Tensor) -> float:
    """Mean PSNR in dB between pictures of codes [N, L, D] and what generator and encoder make of them."""
    from sdflow_core.method.evaluation import inversion_psnr

    pictures = generator.synthesize(codes).clamp(-1, 1)
    return float(inversion_psnr(pictures, generator.synthesize(encoder.encode(pictures)).clamp(-1, 1)).mean())


def _start(given: Encoder, config: EncoderTraining, rng: torch.Generator) -> Encoder:
    if config.start == "given":
        encoder = copy.deepcopy(given)
        with torch.no_grad():
            for weight in encoder.parameters():
                size = float(weight.std()) if weight.numel() > 1 else 0.0
                weight.add_(config.shake * size * torch.randn(weight.shape, generator=rng))
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            encoder = Encoder(EncoderConfig(**given.config.model_dump()))
        encoder.mean_w.copy_(given.mean_w)
    return channels_last(encoder).train().requires_grad_(True)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    total = F.l1_loss(a, b)
    for size in (2, 4):
        total = total + 0.5 * F.l1_loss(F.avg_pool2d(a, size), F.avg_pool2d(b, size))
    return total


def _awkward(images: Tensor, noise: float, rng: torch.Generator) -> Tensor:
    """Half of the pictures softened, all with noise of their own strength."""
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    chosen = (torch.rand(len(images), generator=rng) < 0.5)[:, None, None, None]
    strength = noise * torch.rand(len(images), 1, 1, 1, generator=rng)
    return torch.where(chosen, soft, images) + strength * torch.randn(images.shape, generator=rng)
