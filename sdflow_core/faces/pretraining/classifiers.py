"""Training labeller and judge: binary cross-entropy against soft labels, on people the other never sees.

A missing label (NaN) teaches nothing. Rare attributes are drawn more often; calibration undoes the shift.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sdflow_core.faces.labeller import AttributeNetwork
from sdflow_core.records.errors import ContractError

Progress = Callable[[int, int, dict[str, float]], None]


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Flip, shift by up to 2 px, brightness, contrast and blur: [B, 3, H, W] -> the same shape."""
    b = images.shape[0]
    flip = torch.rand(b, generator=rng) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    dy, dx = (int(v) for v in torch.randint(-2, 3, (2,), generator=rng))
    images = F.pad(images, (2, 2, 2, 2), mode="reflect")[
        :, :, 2 + dy : 2 + dy + images.shape[2], 2 + dx : 2 + dx + images.shape[3]
    ]
    gain = 1.0 + 0.4 * (torch.rand(b, 1, 1, 1, generator=rng) - 0.5)
    shift = 0.4 * (torch.rand(b, 1, 1, 1, generator=rng) - 0.5)
    images = images * gain + shift
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)
    mix = torch.rand(b, 1, 1, 1, generator=rng) * (torch.rand(b, 1, 1, 1, generator=rng) < 0.4)
    return (images + mix * (soft - images)).clamp(-1, 1)


def masked_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy over the labels there are: logits and target [B, A], target NaN: no label.

    Without any label the loss is 0, with a gradient of 0.
    """
    known = ~torch.isnan(target)
    each = F.binary_cross_entropy_with_logits(logits, torch.where(known, target, 0.5), reduction="none")
    return torch.where(known, each, 0.0).sum() / known.sum().clamp_min(1)


def draw_weights(
    scores: npt.NDArray[np.float32], aim: float = 0.1, cap: float = 4.0
) -> npt.NDArray[np.float64]:
    """How often to draw each row: rows that hold the rarer class of an attribute more often.

    Args:
        scores: [N, A] in [0, 1], NaN where there is no label.
        aim: Share of its labels that the rarer class should have.
        cap: Largest weight, in units of a row without anything rare.

    Returns:
        [N]; 1 for an ordinary row, 0 for one without any label.
    """
    weights = np.ones(len(scores))
    for column in scores.T:
        known = ~np.isnan(column)
        positive = known & (column > 0.5)
        rare = positive if 2 * positive.sum() <= known.sum() else known & ~positive
        if rare.any():
            weights[rare] = np.maximum(weights[rare], min(cap, aim * known.sum() / rare.sum()))
    return np.where((~np.isnan(scores)).any(1), weights, 0.0)


def train_classifier(
    network: AttributeNetwork,
    images: npt.NDArray[np.uint8],
    scores: npt.NDArray[np.float32],
    *,
    steps: int,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    reconstructions: npt.NDArray[np.uint8] | None = None,
    progress: Progress | None = None,
) -> None:
    """Train in place.

    Args:
        network: Labeller or judge.
        images: uint8 [N, H, W, 3].
        scores: [N, A] in [0, 1]; NaN where there is no label. Rows without any are never drawn.
        steps: Optimiser steps; the learning rate warms up over 5 % and falls to zero by a cosine.
        batch: Rows a step.
        lr: Peak learning rate (AdamW).
        seed: Of sampling and augmentation.
        reconstructions: The same rows as the generator renders them: every second step reads these, so that
            the network is at home in both worlds.
        progress: Called as (step, steps, losses).

    Raises:
        ContractError: The loss is not finite, or there are fewer rows than a batch.
    """
    labelled = int((~np.isnan(scores)).any(1).sum())
    if labelled < batch:
        raise ContractError("labelled rows to train a classifier on", expected=f">= {batch}", found=labelled)
    rng = torch.Generator().manual_seed(seed)
    target = torch.from_numpy(scores)
    weights = torch.from_numpy(draw_weights(scores))
    count = len(network.attributes)
    network.calibrate(torch.ones(count), torch.zeros(count))
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.02)
    network.requires_grad_(True).train()
    for step in range(steps):
        rate = min(1.0, (step + 1) / (0.05 * steps)) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = lr * rate
        index = torch.multinomial(weights, batch, replacement=True, generator=rng).numpy()
        source = images if reconstructions is None or step % 2 == 0 else reconstructions
        x = torch.from_numpy(source[index]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        with torch.autocast("cpu", torch.bfloat16, enabled=x.device.type == "cpu"):
            logits = network.logits(augment(x, rng).contiguous(memory_format=torch.channels_last))
        loss = masked_bce(logits.float(), target[index])
        if not bool(torch.isfinite(loss)):
            raise ContractError(
                "classifier training diverged",
                found=f"loss {float(loss)}",
                where=f"step {step}",
                todo="lower lr",
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimiser.step()
        if progress is not None:
            progress(step + 1, steps, {"bce": float(loss.detach())})
    network.eval().requires_grad_(False)


def predict_logits(
    network: AttributeNetwork, images: npt.NDArray[np.uint8], batch: int = 256
) -> npt.NDArray[np.float32]:
    """Calibrated logits of uint8 images: [N, H, W, 3] -> [N, A]."""
    out: list[npt.NDArray[np.float32]] = []
    with torch.no_grad():
        for i in range(0, len(images), batch):
            x = torch.from_numpy(images[i : i + batch]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            out.append(network.logits(x).numpy())
    return np.concatenate(out)


def predict(
    network: AttributeNetwork, images: npt.NDArray[np.uint8], batch: int = 256
) -> npt.NDArray[np.float32]:
    """Scores of uint8 images: [N, H, W, 3] -> [N, A]."""
    return torch.from_numpy(predict_logits(network, images, batch)).sigmoid().numpy()


def auc(scores: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve by ranks; ties count half. NaN when one class is empty."""
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


def calibration_error(scores: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error over equal-width bins."""
    index = np.clip((scores * bins).astype(int), 0, bins - 1)
    total = 0.0
    for b in range(bins):
        hit = index == b
        if hit.any():
            total += float(hit.mean()) * abs(float(scores[hit].mean()) - float(truth[hit].mean()))
    return total
