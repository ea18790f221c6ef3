"""One hero picture: a copy of the generator is tuned around a fixed code until it draws that picture.

The code stays where edits work; what it cannot show goes into the weights of a copy, in a neighbourhood that
is kept small: codes on the way from the pivot to others must be drawn as before.

Source: Roich et al., "Pivotal Tuning for Latent-based Editing of Real Images", arXiv 2106.05744.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from sdflow_core.faces.inversion import distortion, spread_of
from sdflow_core.faces.qualities import RefineConfig
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

__all__ = ["TuneConfig", "Tuned", "tune"]


class TuneConfig(Config):
    """How a copy of a generator is tuned; all of it changes results.

    Attributes:
        steps: Of Adam on the weights.
        rate: Length of the first steps; it falls to 0 along a half cosine.
        locality: Weight of what codes around the pivot change by.
        anchors: Codes around the pivot that are looked at in each step.
        reach: How far they are from the pivot, in its own spread (see `inversion.spread_of`).
        levels: Sizes at which pictures are compared.
        absolute: Weight of the mean absolute difference beside the mean squared one.
        seed: Of the directions.
    """

    steps: PositiveInt = 60
    rate: PositiveFloat = 0.0003
    locality: NonNegativeFloat = 0.5
    anchors: PositiveInt = 2
    reach: PositiveFloat = 1.0
    levels: PositiveInt = 4
    absolute: NonNegativeFloat = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Tuned:
    """A copy that draws one picture.

    Attributes:
        generator: The copy, in evaluation mode and without gradients; of this one code's edits and no others.
        psnr_before: dB of the pivot's picture by the given generator, clamped to [-1, 1].
        psnr_after: dB by the copy.
        drift_near: Mean absolute change of pictures of codes at `reach` from the pivot that were not
            looked at while tuning, range [-1, 1].
        drift_mean: Same of the mean code's picture: everybody else.
        step: Step that gave the copy; 0: none was better than the given generator.
        reason: "" or why the given weights were kept.
    """

    generator: Any
    psnr_before: float
    psnr_after: float
    drift_near: float
    drift_mean: float
    step: int
    reason: str

    def metrics(self) -> dict[str, float | int | str]:
        """As plain values."""
        return {name: value for name, value in vars(self).items() if name != "generator"}


def tune(
    generator: Any, image: Tensor, w_pivot: Tensor, config: TuneConfig, *, centre: Tensor | None = None
) -> Tuned:
    """Tune a copy of a generator so that a code draws a picture. The given generator is never changed.

    Args:
        generator: `faces.generator.Generator`.
        image: [3, H, W] RGB in [-1, 1].
        w_pivot: [L, D], best a refined code.
        config: How.
        centre: [L, D] mean code; None: the generator's `mean_w`. See `inversion.refine`.

    Raises:
        ContractError: Picture, code and generator do not fit, or are not finite.
    """
    middle: Tensor = (generator.mean_w if centre is None else centre).detach().to(generator.mean_w.device)
    target = image.detach().to(middle.device).float()[None]
    pivot = w_pivot.detach().to(middle.device).float()[None]
    with torch.no_grad():
        first: Tensor = generator.synthesize(pivot).float()
    if first.shape != target.shape:
        raise ContractError(
            "the picture to tune for", expected=list(first.shape[1:]), found=list(image.shape)
        )
    if not all(bool(torch.isfinite(part).all()) for part in (first, target)):
        raise ContractError("picture and code to tune for", expected="finite numbers")

    compared = RefineConfig(levels=config.levels, absolute=config.absolute)
    spread = spread_of(pivot, middle)
    rng = torch.Generator().manual_seed(config.seed)
    copied = copy.deepcopy(generator).eval().requires_grad_(True)
    weights = [value for value in copied.parameters() if value.requires_grad]
    optimiser = torch.optim.Adam(weights, lr=config.rate, betas=(0.9, 0.99))
    kept, best, best_step, reason = _weights(copied), math.inf, 0, ""
    for number in range(config.steps + 1):
        near = _around(pivot, spread, config, rng)
        with torch.no_grad():
            wanted = generator.synthesize(near).float()
        with torch.enable_grad():
            drawn = copied.synthesize(torch.cat([pivot, near])).float()
            away = distortion(drawn[:1], target, compared).sum()
            change = (drawn[1:] - wanted).square().mean()
            loss = away + config.locality * change
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        value = float(away.detach())  # the anchors are others each time: not to be compared
        if not math.isfinite(float(loss.detach())):
            reason = "the tuning gave numbers that are not finite: the best weights before them were kept"
            break
        if value < best:
            kept, best, best_step = _weights(copied), value, number
        if number == config.steps:
            break
        optimiser.param_groups[0]["lr"] = config.rate * 0.5 * (1 + math.cos(math.pi * number / config.steps))
        optimiser.step()
    copied.load_state_dict(kept)
    copied.requires_grad_(False)
    unseen = _around(pivot, spread, config, torch.Generator().manual_seed(config.seed + 1))
    with torch.no_grad():
        return Tuned(
            generator=copied,
            psnr_before=_psnr(first, target),
            psnr_after=_psnr(copied.synthesize(pivot).float(), target),
            drift_near=_drift(generator, copied, unseen),
            drift_mean=_drift(generator, copied, middle[None].float()),
            step=best_step,
            reason=reason,
        )


def _around(pivot: Tensor, spread: Tensor, config: TuneConfig, rng: torch.Generator) -> Tensor:
    """Codes [anchors, L, D] at `reach` from the pivot, in directions drawn anew."""
    drawn = torch.randn(config.anchors, *pivot.shape[1:], generator=rng).to(pivot)
    length = drawn.square().mean((1, 2), keepdim=True).sqrt()
    return pivot + config.reach * spread * drawn / length


def _weights(network: Any) -> Mapping[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _psnr(images: Tensor, target: Tensor) -> float:
    error = (images.clamp(-1.0, 1.0) - target).square().mean().clamp_min(1e-12)
    return float(10.0 * torch.log10(4.0 / error))


def _drift(generator: Any, copied: Any, codes: Tensor) -> float:
    change = copied.synthesize(codes).clamp(-1.0, 1.0) - generator.synthesize(codes).clamp(-1.0, 1.0)
    return float(change.abs().mean())
