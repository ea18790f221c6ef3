"""The faithful mode: dopri5 at 1e-5 both ways, Hutchinson's divergence along, adjoint gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from sdflow_core.method.flow import ConditionalFlow


class PublishedField(nn.Module):
    """d(y, log p)/dt of FFJORD as published: a vector-Jacobian product at every evaluation."""

    def __init__(self, flow: ConditionalFlow) -> None:
        super().__init__()
        self.flow, self.calls = flow, 0
        self.probe = torch.empty(0)

    def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(y [B, L, D], log p [B], s [B, A]) -> their slopes; s is part of the state and does not move."""
        self.calls += 1
        y, _, s = state
        learning = torch.is_grad_enabled() and y.requires_grad  # the adjoint's way back differentiates by y
        with torch.enable_grad():
            y = y if learning else y.detach().requires_grad_()
            slope = self.flow.velocity(t, y, s)
            pulled = torch.autograd.grad(slope, y, self.probe, create_graph=True)[0]
            trace = (pulled * self.probe).flatten(1).sum(1)
        return slope, -trace, torch.zeros_like(s).requires_grad_()


def published_pass(
    field: PublishedField, y: Tensor, s: Tensor, *, back: bool, tolerance: float = 1e-5, learn: bool = False
) -> tuple[Tensor, Tensor]:
    """One integration with the divergence: (state at the other end, change of log-density [B])."""
    end = field.flow.config.end_time
    times = torch.tensor([end, 0.0] if back else [0.0, end], dtype=y.dtype)
    options: dict[str, Any] = {"method": "dopri5", "rtol": tolerance, "atol": tolerance}
    state = (y, y.new_zeros(len(y)), s)
    if learn:
        path = odeint_adjoint(field, state, times, **options)
        return path[0][-1], path[1][-1]
    with torch.no_grad():
        path = odeint(_without_graph(field), state, times, **options)
    return path[0][-1], path[1][-1]


def _without_graph(field: PublishedField) -> Any:
    return lambda t, state: tuple(part.detach() for part in field(t, state))


def published_edit(field: PublishedField, w: Tensor, s: Tensor, s_after: Tensor) -> Tensor:
    """w -> z under s, z -> w' under s', both with the divergence that an edit does not need."""
    y = field.flow.whiten(w)
    z, _ = published_pass(field, y, s, back=False)
    return field.flow.unwhiten(published_pass(field, z, s_after, back=True)[0])


def published_step(field: PublishedField, w: Tensor, s: Tensor, s_after: Tensor) -> float:
    """Flow terms of one published training step: likelihood, and there-and-back for the edit's closeness."""
    y = field.flow.whiten(w)
    z, change = published_pass(field, y, s, back=False, learn=True)
    loss = (0.5 * z.flatten(1).square().sum(1) + change).mean() / y[0].numel()
    edited, _ = published_pass(field, z, s_after, back=True, learn=True)
    loss = loss + (edited - y).square().mean()
    loss.backward()
    return float(loss.detach())
