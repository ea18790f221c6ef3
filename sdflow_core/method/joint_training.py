"""Training of a flow and the semantic encoder together, by the terms of `objectives`: the paper's way."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sdflow_core.method import objectives
from sdflow_core.method.flow import ConditionalFlow, rademacher
from sdflow_core.method.flow_kinds import make_flow
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.trained import TrainedEditor, require_finite, schedule
from sdflow_core.method.training_config import TrainingConfig


class JointTrainer:
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
            flow = make_flow(codes.shape[1], codes.shape[2], scores.shape[1], config.flow)
        assert isinstance(flow, ConditionalFlow)
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

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.config.steps

    @property
    def due(self) -> bool:
        """Every `checkpoint_every` steps, and at the end."""
        return self.step % self.config.saves_every == 0 or self.step == self.total

    def begin(self) -> None:
        """Nothing: whitening is fitted on the way in."""

    def advance(self) -> dict[str, float]:
        """One optimizer step; returns its loss terms as numbers."""
        config = self.config
        terms = self.losses()
        weights = config.objective.model_dump(include=set(terms))
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum() if terms else None
        numbers = {name: float(value.detach()) for name, value in terms.items()}
        require_finite(numbers, self.step)
        if total is not None and total.requires_grad:
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            for part in (self.flow, self.semantic):
                norm = nn.utils.clip_grad_norm_(part.parameters(), config.clip or math.inf)
                require_finite({"gradient": float(norm)}, self.step)
            rate = schedule(self.step, config.steps, config.warm_up_steps)
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
        batch = config.batch_of(len(self.codes))
        rows = torch.randint(len(self.codes), (batch,), generator=rng)
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

    def document(self) -> dict[str, Any]:
        """See `Trainer.document`."""
        return {
            "step": self.step,
            "flow": self.flow.state_dict(),
            "semantic": self.semantic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "history": self.history,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """See `Trainer.restore`."""
        self.step, self.history = int(saved["step"]), list(saved["history"])
        self.flow.load_state_dict(saved["flow"])
        self.semantic.load_state_dict(saved["semantic"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.rng.set_state(saved["rng"])

    def result(self) -> TrainedEditor:
        """The networks, ready for use."""
        flow, semantic = self.flow.eval().requires_grad_(False), self.semantic.eval().requires_grad_(False)
        return TrainedEditor(flow, semantic, self.history)
