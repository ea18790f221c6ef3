"""Teaching the edit map, after the flow: readers, the map, a look at what it draws, and all three again.

A map taught by readers finds what fools them: on 1,500 edits of synthetic people the readers of identity said
.019 (1 - cosine) where the identity network saw .095. So the half-taught map's edits are rendered, scored and
embedded once, the readers learn from these pictures too, and the map goes on with readers that have seen
where it is heading. Each stage is a fixed number of steps, and all of it is resumable bit for bit on one
machine: the state names the step, and every random draw comes from one generator that is part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sdflow_core.method.code_readers import (
    Readers,
    advance_readers,
    reader_optimizer,
)
from sdflow_core.method.condition import features
from sdflow_core.method.edit_map import EditMap, EditMapConfig, map_terms, wanted_features
from sdflow_core.method.principal import PrincipalFlow
from sdflow_core.records.errors import ContractError

STAGES = (
    "describe",
    "attributes",
    "identity",
    "map",
    "look",
    "attributes again",
    "identity again",
    "map again",
)
_TERMS = ("aim", "hold", "beside", "identity", "kept")
_CLIP = 1.0
_UNREAD = 1  # length of embeddings that nobody gives
_CHUNK = 16  # pictures a step of the stages that look at pictures
_SCORED = 256  # pictures a step whose further attributes are read, at least: the labeller is quick


class Witness(Protocol):
    """What is known of pictures: of the training set's own, and of those that codes render to."""

    @property
    def knows_people(self) -> bool:
        """Whether there is an identity network: without one nothing is embedded."""
        ...

    @property
    def dimensions(self) -> int:
        """F, length of an embedding; asked only where `knows_people`."""
        ...

    @property
    def further(self) -> int:
        """C: how many attributes the labeller knows beside those that are edited."""
        ...

    def describe(self, rows: Tensor, w_plus: Tensor) -> Tensor:
        """Row numbers [b] of the training set and their codes -> unit embeddings [b, F] of their pictures."""
        ...

    def beside(self, rows: Tensor, w_plus: Tensor) -> Tensor:
        """Row numbers [b] of the training set and their codes -> scores [b, C] of the further attributes."""
        ...

    def look(self, w_plus: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes [b, L, D] -> labeller's scores [b, A + C] of their renderings, the further ones last, and,
        with `knows_people`, unit embeddings [b, F]."""
        ...


class MapTraining:
    """Everything that a step changes, and how to go on with it.

    Args:
        flow: Trained; never changed.
        codes: [N, L, D] the map learns on; kept as principal numbers [N, K].
        scores: [N, A] of the labeller.
        witness: Looks at pictures; None where there are none: then identity is held by z alone, and nobody
            looks at what a half-taught map draws.
        config: See `EditMapConfig`.
        flow_steps: Steps of the flow, which the map's follow unless they are given.
        seed: Of every draw.
        stride: The codes are every so many-th row of the training set.
    """

    def __init__(
        self,
        flow: PrincipalFlow,
        codes: Tensor,
        scores: Tensor,
        witness: Witness | None,
        config: EditMapConfig,
        flow_steps: int,
        seed: int,
        stride: int = 1,
    ) -> None:
        self.stride = stride
        self.flow, self.config, self.device = flow, config, flow.mean.device
        self.codes, self.witness = codes, witness
        with torch.no_grad():
            along = torch.cat([flow.along(part.to(self.device).float()) for part in codes.split(4096)])
        # rows 0 .. N - 1 are the training set, further ones what the map drew of its first rows
        further = _further(config, witness)
        unknown = torch.full((len(codes), further), torch.nan)
        self.along, self.scores = along, torch.cat([scores.float().cpu(), unknown], dim=1).to(self.device)
        self.embeddings: Tensor | None = None
        size, attributes = along.shape[1], scores.shape[1]
        readers = config.readers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.map = EditMap(size, attributes, config)
            self.attributes = Readers(
                readers.attribute_readers,
                size,
                attributes + further,
                readers.width,
                linear=readers.linear_readers,
            )
            length = witness.dimensions if witness is not None and witness.knows_people else _UNREAD
            self.identity = Readers(readers.identity_readers, size, length, readers.width)
        std = along.std(0) if len(along) > 1 else torch.ones_like(flow.spread)
        self.map.scale.copy_(std.clamp_min(1e-3 * float(std.max())).clamp_min(1e-9))
        for part in (self.map, self.attributes, self.identity):
            part.to(self.device)
        self.optimizers = {
            "attributes": reader_optimizer(self.attributes, readers),
            "identity": reader_optimizer(self.identity, readers),
            "map": torch.optim.Adam(self.map.parameters(), lr=config.learning_rate),
        }
        self.described, self.looked = _pictures(config, len(codes), flow_steps, witness)
        self._bases: Tensor | None = None
        self.lengths = self.plan(config, len(codes), flow_steps, witness)
        self.rng = torch.Generator().manual_seed(seed + 1)
        self.step, self.history = 0, list[dict[str, float]]()

    @staticmethod
    def plan(config: EditMapConfig, count: int, flow_steps: int, witness: Witness | None) -> dict[str, int]:
        """Steps of each stage for so many codes, known before anything is trained."""
        described, looked = _pictures(config, count, flow_steps, witness)
        reading, mapping = config.readers.steps_of(flow_steps), config.steps_of(flow_steps)
        # the last map is taught at least half of the steps
        first = max(1, mapping // 3) if looked else mapping
        again = max(1, reading // 2) if looked else 0
        return {
            "describe": max(
                math.ceil(described / _CHUNK), math.ceil(count / _SCORED) if _further(config, witness) else 0
            ),
            "attributes": reading,
            "identity": reading if described else 0,
            "map": first,
            "look": math.ceil(looked / _CHUNK),
            "attributes again": again,
            "identity again": again if described else 0,
            "map again": mapping - first,
        }

    @property
    def total(self) -> int:
        """Steps of all stages together."""
        return sum(self.lengths.values())

    def place(self) -> tuple[str, int]:
        """(stage, step within it) of the next step."""
        left = self.step
        for stage in STAGES:
            if left < self.lengths[stage]:
                return stage, left
            left -= self.lengths[stage]
        return STAGES[-1], left

    def advance(self) -> dict[str, float]:
        """One step of whichever stage is due; returns its losses under `stage.term`.

        Raises:
            ContractError: A loss or gradient that is not finite; the last good state stays what it was.
        """
        stage, done = self.place()
        factor = _schedule(done, self.lengths[stage])
        kind = stage.removesuffix(" again")
        if kind == "describe":
            losses = self._describe(done)
        elif kind == "look":
            losses = self._look(done)
        elif kind == "map":
            losses = self._teach_map(factor)
        else:
            losses = self._teach_readers(kind, factor)
        if bad := {name: value for name, value in losses.items() if not math.isfinite(value)}:
            raise ContractError(
                "training of the edit map diverged",
                expected="finite loss terms and gradients",
                found=bad,
                where=f"{stage}, step {done}",
                todo="lower the learning rate of the edit map; the last good checkpoint is kept",
            )
        self.step += 1
        self.history.append(losses)
        return losses

    def _describe(self, done: int) -> dict[str, float]:
        """Embed the pictures of some training rows, and read the further attributes of some more."""
        assert self.witness is not None
        rows = torch.arange(self.described)[done * _CHUNK : (done + 1) * _CHUNK]
        if len(rows):
            self._keep(self.witness.describe(rows * self.stride, self.codes[rows]))
        if self.scores.shape[1] > self.map.attributes:
            share = math.ceil(len(self.codes) / self.lengths["describe"])
            rows = torch.arange(len(self.codes))[done * share : (done + 1) * share]
            if len(rows):
                found = self.witness.beside(rows * self.stride, self.codes[rows])
                self.scores[rows.to(self.device), self.map.attributes :] = found.to(self.scores)
        return {}

    @property
    def _own(self) -> Tensor:
        """Scores [N, A] of the training set, those that are edited."""
        return self.scores[: len(self.codes), : self.map.attributes]

    @torch.no_grad()
    def _look(self, done: int) -> dict[str, float]:
        """Render edits of some training rows, and see what they really show: the readers learn from it."""
        assert self.witness is not None
        rows = torch.arange(done * _CHUNK, min((done + 1) * _CHUNK, self.looked))
        phi = features(self._own[rows.to(self.device)])
        wanted, changed = wanted_features(phi, self.config, self.rng)
        codes = self.map(self.flow, self.codes[rows].to(self.device).float(), phi, wanted)
        scores, known = self.witness.look(codes)
        scores = scores.to(self.device)[:, : self.scores.shape[1]]
        self.along = torch.cat([self.along, self.flow.along(codes)])
        self.scores = torch.cat([self.scores, scores])
        error = (
            (features(scores[:, : self.map.attributes]) - wanted.clamp(-1.95, 1.95)).abs() * changed
        ).sum() / changed.sum()
        losses = {"looked_aim": float(error)}
        if self.embeddings is not None and known is not None:
            before = self.embeddings[rows.to(self.device)]
            self._keep(known)
            losses["looked_identity"] = float(1.0 - (before * known.to(before)).sum(1).mean())
        return losses

    def _keep(self, embeddings: Tensor) -> None:
        known = embeddings.float().to(self.device)
        self.embeddings = known if self.embeddings is None else torch.cat([self.embeddings, known])

    def _rows(self, kind: str, count: int) -> tuple[Tensor, Tensor]:
        """Draw rows for a reader: (into codes, into what is wanted). Half are edits, once there are any."""
        own = self.described if kind == "identity" else len(self.codes)
        edits = len(self.along) - len(self.codes)
        drawn = torch.randint(own, (count,), generator=self.rng)
        if edits:
            edited = torch.randint(edits, (count // 2,), generator=self.rng)
            rows, wanted = drawn.clone(), drawn.clone()
            rows[: count // 2], wanted[: count // 2] = len(self.codes) + edited, own + edited
            return rows.to(self.device), wanted.to(self.device)
        return drawn.to(self.device), drawn.to(self.device)

    def _teach_readers(self, kind: str, factor: float) -> dict[str, float]:
        config = self.config.readers
        pool = self.scores
        if kind == "identity":
            assert self.embeddings is not None
            pool = self.embeddings
        rows, wanted = self._rows(kind, config.batch)
        loss = advance_readers(
            self.identity if kind == "identity" else self.attributes,
            self.optimizers[kind],
            self.along[rows] / self.map.scale,
            pool[wanted],
            kind,
            config,
            self.rng,
            factor,
        )
        return {f"reader_{kind}": loss}

    def _teach_map(self, factor: float) -> dict[str, float]:
        config = self.config
        rows = torch.randint(len(self.codes), (config.batch,), generator=self.rng).to(self.device)
        phi = features(self._own[rows])
        wanted, changed = wanted_features(phi, config, self.rng)
        people = self.identity if self.described else None
        for part in (self.attributes, self.identity):
            part.requires_grad_(False)  # of the readers only the input's gradient is wanted
        terms = map_terms(
            self.map,
            self.flow,
            self.attributes,
            people,
            self.along[rows],
            phi,
            wanted,
            changed,
            self._base(rows),
        )
        for part in (self.attributes, self.identity):
            part.requires_grad_(True)
        weights = {name: float(getattr(config, name)) for name in _TERMS}
        optimizer = self.optimizers["map"]
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        optimizer.zero_grad(set_to_none=True)
        if terms:
            torch.stack([weights[name] * value for name, value in terms.items()]).sum().backward()
            norm = float(nn.utils.clip_grad_norm_(self.map.parameters(), _CLIP))
            if not math.isfinite(norm):  # before the step: a checkpoint must never hold what it would make
                return {"map_gradient": norm}
            optimizer.step()
        return {f"map_{name}": float(value.detach()) for name, value in terms.items()}

    @torch.no_grad()
    def _base(self, rows: Tensor) -> Tensor | None:
        """z of training rows [b, K]; computed once for all of them, they and the flow never change."""
        if self.config.kept <= 0:
            return None
        if self._bases is None:
            count, solver = len(self.codes), self.config.kept_solver
            pairs = zip(self.along[:count].split(1024), self._own.split(1024), strict=True)
            self._bases = torch.cat([self.flow.base_along(a, features(s), solver) for a, s in pairs])
        return self._bases[rows]

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on as if it had never stopped."""
        return {
            "step": self.step,
            "drawn": self.along[len(self.codes) :],
            "scores": self.scores[len(self.codes) :],
            "further": self.scores[: len(self.codes), self.map.attributes :],
            "embeddings": self.embeddings,
            "map": self.map.state_dict(),
            "attributes": self.attributes.state_dict(),
            "identity": self.identity.state_dict(),
            "optimizers": {name: value.state_dict() for name, value in self.optimizers.items()},
            "rng": self.rng.get_state(),
            "history": self.history,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Undo of `state`."""
        self.step, self.history = int(saved["step"]), list(saved["history"])
        count = len(self.codes)
        self.along = torch.cat([self.along[:count], saved["drawn"].to(self.device)])
        self.scores = torch.cat([self.scores[:count], saved["scores"].to(self.device)])
        self.scores[:count, self.map.attributes :] = saved["further"].to(self.device)
        known = saved["embeddings"]
        self.embeddings = None if known is None else known.to(self.device)
        self.map.load_state_dict(saved["map"])
        self.attributes.load_state_dict(saved["attributes"])
        self.identity.load_state_dict(saved["identity"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])
        self.rng.set_state(saved["rng"])

    def run(self, after: Callable[[dict[str, float]], None]) -> EditMap:
        """All steps that are left, `after` each one; the map in evaluation mode."""
        while self.step < self.total:
            after(self.advance())
        return self.map.eval().requires_grad_(False)


def _pictures(config: EditMapConfig, count: int, flow_steps: int, witness: Witness | None) -> tuple[int, int]:
    """(pictures of the training set to embed, edits to look at)."""
    if witness is None:
        return 0, 0
    described, looked = config.pictures_of(flow_steps)
    described = min(described, count) if witness.knows_people and config.identity > 0 else 0
    return described, min(looked, described or count)


def _further(config: EditMapConfig, witness: Witness | None) -> int:
    """C, further attributes that are held; 0 where nobody can say them, or nobody wants to."""
    return 0 if witness is None or config.beside <= 0 else witness.further


def _schedule(step: int, steps: int, warm_up: int = 20) -> float:
    """Factor of a rate: linear warm-up, then half a cosine to zero."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))
