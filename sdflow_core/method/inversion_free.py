"""An edit without inversion: velocities under s and s' are compared at the same noise.

Kulikov et al., "FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow Models" (arXiv
2412.08629), algorithm 1, on paths other than the straight one:

    y_t = path(y, e, t)             noised source, e ~ N(0, I)
    d v/dt = f(v + y_t - y, s', t) - f(y_t, s, t)      from v = y at the noise end to the edit at the code end

With s' = s both velocities are the same numbers at every step, so the edit is its source by construction,
with no solver to trust. It needs a flow that was trained by matching along a known path: on another flow the
noised source is a point that the field has never seen, and the result means nothing (unchanged s stays
exact).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdflow_core.method.condition import features
from sdflow_core.method.flow import ConditionalFlow
from sdflow_core.method.principal import PrincipalFlow
from sdflow_core.method.solvers import Evaluations
from sdflow_core.records.errors import ContractError

DRAWS = 8  # noises a step, averaged
_SEED = 20_241_208

Velocity = Callable[[Tensor, Tensor], Tensor]


def inversion_free_edit(
    flow: object,
    w_plus: Tensor,
    s: Tensor,
    s_after: Tensor,
    steps: int,
    draws: int = DRAWS,
    evaluations: Evaluations | None = None,
) -> Tensor:
    """Edited codes, the noise drawn anew a step from one seed and the same for every row.

    Args:
        flow: `ConditionalFlow` trained by `objectives.matching` (straight path) or `PrincipalFlow` (arc).
        w_plus: [B, L, D].
        s: Before [B, A].
        s_after: After [B, A].
        steps: Equal steps; each costs two evaluations on `draws` times the batch.
        draws: Noises a step, averaged.
        evaluations: Incremented by two a step and a draw.

    Returns:
        [B, L, D]; rows with s' = s are `w_plus`, bit for bit.

    Raises:
        ContractError: A flow without a path.
    """
    if isinstance(flow, PrincipalFlow):
        phi, phi_after = features(s.to(w_plus)), features(s_after.to(w_plus))
        shift = (phi_after - phi) @ flow.slopes[1:]
        mean = torch.cat([torch.ones_like(phi[:, :1]), phi], dim=1) @ flow.slopes @ flow.basis.T
        y = (flow.along(w_plus) - mean) / flow.spread
        moved = _walk(
            y,
            lambda t, at: flow.velocity(t, at, _repeated(phi, draws)),
            lambda t, at: flow.velocity(t, at, _repeated(phi_after, draws)),
            lambda t: (math.cos(0.5 * math.pi * t), math.sin(0.5 * math.pi * t)),
            (steps, draws, 1.0),
            evaluations,
        )
        return w_plus + shift.unflatten(1, (flow.rows, flow.dim)) + flow.lift(moved * flow.spread)
    if isinstance(flow, ConditionalFlow):
        end = flow.config.end_time
        moved = _walk(
            flow.whiten(w_plus),
            lambda t, at: flow.velocity(t, at, _repeated(s, draws)),
            lambda t, at: flow.velocity(t, at, _repeated(s_after, draws)),
            lambda t: (1.0 - t, t),
            (steps, draws, end),
            evaluations,
        )
        return w_plus + moved * flow.std
    raise ContractError(
        "flow for an edit without inversion",
        expected="a flow trained by matching along a known path (ConditionalFlow, PrincipalFlow)",
        found=type(flow).__name__,
        todo="set inversion_free to false",
    )


def _walk(
    y: Tensor,
    before: Velocity,
    after: Velocity,
    path: Callable[[float], tuple[float, float]],
    sizes: tuple[int, int, float],
    evaluations: Evaluations | None,
) -> Tensor:
    """Change of y: from the noise end to the code end, times at the middle of each step."""
    steps, draws, end = sizes
    rng = torch.Generator().manual_seed(_SEED)
    moved = torch.zeros_like(y)
    for i in reversed(range(steps)):
        fraction = (i + 0.5) / steps
        keep, mix = path(fraction)
        noise = torch.randn(draws, 1, *y.shape[1:], generator=rng).to(y)
        noised = keep * y + mix * noise  # [draws, B, ...]
        t = torch.tensor(fraction * end, dtype=y.dtype, device=y.device)
        slope = after(t, (noised + moved).flatten(0, 1)) - before(t, noised.flatten(0, 1))
        # two evaluations, each on `draws` times the rows
        if evaluations is not None:
            evaluations.count += 2 * draws
        moved = moved - (end / steps) * slope.unflatten(0, (draws, len(y))).mean(0)
    return moved


def _repeated(condition: Tensor, draws: int) -> Tensor:
    """[B, A] -> [draws * B, A], the batch once a draw."""
    return condition.repeat(draws, 1)
