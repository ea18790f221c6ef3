"""The flow that the product trains by default: closed form where a Gaussian has one, a field for the rest.

w+ -> principal numbers a -> y(0) = (a - m(s)) / r -> dy/dt = f(y, s, t) -> z. What varies outside the
principal directions is a linear regression on s and one spread. The mean of w+ given s and the spread round
it are known after one pass over the codes; the field learns what they leave. Flow matching runs along the
arc y_u = cos(u) y_0 + sin(u) e instead of the straight line of arXiv 2210.02747: for Gaussian codes the
optimal field is then zero, and nothing is learned that the closed form says already (the paths of Albergo and
Vanden-Eijnden, "Building normalizing flows with stochastic interpolants", arXiv 2209.15571).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from sdflow_core.method.closed_form import principal_directions, shrunk_slopes
from sdflow_core.method.condition import features
from sdflow_core.method.flow_laws import base_log_density, require_fit
from sdflow_core.method.residual_field import ResidualField
from sdflow_core.method.solvers import Evaluations, SolverConfig, integrate
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

if TYPE_CHECKING:
    from sdflow_core.method.code_survey import CodeSurvey
    from sdflow_core.method.flow import Divergence


class PrincipalConfig(Config):
    """What the principal flow is made of.

    Attributes:
        kind: Tells the flows apart in a configuration.
        directions: K, principal directions of the flattened code that the field transports.
        width: Hidden width of the field's network.
        blocks: Residual blocks of the network.
        matrices: Matrices mixed by time and condition, beside the network.
        near_data: Times of the training are drawn denser near the codes by this factor (1 = evenly along the
            arc): what tells conditions apart is fine, and noise hides it first.
        solver: Solver of `to_base`, `from_base` and `log_prob` unless a call names another.
    """

    kind: Literal["principal"] = "principal"
    directions: int = Field(default=256, ge=1)
    width: int = Field(default=384, ge=1)
    blocks: int = Field(default=2, ge=1)
    matrices: int = Field(default=8, ge=0)
    near_data: float = Field(default=3.0, gt=0)
    solver: SolverConfig = SolverConfig(method="rk4", steps=8)


class PrincipalFlow(nn.Module):
    """w+ [B, L, D] <-> z [B, L, D] given s [B, A], one state of K numbers.

    The public methods are those of `flow.ConditionalFlow`. Before `fit` it is the identity.

    Args:
        rows: L.
        dim: D.
        attributes: A.
        config: Sizes; K is lowered to L*D where codes are shorter.

    Example:
        >>> flow = PrincipalFlow(2, 3, 1, PrincipalConfig(directions=4))
        >>> w, s = torch.randn(5, 2, 3), torch.rand(5, 1)
        >>> bool((flow.from_base(flow.to_base(w, s), s) - w).abs().max() < 1e-4)
        True
    """

    def __init__(self, rows: int, dim: int, attributes: int, config: PrincipalConfig | None = None) -> None:
        super().__init__()
        self.rows, self.dim, self.attributes = rows, dim, attributes
        self.config = config or PrincipalConfig()
        size = rows * dim
        k = min(self.config.directions, size)
        self.field = ResidualField(
            k, attributes, width=self.config.width, blocks=self.config.blocks, matrices=self.config.matrices
        )
        self.mean: Tensor
        self.std: Tensor
        self.basis: Tensor
        self.slopes: Tensor
        self.spread: Tensor
        self.rest_spread: Tensor
        self.register_buffer("mean", torch.zeros(rows, dim))
        self.register_buffer("std", torch.ones(rows, dim))
        self.register_buffer("basis", torch.eye(k, size))  # [K, L*D] orthonormal rows
        # w+ ~ mean + [1, phi(s)] slopes, for all rows of the code
        self.register_buffer("slopes", torch.zeros(1 + attributes, size))
        self.register_buffer("spread", torch.ones(k))  # of a around its conditional mean
        self.register_buffer("rest_spread", torch.ones(()))  # root mean square of what the directions miss

    @torch.no_grad()
    def fit(self, survey: CodeSurvey) -> None:
        """Directions, conditional mean and spreads from one pass over the codes.

        Directions come from the survey's sample, the regression on phi(s) from sums over *all* rows, its
        slopes shrunk by how far they stand out (`closed_form.shrunk_slopes`).

        Raises:
            ContractError: Another shape, fewer than two codes, or codes without any spread.
        """
        if tuple(survey.mean.shape) != (self.rows, self.dim) or survey.count < 2:
            raise ContractError(
                "codes to fit the flow to",
                expected=f"at least two of [{self.rows}, {self.dim}]",
                found=f"{survey.count} of {list(survey.mean.shape)}",
            )
        self.mean.copy_(survey.mean)
        self.std.copy_(survey.std.clamp_min((0.01 * survey.std.mean()).clamp_min(1e-6)))
        centred = (survey.sample_codes.double() - survey.mean.double()).flatten(1)  # [M, L*D]
        basis = principal_directions(centred, len(self.basis))
        if not bool((centred.square().sum() > 0) & torch.isfinite(centred).all()):
            raise ContractError(
                "codes to fit the flow to",
                expected="finite codes that differ",
                found="no spread",
                todo="check the encoder: it gave the same code for every face",
            )
        xx = survey.sums.xx.double()
        ridge = 1e-4 * survey.count * torch.eye(len(xx), dtype=torch.float64)
        ridge[0, 0] = 0.0
        slopes = torch.linalg.solve(xx + ridge, survey.sums.xw.double())  # [1 + A, L*D], of w+ itself
        slopes[0] -= survey.mean.double().flatten()
        x = _with_one(features(survey.sample_scores.double()))
        residual = centred - x @ slopes
        along = residual @ basis.T
        spread = along.square().mean(0).sqrt()
        missed = residual - along @ basis
        free = max(basis.shape[1] - len(basis), 1)
        rest = (missed.square().sum(1).mean() / free).sqrt()
        self.basis.copy_(basis)
        self.slopes.copy_(shrunk_slopes(slopes, xx, basis, spread.clamp_min(1e-9), rest.clamp_min(1e-9)))
        self.spread.copy_(spread.clamp_min(1e-3 * spread.max().clamp_min(1e-9)))
        # codes that lie in the directions altogether have no rest: it must not be blown up to unit spread
        self.rest_spread.copy_(torch.maximum(rest, 0.05 * spread.min()).clamp_min(1e-6))

    # --- coordinates ----------------------------------------------------------------------------------

    def along(self, w_plus: Tensor) -> Tensor:
        """w+ [B, L, D] -> principal numbers a [B, K], in W+ units."""
        return (w_plus - self.mean).flatten(1) @ self.basis.T

    def lift(self, a: Tensor) -> Tensor:
        """Principal numbers [B, K] -> [B, L, D], a difference of codes."""
        return (a @ self.basis).unflatten(1, (self.rows, self.dim))

    def base_along(
        self,
        a: Tensor,
        phi: Tensor,
        solver: SolverConfig | None = None,
        evaluations: Evaluations | None = None,
    ) -> Tensor:
        """Principal numbers a [B, K], phi(s) [B, A] -> the K numbers of z; differentiable."""
        y = (a - self._conditional(phi)[1]) / self.spread
        return self._solve(y, phi, 0.0, 1.0, solver, evaluations)

    def _conditional(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """phi [B, A] -> conditional mean of w+ less the mean: flat [B, L*D], and along the directions."""
        flat = _with_one(phi) @ self.slopes
        return flat, flat @ self.basis.T

    def _split(self, w_plus: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """w+ [B, L, D] -> (y(0) [B, K], rest of z [B, L*D] across the directions, phi(s) [B, A])."""
        phi = features(s.to(w_plus))
        residual = (w_plus - self.mean).flatten(1) - self._conditional(phi)[0]
        along = residual @ self.basis.T
        return along / self.spread, (residual - along @ self.basis) / self.rest_spread, phi

    # --- the map --------------------------------------------------------------------------------------

    def velocity(self, t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        """The field at y [B, K], t in [0, 1], condition phi(s) [B, A]; times the arc's length pi / 2."""
        return self.field(t, y, phi) * (0.5 * math.pi)

    def to_base(
        self,
        w_plus: Tensor,
        s: Tensor,
        solver: SolverConfig | None = None,
        evaluations: Evaluations | None = None,
    ) -> Tensor:
        """w+ [B, L, D], s [B, A] -> z [B, L, D]: K numbers along the directions, the rest across.

        Raises:
            ContractError: Shapes that do not fit this flow.
        """
        self._check(w_plus, s)
        y, rest, phi = self._split(w_plus, s)
        z = self._solve(y, phi, 0.0, 1.0, solver, evaluations)
        return (z @ self.basis + rest).unflatten(1, (self.rows, self.dim))

    def from_base(
        self, z: Tensor, s: Tensor, solver: SolverConfig | None = None, evaluations: Evaluations | None = None
    ) -> Tensor:
        """z [B, L, D], s [B, A] -> w+ [B, L, D], inverse of `to_base` within the solver's accuracy.

        Raises:
            ContractError: Shapes that do not fit this flow.
        """
        self._check(z, s)
        phi = features(s.to(z))
        flat = z.flatten(1)
        along = flat @ self.basis.T
        y = self._solve(along, phi, 1.0, 0.0, solver, evaluations)
        code = (y * self.spread) @ self.basis + (flat - along @ self.basis) * self.rest_spread
        return (code + self._conditional(phi)[0]).unflatten(1, (self.rows, self.dim)) + self.mean

    def _solve(
        self,
        y: Tensor,
        phi: Tensor,
        t0: float,
        t1: float,
        solver: SolverConfig | None,
        evaluations: Evaluations | None,
    ) -> Tensor:
        def velocity(t: Tensor, state: Tensor) -> Tensor:
            return self.velocity(t, state, phi)

        return integrate(velocity, y, t0, t1, solver or self.config.solver, evaluations)

    # --- density and training -------------------------------------------------------------------------

    def matching(self, w_plus: Tensor, s: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        """Flow matching along the arc, the density term of the training.

        y_v = cos(v) y_0 + sin(v) e with v = atan(tan(pi u / 2) / near_data); target cos(v) e - sin(v) y_0.

        Args:
            w_plus: [B, L, D].
            s: [B, A], with the training's noise.
            noise: e ~ N(0, I) [B, K].
            u: [B] in [0, 1), drawn evenly.

        Returns:
            Scalar mean square error a principal number.
        """
        y0, _, phi = self._split(w_plus, s)
        angle = torch.atan(torch.tan(0.5 * math.pi * u) / self.config.near_data)[:, None]
        y = angle.cos() * y0 + angle.sin() * noise
        wanted = angle.cos() * noise - angle.sin() * y0
        return (self.field(angle[:, 0] / (0.5 * math.pi), y, phi) - wanted).square().mean()

    def base_and_log_det(
        self,
        w_plus: Tensor,
        s: Tensor,
        divergence: Divergence = "exact",
        *,
        probe: Tensor | None = None,
        solver: SolverConfig | None = None,
    ) -> tuple[Tensor, Tensor]:
        """z [B, L, D] and log |det dz/dw+| [B]; see `ConditionalFlow.base_and_log_det`.

        Args:
            w_plus: [B, L, D].
            s: [B, A].
            divergence: `exact` costs K backward passes an evaluation, `hutchinson` one.
            probe: [B, L, D] of zero mean and unit variance; its part along the directions is used.
            solver: Overrides the flow's.

        Raises:
            ContractError: Shapes that do not fit, or `hutchinson` without a probe.
        """
        self._check(w_plus, s)
        if divergence == "hutchinson" and (probe is None or probe.shape != w_plus.shape):
            raise ContractError("probe of the Hutchinson estimator", expected=list(w_plus.shape), found=probe)
        keep_graph = torch.is_grad_enabled()
        y0, rest, phi = self._split(w_plus, s)
        sign = None if probe is None or divergence == "exact" else probe.flatten(1) @ self.basis.T

        def velocity(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                y = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
                slope = self.velocity(t, y, phi)
                trace = _exact(slope, y) if sign is None else (_gradient(slope, y, sign) * sign).sum(1)
            return (slope, trace) if keep_graph else (slope.detach(), trace.detach())

        z, log_det = integrate(velocity, (y0, y0.new_zeros(len(y0))), 0.0, 1.0, solver or self.config.solver)
        k, size = len(self.spread), self.rows * self.dim
        log_det = log_det - self.spread.log().sum() - (size - k) * self.rest_spread.log()
        return (z @ self.basis + rest).unflatten(1, (self.rows, self.dim)), log_det

    def log_prob(
        self,
        w_plus: Tensor,
        s: Tensor,
        divergence: Divergence = "hutchinson",
        *,
        probe: Tensor | None = None,
        solver: SolverConfig | None = None,
    ) -> Tensor:
        """Density log p(w+ | s) [B] in nats, with respect to w+ itself; see `ConditionalFlow.log_prob`.

        Raises:
            ContractError: Shapes that do not fit.
        """
        if divergence == "hutchinson" and probe is None:
            # normal, not signs: only for a normal probe is its part along the directions one of unit variance
            probe = torch.randn(w_plus.shape, generator=torch.Generator().manual_seed(0)).to(w_plus)
        z, log_det = self.base_and_log_det(w_plus, s, divergence, probe=probe, solver=solver)
        return base_log_density(z) + log_det

    def _check(self, codes: Tensor, s: Tensor) -> None:
        require_fit(codes, s, self.rows, self.dim, self.attributes)


def _with_one(phi: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(phi[:, :1]), phi], dim=1)


def _gradient(output: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    pick = cast(Any, torch.autograd.grad)
    return pick(output, y, grad_outputs=weight, create_graph=True, retain_graph=True)[0]


def _exact(slope: Tensor, y: Tensor) -> Tensor:
    trace = torch.zeros_like(slope[:, 0])
    for column in range(slope.shape[1]):
        unit = torch.zeros_like(slope)
        unit[:, column] = 1.0
        trace = trace + _gradient(slope, y, unit)[:, column]
    return trace
