"""Training of flow and semantic encoder together; resumable bit for bit on CPU.

The budget is a number of steps and never a time: the same inputs and configuration give the same editor,
interrupted or not. Bit equality is promised on one machine with one thread count and PyTorch version.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sdflow_core.method import objectives
from sdflow_core.method.flow import PAPER_FLOW, ConditionalFlow, Divergence, FlowConfig, rademacher
from sdflow_core.method.objectives import ObjectiveConfig
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.solvers import REFERENCE, SolverConfig
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

_FORMAT = 1


class TrainingConfig(Config):
    """Everything that changes the trained editor.

    Attributes:
        flow: The flow.
        objective: Terms and weights.
        steps: Optimizer steps.
        batch: Codes a step in the density term.
        image_batch: The first so many of them are also looked at: distillation, and s read by the semantic
            encoder instead of taken from the labeller's scores.
        edit_batch: The first so many of those are edited and rendered for consistency and closeness.
        edit_every: Consistency and closeness are computed every so many steps.
        joint: Let the density and edit terms reach the semantic encoder through s ("learned together").
        s_noise: Standard deviation of the noise on s in the density term, on the [-1, 1] scale
            (dequantisation: scores pile up at 0 and 1).
        learning_rate: Of the flow.
        learning_rate_semantic: Of the semantic encoder.
        warm_up_steps: Linear rise of both rates; a cosine to zero follows.
        clip: Bound of the gradient norm of flow and of semantic encoder, each.
        warm_start: Begin the semantic encoder as a copy of the labeller, else newly drawn.
        density_solver: Solver of the simulated NLL.
        divergence: Divergence of the simulated NLL.
        edit_solver: Solver of there-and-back in the edit terms.
        precision: `bf16` runs generator and semantic encoder under autocast (3 times faster on recent CPUs).
        checkpoint_every: Steps between checkpoints.
        seed: Of every random draw.
    """

    flow: FlowConfig = FlowConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    steps: int = Field(default=800, ge=1)
    batch: int = Field(default=128, ge=1)
    image_batch: int = Field(default=32, ge=1)
    edit_batch: int = Field(default=24, ge=1)
    edit_every: int = Field(default=2, ge=1)
    joint: bool = True
    s_noise: float = Field(default=0.1, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    learning_rate_semantic: float = Field(default=1e-4, gt=0)
    warm_up_steps: int = Field(default=20, ge=0)
    clip: float = Field(default=1.0, gt=0)
    warm_start: bool = True
    density_solver: SolverConfig = SolverConfig(method="midpoint", steps=2)
    divergence: Divergence = "hutchinson"
    edit_solver: SolverConfig = SolverConfig(method="midpoint", steps=2)
    precision: Literal["fp32", "bf16"] = "bf16"
    checkpoint_every: int = Field(default=50, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _nested_batches(self) -> TrainingConfig:
        if not self.edit_batch <= self.image_batch <= self.batch:
            raise ValueError(
                "expected edit_batch <= image_batch <= batch: each is the first part of the next"
            )
        return self


def paper_training(steps: int = 10_000) -> TrainingConfig:
    """The published setting: rows alone, NLL, all weights 1, dopri5, Adam 1e-4, batch 8, no noise on s."""
    return TrainingConfig(
        flow=PAPER_FLOW,
        objective=ObjectiveConfig(consistency=1.0, closeness=1.0, density_loss="nll", score_loss="mse"),
        steps=steps,
        batch=8,
        image_batch=8,
        edit_batch=8,
        edit_every=1,
        s_noise=0.0,
        learning_rate=1e-4,
        warm_up_steps=0,
        density_solver=REFERENCE,
        edit_solver=REFERENCE,
    )


class TrainingCheckpoint(Protocol):
    """Where a training keeps its state; `save` replaces what `load` gives, atomically."""

    def save(self, data: bytes) -> None:
        """Keep this state."""

    def load(self) -> bytes | None:
        """The last kept state, None when there is none."""


Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainedEditor:
    """Result of `train_editor`: both networks in evaluation mode, and the loss terms of every step."""

    flow: ConditionalFlow
    semantic_encoder: SemanticEncoder
    history: list[dict[str, float]]


def train_editor(
    codes: Tensor,
    images: Tensor | None,
    scores: Tensor,
    generator: nn.Module,
    labeller: nn.Module,
    config: TrainingConfig,
    checkpoint: TrainingCheckpoint | None = None,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
) -> TrainedEditor:
    """Learn the decomposition of w+ into z and s.

    Args:
        codes: w+ [N, L, D] float.
        images: What the codes were made from or render to, [N, 3, H, W] uint8 RGB; None renders them from
            the codes on the way.
        scores: Labeller's scores [N, A] in [0, 1], attributes in the labeller's order.
        generator: With `synthesize(w_plus)`. Differentiated through, never changed.
        labeller: With `attributes` and `logits(images)`; start and architecture of the semantic encoder,
            never changed.
        config: See `TrainingConfig`.
        checkpoint: Read at the start, written every `checkpoint_every` steps and at the end; None keeps
            nothing.
        progress: Called after each step with (steps done, steps in all, loss terms).
        device: Where to compute. Random numbers are always drawn on the CPU.

    Returns:
        The trained editor.

    Raises:
        ContractError: Inputs that do not fit together, a checkpoint of another training, or a loss that is
            not finite (the last good checkpoint stays).
    """
    _check_inputs(codes, images, scores, labeller)
    identity = _identity(codes, images, scores, generator, labeller, config)
    was_trainable = [(p, p.requires_grad) for p in generator.parameters()]
    generator.to(device).eval().requires_grad_(False)
    try:
        trainer = _Trainer(codes, images, scores, generator, labeller, config, device)
        saved = checkpoint.load() if checkpoint is not None else None
        if saved is not None:
            trainer.restore(saved, identity)
        while trainer.step < config.steps:
            losses = trainer.advance()
            done = trainer.step
            if checkpoint is not None and (done % config.checkpoint_every == 0 or done == config.steps):
                checkpoint.save(trainer.state(identity))
            if progress is not None:
                progress(done, config.steps, losses)
        return trainer.result()
    finally:
        for parameter, flag in was_trainable:
            parameter.requires_grad_(flag)


class _Trainer:
    """Everything that a step changes, in one place, so that a checkpoint can hold all of it."""

    def __init__(
        self,
        codes: Tensor,
        images: Tensor | None,
        scores: Tensor,
        generator: nn.Module,
        labeller: nn.Module,
        config: TrainingConfig,
        device: str | torch.device,
    ) -> None:
        self.config, self.device, self.step = config, torch.device(device), 0
        self.codes, self.scores = codes.float(), scores.float()
        self.images, self.generator = images, generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            flow = ConditionalFlow(codes.shape[1], codes.shape[2], scores.shape[1], config.flow)
        flow.fit_whitening(self.codes)
        if config.warm_start:
            semantic = SemanticEncoder.warm_start(labeller)
        else:
            semantic = SemanticEncoder.fresh(labeller, config.seed)
        self.flow, self.semantic = flow.to(self.device), semantic.to(self.device)
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.flow.parameters()), "lr": config.learning_rate},
                {"params": list(self.semantic.parameters()), "lr": config.learning_rate_semantic},
            ]
        )
        self.rng = torch.Generator().manual_seed(config.seed)
        self.history: list[dict[str, float]] = []

    def advance(self) -> dict[str, float]:
        """One optimizer step; returns its loss terms as numbers."""
        config = self.config
        terms = self.losses()
        weights = config.objective.model_dump(include=set(terms))
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum() if terms else None
        numbers = {name: float(value.detach()) for name, value in terms.items()}
        self._require_finite(numbers)
        if total is not None and total.requires_grad:
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            for part in (self.flow, self.semantic):
                norm = nn.utils.clip_grad_norm_(part.parameters(), config.clip)
                self._require_finite({"gradient": float(norm)})
            rate = _schedule(self.step, config)
            for group, base in zip(
                self.optimizer.param_groups,
                (config.learning_rate, config.learning_rate_semantic),
                strict=True,
            ):
                group["lr"] = base * rate
            self.optimizer.step()
        self.step += 1
        self.history.append(numbers)
        return numbers

    def losses(self) -> dict[str, Tensor]:
        """The terms of this step that are switched on."""
        config, goal, rng, device = self.config, self.config.objective, self.rng, self.device
        rows = torch.randint(len(self.codes), (config.batch,), generator=rng)
        w = self.codes[rows].to(device)
        s = self.scores[rows].to(device)
        terms: dict[str, Tensor] = {}
        looked = config.image_batch
        if goal.distillation > 0 or goal.consistency > 0:
            with self._precision():
                logits = self.semantic.logits(self._images(rows[:looked], w[:looked]))
            if goal.distillation > 0:
                terms["distillation"] = objectives.distillation(logits, s[:looked], goal.score_loss)
            read = torch.sigmoid(logits if config.joint else logits.detach())
            s = torch.cat([read, s[looked:]])
        if goal.density > 0:
            terms["density"] = self._density(w, s)
        if (goal.consistency > 0 or goal.closeness > 0) and self.step % config.edit_every == 0:
            count = config.edit_batch
            wanted, _ = objectives.redraw_one(s[:count], rng)
            z = self.flow.to_base(w[:count], s[:count], config.edit_solver)
            edited = self.flow.from_base(z, wanted, config.edit_solver)
            if goal.closeness > 0:
                terms["closeness"] = objectives.closeness(self.flow, edited, w[:count])
            if goal.consistency > 0:
                with self._precision():
                    logits = self.semantic.logits(objectives.render(self.generator, edited).float())
                terms["consistency"] = objectives.consistency(logits, wanted, goal.score_loss)
        return terms

    def _density(self, w: Tensor, s: Tensor) -> Tensor:
        config, rng = self.config, self.rng
        if config.s_noise > 0:
            # s in [0, 1] spans half the [-1, 1] scale the noise is given in
            s = s + 0.5 * config.s_noise * torch.randn(s.shape, generator=rng).to(s)
        if config.objective.density_loss == "flow_matching":
            noise = torch.randn(w.shape, generator=rng).to(w)
            return objectives.matching(self.flow, w, s, noise, torch.rand(len(w), generator=rng).to(w))
        probe = rademacher(w, rng)
        return objectives.nll_per_dimension(
            self.flow, w, s, probe=probe, divergence=config.divergence, solver=config.density_solver
        )

    def _images(self, rows: Tensor, w: Tensor) -> Tensor:
        if self.images is not None:
            return self.images[rows].to(self.device).float() / 127.5 - 1.0
        with torch.no_grad():
            return objectives.render(self.generator, w).float()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16")

    def _require_finite(self, numbers: dict[str, float]) -> None:
        if bad := {name: value for name, value in numbers.items() if not math.isfinite(value)}:
            raise ContractError(
                "training diverged",
                expected="finite loss terms",
                found=bad,
                where=f"step {self.step}",
                todo="lower learning_rate or clip; the last good checkpoint is kept",
            )

    def state(self, identity: str) -> bytes:
        """All that a later process needs to go on as if it had never stopped."""
        buffer = io.BytesIO()
        document: dict[str, Any] = {
            "format": _FORMAT,
            "identity": identity,
            "step": self.step,
            "flow": self.flow.state_dict(),
            "semantic": self.semantic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "history": self.history,
        }
        torch.save(document, buffer)
        return buffer.getvalue()

    def restore(self, data: bytes, identity: str) -> None:
        """Undo of `state`.

        Raises:
            ContractError: Not a checkpoint, or one of another training.
        """
        todo = "delete this checkpoint to train from the start"
        try:
            saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            found = (saved["format"], saved["identity"])
        except Exception as error:  # torch.load raises many kinds for damaged bytes
            raise ContractError(
                "unreadable training checkpoint", found=str(error)[:200], todo=todo
            ) from error
        if found != (_FORMAT, identity):
            raise ContractError(
                "checkpoint of another training", expected=(_FORMAT, identity), found=found, todo=todo
            )
        self.step, self.history = int(saved["step"]), list(saved["history"])
        self.flow.load_state_dict(saved["flow"])
        self.semantic.load_state_dict(saved["semantic"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.rng.set_state(saved["rng"])

    def result(self) -> TrainedEditor:
        """The networks, ready for use."""
        flow, semantic = self.flow.eval().requires_grad_(False), self.semantic.eval().requires_grad_(False)
        return TrainedEditor(flow, semantic, self.history)


def _schedule(step: int, config: TrainingConfig) -> float:
    """Factor of the learning rates: linear warm-up, then half a cosine to zero."""
    if step < config.warm_up_steps:
        return (step + 1) / config.warm_up_steps
    rest = max(config.steps - config.warm_up_steps, 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - config.warm_up_steps) / rest))


def _check_inputs(codes: Tensor, images: Tensor | None, scores: Tensor, labeller: nn.Module) -> None:
    names = tuple(getattr(labeller, "attributes", ()))
    n = len(codes)
    if codes.ndim != 3 or n < 2 or not bool(torch.isfinite(codes).all()):
        raise ContractError("codes to train on", expected="finite [N >= 2, L, D]", found=list(codes.shape))
    if tuple(scores.shape) != (n, len(names)):
        raise ContractError(
            "scores to train on", expected=f"[{n}, {len(names)}] for {names}", found=list(scores.shape)
        )
    if not bool(torch.isfinite(scores).all()) or bool((scores < 0).any()) or bool((scores > 1).any()):
        raise ContractError("scores to train on", expected="values in [0, 1]", found="values outside")
    if images is not None and (images.ndim != 4 or len(images) != n or images.dtype != torch.uint8):
        raise ContractError(
            "images to train on",
            expected=f"uint8 [{n}, 3, H, W]",
            found=f"{images.dtype} {list(images.shape)}",
        )


def _identity(
    codes: Tensor,
    images: Tensor | None,
    scores: Tensor,
    generator: nn.Module,
    labeller: nn.Module,
    config: TrainingConfig,
) -> str:
    """Hash of all that determines the result: a checkpoint is never continued with anything else."""
    document = config.model_dump(mode="json", exclude={"checkpoint_every"})  # does not change the editor
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    tensors = [codes, scores, *([images] if images is not None else [])]
    tensors += [value for net in (generator, labeller) for _, value in sorted(net.state_dict().items())]
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
