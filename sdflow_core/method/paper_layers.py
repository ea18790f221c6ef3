"""The layers of the published flow, under the names of the original's files.

The original names some of its parameters with a leading underscore; the names are part of the file format.
Source: Grathwohl et al., "FFJORD", arXiv 1810.01367 (concat-squash); Yang et al., "PointFlow", arXiv
1906.12320 (moving batch norm).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class MovingBatchNorm(nn.Module):
    """Batch norm by *stored* statistics, an affine bijection of each number of a row.

    y = (x - mean) / sqrt(var + eps) * exp(weight) + bias. The stored statistics are used in training too; a
    forward pass in training then moves them towards those of the batch.

    Args:
        dim: D.
    """

    EPS = 1e-4
    DECAY = 0.1

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.step: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("step", torch.zeros(1))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]; in training the statistics move after they were used."""
        y = self.normalise(x)
        if self.training:
            self._follow(x)
        return y

    def normalise(self, x: Tensor) -> Tensor:
        """The forward pass alone, by the statistics as they are now."""
        # a copy: their update must not reach what the backward pass still needs
        return (x - self.running_mean.clone()) / self._std() * self.weight.exp() + self.bias

    def inverse(self, y: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D], by the statistics as they are now."""
        return (y - self.bias) * (-self.weight).exp() * self._std() + self.running_mean.clone()

    def log_det(self) -> Tensor:
        """log |det dy/dx| of one row, scalar, by the statistics as they are now."""
        return (self.weight - self._std().log()).sum()

    @torch.no_grad()
    def set_statistics(self, x: Tensor) -> None:
        """Make the stored statistics those of x [N, L, D], rows of all codes together."""
        variance, mean = torch.var_mean(x.reshape(-1, x.shape[-1]), dim=0)
        self.running_mean.copy_(mean)
        self.running_var.copy_(variance)

    def _std(self) -> Tensor:
        return (self.running_var + self.EPS).sqrt()

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) < 2:  # one row has no variance
            return
        variance, mean = torch.var_mean(rows, dim=0)
        self.running_mean.lerp_(mean, self.DECAY)
        self.running_var.lerp_(variance, self.DECAY)
        self.step += 1


class HyperConcatSquash(nn.Module):
    """One layer: (W y + b) * sigmoid(G c + g) + H c with c = [t, s]."""

    def __init__(self, features_in: int, features_out: int, context: int) -> None:
        super().__init__()
        self._layer = nn.Linear(features_in, features_out)
        self._hyper_bias = nn.Linear(context, features_out, bias=False)
        self._hyper_gate = nn.Linear(context, features_out)

    def forward(self, y: Tensor, tangents: Tensor | None, context: Tensor) -> tuple[Tensor, Tensor | None]:
        """y [B, L, in], its tangents [P, B, L, in], context [B, 1 + A] -> the same of the layer's output."""
        gate = torch.sigmoid(self._hyper_gate(context))[:, None]
        out = self._layer(y) * gate + self._hyper_bias(context)[:, None]
        return out, None if tangents is None else (tangents @ self._layer.weight.T) * gate


class HyperNet(nn.Module):
    """Concat-squash layers D -> width -> ... -> D, tanh between them.

    Args:
        dim: D.
        attributes: A.
        width: Hidden width.
        depth: Layers.
    """

    def __init__(self, dim: int, attributes: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [dim, *[width] * (depth - 1), dim]
        self.layers = nn.ModuleList(
            HyperConcatSquash(a, b, 1 + attributes) for a, b in itertools.pairwise(sizes)
        )

    def forward(
        self, t: Tensor, y: Tensor, s: Tensor, tangents: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Velocity and, of it, the directional derivatives with respect to y.

        Args:
            t: Scalar.
            y: [B, L, D].
            s: [B, A], the same for all rows.
            tangents: P directions [P, B, L, D]; None computes no derivatives.

        Returns:
            (dy/dt [B, L, D], J tangents [P, B, L, D] or None).
        """
        # published order of the context: t first, then the conditions
        context = torch.cat([t.to(y).reshape(-1, 1).expand(y.shape[0], 1), s], dim=1)
        for i, layer in enumerate(self.layers):
            if i:
                y = torch.tanh(y)
                tangents = None if tangents is None else tangents * (1.0 - y.square())
            y, tangents = layer(y, tangents, context)
        return y, tangents


class OdeFunction(nn.Module):
    """The field, and the counter that lies beside it in the file."""

    def __init__(self, net: HyperNet) -> None:
        super().__init__()
        self.diffeq = net
        # a counter of the original's; kept as it was read, because inference must not change a file's digest
        self._num_evals: Tensor
        self.register_buffer("_num_evals", torch.zeros(()))


class Cnf(nn.Module):
    """The field and the root of its end time."""

    def __init__(self, net: HyperNet) -> None:
        super().__init__()
        self.odefunc = OdeFunction(net)
        self.sqrt_end_time = nn.Parameter(torch.ones(()))
