"""Codes [N, 18, 512] for the solver benchmarks: real ones where a folder holds them, else stand-ins.

A folder holds `w_plus.npy` (real codes), `e4e_ffhq_pca.pt` (comp, mean, std of W) and, where at hand,
directions `e4e_age.pt`, `e4e_smile.pt`. Without a folder a random mapping network, drawn once from a seed,
takes their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, DIM, ATTRIBUTES = 18, 512, 4


@dataclass(frozen=True)
class Codes:
    """What the benchmark trains on and edits."""

    train: Tensor  # [N, 18, 512]
    s_train: Tensor  # [N, 4] in (0, 1)
    held: Tensor  # [M, 18, 512]; the real codes where there are any
    s_held: Tensor  # [M, 4]
    said: str  # where they come from, in words


def load(folder: Path | None, count: int = 6000, batch: int = 64, seed: int = 0) -> Codes:
    """Codes to train on and a batch to edit."""
    rng = torch.Generator().manual_seed(seed)
    if folder is None:
        people = _mapped(torch.randn(4096, DIM, generator=rng), rng)  # [P, 512]
        rows = _mixed(people, count + batch, rng)
        train, held = rows[:count], rows[count:]
        named: list[Tensor] = []
        said = "stand-in codes (random mapping network, rows mixed): no --wplus folder given"
    else:
        real = torch.from_numpy(np.load(folder / "w_plus.npy")).float()  # [68, 18, 512]
        pca = torch.load(folder / "e4e_ffhq_pca.pt", weights_only=True, map_location="cpu")
        comp, std = pca["comp"].float().reshape(-1, DIM), pca["std"].float().reshape(-1)
        draws = torch.randn(4096, len(std), generator=rng)
        people = pca["mean"].float().reshape(1, DIM) + (draws * std) @ comp
        sampled = _mixed(people, count // 2, rng)
        # an encoder's rows differ: samples take the rows' own deviations of a real code, both faces blended
        donor = real[torch.randint(len(real), (len(sampled),), generator=rng)]
        sampled = sampled + (donor - donor.mean(1, keepdim=True))
        first, second = (real[torch.randint(len(real), (count - len(sampled),), generator=rng)] for _ in "ab")
        share = torch.rand(len(first), 1, 1, generator=rng)
        train = torch.cat([sampled, share * first + (1 - share) * second])
        train = train + 0.05 * real.std(0) * torch.randn(train.shape, generator=rng)
        held = real[:batch]
        named = [
            torch.load(path, weights_only=True, map_location="cpu").float().reshape(DIM)
            for path in (folder / "e4e_age.pt", folder / "e4e_smile.pt")
            if path.exists()
        ]
        said = f"{len(real)} real codes of the --wplus folder, samples of their mean and PCA, blends"
    directions = torch.randn(ATTRIBUTES, DIM, generator=rng)
    for i, direction in enumerate(named):
        directions[i] = direction
    directions = F.normalize(directions, dim=1)
    middle = train.mean((0, 1))
    spread = ((train.mean(1) - middle) @ directions.T).std(0)
    s_train, s_held = (
        torch.sigmoid(1.5 * ((codes.mean(1) - middle) @ directions.T) / spread) for codes in (train, held)
    )
    return Codes(train, s_train, held, s_held, said)


def _mapped(z: Tensor, rng: torch.Generator) -> Tensor:
    """A mapping network of 8 layers as StyleGAN's, with weights drawn from `rng`: [N, 512] -> [N, 512]."""
    h = F.normalize(z, dim=1) * DIM**0.5
    for _ in range(8):
        weight = torch.randn(DIM, DIM, generator=rng) * DIM**-0.5
        h = F.leaky_relu(h @ weight.T + 0.1 * torch.randn(DIM, generator=rng), 0.2) * 2**0.5
    return h * (0.5 / float(h.std()))


def _mixed(people: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Style mixing: rows below a random cut from one person, the rest from another, and a little noise."""
    first, second = (people[torch.randint(len(people), (count,), generator=rng)] for _ in "ab")
    cut = torch.randint(1, ROWS + 1, (count, 1), generator=rng)
    lower = (torch.arange(ROWS)[None, :] < cut)[:, :, None]
    codes = torch.where(lower, first[:, None, :], second[:, None, :])
    return codes + 0.05 * codes.std() * torch.randn(codes.shape, generator=rng)
