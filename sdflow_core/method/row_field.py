"""The same flow, evaluated faster: for flows whose rows do not see each other, without gradients.

A concat-squash layer is (W y + b) * g + h with g = sigmoid(G c + g0), h = H c, and c = [t, s] the same for
all rows of a code. So g and h + b g are computed for all layers at once and once a *code*; a layer is then
one matrix product over all rows of all codes, one fused multiply-add and one sigmoid in place. For tanh(u) =
2 sigmoid(2u) - 1, and a sigmoid takes a third of the time here: the factor inside goes into g and h, the
factor outside and the constant into the next layer's W and b. The result is that of the flow to rounding.

The products are nearly all of it. On processors that torch's library does not favour, the BLAS that comes
with numpy is quicker (91 against 70 Gflop/s on one idle core of an AMD EPYC), so it can be asked for. It
takes its number of threads from OMP_NUM_THREADS when it is loaded and not from `torch.set_num_threads`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from sdflow_core.method.field import ConcatSquash
from sdflow_core.method.flow import ConditionalFlow
from sdflow_core.method.solvers import Evaluations, SolverConfig, integrate
from sdflow_core.records.errors import ContractError


class RowFlow:
    """A snapshot of a flow for edits: `to_base` and `from_base` as the flow's, no gradient, no divergence.

    Args:
        flow: `ConditionalFlow` without a summary of rows (`mix = 0`). Later changes of its weights are not
            seen.
        product: Whose matrix products: torch's, or those of numpy's BLAS (flows on a CPU).

    Raises:
        ContractError: A flow whose rows see each other, or numpy for a flow that is not on a CPU.

    Example:
        >>> from sdflow_core.method.field import FieldConfig
        >>> from sdflow_core.method.flow import FlowConfig
        >>> flow = ConditionalFlow(2, 3, 1, FlowConfig(field=FieldConfig(width=8, mix=0)))
        >>> w, s = torch.randn(4, 2, 3), torch.rand(4, 1)
        >>> bool(torch.allclose(RowFlow(flow).to_base(w, s), flow.to_base(w, s), atol=1e-5))
        True
    """

    @torch.no_grad()
    def __init__(self, flow: ConditionalFlow, product: Literal["torch", "numpy"] = "torch") -> None:
        if product == "numpy" and flow.std.device.type != "cpu":
            raise ContractError(
                "matrix products by numpy", expected="a flow on a CPU", found=str(flow.std.device)
            )
        if flow.field.summary is not None:
            raise ContractError(
                "flow to evaluate by rows",
                expected="rows that do not see each other (mix = 0)",
                found=f"mix = {flow.config.field.mix}",
                todo="use the flow itself",
            )
        self.flow = flow
        self.rows, self.dim, self.attributes, self.config = flow.rows, flow.dim, flow.attributes, flow.config
        self.product = product
        self.mean, self.std = flow.mean, flow.std  # [L, D], or [R, 1, D] of picked rows
        layers = list(cast(Iterable[ConcatSquash], flow.field.layers))
        self._widths = [layer.layer.weight.shape[0] for layer in layers]
        # tanh(u) W + b = sigmoid(2u) (2 W) + (b - sum_in W), for all layers but the first
        self._weights = [
            layer.layer.weight.detach().T.contiguous() * (2.0 if i else 1.0) for i, layer in enumerate(layers)
        ]  # [in, out]
        self._bias = torch.cat(
            [
                layer.layer.bias.detach() - (layer.layer.weight.detach().sum(1) if i else 0.0)
                for i, layer in enumerate(layers)
            ]
        )
        inner = sum(self._widths[:-1])
        self._inside = torch.ones_like(self._bias)  # the 2 of 2u, for what a sigmoid follows
        self._inside[:inner] = 2.0
        self._gate = (
            torch.cat([layer.gate.weight for layer in layers]).detach().T.contiguous()
        )  # [1 + A, sum of widths]
        self._gate_bias = torch.cat([layer.gate.bias for layer in layers]).detach()
        self._shift = torch.cat([layer.shift.weight for layer in layers]).detach().T.contiguous()
        gates: list[Tensor] = [layer.row_gate for layer in layers if layer.row_gate is not None]
        shifts: list[Tensor] = [layer.row_shift for layer in layers if layer.row_shift is not None]
        self._row_gate = torch.cat(gates, dim=1).detach() if gates else None  # [L, sum of widths]
        self._row_shift = torch.cat(shifts, dim=1).detach() if shifts else None

    def picked(self, rows: Tensor) -> RowFlow:
        """The flow for rows taken out of their codes: codes of it are [R, 1, D], row r of kind `rows[r]`.

        Args:
            rows: [R], which of the L rows of a code each one is. Fits batches of exactly these R rows.

        Example:
            >>> from sdflow_core.method.field import FieldConfig
            >>> from sdflow_core.method.flow import FlowConfig
            >>> flow = ConditionalFlow(2, 3, 1, FlowConfig(field=FieldConfig(width=8, mix=0)))
            >>> w, s, rows = torch.randn(4, 2, 3), torch.rand(4, 1), RowFlow(flow)
            >>> second = rows.picked(torch.ones(4, dtype=torch.long))
            >>> bool(torch.allclose(second.to_base(w[:, 1:], s), rows.to_base(w, s)[:, 1:], atol=1e-5))
            True
        """
        out = copy.copy(self)
        out.rows = 1
        out.mean, out.std = self.mean[rows][:, None], self.std[rows][:, None]
        if self._row_gate is not None and self._row_shift is not None:
            out._row_gate, out._row_shift = self._row_gate[rows][:, None], self._row_shift[rows][:, None]
        return out

    def whiten(self, w_plus: Tensor) -> Tensor:
        """See `ConditionalFlow.whiten`."""
        return (w_plus - self.mean) / self.std

    def unwhiten(self, y: Tensor) -> Tensor:
        """See `ConditionalFlow.unwhiten`."""
        return y * self.std + self.mean

    @torch.no_grad()
    def to_base(
        self,
        w_plus: Tensor,
        s: Tensor,
        solver: SolverConfig | None = None,
        evaluations: Evaluations | None = None,
    ) -> Tensor:
        """See `ConditionalFlow.to_base`."""
        y = self.whiten(w_plus)
        return self._solve(y, s, 0.0, self.config.end_time, solver, evaluations)

    @torch.no_grad()
    def from_base(
        self, z: Tensor, s: Tensor, solver: SolverConfig | None = None, evaluations: Evaluations | None = None
    ) -> Tensor:
        """See `ConditionalFlow.from_base`; s [E * B, A] gives E edits of each code, [E * B, L, D]."""
        z = z if len(z) == len(s) else z.repeat(len(s) // len(z), 1, 1)
        y = self._solve(z, s, self.config.end_time, 0.0, solver, evaluations)
        return self.unwhiten(y)

    def _solve(
        self,
        y: Tensor,
        s: Tensor,
        t0: float,
        t1: float,
        solver: SolverConfig | None,
        evaluations: Evaluations | None,
    ) -> Tensor:
        return integrate(
            lambda t, state: self.velocity(t, state, s), y, t0, t1, solver or self.config.solver, evaluations
        )

    def velocity(self, t: Tensor, y: Tensor, s: Tensor) -> Tensor:
        """The field at whitened codes [B, L, D]; equals `flow.velocity` to rounding."""
        condition = 2.0 * s - 1.0 if self.config.signed else s
        context = torch.cat([t.to(y).reshape(1, 1).expand(len(y), 1), condition], dim=1)
        gate = torch.addmm(self._gate_bias, context, self._gate)[:, None]  # [B, 1, sum of widths]
        shift = (context @ self._shift)[:, None]
        if self._row_gate is not None and self._row_shift is not None:
            gate, shift = gate + self._row_gate, shift + self._row_shift
        gate = gate.sigmoid_()
        shift = torch.addcmul(shift, gate, self._bias).mul_(self._inside)
        gate = gate.mul_(self._inside)
        h, last = y.reshape(-1, y.shape[-1]), len(self._weights) - 1
        parts = zip(
            self._weights, gate.split(self._widths, dim=-1), shift.split(self._widths, dim=-1), strict=True
        )
        for i, (weight, g, add) in enumerate(parts):
            h = self._times(h, weight)
            out = h.view(*y.shape[:2], -1)
            torch.addcmul(add, out, g, out=out)
            if i < last:
                h.sigmoid_()
        return h.view(*y.shape[:2], -1)

    def _times(self, h: Tensor, weight: Tensor) -> Tensor:
        if self.product == "torch":
            return h @ weight
        out = h.new_empty(len(h), weight.shape[1])
        np.dot(h.numpy(), weight.numpy(), out=out.numpy())
        return out


def velocity_and_trace(
    flow: ConditionalFlow, t: Tensor, y: Tensor, s: Tensor, probe: Tensor
) -> tuple[Tensor, Tensor]:
    """The field and e^T (df/dy) e, the tangent e pushed forward beside the state; differentiable.

    The number of Hutchinson's estimator as by a vector-Jacobian product, but differentiated once in training
    and not
    twice: a step costs about half.

    Args:
        flow: Without a summary of rows.
        t: Scalar.
        y: Whitened codes [B, L, D].
        s: [B, A].
        probe: e [B, L, D].

    Returns:
        (velocity [B, L, D], trace [B]).
    """
    condition = 2.0 * s - 1.0 if flow.config.signed else s
    context = torch.cat([t.to(y).reshape(1, 1).expand(len(y), 1), condition], dim=1)
    h, tangent = y, probe
    for i, layer in enumerate(cast(Iterable[ConcatSquash], flow.field.layers)):
        if i:
            h = torch.tanh(h)
            tangent = tangent * (1.0 - h.square())
        gate, shift = layer.gate(context)[:, None], layer.shift(context)[:, None]
        if layer.row_gate is not None and layer.row_shift is not None:
            gate, shift = gate + layer.row_gate, shift + layer.row_shift
        gate = torch.sigmoid(gate)
        h = torch.addcmul(shift, layer.layer(h), gate)
        tangent = (tangent @ layer.layer.weight.T) * gate
    return h, (tangent * probe).flatten(1).sum(1)
