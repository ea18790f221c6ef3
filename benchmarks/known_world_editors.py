"""Editors taught on the known world, each a function (w+ [B, L, D], s [B, A], s' [B, A]) -> edited codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdflow_core.method import objectives
from sdflow_core.method.code_readers import ReaderConfig
from sdflow_core.method.code_source import TensorSource
from sdflow_core.method.code_survey import survey
from sdflow_core.method.condition import features
from sdflow_core.method.edit_map import EditMapConfig
from sdflow_core.method.flow import ConditionalFlow, FlowConfig
from sdflow_core.method.linear import fit_linear
from sdflow_core.method.map_training import MapTraining, Witness
from sdflow_core.method.paper import PaperFlowConfig
from sdflow_core.method.paper_objective import PUBLISHED, STYLEFLOW
from sdflow_core.method.paper_training import PaperTrainingConfig, train_paper
from sdflow_core.method.principal import PrincipalConfig, PrincipalFlow
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.solvers import SolverConfig

Edit = Callable[[Tensor, Tensor, Tensor], Tensor]

FINE = SolverConfig(method="rk4", steps=8)
SMALL = PrincipalConfig(directions=48, width=128, blocks=2, matrices=6)
# weights, reach and shares are the defaults; only sizes follow the world's
MAP = EditMapConfig(width=128, readers=ReaderConfig(width=96), looked_at=768, identity_rows=2048)


def directions(codes: Tensor, scores: Tensor, *, project: bool) -> Edit:
    """InterFaceGAN's way: normals of logistic regressions, with or without conditional projection."""
    found = fit_linear(codes, scores, kind="logistic", project=project)
    return lambda w, s, after: w + torch.einsum("ba,ald->bld", after - s, found)


def regression(codes: Tensor, scores: Tensor) -> Edit:
    """w ~ mean + phi(s) B alone; this is also the counterfactual that goes with LEACE of known attributes."""
    flow = PrincipalFlow(
        codes.shape[1], codes.shape[2], scores.shape[1], PrincipalConfig(directions=1, width=1)
    )
    flow.fit(survey(TensorSource(codes, scores)))
    slopes = flow.slopes[1:].unflatten(1, codes.shape[1:])
    return lambda w, s, after: w + torch.einsum("ba,ald->bld", features(after) - features(s), slopes)


def corrected(flow: Any, solver: SolverConfig = FINE) -> Edit:
    """w' = w + D(z, s') - D(z, s)."""

    @torch.no_grad()
    def edit(w: Tensor, s: Tensor, after: Tensor) -> Tensor:
        z = flow.to_base(w, s, solver)
        return w + flow.from_base(z, after, solver) - flow.from_base(z, s, solver)

    return edit


def published(
    codes: Tensor,
    scores: Tensor,
    world: nn.Module,
    labeller: nn.Module,
    steps: int,
    seed: int,
    *,
    joint: bool,
) -> Edit:
    """SDFlow as published, or (not `joint`) its flow on frozen scores by likelihood alone, StyleFlow's way.

    Steps are few here, so the batch is 32 instead of 8, the rate 1e-3 instead of 1e-4, the width 4 D instead
    of D, and the training solves on a fixed grid. Terms, weights and architecture are the published ones.
    """
    config = PaperTrainingConfig(
        flow=PaperFlowConfig(width=128),
        objective=PUBLISHED if joint else STYLEFLOW,
        steps=steps,
        batch=32,
        learning_rate=1e-3,
        clip=1.0,
        solver=SolverConfig(method="midpoint", steps=3),
    )
    return corrected(train_paper(codes, scores, world, labeller, config, seed)[0])


def first_generation(
    codes: Tensor, scores: Tensor, world: nn.Module, labeller: nn.Module, steps: int, seed: int
) -> Edit:
    """ConditionalFlow (rows see each other), flow matching, terms and weights of `ObjectiveConfig`."""
    goal, solver = objectives.ObjectiveConfig(), SolverConfig(method="midpoint", steps=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = ConditionalFlow(codes.shape[1], codes.shape[2], scores.shape[1], FlowConfig())
    flow.fit_whitening(codes)
    semantic = SemanticEncoder.warm_start(labeller)
    rng, looked, batch = torch.Generator().manual_seed(seed), 24, 128
    groups = [{"params": list(flow.parameters())}, {"params": list(semantic.parameters()), "lr": 1e-4}]
    optimizer = torch.optim.Adam(groups, lr=1e-3)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    for step in range(steps):
        rows = torch.randint(len(codes), (batch,), generator=rng)
        w, s = codes[rows], scores[rows]
        with torch.no_grad():
            pictures = objectives.render(world, w[:looked])
        logits = semantic.logits(pictures)
        loss = goal.distillation * objectives.distillation(logits, s[:looked])
        s = torch.cat([torch.sigmoid(logits), s[looked:]])
        soft = s + 0.05 * torch.randn(s.shape, generator=rng)
        noise, t = torch.randn(w.shape, generator=rng), torch.rand(batch, generator=rng)
        loss = loss + goal.density * objectives.matching(flow, w, soft, noise, t)
        if step % 2 == 0:
            wanted, _ = objectives.redraw_one(s[:looked], rng)
            edited = flow.from_base(flow.to_base(w[:looked], s[:looked], solver), wanted, solver)
            read = semantic.logits(objectives.render(world, edited))
            loss = loss + goal.consistency * objectives.consistency(read, wanted)
            loss = loss + goal.closeness * objectives.closeness(flow, edited, w[:looked])
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * _schedule(step, steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for part in (flow, semantic):
            nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
    return corrected(flow.eval().requires_grad_(False))


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    return min(1.0, (step + 1) / 20) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def principal(
    codes: Tensor,
    scores: Tensor,
    steps: int,
    seed: int,
    *,
    config: PrincipalConfig = SMALL,
    s_noise: float = 0.1,
    batch: int = 128,
    rate: float = 2e-3,
) -> PrincipalFlow:
    """Survey, closed form, then flow matching with noise on s, as in training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = PrincipalFlow(codes.shape[1], codes.shape[2], scores.shape[1], config)
    flow.fit(survey(TensorSource(codes, scores)))
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(flow.field.parameters(), lr=rate)
    size = len(flow.basis)
    for step in range(steps):
        rows = torch.randint(len(codes), (batch,), generator=rng)
        s = scores[rows] + 0.5 * s_noise * torch.randn(batch, scores.shape[1], generator=rng)
        noise, u = torch.randn(batch, size, generator=rng), torch.rand(batch, generator=rng)
        loss = flow.matching(codes[rows], s, noise, u)
        for group in optimizer.param_groups:
            group["lr"] = rate * _schedule(step, steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(flow.field.parameters(), 1.0)
        optimizer.step()
    return flow.eval().requires_grad_(False)


def edit_map(
    flow: PrincipalFlow,
    codes: Tensor,
    scores: Tensor,
    witness: Witness | None,
    steps: int,
    seed: int,
    config: EditMapConfig = MAP,
) -> Edit:
    """The map, taught after the flow by `map_training`."""
    taught = MapTraining(flow, codes, scores, witness, config, steps, seed).run(lambda losses: None)

    @torch.no_grad()
    def edit(w: Tensor, s: Tensor, after: Tensor) -> Tensor:
        return taught(flow, w, features(s), features(after))

    return edit
