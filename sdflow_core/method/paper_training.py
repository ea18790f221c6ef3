"""Training by the published objective: the rows "SDFlow as published", "StyleFlow's way" and the ablations.

Small on purpose; what the product trains is `training.train_editor`. Departures from the published code, all
in its favour here: pictures are renderings of the codes, so code and picture agree; the semantic encoder may
begin as a copy of the classifier (`warm_start`) and the batch norms at the statistics of the codes
(`fit_statistics`); normalisation layers of the semantic encoder keep their statistics. Gradients go through
the solver itself and not through an adjoint equation.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sdflow_core.method import objectives
from sdflow_core.method.paper import PaperFlow, PaperFlowConfig
from sdflow_core.method.paper_objective import PUBLISHED, PaperObjective, nll_of_base, raw_closeness
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.solvers import REFERENCE, SolverConfig
from sdflow_core.method.training_checks import (
    check_batch,
    check_classes,
    check_codes,
    check_images,
    check_scores,
)
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

if TYPE_CHECKING:
    from sdflow_core.method.training import Progress, TrainingCheckpoint

_FORMAT = 1
_STATISTICS_ROWS = 512  # codes enough for the statistics of one number


class PaperTrainingConfig(Config):
    """The published numbers; whoever trains by a cheaper solver says so with the result.

    Attributes:
        flow: The flow.
        objective: Terms and weights.
        steps: Optimizer steps; the published weights are those of step 10,000.
        batch: Codes a step, for all terms.
        edit_every: Consistency and closeness are computed every so many steps; published: every step.
            They are most of the cost of a step by a coarse solver.
        learning_rate: Adam's, of flow and semantic encoder; no schedule.
        learning_rate_semantic: Another one for the semantic encoder; None as published.
        solver: Both ways, in training.
        divergence: Of the likelihood.
        warm_start: Begin the semantic encoder as a copy of the classifier, else newly drawn.
        fit_statistics: Begin both batch norms at the statistics of the codes. Published: at zero and one. The
            way back then uses other statistics than the way there for the first hundred steps; codes of large
            spread make closeness, in raw units, thousands of times too large meanwhile, and Adam's second
            moments remember that for thousands of steps.
        clip: Bound of the gradient norm of flow and of semantic encoder, each; None as published.
        checkpoint_every: Steps between checkpoints.
    """

    flow: PaperFlowConfig = PaperFlowConfig()
    objective: PaperObjective = PUBLISHED
    steps: int = Field(default=10_000, ge=1)
    batch: int = Field(default=8, ge=1)
    edit_every: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    learning_rate_semantic: float | None = Field(default=None, gt=0)
    solver: SolverConfig = REFERENCE
    divergence: Literal["hutchinson", "exact"] = "hutchinson"
    warm_start: bool = True
    fit_statistics: bool = True
    clip: float | None = Field(default=None, gt=0)
    checkpoint_every: int = Field(default=100, ge=1)


def train_paper(
    codes: Tensor,
    scores: Tensor,
    generator: nn.Module,
    labeller: nn.Module,
    config: PaperTrainingConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: TrainingCheckpoint | None = None,
    images: Tensor | None = None,
) -> tuple[PaperFlow, SemanticEncoder]:
    """Train flow and semantic encoder the published way; resumable bit for bit on one machine.

    Args:
        codes: w+ [N, L, D] float.
        scores: Classifier's scores [N, A] in [0, 1], in the labeller's order.
        generator: With `synthesize(w_plus)`. Differentiated through, never changed.
        labeller: With `attributes` and `logits(images)`: the classifier. Never changed.
        config: See `PaperTrainingConfig`.
        seed: Of every random draw.
        progress: Called after each step with (steps done, steps in all, loss terms).
        checkpoint: Read at the start, written every `checkpoint_every` steps and at the end.
        images: What the codes render to, uint8 [N, 3, H, W]; None renders them on the way.

    Returns:
        Flow and semantic encoder in evaluation mode; with frozen semantics the latter is the classifier's
        copy.

    Raises:
        ContractError: Inputs that do not fit together, a checkpoint of another training, or a loss or
            gradient that is not finite (the last good checkpoint stays).
    """
    config = config or PaperTrainingConfig()
    _check_inputs(codes, scores, images, labeller, config)
    trainer = PaperTrainer(codes, scores, generator, labeller, config, seed, images)
    was_trainable = [(p, p.requires_grad) for p in generator.parameters()]
    generator.eval().requires_grad_(False)
    try:
        saved = checkpoint.load() if checkpoint is not None else None
        if saved is not None:
            trainer.restore(saved)
        while trainer.step < config.steps:
            terms = trainer.advance()
            due = trainer.step % config.checkpoint_every == 0 or trainer.step == config.steps
            if checkpoint is not None and due:
                checkpoint.save(trainer.state())
            if progress is not None:
                progress(trainer.step, config.steps, terms)
    finally:
        for parameter, flag in was_trainable:
            parameter.requires_grad_(flag)
    return trainer.flow.eval().requires_grad_(False), trainer.semantic.eval().requires_grad_(False)


class PaperTrainer:
    """Everything that a step changes, in one place."""

    def __init__(
        self,
        codes: Tensor,
        scores: Tensor,
        generator: nn.Module,
        labeller: nn.Module,
        config: PaperTrainingConfig,
        seed: int,
        images: Tensor | None = None,
    ) -> None:
        self.codes, self.scores, self.generator = codes.float(), scores.float(), generator
        self.images = images
        self.config, self.step = config, 0
        seen = (codes, scores) if images is None else (codes, scores, images)
        self.identity = _identity(seen, (generator, labeller), config, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.flow = PaperFlow(codes.shape[1], codes.shape[2], scores.shape[1], config.flow).train()
        if config.fit_statistics:
            some = slice(0, _STATISTICS_ROWS)
            self.flow.fit_statistics(self.codes[some], self.scores[some], config.solver)
        frozen = config.objective.semantics == "frozen"
        if frozen or config.warm_start:
            self.semantic = SemanticEncoder.warm_start(labeller)
        else:
            self.semantic = SemanticEncoder.fresh(labeller, seed)
        self.parts: list[nn.Module] = [self.flow]
        if frozen:
            self.semantic.requires_grad_(False)
        else:
            self.parts.append(self.semantic)
        rates = (config.learning_rate, config.learning_rate_semantic or config.learning_rate)
        self.optimizer = torch.optim.Adam(
            [{"params": list(p.parameters()), "lr": rates[i]} for i, p in enumerate(self.parts)]
        )
        self.rng = torch.Generator().manual_seed(seed)

    def losses(self) -> dict[str, Tensor]:
        """The terms of one step that are switched on, unweighted."""
        goal, config, rng = self.config.objective, self.config, self.rng
        rows = torch.randint(len(self.codes), (config.batch,), generator=rng)
        w, s = self.codes[rows], self.scores[rows]
        terms: dict[str, Tensor] = {}
        if goal.reads_images:
            logits = self.semantic.logits(self._pictures(rows, w))
            # else the solver would blame the codes
            self._require_finite({"semantic encoder": float(logits.detach().abs().max())})
            if goal.distillation > 0:
                terms["distillation"] = objectives.distillation(logits, s)
            s = torch.sigmoid(logits)
        edits = goal.edits and self.step % config.edit_every == 0
        # one way through the flow serves the likelihood and the edit
        if goal.density > 0:
            probe = torch.randn(w.shape, generator=rng)
            z, log_det = self.flow.base_and_log_det(
                w, s, config.divergence, probe=probe, solver=config.solver
            )
            terms["density"] = nll_of_base(z, log_det)
        elif edits:
            z = self.flow.to_base(w, s, config.solver)
        else:
            return terms
        if edits:
            wanted, _ = objectives.redraw_one(s, rng)
            edited = self.flow.from_base(z, wanted, config.solver)
            if goal.consistency > 0:
                read = self.semantic.logits(objectives.render(self.generator, edited))
                terms["consistency"] = objectives.consistency(read, wanted)
            if goal.closeness > 0:
                terms["closeness"] = raw_closeness(edited, w)
        return terms

    def _pictures(self, rows: Tensor, w: Tensor) -> Tensor:
        if self.images is not None:
            return self.images[rows].float() / 127.5 - 1.0
        with torch.no_grad():
            return objectives.render(self.generator, w)

    def advance(self) -> dict[str, float]:
        """One optimizer step; returns its loss terms as numbers."""
        terms = self.losses()
        numbers = {name: float(value.detach()) for name, value in terms.items()}
        self._require_finite(numbers)
        weights = self.config.objective.model_dump()
        total = sum((weights[name] * value for name, value in terms.items()), torch.zeros(()))
        if total.requires_grad:
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            for part in self.parts:
                norm = nn.utils.clip_grad_norm_(part.parameters(), self.config.clip or math.inf)
                self._require_finite({"gradient": float(norm)})
            self.optimizer.step()
        self.step += 1
        return numbers

    def _require_finite(self, numbers: dict[str, float]) -> None:
        if bad := {name: value for name, value in numbers.items() if not math.isfinite(value)}:
            raise ContractError(
                "training diverged",
                expected="finite loss terms and gradients",
                found=bad,
                where=f"step {self.step}",
                todo="lower learning_rate or set clip; the last good checkpoint is kept",
            )

    def state(self) -> bytes:
        """All that a later process needs to go on as if it had never stopped."""
        buffer = io.BytesIO()
        document: dict[str, Any] = {
            "format": _FORMAT,
            "identity": self.identity,
            "step": self.step,
            "flow": self.flow.state_dict(),
            "semantic": self.semantic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
        }
        torch.save(document, buffer)
        return buffer.getvalue()

    def restore(self, data: bytes) -> None:
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
        if found != (_FORMAT, self.identity):
            expected = (_FORMAT, self.identity)
            raise ContractError("checkpoint of another training", expected=expected, found=found, todo=todo)
        self.step = int(saved["step"])
        self.flow.load_state_dict(saved["flow"])
        self.semantic.load_state_dict(saved["semantic"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.rng.set_state(saved["rng"])


def _check_inputs(
    codes: Tensor, scores: Tensor, images: Tensor | None, labeller: nn.Module, config: PaperTrainingConfig
) -> None:
    names = tuple(getattr(labeller, "attributes", ()))
    check_codes(codes)
    check_scores(scores, len(codes), names)
    check_images(images, len(codes))
    check_batch(len(codes), config.batch)
    check_classes((scores > 0.5).sum(0), len(codes), names)


def _identity(
    seen: tuple[Tensor, ...], networks: tuple[nn.Module, ...], config: PaperTrainingConfig, seed: int
) -> str:
    """Hash of all that determines the result but the number of steps, which may be raised later."""
    document = config.model_dump(mode="json", exclude={"checkpoint_every", "steps"})
    digest = hashlib.sha256(json.dumps([document, seed], sort_keys=True).encode())
    tensors = [*seen]
    tensors += [value for net in networks for _, value in sorted(net.state_dict().items())]
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
