"""Generator and encoder learned together: reconstruction first, then with an adversary.

The adversary also sees samples of the prior. The prior of a compact model is a Gaussian fitted to the
encoder's codes. Its samples lie between the codes that reconstruction visits; showing them to the
discriminator teaches the generator to render them as faces too.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.faces.encoder import Encoder, EncoderConfig
from sdflow_core.faces.generator import Generator, GeneratorConfig
from sdflow_core.faces.labeller import AttributeNetwork
from sdflow_core.faces.pretraining.adversary import Adversary, AdversaryConfig
from sdflow_core.faces.prior import Prior
from sdflow_core.records.errors import ContractError

Progress = Callable[[int, int, dict[str, float]], None]
LEAST_IMAGES = 500
_LEAST_SIDE_PX = 32  # below it the judge, who halves the pictures five times, has nothing left to look at
N = TypeVar("N", bound=nn.Module)


class Identity(Protocol):
    """A frozen network that tells people apart; gradients go through to the pictures."""

    def features(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] -> [B, E]; compared by the angle between them."""
        ...


def channels_last(network: N) -> N:
    """The network itself, its weights laid out for fast convolutions on CPU."""
    # torch documents this form of `to`, its overloads do not have it
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class AutoencoderConfig(NetworkConfig):
    """Everything that changes the result of the training.

    Attributes:
        generator: Size of the generator.
        encoder: Size of the encoder.
        adversary: The discriminator and how it learns.
        steps: Optimiser steps.
        adversarial_from: First step with the adversary.
        batch: Pictures a step.
        lr_generator: Peak learning rate; all rates warm up over 200 steps and fall over the last `fall`.
        lr_encoder: Likewise.
        fall: Share of the steps over which the rates fall to a fiftieth.
        weight_pixel: Of the mean absolute error of the pixels.
        weight_pyramid: Of the same at 1/2, 1/4 and 1/8 of the size.
        weight_features: Of the distance in the maps of the feature network.
        weight_identity: Of 1 - cosine in the space of the identity network, where there is one.
        identity_from: First step with it.
        identity_share: Share of a batch that it sees: it is the dearest of the losses.
        weight_matching: Of the distance in the discriminator's maps.
        weight_adversarial: Of what the discriminator says of reconstructions and of samples.
        weight_w: Of the variance of the codes.
        prior_truncation: Of the samples that the discriminator sees.
        ema_half_life: Steps after which a weight counts half in the average that ships.
        seed: Of every random draw.
    """

    generator: GeneratorConfig = GeneratorConfig(
        resolution=64, style_dim=128, channel_base=3072, channel_max=192, mapping_layers=0
    )
    encoder: EncoderConfig = EncoderConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    steps: int = Field(default=6000, ge=1)
    adversarial_from: int = Field(default=3000, ge=0)
    batch: int = Field(default=16, ge=2)
    lr_generator: float = Field(default=3e-3, gt=0, le=1, allow_inf_nan=False)
    lr_encoder: float = Field(default=1e-3, gt=0, le=1, allow_inf_nan=False)
    fall: float = Field(default=0.3, ge=0, le=1)
    weight_pixel: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    weight_pyramid: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    weight_features: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    weight_identity: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    identity_from: int = Field(default=0, ge=0)
    identity_share: float = Field(default=1.0, gt=0, le=1)
    weight_matching: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    weight_adversarial: float = Field(default=0.3, ge=0, allow_inf_nan=False)
    weight_w: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    prior_truncation: float = Field(default=0.9, gt=0, le=1.5)
    ema_half_life: int = Field(default=600, ge=1)
    seed: int = Field(default=0, ge=0, le=2**32)

    @field_validator("generator")
    @classmethod
    def _generator_that_can_be(cls, value: GeneratorConfig) -> GeneratorConfig:
        side = value.resolution
        if side < _LEAST_SIDE_PX or side & (side - 1):
            raise ValueError(f"resolution: expected a power of two from {_LEAST_SIDE_PX} on, found {side}")
        if min(value.style_dim, value.channel_max, value.channels(side)) < 1:
            raise ValueError("style_dim, channel_base and channel_max: too small for one channel")
        if value.mapping_layers:
            raise ValueError("mapping_layers: expected 0, the prior is fitted to the codes")
        return value

    @model_validator(mode="after")
    def _networks_that_fit(self) -> Self:
        g, e = self.generator, self.encoder
        if e.resolution != g.resolution:
            raise ValueError(f"encoder input of {e.resolution} px, the generator renders {g.resolution} px")
        if (e.num_rows, e.style_dim) != (g.num_rows, g.style_dim):
            raise ValueError(
                "the encoder's latents do not fit the generator: expected"
                f" num_rows {g.num_rows} and style_dim {g.style_dim}, found {e.num_rows} and {e.style_dim}"
            )
        most = g.resolution.bit_length()  # each but the first halves the picture, down to one pixel
        for name, channels in (("encoder", e.channels), ("adversary", self.adversary.channels)):
            if len(channels) > most:
                raise ValueError(f"{name}.channels: expected at most {most} numbers, found {len(channels)}")
        return self


