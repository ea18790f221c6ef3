"""What a training gives, where it keeps its state, and what its loop needs of a trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from sdflow_core.method.edit_map import EditMap
from sdflow_core.method.editing import FlowEditConfig, FlowEditor
from sdflow_core.method.flow_kinds import AnyFlow
from sdflow_core.method.map_editor import MapEditor
from sdflow_core.method.paper import PaperFlow
from sdflow_core.method.principal import PrincipalFlow
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.records.errors import ContractError

Progress = Callable[[int, int, dict[str, float]], None]


class TrainingCheckpoint(Protocol):
    """Where a training keeps its state; `save` replaces what `load` gives, atomically."""

    def save(self, data: bytes) -> None:
        """Keep this state."""

    def load(self) -> bytes | None:
        """The last kept state, None when there is none."""


@dataclass(frozen=True)
class TrainedEditor:
    """Result of a training: networks in evaluation mode, and the loss terms of every step of every stage."""

    flow: AnyFlow
    semantic_encoder: SemanticEncoder
    history: list[dict[str, float]]
    edit_map: EditMap | None = None

    def editor(self, encoder_digest: str) -> FlowEditor | MapEditor:
        """What edits codes of this encoder: the edit map where one was taught, else the flow."""
        if isinstance(self.flow, PrincipalFlow):
            if self.edit_map is not None:
                return MapEditor(self.flow, self.edit_map, self.semantic_encoder, encoder_digest)
            config = FlowEditConfig(solver=self.flow.config.solver)
            return FlowEditor(self.flow, self.semantic_encoder, encoder_digest, config)
        if isinstance(self.flow, PaperFlow):
            config = FlowEditConfig(solver=self.flow.config.solver, corrected=False)  # as published
            return FlowEditor(self.flow, self.semantic_encoder, encoder_digest, config)
        return FlowEditor(self.flow, self.semantic_encoder, encoder_digest)

    def final_losses(self, last: int = 20) -> dict[str, float]:
        """Mean of each term over the last so many steps that had it."""
        values: dict[str, list[float]] = {}
        for losses in reversed(self.history):
            for name, value in losses.items():
                kept = values.setdefault(name, [])
                if len(kept) < last:
                    kept.append(value)
        return {name: math.fsum(kept) / len(kept) for name, kept in sorted(values.items())}


class Trainer(Protocol):
    """Everything that a step changes, in one place, so that a checkpoint can hold all of it."""

    @property
    def step(self) -> int:
        """Steps done."""
        ...

    @property
    def total(self) -> int:
        """Steps of all stages together."""
        ...

    @property
    def due(self) -> bool:
        """Whether the state is worth a checkpoint after the step just done."""
        ...

    def begin(self) -> None:
        """What comes before the first step; not called where a checkpoint is restored."""

    def advance(self) -> dict[str, float]:
        """One step; returns its loss terms as numbers."""
        ...

    def document(self) -> dict[str, Any]:
        """All that a later process needs to go on as if it had never stopped."""
        ...

    def restore(self, saved: dict[str, Any]) -> None:
        """Undo of `document`."""

    def result(self) -> TrainedEditor:
        """The networks, ready for use."""
        ...


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Factor of the learning rates: linear warm-up, then half a cosine to zero."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def require_finite(numbers: dict[str, float], step: int) -> None:
    """Raise ContractError unless all loss terms are finite: the last good state is before this step."""
    if bad := {name: value for name, value in numbers.items() if not math.isfinite(value)}:
        raise ContractError(
            "training diverged",
            expected="finite loss terms",
            found=bad,
            where=f"step {step}",
            todo="lower learning_rate or clip; the last good checkpoint is kept",
        )
