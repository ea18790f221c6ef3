"""Editors taught on the known world, each a function (w+ [B, L, D], s [B, A], s' [B, A]) -> edited codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdflow_core.method.code_readers import ReaderConfig
from sdflow_core.method.code_source import TensorSource
from sdflow_core.method.code_survey import survey
from sdflow_core.method.condition import features
from sdflow_core.method.edit_map import EditMapConfig
from sdflow_core.method.field import PAPER_FIELD
from sdflow_core.method.flow import PAPER_FLOW, FlowConfig
from sdflow_core.method.linear import fit_linear
from sdflow_core.method.map_training import MapTraining, Witness
from sdflow_core.method.principal import PrincipalConfig, PrincipalFlow
from sdflow_core.method.solvers import SolverConfig
from sdflow_core.method.training import TrainingConfig, paper_training, train_editor

Edit = Callable[[Tensor, Tensor, Tensor], Tensor]

FINE = SolverConfig(method="rk4", steps=8)
SMALL = PrincipalConfig(directions=96, width=256, blocks=2, matrices=8)
# weights, reach and shares are the defaults; only sizes follow the world's
MAP = EditMapConfig(width=256, readers=ReaderConfig(width=128, embedding=24), looked_at=1536, identity_rows=4096)


def directions(codes: Tensor, scores: Tensor, *, project: bool) -> Edit:
    """InterFaceGAN's way: normals of logistic regressions, with or without conditional projection."""
    found = fit_linear(codes, scores, kind="logistic", project=project)
    return lambda w, s, after: w + torch.einsum("ba,ald->bld", after - s, found)


def regression(codes: Tensor, scores: Tensor) -> Edit:
    """w ~ mean + phi(s) B alone; this is also the counterfactual that goes with LEACE of known attributes."""
    flow = PrincipalFlow(codes.shape[1], codes.shape[2], scores.shape[1], PrincipalConfig(directions=1, width=1))
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
    codes: Tensor, scores: Tensor, world: nn.Module, labeller: nn.Module, steps: int, seed: int, *, joint: bool
) -> Edit:
    """The published flow (rows alone, NLL). `joint`: with all of the published terms; else on frozen scores.

    Steps are few here, so the batch is 64 instead of 8, the rate 1e-3 instead of 1e-4 with a cosine, and the
    training solves with a fixed grid; the objective, its weights and the field's form are the published ones.
    """
    coarse = SolverConfig(method="midpoint", steps=3)
    base = paper_training(steps)
    field = PAPER_FIELD.model_copy(update={"width": 128})
    weights = base.objective.model_copy(
        update={} if joint else {"distillation": 0.0, "consistency": 0.0, "closeness": 0.0}
    )
    config = base.model_copy(
        update={
            "flow": PAPER_FLOW.model_copy(update={"field": field}),
            "objective": weights,
            "batch": 64,
            "image_batch": 32,
            "edit_batch": 32,
            "learning_rate": 1e-3,
            "warm_up_steps": 20,
            "density_solver": coarse,
            "edit_solver": coarse,
            "precision": "fp32",
            "seed": seed,
        }
    )
    return corrected(train_editor(codes, None, scores, world, labeller, config).flow)


def first_generation(
    codes: Tensor, scores: Tensor, world: nn.Module, labeller: nn.Module, steps: int, seed: int
) -> Edit:
    """ConditionalFlow with the defaults of `TrainingConfig`: flow matching, rows that see each other."""
    config = TrainingConfig(flow=FlowConfig(), steps=steps, seed=seed, precision="fp32")
    return corrected(train_editor(codes, None, scores, world, labeller, config).flow)


def principal(
    codes: Tensor,
    scores: Tensor,
    steps: int,
    seed: int,
    *,
    config: PrincipalConfig = SMALL,
    s_noise: float = 0.1,
    batch: int = 256,
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
        rise, fall = min(1.0, (step + 1) / 20), 0.5 * (1.0 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * rise * fall
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


