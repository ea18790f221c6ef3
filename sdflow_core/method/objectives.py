"""The terms of the objective (arXiv 2309.05314, section 3.3), and flow matching as a density term.

Every function is a pure loss: mean over batch and numbers, scalar, differentiable. Random numbers come in as
arguments.
"""

from __future__ import annotations

from typing import Literal, Protocol, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sdflow_core.method.flow import ConditionalFlow, Divergence
from sdflow_core.method.solvers import SolverConfig
from sdflow_core.records.config import Config

ScoreLoss = Literal["bce", "mse"]


class ObjectiveConfig(Config):
    """Weights of the terms; 0 switches a term off, and it then costs nothing.

    Attributes:
        distillation: Semantic encoder against the labeller's scores.
        density: How well the codes fit the flow, by `density_loss`.
        consistency: Attributes read from the edited image against the attributes asked for.
        closeness: Edited code against its source, in whitened units.
        density_loss: `nll` simulates the flow (the paper); `flow_matching` regresses its velocity (arXiv
            2210.02747).
        score_loss: How scores are compared.
    """

    distillation: float = Field(default=1.0, ge=0)
    density: float = Field(default=1.0, ge=0)
    consistency: float = Field(default=2.0, ge=0)
    closeness: float = Field(default=0.3, ge=0)
    density_loss: Literal["nll", "flow_matching"] = "flow_matching"
    score_loss: ScoreLoss = "mse"


class Renderer(Protocol):
    """What the terms need of a generator; `faces.generator.Generator` is one."""

    def synthesize(self, w_plus: Tensor) -> Tensor:
        """[B, L, D] -> [B, 3, H, W], nominally in [-1, 1]."""
        ...


def score_distance(logits: Tensor, wanted: Tensor, kind: ScoreLoss) -> Tensor:
    """Logits [B, A] against scores [B, A] in [0, 1] -> scalar."""
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits, wanted)
    return F.mse_loss(torch.sigmoid(logits), wanted)


def distillation(logits: Tensor, scores: Tensor, kind: ScoreLoss = "mse") -> Tensor:
    """Semantic encoder's logits [B, A] against the labeller's scores [B, A] -> scalar."""
    return score_distance(logits, scores, kind)


def nll_per_dimension(
    flow: ConditionalFlow,
    w_plus: Tensor,
    s: Tensor,
    *,
    probe: Tensor | None = None,
    divergence: Divergence = "hutchinson",
    solver: SolverConfig | None = None,
) -> Tensor:
    """-log p(w+ | s) / (L*D), mean over the batch, in nats a number of the code -> scalar.

    The constant of the whitening is part of it, so values of two data sets are comparable.
    """
    log_prob = flow.log_prob(w_plus, s, divergence, probe=probe, solver=solver)
    return -log_prob.mean() / (flow.rows * flow.dim)


def matching(flow: ConditionalFlow, w_plus: Tensor, s: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Conditional flow matching (arXiv 2210.02747, eq. 9) along straight paths from codes to noise.

    y_t = (1 - t) y_0 + t e, target velocity (e - y_0) / T: its minimiser transports the codes of each s to
    N(0, I).

    Args:
        flow: With fitted whitening.
        w_plus: [B, L, D].
        s: [B, A].
        noise: e ~ N(0, I) [B, L, D].
        t: [B] in [0, 1], as a fraction of T.

    Returns:
        Scalar mean square error a number of the code.
    """
    y0 = flow.whiten(w_plus)
    end = flow.config.end_time
    y_t = y0 + t[:, None, None] * (noise - y0)
    return (flow.velocity(t * end, y_t, s) * end - (noise - y0)).square().mean()


def redraw_one(s: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Replace one attribute of each row, chosen at random, by a draw from U(0, 1).

    Args:
        s: [B, A] in [0, 1].
        rng: CPU generator.

    Returns:
        (s' [B, A] without gradient, index of the changed attribute [B]).
    """
    which = torch.randint(s.shape[1], (s.shape[0],), generator=rng)
    fresh = torch.rand(s.shape[0], generator=rng).to(s)
    changed = F.one_hot(which, s.shape[1]).to(device=s.device, dtype=torch.bool)
    return torch.where(changed, fresh[:, None], s.detach()), which


def render(generator: nn.Module, w_plus: Tensor) -> Tensor:
    """Codes -> images clamped to [-1, 1], as a picture file would hold them."""
    return cast(Renderer, generator).synthesize(w_plus).clamp(-1.0, 1.0)


def consistency(logits: Tensor, s_wanted: Tensor, kind: ScoreLoss = "mse") -> Tensor:
    """What the semantic encoder reads from the edited image (logits [B, A]) against s' [B, A] -> scalar.

    All attributes are compared: the changed one must arrive and the others must stay.
    """
    return score_distance(logits, s_wanted, kind)


def closeness(flow: ConditionalFlow, edited: Tensor, source: Tensor) -> Tensor:
    """Mean square distance of two codes [B, L, D] in whitened units -> scalar."""
    return ((edited - source) / flow.std).square().mean()
