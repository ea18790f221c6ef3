"""Training of a principal flow and its edit map: survey, closed form, matching, then the map's stages.

Codes may lie anywhere (`code_source`): the survey and the matching read them a batch at a time. The edit map
learns on the survey's sample of them, at most 8,192.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from sdflow_core.method.code_source import CodeSource
from sdflow_core.method.code_survey import CodeSurvey
from sdflow_core.method.condition import attributes_of, features
from sdflow_core.method.edit_map import EditMap
from sdflow_core.method.map_training import MapTraining, Witness
from sdflow_core.method.parallel import ALONE, Group
from sdflow_core.method.principal import PrincipalConfig, PrincipalFlow
from sdflow_core.method.row_order import RowOrder
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.trained import TrainedEditor, require_finite, schedule
from sdflow_core.method.training_checks import check_batch
from sdflow_core.method.training_config import TrainingConfig

_PICTURES_BETWEEN_SAVES = 20  # steps of the stages that look at pictures: 16 of them each, 20 ms a picture


class PrincipalTrainer:
    """Everything that a step changes, so that a checkpoint can hold all of it.

    Args:
        source: Codes and scores.
        survey: Of this source; only the first of several processes needs it.
        labeller: Copied as the semantic encoder, which is not trained.
        witness: Looks at pictures for the edit map; see `map_training`.
        config: With a principal flow.
        device: Where to compute. Random numbers are always drawn on the CPU.
        group: The processes that train together; the edit map is taught by the first alone.
    """

    def __init__(
        self,
        source: CodeSource,
        survey: CodeSurvey | None,
        labeller: nn.Module,
        witness: Witness | None,
        config: TrainingConfig,
        device: str | torch.device,
        group: Group = ALONE,
    ) -> None:
        assert isinstance(config.flow, PrincipalConfig)
        self.source, self.survey, self.witness, self.config, self.group = (
            source,
            survey,
            witness,
            config,
            group,
        )
        self.device = torch.device(device)
        self.semantic = SemanticEncoder.warm_start(labeller).to(self.device)
        rows, dim = source.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.flow = PrincipalFlow(rows, dim, source.attributes, config.flow)
        self.flow.to(self.device)
        self.optimizer = torch.optim.Adam(self.flow.parameters(), lr=config.learning_rate)
        self.rng = torch.Generator().manual_seed(config.seed)
        self.stopping = _Stopping(config, source.rows)
        held = 0 if self.stopping.rows is None else len(self.stopping.rows)
        check_batch(source.rows - held, config.batch, held)
        self.batch = config.batch_of(source.rows - held)
        group.check(self.batch)
        self.order = RowOrder(source.blocks, self.batch, config.seed, without=self.stopping.rows)
        self.flow_steps, self.flow_total = 0, config.steps
        self.history: list[dict[str, float]] = []
        self.map_training: MapTraining | None = None

    @property
    def step(self) -> int:
        """Steps done of all stages."""
        return self.flow_steps + (self.map_training.step if self.map_training is not None else 0)

    @property
    def total(self) -> int:
        """Steps of all stages together; fewer once a flow has stopped early."""
        return self.flow_total + self._map_total()

    @property
    def due(self) -> bool:
        """Every `checkpoint_every` steps, more often among pictures, and at the end of flow and map."""
        if self.step in (self.flow_total, self.total):
            return True
        every = self.config.saves_every
        if self.map_training is not None and self.map_training.place()[0] in ("describe", "look"):
            every = min(every, _PICTURES_BETWEEN_SAVES)
        return self.step % every == 0

    def begin(self) -> None:
        """Closed form from the survey; the first process tells the others."""
        if self.survey is not None:
            self.flow.cpu().fit(self.survey)
            self.flow.to(self.device)
        self.group.spread(self.flow.state_dict().values())
        if self.config.early_stopping is not None:
            self._look_at_held_out()  # the closed form may be the best there is

    def advance(self) -> dict[str, float]:
        """One step of whichever stage is due."""
        if self.flow_steps < self.flow_total:
            losses = self._advance_flow()
        else:
            losses = self._teaching().advance()
        self.history.append(losses)
        return losses

    # --- the flow -------------------------------------------------------------------------------------

    def _advance_flow(self) -> dict[str, float]:
        config, group = self.config, self.group
        codes, scores = self.source.read(group.share(self.order.rows(self.flow_steps)))
        noise = torch.randn(self.batch, len(self.flow.basis), generator=self.rng)
        u = torch.rand(self.batch, generator=self.rng)
        shift = torch.randn(self.batch, self.source.attributes, generator=self.rng)
        s = attributes_of(features(scores) + config.s_noise * group.share(shift))
        loss = self._matching(codes, s, group.share(noise), group.share(u))
        numbers = {"matching": group.mean(float(loss.detach()))}
        require_finite(numbers, self.flow_steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        group.average_gradients(self.flow)
        norm = nn.utils.clip_grad_norm_(self.flow.parameters(), config.clip or math.inf)
        require_finite({"gradient": float(norm)}, self.flow_steps)
        for part in self.optimizer.param_groups:
            part["lr"] = config.learning_rate * schedule(self.flow_steps, config.steps, config.warm_up_steps)
        self.optimizer.step()
        self.flow_steps += 1
        if self.stopping.due(self.flow_steps):
            numbers["held_out"] = self._look_at_held_out()
        return numbers

    def _matching(self, codes: Tensor, s: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        device = self.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.flow.matching(codes.to(device), s.to(device), noise.to(device), u.to(device))

    @torch.no_grad()
    def _look_at_held_out(self) -> float:
        """Matching of the rows that are not trained on, with the same noise each time; may end the stage."""
        stopping, rng = self.stopping, torch.Generator().manual_seed(self.config.seed + 2)
        assert stopping.rows is not None
        codes, scores = self._held_out_rows(stopping.rows)
        noise = torch.randn(len(codes), len(self.flow.basis), generator=rng)
        value = float(self._matching(codes, scores, noise, torch.rand(len(codes), generator=rng)))
        if stopping.seen(value, self.flow):
            self.flow_total = self.flow_steps
        if self.flow_steps == self.flow_total:
            stopping.recall(self.flow)
        return value

    def _held_out_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.stopping.held is None:
            self.stopping.held = self.source.read(rows)
        return self.stopping.held

    # --- the map --------------------------------------------------------------------------------------

    def _map_total(self) -> int:
        if self.map_training is not None:
            return self.map_training.total
        if not self._teaches:
            return 0
        assert self.config.edit_map is not None and self.survey is not None
        count = len(self.survey.sample_codes)
        return sum(MapTraining.plan(self.config.edit_map, count, self.config.steps, self.witness).values())

    @property
    def _teaches(self) -> bool:
        """Only the first process has a map to teach."""
        return self.config.edit_map is not None and self.group.leads

    def _teaching(self) -> MapTraining:
        if self.map_training is None:
            config, found = self.config, self.survey
            assert config.edit_map is not None and found is not None
            self.flow.eval().requires_grad_(False)
            self.map_training = MapTraining(
                self.flow,
                found.sample_codes,
                found.sample_scores,
                self.witness,
                config.edit_map,
                config.steps,
                config.seed,
                stride=found.stride,
            )
        return self.map_training

    # --- state ----------------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """See `Trainer.document`; without the optimizer of a flow that is finished."""
        teaching = self.map_training
        return {
            "step": self.step,
            "flow_steps": self.flow_steps,
            "flow_total": self.flow_total,
            "flow": self.flow.state_dict(),
            "optimizer": None if teaching is not None else self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "stopping": self.stopping.document(),
            "map": None if teaching is None else teaching.state(),
            "history": self.history,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """See `Trainer.restore`."""
        self.flow_steps, self.flow_total = int(saved["flow_steps"]), int(saved["flow_total"])
        self.history = list(saved["history"])
        self.flow.load_state_dict(saved["flow"])
        if saved["optimizer"] is not None:
            self.optimizer.load_state_dict(saved["optimizer"])
        self.rng.set_state(saved["rng"])
        self.stopping.restore(saved["stopping"])
        if saved["map"] is not None and self._teaches:
            self._teaching().restore(saved["map"])

    def result(self) -> TrainedEditor:
        """The networks, ready for use."""
        flow = self.flow.eval().requires_grad_(False)
        semantic = self.semantic.eval().requires_grad_(False)
        made: EditMap | None = None
        if self._teaches:
            made = self._teaching().map.eval().requires_grad_(False)
        return TrainedEditor(flow, semantic, self.history, made)


class _Stopping:
    """Held-out rows, the best state seen on them, and when to give up."""

    def __init__(self, config: TrainingConfig, count: int) -> None:
        self.config, self.steps = config.early_stopping, config.steps
        self.rows: Tensor | None = None
        self.held: tuple[Tensor, Tensor] | None = None
        self.best, self.waited, self.state = float("inf"), 0, dict[str, Tensor]()
        if self.config is not None:
            rng = torch.Generator().manual_seed(config.seed + 3)
            some = max(2, round(self.config.held_out * min(count, 8192)))
            self.rows = torch.randperm(count, generator=rng)[:some].sort().values

    def due(self, step: int) -> bool:
        return self.config is not None and (step % self.config.every == 0 or step == self.steps)

    def seen(self, value: float, flow: nn.Module) -> bool:
        """Keep the state if it is the best; whether to stop."""
        assert self.config is not None
        if value < self.best:
            self.best, self.waited, self.state = value, 0, copy.deepcopy(dict(flow.state_dict()))
            return False
        self.waited += 1
        return self.waited >= self.config.patience

    def recall(self, flow: nn.Module) -> None:
        """Give the flow its best state back."""
        flow.load_state_dict(self.state)

    def document(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "state": self.state}

    def restore(self, saved: dict[str, Any]) -> None:
        self.best, self.waited, self.state = saved["best"], int(saved["waited"]), dict(saved["state"])
