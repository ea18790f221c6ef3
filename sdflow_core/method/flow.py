"""The invertible decomposition w+ <-> (z, s): a continuous normalizing flow conditioned on attributes.

dy/dt = f(y, s, t), y(0) = whitened w+, y(T) = z ~ N(0, I)   (arXiv 2309.05314, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sdflow_core.method.field import PAPER_FIELD, ConcatSquashField, FieldConfig
from sdflow_core.method.flow_laws import base_log_density, require_fit
from sdflow_core.method.solvers import REFERENCE, Evaluations, SolverConfig, integrate
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

Divergence = Literal["hutchinson", "exact"]


class FlowConfig(Config):
    """What the flow is made of.

    Attributes:
        kind: Tells the flows apart in a configuration.
        field: The velocity field.
        solver: Solver of `to_base`, `from_base` and `log_prob` unless a call names another.
        end_time: T.
        signed: Give the field 2s - 1 instead of s; the paper gives s.
    """

    kind: Literal["conditional"] = "conditional"
    field: FieldConfig = FieldConfig()
    solver: SolverConfig = SolverConfig()
    end_time: float = Field(default=1.0, gt=0)
    signed: bool = True


PAPER_FLOW = FlowConfig(field=PAPER_FIELD, solver=REFERENCE, signed=False)


class ConditionalFlow(nn.Module):
    """w+ [B, L, D] <-> z [B, L, D] given s [B, A].

    The whole code is one state of L*D numbers: densities and log-determinants are those of w+ itself,
    whitening included.

    Args:
        rows: L.
        dim: D.
        attributes: A.
        config: Field, solver, T.

    Example:
        >>> flow = ConditionalFlow(2, 3, 1)
        >>> w, s = torch.randn(4, 2, 3), torch.rand(4, 1)
        >>> z = flow.to_base(w, s)
        >>> bool((flow.from_base(z, s) - w).abs().max() < 1e-3)
        True
    """

    def __init__(self, rows: int, dim: int, attributes: int, config: FlowConfig | None = None) -> None:
        super().__init__()
        self.rows, self.dim, self.attributes = rows, dim, attributes
        self.config = config or FlowConfig()
        self.field = ConcatSquashField(rows, dim, attributes, self.config.field)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(rows, dim))
        self.register_buffer("std", torch.ones(rows, dim))

    @torch.no_grad()
    def fit_whitening(self, codes: Tensor) -> None:
        """Set mean and standard deviation a number of the code from codes [N, L, D].

        Raises:
            ContractError: Fewer than two codes, another shape, or a value that is not finite.
        """
        if (
            tuple(codes.shape[1:]) != (self.rows, self.dim)
            or len(codes) < 2
            or not bool(torch.isfinite(codes).all())
        ):
            raise ContractError(
                "codes to whiten by",
                expected=f"finite [N >= 2, {self.rows}, {self.dim}]",
                found=list(codes.shape),
            )
        std, mean = torch.std_mean(codes.double(), dim=0)
        # A number that never varies (row 0 of a delta encoder, say) must not be blown up to unit variance.
        floor = (0.01 * std.mean()).clamp_min(1e-6)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp_min(floor))

    def whiten(self, w_plus: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D] of about zero mean and unit variance."""
        return (w_plus - self.mean) / self.std

    def unwhiten(self, y: Tensor) -> Tensor:
        """Inverse of `whiten`."""
        return y * self.std + self.mean

    def velocity(self, t: Tensor, y: Tensor, s: Tensor) -> Tensor:
        """The field at whitened codes y [B, L, D]; s [B, A] in [0, 1], extrapolated values allowed."""
        return self.field(t, y, 2.0 * s - 1.0 if self.config.signed else s)

    def forward(self, s: Tensor) -> BoundFlow:
        """Condition first, then compute: the flow for attributes s [B, A]."""
        return BoundFlow(self, s)

    def to_base(
        self,
        w_plus: Tensor,
        s: Tensor,
        solver: SolverConfig | None = None,
        evaluations: Evaluations | None = None,
    ) -> Tensor:
        """w+ [B, L, D], s [B, A] -> z [B, L, D]. State path only: no divergence is computed.

        Raises:
            ContractError: Shapes that do not fit this flow.
        """
        self._check(w_plus, s)
        return self._solve(self.whiten(w_plus), s, 0.0, self.config.end_time, solver, evaluations)

    def from_base(
        self, z: Tensor, s: Tensor, solver: SolverConfig | None = None, evaluations: Evaluations | None = None
    ) -> Tensor:
        """Base code z [B, L, D], s [B, A] -> w+ [B, L, D], inverse of `to_base` within the solver's accuracy.

        Raises:
            ContractError: Shapes that do not fit this flow.
        """
        self._check(z, s)
        return self.unwhiten(self._solve(z, s, self.config.end_time, 0.0, solver, evaluations))

    def _solve(
        self,
        y: Tensor,
        s: Tensor,
        t0: float,
        t1: float,
        solver: SolverConfig | None,
        evaluations: Evaluations | None,
    ) -> Tensor:
        def velocity(t: Tensor, state: Tensor) -> Tensor:
            return self.velocity(t, state, s)

        return integrate(velocity, y, t0, t1, solver or self.config.solver, evaluations)

    def base_and_log_det(
        self,
        w_plus: Tensor,
        s: Tensor,
        divergence: Divergence = "exact",
        *,
        probe: Tensor | None = None,
        solver: SolverConfig | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Base code z and log |det dz/dw+|.

        Args:
            w_plus: [B, L, D].
            s: [B, A].
            divergence: `exact` costs L*D backward passes an evaluation; `hutchinson` one, unbiased for the
                trace.
            probe: [B, L, D] noise of zero mean and unit variance for `hutchinson`, held fixed along the path.
            solver: Overrides the flow's.

        Returns:
            (z [B, L, D], log-determinant [B] of the whole state, whitening included).

        Raises:
            ContractError: Shapes that do not fit, or `hutchinson` without a probe.
        """
        self._check(w_plus, s)
        if divergence == "hutchinson" and (probe is None or probe.shape != w_plus.shape):
            raise ContractError("probe of the Hutchinson estimator", expected=list(w_plus.shape), found=probe)
        keep_graph = torch.is_grad_enabled()

        def velocity(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                y = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
                slope = self.velocity(t, y, s)
                trace = (
                    _exact(slope, y)
                    if probe is None or divergence == "exact"
                    else _hutchinson(slope, y, probe)
                )
            return (slope, trace) if keep_graph else (slope.detach(), trace.detach())

        start = (self.whiten(w_plus), w_plus.new_zeros(w_plus.shape[0]))
        z, log_det = integrate(velocity, start, 0.0, self.config.end_time, solver or self.config.solver)
        return z, log_det - self.std.log().sum()

    def log_prob(
        self,
        w_plus: Tensor,
        s: Tensor,
        divergence: Divergence = "hutchinson",
        *,
        probe: Tensor | None = None,
        solver: SolverConfig | None = None,
    ) -> Tensor:
        """Density log p(w+ | s) [B] in nats, with respect to w+ itself.

        Args:
            w_plus: [B, L, D].
            s: [B, A].
            divergence: See `base_and_log_det`.
            probe: For `hutchinson`; None draws Rademacher signs from a generator seeded with 0.
            solver: Overrides the flow's.

        Raises:
            ContractError: Shapes that do not fit.
        """
        if divergence == "hutchinson" and probe is None:
            probe = rademacher(w_plus, torch.Generator().manual_seed(0))
        z, log_det = self.base_and_log_det(w_plus, s, divergence, probe=probe, solver=solver)
        return base_log_density(z) + log_det

    def _check(self, codes: Tensor, s: Tensor) -> None:
        require_fit(codes, s, self.rows, self.dim, self.attributes)


@dataclass(frozen=True)
class BoundFlow:
    """A flow with its condition: a plain, short-lived value."""

    flow: ConditionalFlow
    s: Tensor  # [B, A] in [0, 1]

    def to_base(self, w_plus: Tensor, **options: Any) -> Tensor:
        """w+ [B, L, D] -> z [B, L, D]."""
        return self.flow.to_base(w_plus, self.s, **options)

    def from_base(self, z: Tensor, **options: Any) -> Tensor:
        """Base code z [B, L, D] -> w+ [B, L, D]."""
        return self.flow.from_base(z, self.s, **options)

    def log_prob(self, w_plus: Tensor, **options: Any) -> Tensor:
        """Density log p(w+ | s) [B]."""
        return self.flow.log_prob(w_plus, self.s, **options)


def rademacher(like: Tensor, rng: torch.Generator) -> Tensor:
    """Random signs of the shape, dtype and device of `like`, drawn from the CPU generator `rng`."""
    signs = torch.randint(0, 2, like.shape, generator=rng) * 2 - 1
    return signs.to(like)


def _gradient(output: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    pick: Callable[..., tuple[Tensor, ...]] = torch.autograd.grad
    return pick(output, y, grad_outputs=weight, create_graph=True, retain_graph=True)[0]


def _hutchinson(slope: Tensor, y: Tensor, probe: Tensor) -> Tensor:
    """e^T (df/dy) e [B]: unbiased for the trace when E[e e^T] = I."""
    return (_gradient(slope, y, probe) * probe).flatten(1).sum(1)


def _exact(slope: Tensor, y: Tensor) -> Tensor:
    """Trace of df/dy over all L*D numbers of a code [B]; one pass a number serves the whole batch."""
    trace = torch.zeros_like(slope[:, 0, 0])
    for row in range(slope.shape[1]):
        for column in range(slope.shape[2]):
            unit = torch.zeros_like(slope)
            unit[:, row, column] = 1.0
            trace = trace + _gradient(slope, y, unit)[:, row, column]
    return trace
