"""Generator and encoder learned together: reconstruction first, then with an adversary.

The adversary also sees samples of the prior. The prior of a compact model is a Gaussian fitted to the
encoder's codes. Its samples lie between the codes that reconstruction visits; showing them to the
discriminator teaches the generator to render them as faces too.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.faces.encoder import Encoder, EncoderConfig
from sdflow_core.faces.generator import Generator, GeneratorConfig
from sdflow_core.faces.labeller import AttributeNetwork
from sdflow_core.faces.pretraining.discriminator import Discriminator
from sdflow_core.faces.prior import Prior
from sdflow_core.records.errors import ContractError

Progress = Callable[[int, int, dict[str, float]], None]
N = TypeVar("N", bound=nn.Module)


def channels_last(network: N) -> N:
    """The network itself, its weights laid out for fast convolutions on CPU."""
    # torch documents this form of `to`, its overloads do not have it
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class AutoencoderConfig(NetworkConfig):
    """Everything that changes the result of the training."""

    generator: GeneratorConfig = GeneratorConfig(
        resolution=64, style_dim=128, channel_base=3072, channel_max=192, mapping_layers=0
    )
    encoder: EncoderConfig = EncoderConfig()
    steps: int = 6000
    adversarial_from: int = 3000
    batch: int = 16
    lr_generator: float = 3e-3
    lr_encoder: float = 1e-3
    lr_discriminator: float = 1e-3
    weight_pixel: float = 4.0
    weight_pyramid: float = 2.0
    weight_features: float = 1.0
    weight_matching: float = 1.0
    weight_adversarial: float = 0.3
    weight_w: float = 5e-4
    r1: float = 4.0
    r1_every: int = 16
    discriminator_every: int = 2
    prior_truncation: float = 0.9
    ema_half_life: int = 600
    seed: int = 0


class AutoencoderTraining:
    """State of one training; `step()` advances it, `state()` / `restore()` make it resumable.

    Args:
        images: uint8 [N, H, W, 3] aligned faces.
        features: A frozen network whose feature maps serve as perceptual distance (our own labeller, never
            a judge).
        config: What to train.
    """

    def __init__(
        self, images: npt.NDArray[np.uint8], features: AttributeNetwork, config: AutoencoderConfig
    ) -> None:
        if len(images) < 500:
            raise ContractError("images to pretrain on", expected="at least 500", found=len(images))
        self.config, self.images, self.teacher = config, images, features
        torch.manual_seed(config.seed)
        self.generator = channels_last(Generator(config.generator))
        self.encoder = channels_last(Encoder(config.encoder))
        self.discriminator = channels_last(Discriminator(config.generator.resolution))
        self.ema_generator = copy.deepcopy(self.generator).requires_grad_(False)
        self.ema_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.optimiser = torch.optim.Adam(
            [
                {
                    "params": list(self.generator.parameters()),
                    "lr": config.lr_generator,
                    "base": config.lr_generator,
                },
                {
                    "params": list(self.encoder.parameters()),
                    "lr": config.lr_encoder,
                    "base": config.lr_encoder,
                },
            ],
            betas=(0.5, 0.99),
        )
        self.optimiser_d = torch.optim.Adam(
            self.discriminator.parameters(), lr=config.lr_discriminator, betas=(0.0, 0.99)
        )
        self.rng = torch.Generator().manual_seed(config.seed + 1)
        self.done = 0
        self.prior: Prior | None = None

    def _batch(self) -> Tensor:
        index = torch.randint(len(self.images), (self.config.batch,), generator=self.rng).numpy()
        x = torch.from_numpy(self.images[index]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        flip = torch.rand(len(x), generator=self.rng) < 0.5
        x = torch.where(flip[:, None, None, None], x.flip(3), x)
        return x.contiguous(memory_format=torch.channels_last)

    def _rates(self) -> None:
        c = self.config
        warm = min(1.0, (self.done + 1) / 200)
        tail = min(1.0, (c.steps - self.done) / (0.3 * c.steps))  # falls over the last 30 %
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * warm * max(tail, 0.02)
        for group in self.optimiser_d.param_groups:
            group["lr"] = c.lr_discriminator * max(tail, 0.02)

    def _reconstruction(self, x: Tensor, y: Tensor) -> Tensor:
        c = self.config
        loss = c.weight_pixel * F.l1_loss(y, x)
        for k in (2, 4, 8):
            loss = loss + c.weight_pyramid * F.l1_loss(F.avg_pool2d(y, k), F.avg_pool2d(x, k))
        with torch.no_grad():
            wanted = self.teacher.features(x)
        for a, b in zip(self.teacher.features(y), wanted, strict=True):
            scale = b.float().abs().mean().clamp_min(1e-3)
            loss = loss + c.weight_features * (a.float() - b.float()).abs().mean() / scale / len(wanted)
        return loss

    def _discriminate(self, real: Tensor, fake: Tensor) -> tuple[Tensor, float]:
        c = self.config
        penalised = (self.done // c.discriminator_every) % c.r1_every == 0
        if penalised:
            real = real.detach().requires_grad_(True)
            scores, _ = self.discriminator(real)  # fp32: the penalty's double backward wants it
            (gradient,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
            penalty = gradient.square().sum(dim=(1, 2, 3)).mean()
            loss_real = F.softplus(-scores).mean() + 0.5 * c.r1 * penalty * c.r1_every / 16
        else:
            with torch.autocast("cpu", torch.bfloat16):
                scores, _ = self.discriminator(real)
            loss_real = F.softplus(-scores.float()).mean()
        with torch.autocast("cpu", torch.bfloat16):
            fakes, _ = self.discriminator(fake)
        return loss_real + F.softplus(fakes.float()).mean(), float(scores.detach().float().mean())

    def step(self) -> dict[str, float]:
        """One optimiser step.

        Returns:
            Losses by name.

        Raises:
            ContractError: A loss is not finite; the last saved state is still good.
        """
        c = self.config
        adversarial = self.done >= c.adversarial_from
        self._rates()
        if adversarial and (self.prior is None or self.done % 200 == 0):
            self.fit_prior(2000)
        x = self._batch()
        out: dict[str, float] = {}
        sampled: Tensor | None = None
        self.discriminator.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            w = self.encoder.encode(x)
            y = self.generator.synthesize(w, noise="random")
            loss = self._reconstruction(x, y.float())
            w_size = (w.float() - w.float().mean(0, keepdim=True)).square().mean()
            loss = loss + c.weight_w * w_size
            if adversarial:
                assert self.prior is not None
                codes = self.prior.sample(c.batch // 2, self.rng, truncation=c.prior_truncation)
                sampled = self.generator.synthesize(codes, noise="random")
                _, wanted = self.discriminator(x)
                logits, got = self.discriminator(torch.cat([y, sampled.to(y.dtype)]))
                n = len(x)
                matching = sum(
                    (
                        (a[:n].float() - b.float()).abs().mean() / b.float().abs().mean().clamp_min(1e-3)
                        for a, b in zip(got, wanted, strict=True)
                    ),
                    torch.zeros(()),
                ) / len(got)
                logits = logits.float()
                fool = F.softplus(-logits[:n]).mean() + F.softplus(-logits[n:]).mean()
                loss = loss + c.weight_matching * matching + c.weight_adversarial * fool
                out |= {"matching": float(matching.detach()), "fool": float(fool.detach())}
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
        out |= {
            "loss": float(loss.detach()),
            "mse": float(F.mse_loss(y.detach().float(), x)),
            "w": float(w_size.detach()),
        }
        if sampled is not None and self.done % c.discriminator_every == 0:
            self.discriminator.requires_grad_(True)
            fake = torch.cat([y.detach().float(), sampled.detach().float()])
            loss_d, real_score = self._discriminate(x, fake.contiguous(memory_format=torch.channels_last))
            self.optimiser_d.zero_grad(set_to_none=True)
            loss_d.backward()
            torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), 5.0)
            self.optimiser_d.step()
            out |= {"d": float(loss_d.detach()), "real": real_score}
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
        """Codes of training images, [n, L, D] float32."""
        net = self.ema_encoder if ema else self.encoder
        parts: list[Tensor] = []
        for i in range(0, len(index), 250):
            x = torch.from_numpy(self.images[index[i : i + 250]]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            with torch.autocast("cpu", torch.bfloat16, enabled=not ema):
                parts.append(net.encode(x.contiguous(memory_format=torch.channels_last)).float())
        return torch.cat(parts)

    def fit_prior(self, count: int, *, ema: bool = False, factors: int = 256) -> Prior:
        """Fit the prior to the codes of `count` random training images."""
        index = torch.randperm(len(self.images), generator=self.rng)[:count].numpy()
        self.prior = Prior.fit(self.codes(index, ema=ema), min(factors, count - 1))
        return self.prior

    def state(self) -> bytes:
        """Everything needed to go on."""
        buffer = io.BytesIO()
        torch.save(
            {
                "done": self.done,
                "rng": self.rng.get_state(),
                "torch_rng": torch.get_rng_state(),
                "generator": self.generator.state_dict(),
                "encoder": self.encoder.state_dict(),
                "discriminator": self.discriminator.state_dict(),
                "ema_generator": self.ema_generator.state_dict(),
                "ema_encoder": self.ema_encoder.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "optimiser_d": self.optimiser_d.state_dict(),
                "prior": None if self.prior is None else self.prior.state_dict(),
            },
            buffer,
        )
        return buffer.getvalue()

    def restore(self, data: bytes) -> None:
        """Go on from `state()`."""
        saved: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
        for name in (
            "generator",
            "encoder",
            "discriminator",
            "ema_generator",
            "ema_encoder",
            "optimiser",
            "optimiser_d",
        ):
            getattr(self, name).load_state_dict(saved[name])
        self.rng.set_state(saved["rng"])
        torch.set_rng_state(saved["torch_rng"])
        self.done = int(saved["done"])
        if saved["prior"] is not None:
            factors = saved["prior"]["factors"].shape[0]
            g = self.config.generator
            self.prior = Prior(Prior.Config(num_rows=g.num_rows, style_dim=g.style_dim, factors=factors))
            self.prior.load_state_dict(saved["prior"])