class AutoencoderTraining:
    """State of one training; `step()` advances it, `state()` / `restore()` make it resumable to the step.

    Args:
        images: uint8 [N, H, W, 3] aligned faces.
        features: A frozen network whose feature maps serve as perceptual distance (our own labeller, never
            a judge).
        config: What to train.
        identity: A frozen network that tells people apart, never a judge; None: no such loss.
        weights: [N] how often each picture is drawn, in proportion; None: all alike.
        inside: bool [N, H, W], False where a crop reaches outside its photograph and was filled up: these
            pixels teach nothing, and the adversary does not see such pictures. None: all are whole.
        device: Where it computes; the result repeats per kind of device only.

    Raises:
        ContractError: Fewer than 500 images, or weights that do not fit them.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        features: AttributeNetwork,
        config: AutoencoderConfig,
        *,
        identity: Identity | None = None,
        weights: npt.NDArray[np.floating[Any]] | None = None,
        inside: npt.NDArray[np.bool_] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if len(images) < LEAST_IMAGES:
            raise ContractError(
                "images to pretrain on", expected=f"at least {LEAST_IMAGES}", found=len(images)
            )
        if weights is not None and (
            weights.shape != (len(images),) or not np.isfinite(weights).all() or weights.min() < 0
        ):
            raise ContractError(
                "weights of the images", expected=f"{len(images)} finite numbers >= 0", found=weights.shape
            )
        if inside is not None and inside.shape != images.shape[:3]:
            raise ContractError(
                "what lies inside the photographs", expected=list(images.shape[:3]), found=list(inside.shape)
            )
        self.config, self.device = config, torch.device(device)
        # On a GPU the whole set lies there: 20,000 pictures of 128 px are one gigabyte.
        self.images = torch.from_numpy(images).to(self.device)
        self.inside = None if inside is None else torch.from_numpy(inside).to(self.device)
        self.weights = None if weights is None else torch.from_numpy(weights.astype(np.float64))
        self.teacher, self.identity = features.to(self.device), identity
        torch.manual_seed(config.seed)
        self.generator = channels_last(Generator(config.generator)).to(self.device)
        self.encoder = channels_last(Encoder(config.encoder)).to(self.device)
        self.adversary = Adversary(
            config.generator.resolution, config.adversary, self.device, config.seed + 2
        )
        self.adversary.network.requires_grad_(False)
        self.ema_generator = copy.deepcopy(self.generator).requires_grad_(False)
        self.ema_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        parts = (("generator", config.lr_generator), ("encoder", config.lr_encoder))
        self.optimiser = torch.optim.Adam(
            [{"params": list(getattr(self, n).parameters()), "lr": rate, "base": rate} for n, rate in parts],
            betas=(0.5, 0.99),
        )
        self.rng = torch.Generator().manual_seed(config.seed + 1)
        self.done = 0
        self.prior: Prior | None = None

    def _float(self, index: Tensor) -> Tensor:
        x = self.images[index.to(self.device)].permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return x.contiguous(memory_format=torch.channels_last)

    def _batch(self) -> tuple[Tensor, Tensor | None]:
        """Pictures [B, 3, H, W], and [B, 1, H, W] which of their pixels are photographed; None: all."""
        count = self.config.batch
        if self.weights is None:
            index = torch.randint(len(self.images), (count,), generator=self.rng)
        else:
            index = torch.multinomial(self.weights, count, replacement=True, generator=self.rng)
        x = self._float(index)
        flip = (torch.rand(len(x), generator=self.rng) < 0.5).to(self.device)
        x = torch.where(flip[:, None, None, None], x.flip(3), x)
        inside = None
        if self.inside is not None:
            inside = self.inside[index.to(self.device)][:, None]
            inside = torch.where(flip[:, None, None, None], inside.flip(3), inside)
        return x.contiguous(memory_format=torch.channels_last), inside

    def _rate(self) -> float:
        c = self.config
        warm = min(1.0, (self.done + 1) / 200)
        tail = min(1.0, (c.steps - self.done) / (c.fall * c.steps)) if c.fall > 0 else 1.0
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * warm * max(tail, 0.02)
        return max(tail, 0.02)

    def _reconstruction(self, x: Tensor, y: Tensor, out: dict[str, float]) -> Tensor:
        """Pixels, pyramid, features, identity; `y` float32."""
        c = self.config
        pixel = F.l1_loss(y, x)
        loss = c.weight_pixel * pixel
        for k in (2, 4, 8):
            loss = loss + c.weight_pyramid * F.l1_loss(F.avg_pool2d(y, k), F.avg_pool2d(x, k))
        with torch.no_grad():
            wanted = self.teacher.features(x)
        features = torch.zeros((), device=self.device)
        for a, b in zip(self.teacher.features(y), wanted, strict=True):
            scale = b.float().abs().mean().clamp_min(1e-3)
            features = features + (a.float() - b.float()).abs().mean() / scale / len(wanted)
        loss = loss + c.weight_features * features
        out |= {"pixel": float(pixel.detach()), "features": float(features.detach())}
        if self.identity is not None and c.weight_identity and self.done >= c.identity_from:
            count = max(1, round(c.identity_share * len(x)))
            with torch.no_grad():
                person = self.identity.features(x[:count]).float()
            angle = 1 - F.cosine_similarity(self.identity.features(y[:count]).float(), person).mean()
            loss = loss + c.weight_identity * angle
            out["identity"] = float(angle.detach())
        return loss

    def _fooling(self, x: Tensor, y: Tensor, sampled: Tensor, out: dict[str, float]) -> Tensor:
        """What the adversary says of reconstructions and samples, and how its maps of x and y differ."""
        c = self.config
        with torch.no_grad():
            _, wanted = self.adversary.maps(x)
        logits, got = self.adversary.maps(y)
        matching = sum(
            (
                (a.float() - b.float()).abs().mean() / b.float().abs().mean().clamp_min(1e-3)
                for a, b in zip(got, wanted, strict=True)
            ),
            torch.zeros((), device=self.device),
        ) / len(got)
        if self.adversary.probability > 0:  # what it learned from was augmented, so is what it is asked
            logits, _ = self.adversary.looks(y)
        other, _ = self.adversary.looks(sampled)
        fool = F.softplus(-logits).mean() + F.softplus(-other).mean()
        out |= {"matching": float(matching.detach()), "fool": float(fool.detach())}
        return c.weight_matching * matching + c.weight_adversarial * fool

    def step(self) -> dict[str, float]:
        """One optimiser step.

        Returns:
            Losses by name.

        Raises:
            ContractError: A loss is not finite; the last saved state is still good.
        """
        c = self.config
        adversarial = self.done >= c.adversarial_from
        rate = self._rate()
        if adversarial and (self.prior is None or self.done % 200 == 0):
            self.fit_prior(2000)
        x, inside = self._batch()
        out: dict[str, float] = {}
        sampled: Tensor | None = None
        whole = torch.arange(len(x)) if inside is None else inside.flatten(1).all(1).nonzero()[:, 0].cpu()
        adversarial = adversarial and len(whole) > 0
        with torch.autocast(self.device.type, torch.bfloat16):
            w = self.encoder.encode(x)
            y = self.generator.synthesize(w, noise="random").float()
            # what was filled up is taken from the picture itself: no error, no gradient
            seen = y if inside is None else torch.where(inside, y, x)
            loss = self._reconstruction(x, seen, out)
            w_size = (w.float() - w.float().mean(0, keepdim=True)).square().mean()
            loss = loss + c.weight_w * w_size
            if adversarial:
                assert self.prior is not None
                codes = self.prior.sample(c.batch // 2, self.rng, truncation=c.prior_truncation)
                sampled = self.generator.synthesize(codes.to(self.device), noise="random").float()
                loss = loss + self._fooling(x[whole], y[whole], sampled, out)
        if not bool(torch.isfinite(loss)):
            raise ContractError(
                "pretraining diverged",
                found="a loss that is not finite",
                where=f"step {self.done}",
                todo="lower the learning rates; the last saved state is good",
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimiser.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 2.0)
        self.optimiser.step()
        error = F.mse_loss(y.detach(), x)
        out |= {"loss": float(loss.detach()), "mse": float(error), "w": float(w_size.detach())}
        if sampled is not None and self.done % c.adversary.every == 0:
            fake = torch.cat([y.detach()[whole], sampled.detach()]).contiguous(
                memory_format=torch.channels_last
            )
            out |= self.adversary.learn(x[whole], fake, rate)
        self._average()
        self.done += 1
        return out

    def _average(self) -> None:
        # a shorter memory at the start, or the average would keep the initialisation for long
        half_life = min(self.config.ema_half_life, max(1.0, self.done / 10))
        keep = 0.5 ** (1.0 / half_life)
        for ema, live in ((self.ema_generator, self.generator), (self.ema_encoder, self.encoder)):
            for a, b in zip(ema.parameters(), live.parameters(), strict=True):
                a.lerp_(b.detach(), 1 - keep)

    @torch.no_grad()
    def codes(self, index: npt.NDArray[np.int64], *, ema: bool = True) -> Tensor:
        """Codes of training images, [n, L, D] float32, on the CPU."""
        net = self.ema_encoder if ema else self.encoder
        parts: list[Tensor] = []
        for i in range(0, len(index), 250):
            x = self._float(torch.from_numpy(index[i : i + 250]))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=not ema):
                parts.append(net.encode(x).float().cpu())
        return torch.cat(parts)

    def fit_prior(self, count: int, *, ema: bool = False, factors: int = 256) -> Prior:
        """Fit the prior to the codes of `count` random training images."""
        index = torch.randperm(len(self.images), generator=self.rng)[:count].numpy()
        self.prior = Prior.fit(self.codes(index, ema=ema), min(factors, count - 1))
        return self.prior

    def _networks(self) -> dict[str, Any]:
        names = ("generator", "encoder", "ema_generator", "ema_encoder", "optimiser")
        return {name: getattr(self, name) for name in names}

    def state(self) -> bytes:
        """Everything needed to go on."""
        buffer = io.BytesIO()
        states = {name: network.state_dict() for name, network in self._networks().items()}
        torch.save(
            {
                **states,
                "done": self.done,
                "rng": self.rng.get_state(),
                "torch_rng": torch.get_rng_state(),
                "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
                "adversary": self.adversary.state(),
                "prior": None if self.prior is None else self.prior.state_dict(),
            },
            buffer,
        )
        return buffer.getvalue()

    def restore(self, data: bytes) -> None:
        """Go on from `state()`; one of another kind of device will do."""
        saved: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        for name, network in self._networks().items():
            network.load_state_dict(saved[name])
        self.adversary.restore(saved["adversary"])
        self.rng.set_state(saved["rng"])
        torch.set_rng_state(saved["torch_rng"])
        if self.device.type == "cuda" and saved["device_rng"] is not None:
            torch.cuda.set_rng_state(saved["device_rng"], self.device)
        self.done = int(saved["done"])
        if saved["prior"] is not None:
            factors = saved["prior"]["factors"].shape[0]
            g = self.config.generator
            self.prior = Prior(Prior.Config(num_rows=g.num_rows, style_dim=g.style_dim, factors=factors))
            self.prior.load_state_dict(saved["prior"])
