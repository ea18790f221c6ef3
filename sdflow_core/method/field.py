"""The velocity field f(y, s, t) of the flow: concat-squash layers.

Source: Grathwohl et al., "FFJORD", arXiv 1810.01367 (layer); Abdal et al., "StyleFlow", arXiv 2008.02401
(use on w+).
"""

from __future__ import annotations

import itertools

import torch
from pydantic import Field
from torch import Tensor, nn

from sdflow_core.records.config import Config


class FieldConfig(Config):
    """Numbers of the field. The defaults are ours; the published field is `PAPER_FIELD`.

    Attributes:
        width: Hidden width.
        depth: Number of concat-squash layers, >= 2.
        row_index: Tell the layers which row of w+ they see. Off in the paper.
        mix: Width of a linear summary of all rows that every row sees; 0 = rows are transported alone, as in
            the paper.
        last_scale: Initial scale of the last layer's weights; < 1 starts near the identity flow.
    """

    width: int = Field(default=256, ge=1)
    depth: int = Field(default=3, ge=2)
    row_index: bool = True
    mix: int = Field(default=128, ge=0)
    last_scale: float = Field(default=0.1, gt=0)


PAPER_FIELD = FieldConfig(width=512, depth=6, row_index=False, mix=0, last_scale=1.0)


class ConcatSquash(nn.Module):
    """One layer: (W y + b) * sigmoid(G c + g) + H c, with c = [t, s, one-hot row, summary of all rows].

    The product of G and H with the one-hot row is a table lookup, kept as `row_gate` and `row_shift`; the
    rest of the context is the same for all rows of a code, so it is multiplied once a code and not once a
    row.
    """

    def __init__(
        self, features_in: int, features_out: int, context: int, rows: int, *, row_index: bool
    ) -> None:
        super().__init__()
        self.layer = nn.Linear(features_in, features_out)
        self.gate = nn.Linear(context, features_out)
        self.shift = nn.Linear(context, features_out, bias=False)
        bound = context**-0.5
        self.row_gate = (
            nn.Parameter(torch.empty(rows, features_out).uniform_(-bound, bound)) if row_index else None
        )
        self.row_shift = (
            nn.Parameter(torch.empty(rows, features_out).uniform_(-bound, bound)) if row_index else None
        )

    def forward(self, y: Tensor, context: Tensor) -> Tensor:
        """States y [B, L, in], context [B, C] -> [B, L, out]."""
        gate, shift = self.gate(context)[:, None, :], self.shift(context)[:, None, :]
        if self.row_gate is not None and self.row_shift is not None:
            gate, shift = gate + self.row_gate, shift + self.row_shift
        return self.layer(y) * torch.sigmoid(gate) + shift


class ConcatSquashField(nn.Module):
    """dy/dt = f(t, y, s) on whole codes y [B, L, D].

    With `mix = 0` rows do not see each other and the Jacobian is block diagonal; with `mix` it is full.
    Nothing downstream relies on the blocks: a code is one state of L*D numbers.

    Args:
        rows: L.
        dim: D.
        attributes: A, length of the condition s.
        config: Switches and sizes.
    """

    def __init__(self, rows: int, dim: int, attributes: int, config: FieldConfig) -> None:
        super().__init__()
        self.config = config
        context = 1 + attributes + config.mix
        self.summary = nn.Linear(rows * dim, config.mix) if config.mix else None
        sizes = [dim, *[config.width] * (config.depth - 1), dim]
        self.layers = nn.ModuleList(
            ConcatSquash(a, b, context, rows, row_index=config.row_index)
            for a, b in itertools.pairwise(sizes)
        )
        if config.last_scale != 1.0:
            with torch.no_grad():
                for parameter in self.layers[-1].parameters():
                    parameter.mul_(config.last_scale)

    def forward(self, t: Tensor, y: Tensor, s: Tensor) -> Tensor:
        """Velocity.

        Args:
            t: Scalar, or [B] with one time a code.
            y: [B, L, D].
            s: [B, A], the condition in the range the flow chose ([-1, 1] by default).

        Returns:
            [B, L, D].
        """
        # published order of the context: t first, then the conditions
        parts = [t.to(y.dtype).reshape(-1, 1).expand(y.shape[0], 1), s]
        if self.summary is not None:
            parts.append(self.summary(y.flatten(1)))
        context = torch.cat(parts, dim=1)
        h = y
        for i, layer in enumerate(self.layers):
            h = layer(torch.tanh(h) if i else h, context)
        return h
