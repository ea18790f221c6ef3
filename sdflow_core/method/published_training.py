"""The published training (`paper_training`) in the loop that all trainings share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdflow_core.method.paper import PaperFlowConfig
from sdflow_core.method.paper_objective import PaperObjective
from sdflow_core.method.paper_training import PaperTrainer, PaperTrainingConfig
from sdflow_core.method.trained import TrainedEditor
from sdflow_core.method.training_config import TrainingConfig


def published_config(config: TrainingConfig, rows: int) -> PaperTrainingConfig:
    """What `paper_training` knows of a training's configuration.

    Args:
        config: With a `PaperFlowConfig`.
        rows: Of the training set.
    """
    assert isinstance(config.flow, PaperFlowConfig)
    goal = config.objective
    return PaperTrainingConfig(
        flow=config.flow,
        objective=PaperObjective(
            semantics="joint" if config.joint else "frozen",
            distillation=goal.distillation,
            density=goal.density,
            consistency=goal.consistency,
            closeness=goal.closeness,
        ),
        steps=config.steps,
        batch=config.batch_of(rows),
        edit_every=config.edit_every,
        learning_rate=config.learning_rate,
        solver=config.density_solver,
        divergence=config.divergence,
        warm_start=config.warm_start,
        clip=config.clip,
        checkpoint_every=config.saves_every,
    )


class PublishedTrainer:
    """`paper_training.PaperTrainer` with a history, as a `trained.Trainer`.

    Args:
        codes: [N, L, D].
        images: uint8 [N, 3, H, W], or None.
        scores: [N, A].
        generator: With `synthesize`.
        labeller: The classifier.
        config: With a `PaperFlowConfig`.
    """

    def __init__(
        self,
        codes: Tensor,
        images: Tensor | None,
        scores: Tensor,
        generator: nn.Module,
        labeller: nn.Module,
        config: TrainingConfig,
    ) -> None:
        self.config = config
        published = published_config(config, len(codes))
        self.inner = PaperTrainer(codes, scores, generator, labeller, published, config.seed, images)
        self.history: list[dict[str, float]] = []

    @property
    def step(self) -> int:
        """Steps done."""
        return self.inner.step

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.config.steps

    @property
    def due(self) -> bool:
        """Every `checkpoint_every` steps, and at the end."""
        return self.step % self.config.saves_every == 0 or self.step == self.total

    def begin(self) -> None:
        """Nothing comes before the first step."""

    def advance(self) -> dict[str, float]:
        """One step; returns its loss terms as numbers."""
        losses = self.inner.advance()
        self.history.append(losses)
        return losses

    def document(self) -> dict[str, Any]:
        """See `Trainer.document`."""
        state = torch.from_numpy(np.frombuffer(self.inner.state(), np.uint8).copy())
        return {"step": self.step, "state": state, "history": self.history}

    def restore(self, saved: dict[str, Any]) -> None:
        """See `Trainer.restore`."""
        self.inner.restore(saved["state"].numpy().tobytes())
        self.history = list(saved["history"])

    def result(self) -> TrainedEditor:
        """The networks, ready for use."""
        flow = self.inner.flow.eval().requires_grad_(False)
        return TrainedEditor(flow, self.inner.semantic.eval().requires_grad_(False), self.history)
