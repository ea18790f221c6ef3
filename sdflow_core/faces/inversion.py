"""Better codes than an encoder's first answer: w+ refined by optimisation.

Adam moves each code of a batch so that the rendered picture comes nearer to the photograph, in several
sizes at once, while a pull holds it near the encoder's code: a code far from where encoders put codes renders
well and edits badly.

Sources: Abdal et al., "Image2StyleGAN", arXiv 1904.03189 (optimisation of w+); Tov et al., "Designing an
Encoder for StyleGAN Image Manipulation", arXiv 2102.02766 (what a code gains in distortion it loses in
editability); Kingma and Ba, "Adam", arXiv 1412.6980.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdflow_core.faces.qualities import RefineConfig
from sdflow_core.records.errors import ContractError

__all__ = ["Refined", "distortion", "refine", "spread_of"]

NOT_FINITE = "the refinement gave numbers that are not finite: the encoder's code was kept"
_LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class Refined:
    """Refined codes; rows in the order of the input, on the CPU.

    Attributes:
        w_plus: [N, L, D] float32.
        psnr_before: [N] dB of the encoder's code's picture, clamped to [-1, 1], against the photograph.
        psnr_after: [N] dB of the refined code's.
        moved: [N] root mean square distance from the encoder's code, in its own spread; 0: it was kept.
        step: [N] int64, the step that gave the code; 0: none was better than the encoder's.
        reasons: [N] "" or why the encoder's code was kept.
    """

    w_plus: Tensor
    psnr_before: Tensor
    psnr_after: Tensor
    moved: Tensor
    step: Tensor
    reasons: tuple[str, ...]


def spread_of(w_plus: Tensor, centre: Tensor) -> Tensor:
    """Root mean square distance [B, 1, 1] of codes [B, L, D] from the mean code: the unit of all steps.

    Generators differ a hundredfold in the length of their codes; relative to this one number rates and
    weights serve them all.
    """
    return (w_plus - centre).square().mean((1, 2), keepdim=True).sqrt().clamp_min(_LEAST_SPREAD)


def distortion(images: Tensor, target: Tensor, config: RefineConfig) -> Tensor:
    """How far pictures [B, 3, H, W] are from others, a number a row [B]: mean of all sizes."""
    total = images.new_zeros(len(images))
    difference = images - target
    levels = 0
    for _ in range(config.levels):
        flat = difference.flatten(1)
        total = total + flat.square().mean(1) + config.absolute * flat.abs().mean(1)
        levels += 1
        if min(difference.shape[2:]) < 2:
            break
        difference = F.avg_pool2d(difference, 2)
    return total / levels


def refine(
    generator: Any,
    images: Tensor,
    w_plus: Tensor,
    config: RefineConfig,
    *,
    centre: Tensor | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
) -> Refined:
    """Move codes so that they render nearer to their photographs.

    A row's result hangs on nothing but its picture and its code: micro-batches have one size, the last one is
    filled up by its last row, losses are summed and not averaged, and of each row the best code is kept. The
    loss of the result is never above that of the encoder's code. Rows whose loss or gradient stops being
    finite keep the encoder's code and say so.

    Args:
        generator: `faces.generator.Generator`, or anything with its `synthesize` and `mean_w`.
        images: [N, 3, H, W] RGB in [-1, 1], of the generator's size.
        w_plus: [N, L, D], of the encoder.
        config: How.
        centre: [L, D] mean code, from which spreads are counted; None: the generator's `mean_w`. Where a
            generator has none (all zero) a prior's mean belongs here, else the first steps are far too long.
        features: Network of images [B, 3, H, W] -> [B, F] whose direction shall stay that of the photograph
            (an identity network of torch); None: none.

    Raises:
        ContractError: Pictures and codes do not fit each other or the generator.
    """
    if len(images) != len(w_plus) or not len(images):
        raise ContractError(
            "pictures and codes to refine", expected=f"{len(w_plus)} of each, at least 1", found=len(images)
        )
    middle: Tensor = (generator.mean_w if centre is None else centre).to(generator.mean_w.device).float()
    parts: list[_Part] = []
    size = config.micro_batch
    for start in range(0, len(w_plus), size):
        shown, codes = images[start : start + size], w_plus[start : start + size]
        count = len(codes)
        if count < size:
            shown = torch.cat([shown, shown[-1:].expand(size - count, -1, -1, -1)])
            codes = torch.cat([codes, codes[-1:].expand(size - count, -1, -1)])
        part = _refine_part(generator, middle, shown, codes, config, features)
        parts.append(_Part(*(value[:count].cpu() for value in vars(part).values())))
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    kept = joined.pop("finite").tolist()
    return Refined(**joined, reasons=tuple("" if ok else NOT_FINITE for ok in kept))


@dataclass(frozen=True)
class _Part:
    w_plus: Tensor
    psnr_before: Tensor
    psnr_after: Tensor
    moved: Tensor
    step: Tensor
    finite: Tensor


def _refine_part(
    generator: Any,
    centre: Tensor,
    images: Tensor,
    given: Tensor,
    config: RefineConfig,
    features: Callable[[Tensor], Tensor] | None,
) -> _Part:
    target, given = images.to(centre.device).float(), given.to(centre.device).float()
    alive = torch.isfinite(given).flatten(1).all(1) & torch.isfinite(target).flatten(1).all(1)
    code = torch.where(alive[:, None, None], given, centre)
    target = torch.where(alive[:, None, None, None], target, 0.0)
    spread = spread_of(code, centre)
    with torch.no_grad():
        wanted = None if features is None else F.normalize(features(target).flatten(1), dim=1)

    delta = torch.zeros_like(code, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=config.rate, betas=(0.9, 0.99))
    best_loss = torch.full((len(code),), math.inf, device=code.device)
    best = torch.zeros_like(code)
    best_step = torch.zeros(len(code), dtype=torch.int64, device=code.device)
    before = after = torch.full_like(best_loss, math.nan)
    for number in range(config.steps + 1):
        with torch.enable_grad():
            drawn = generator.synthesize(code + spread * delta).float()
            if drawn.shape != target.shape:
                raise ContractError(
                    "pictures to refine", expected=list(drawn.shape), found=list(target.shape)
                )
            loss = distortion(drawn, target, config) + config.pull * delta.square().mean((1, 2))
            if features is not None and wanted is not None:
                seen = F.normalize(features(drawn).flatten(1), dim=1)
                loss = loss + config.feature * (1.0 - (seen * wanted).sum(1))
            (gradient,) = torch.autograd.grad(loss.sum(), delta)
        with torch.no_grad():
            loss = loss.detach()
            alive = alive & torch.isfinite(loss) & torch.isfinite(gradient).flatten(1).all(1)
            psnr = _psnr(drawn.detach(), target)
            before = psnr if number == 0 else before
            better = alive & (loss < best_loss)
            best_loss = torch.where(better, loss, best_loss)
            best_step = torch.where(better, number, best_step)
            best = torch.where(better[:, None, None], delta, best)
            after = torch.where(better, psnr, after)
            if number == config.steps:
                break
            delta.grad = torch.where(alive[:, None, None], gradient, 0.0)
            optimiser.param_groups[0]["lr"] = (
                config.rate * 0.5 * (1 + math.cos(math.pi * number / config.steps))
            )
            optimiser.step()
            # what went astray would only go further; it is drawn as what it was
            delta.copy_(torch.where(alive[:, None, None], delta, 0.0))
    moving = alive[:, None, None] & (best_step > 0)[:, None, None]
    return _Part(
        w_plus=torch.where(moving, code + spread * best, given),
        psnr_before=before,
        psnr_after=torch.where(alive, after, before),
        moved=torch.where(alive, best.square().mean((1, 2)).sqrt(), 0.0),
        step=torch.where(alive, best_step, 0),
        finite=alive,
    )


def _psnr(images: Tensor, target: Tensor) -> Tensor:
    """dB [B] of pictures as a file would hold them."""
    error = (images.clamp(-1.0, 1.0) - target).square().flatten(1).mean(1)
    return 10.0 * torch.log10(4.0 / error.clamp_min(1e-12))
