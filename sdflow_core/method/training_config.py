"""Everything that changes a trained editor, as values."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sdflow_core.method.edit_map import EditMapConfig
from sdflow_core.method.flow import Divergence, FlowConfig
from sdflow_core.method.flow_kinds import AnyFlowConfig
from sdflow_core.method.objectives import ObjectiveConfig
from sdflow_core.method.paper import PaperFlowConfig
from sdflow_core.method.principal import PrincipalConfig
from sdflow_core.method.solvers import REFERENCE, SolverConfig
from sdflow_core.records.config import Config


class EarlyStopping(Config):
    """When a principal flow that no longer improves stops, before its steps are used up.

    The best state on the held-out rows is kept, the closed form among them. The result depends on inputs and
    configuration only. On by default.

    Attributes:
        held_out: Share of the surveyed rows (at most 8,192) that is never trained on.
        every: Steps between two looks at them.
        patience: Looks without improvement until it stops.
    """

    held_out: float = Field(default=0.05, gt=0, lt=1)
    every: int = Field(default=50, ge=1)
    patience: int = Field(default=3, ge=1)


class TrainingConfig(Config):
    """Everything that changes the trained editor.

    A principal flow (the default) is fitted in closed form, then taught by `matching` alone; then the edit
    map is taught. Any other flow is trained together with the semantic encoder by the terms of `objective`;
    what only that training knows is marked (joint), and to set it for a principal flow is an error.

    Attributes:
        flow: The flow; `kind` says which.
        edit_map: What edits, taught after a principal flow; None: the flow itself edits. Other flows have
            none.
        steps: Optimizer steps of the flow. Those of map and readers follow from them, unless they are given.
        batch: Codes a step; None: 256 for a principal flow, 128 else, or all rows where there are fewer.
        s_noise: Standard deviation of the noise on s in the density term: a principal flow's on the scale of
            phi(s), others' on [-1, 1] (dequantisation: scores pile up at 0 and 1).
        learning_rate: Of the flow.
        warm_up_steps: Linear rise of the rates; a cosine to zero follows.
        clip: Bound of the gradient norm of flow and of semantic encoder, each; None: no bound.
        precision: `bf16` computes under autocast: the principal flow's field, or (joint) generator and
            semantic encoder. It pays on GPUs and on CPUs with instructions for it, and is ten times slower on
            others.
        early_stopping: Of a principal flow; None: all steps are done.
        checkpoint_every: Steps between checkpoints; None: 500 for a principal flow, 50 else. Changes no
            result.
        seed: Of every random draw.
        objective: Terms and weights (joint).
        image_batch: The first so many of a batch are also looked at: distillation, and s read by the semantic
            encoder instead of taken from the labeller's scores (joint).
        edit_batch: The first so many of those are edited and rendered for consistency and closeness (joint).
        edit_every: Consistency and closeness are computed every so many steps (joint).
        joint: Let density and edit terms reach the semantic encoder through s, "learned together" (joint).
        learning_rate_semantic: Of the semantic encoder (joint).
        warm_start: Begin the semantic encoder as a copy of the labeller, else newly drawn (joint).
        density_solver: Solver of the simulated NLL (joint).
        divergence: Divergence of the simulated NLL (joint).
        edit_solver: Solver of there-and-back in the edit terms (joint).
    """

    flow: AnyFlowConfig = PrincipalConfig()
    edit_map: EditMapConfig | None = EditMapConfig()
    steps: int = Field(default=1200, ge=1)
    batch: int | None = Field(default=None, ge=1)
    s_noise: float = Field(default=0.1, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    warm_up_steps: int = Field(default=20, ge=0)
    clip: float | None = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    early_stopping: EarlyStopping | None = EarlyStopping()
    checkpoint_every: int | None = Field(default=None, ge=1)
    seed: int = 0
    objective: ObjectiveConfig = ObjectiveConfig()
    image_batch: int = Field(default=32, ge=1)
    edit_batch: int = Field(default=24, ge=1)
    edit_every: int = Field(default=2, ge=1)
    joint: bool = True
    learning_rate_semantic: float = Field(default=1e-4, gt=0)
    warm_start: bool = True
    density_solver: SolverConfig = SolverConfig(method="midpoint", steps=2)
    divergence: Divergence = "hutchinson"
    edit_solver: SolverConfig = SolverConfig(method="midpoint", steps=2)

    @property
    def principal(self) -> bool:
        """Whether the flow is fitted in closed form and taught by matching alone."""
        return isinstance(self.flow, PrincipalConfig)

    @property
    def saves_every(self) -> int:
        """Steps between checkpoints."""
        return self.checkpoint_every or (500 if self.principal else 50)

    def batch_of(self, rows: int) -> int:
        """Codes a step where there are so many rows."""
        return self.batch or min(256 if self.principal else 128, rows)

    @model_validator(mode="after")
    def _fits_the_flow(self) -> TrainingConfig:
        if self.principal:
            if given := [name for name in _JOINT if getattr(self, name) != _default(name)]:
                raise ValueError(
                    f"{', '.join(given)}: expected the default, a principal flow is not trained by these; "
                    "set flow to another kind"
                )
            return self
        for name in ("edit_map", "early_stopping"):
            if getattr(self, name) is not None:
                if name in self.model_fields_set:
                    raise ValueError(f"{name}: expected None, only a principal flow has it")
                object.__setattr__(self, name, None)  # the default of the other flows
        if isinstance(self.flow, PaperFlowConfig):
            self._published()
        if not self.edit_batch <= self.image_batch <= (self.batch or self.image_batch):
            raise ValueError(
                "expected edit_batch <= image_batch <= batch: each is the first part of the next"
            )
        return self

    def _published(self) -> None:
        """What the published training does not know must not be asked of it."""
        goal = self.objective
        if goal.density_loss != "nll" or goal.score_loss != "mse" or self.s_noise or self.warm_up_steps:
            raise ValueError(
                "flow of kind paper: expected density_loss nll, score_loss mse, s_noise and warm_up_steps 0; "
                "see paper_training"
            )


_JOINT = (
    "objective",
    "image_batch",
    "edit_batch",
    "edit_every",
    "joint",
    "learning_rate_semantic",
    "warm_start",
    "density_solver",
    "divergence",
    "edit_solver",
)


def _default(name: str) -> object:
    return TrainingConfig.model_fields[name].default


def joint_training(steps: int = 800) -> TrainingConfig:
    """Our first generation: a flow of mixed rows, trained together with the semantic encoder.

    Example:
        >>> joint_training(10).flow.kind, joint_training(10).edit_map
        ('conditional', None)
    """
    return TrainingConfig(flow=FlowConfig(), steps=steps, batch=128)


def paper_training(steps: int = 10_000) -> TrainingConfig:
    """The published setting: rows alone, NLL, all weights 1, dopri5, Adam 1e-4, batch 8, no noise on s.

    The flow is `paper.PaperFlow`, trained by `paper_training`, which has one solver (`density_solver`), no
    schedule, and looks at whole batches.

    Example:
        >>> paper_training(5).flow.kind
        'paper'
    """
    return TrainingConfig(
        flow=PaperFlowConfig(),
        objective=ObjectiveConfig(consistency=1.0, closeness=1.0, density_loss="nll", score_loss="mse"),
        steps=steps,
        batch=8,
        image_batch=8,
        edit_batch=8,
        edit_every=1,
        s_noise=0.0,
        learning_rate=1e-4,
        warm_up_steps=0,
        clip=None,
        density_solver=REFERENCE,
        edit_solver=REFERENCE,
    )
