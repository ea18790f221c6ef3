"""The velocity of the principal flow: a residual network, and matrices mixed by the condition.

The state is one vector of K whitened numbers. What a conditional mean can explain was taken away before
(`principal.PrincipalFlow`), so the field has to learn two things: that the covariance differs with the
attributes, and what is not Gaussian. The first is linear in y: the optimal velocity between two centred
Gaussians is a matrix that depends on time and condition only, so it gets matrices of its own. A network
alone learns it slowly and leaves enough for a probe to read attributes from z.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CONTEXT = 64


class ResidualField(nn.Module):
    """dy/dt = sum_m g_m(t, c) M_m y + net(y, t, c), zero at the start: the flow begins as the identity.

    Args:
        size: K, numbers of the state.
        conditions: A, length of the condition c.
        width: Hidden width of the network.
        blocks: Residual blocks of the network.
        matrices: How many M_m [K, K] are mixed; 0 = network alone.

    Example:
        >>> field = ResidualField(5, 2, width=8, blocks=1, matrices=2)
        >>> float(field(torch.tensor(0.5), torch.randn(3, 5), torch.zeros(3, 2)).abs().max())
        0.0
    """

    def __init__(self, size: int, conditions: int, *, width: int, blocks: int, matrices: int) -> None:
        super().__init__()
        self.matrices = matrices
        self.context = nn.Sequential(
            nn.Linear(3 + conditions, _CONTEXT), nn.SiLU(), nn.Linear(_CONTEXT, _CONTEXT), nn.SiLU()
        )
        self.first = nn.Linear(size, width)
        self.modulation = nn.ModuleList(nn.Linear(_CONTEXT, 2 * width) for _ in range(blocks))
        self.widen = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.narrow = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.last = nn.Linear(width, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        if matrices:
            self.mixing = nn.Linear(_CONTEXT, matrices)
            self.mixed = nn.Parameter(torch.zeros(size, matrices * size))
            # the gates start different from each other, or all matrices would learn the same
            nn.init.normal_(self.mixing.bias, std=0.5)

    def forward(self, t: Tensor, y: Tensor, c: Tensor) -> Tensor:
        """Velocity [B, K] at time t (scalar or [B], in [0, 1]), state y [B, K], condition c [B, A]."""
        time = t.to(y.dtype).reshape(-1, 1).expand(y.shape[0], 1)
        angle = torch.pi * time
        context = self.context(torch.cat([time, angle.sin(), angle.cos(), c], dim=1))
        h = self.first(y)
        for modulation, widen, narrow in zip(self.modulation, self.widen, self.narrow, strict=True):
            gate, shift = modulation(context).chunk(2, dim=1)
            h = h + narrow(torch.nn.functional.silu(widen(h) * (1.0 + gate) + shift))
        out = self.last(torch.nn.functional.silu(h))
        if self.matrices:
            parts = (y @ self.mixed).unflatten(1, (self.matrices, -1))  # [B, M, K]
            out = out + torch.einsum("bm,bmk->bk", self.mixing(context), parts)
        return out
