"""What an editor learns from: a dataset's codes, and samples of the prior rendered, labelled on the way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from sdflow_core.faces.networks import Networks, to_uint8
from sdflow_core.method.training import TrainingConfig
from sdflow_core.records.config import Config


class EditorTraining(Config):
    """Everything that changes an editor, beside its data and networks.

    Attributes:
        training: Flow, objective, schedule.
        prior_samples: People drawn from the prior and added to the dataset's.
        prior_truncation: 0 the mean face, 1 the full spread.
        prior_seed: Of the draw.
        micro_batch: Rows a network call while the training set is made.
    """

    training: TrainingConfig = TrainingConfig()
    prior_samples: int = Field(default=5000, ge=0)
    prior_truncation: float = Field(default=0.9, ge=0.0, le=1.5)
    prior_seed: int = 1
    micro_batch: int = 16


@dataclass(frozen=True)
class TrainingSet:
    """Codes, what they render to, and the labeller's scores of that, row by row."""

    codes: Tensor  # [N, L, D]
    images: Tensor  # uint8 [N, 3, H, W]
    scores: Tensor  # [N, A] in [0, 1]


def make_training_set(networks: Networks, codes: Tensor, config: EditorTraining) -> TrainingSet:
    """Add prior samples to a dataset's codes [N, L, D], render all, label all.

    The scores are read from the renderings, not from the photographs: the flow must know what a *code* shows.
    """
    rng = torch.Generator().manual_seed(config.prior_seed)
    parts = [codes]
    if config.prior_samples:
        parts.append(networks.prior.sample(config.prior_samples, rng, truncation=config.prior_truncation))
    everything = torch.cat(parts)
    pictures: list[Tensor] = []
    scores: list[Tensor] = []
    for start in range(
        0, len(everything), 512
    ):  # so that float images of all rows never lie in memory at once
        images = networks.render(everything[start : start + 512])
        scores.append(networks.scores(images))
        pictures.append(torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).contiguous())
    return TrainingSet(everything, torch.cat(pictures), torch.cat(scores))
