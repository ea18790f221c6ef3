"""The published flow, kept whole: moving batch norm, a CNF of concat-squash layers, moving batch norm.

Each row of w+ is transported alone, all rows of a code see the same condition, nobody tells the field which
row it moves. Names of parameters and buffers are those of the original's files, so that
`weights.sdflow_files` can read and write them.

Source: Li et al., "SDFlow", arXiv 2309.05314, section 3.2; Abdal et al., "StyleFlow", arXiv 2008.02401 (the
same flow on given attributes); Grathwohl et al., "FFJORD", arXiv 1810.01367, eq. 4 (log-density along the
path).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from sdflow_core.method.flow_laws import base_log_density, require_fit
from sdflow_core.method.paper_layers import Cnf, HyperNet, MovingBatchNorm
from sdflow_core.method.solvers import REFERENCE, Evaluations, SolverConfig, integrate
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

if TYPE_CHECKING:
    from sdflow_core.method.flow import Divergence


class PaperFlowConfig(Config):
    """What the published flow is made of; the defaults are the published numbers.

    Attributes:
        kind: Tells this configuration from those of the other flows.
        width: Hidden width.
        depth: Concat-squash layers.
        solver: Solver of all methods unless a call names another.
    """

    kind: Literal["paper"] = "paper"
    width: int = Field(default=512, ge=1)
    depth: int = Field(default=6, ge=2)
    solver: SolverConfig = REFERENCE


class PaperFlow(nn.Module):
    """w+ [B, L, D] <-> z [B, L, D] given s [B, A], the published way.

    Rows are transported alone; densities and log-determinants are those of the whole code, that is sums over
    its rows. In training mode `to_base`, `base_and_log_det` and `log_prob` move the statistics of the two
    batch norms once a call, as published; evaluation mode never changes anything.

    Args:
        rows: L. No parameter depends on it.
        dim: D.
        attributes: A.
        config: Sizes and solver.

    Example:
        >>> flow = PaperFlow(2, 3, 1, PaperFlowConfig(width=8)).eval()
        >>> w, s = torch.randn(4, 2, 3), torch.rand(4, 1)
        >>> bool((flow.from_base(flow.to_base(w, s), s) - w).abs().max() < 1e-3)
        True
    """

    def __init__(self, rows: int, dim: int, attributes: int, config: PaperFlowConfig | None = None) -> None:
        super().__init__()
        self.rows, self.dim, self.attributes = rows, dim, attributes
        self.config = config or PaperFlowConfig()
        net = HyperNet(dim, attributes, self.config.width, self.config.depth)
        self.chain = nn.ModuleList([MovingBatchNorm(dim), Cnf(net), MovingBatchNorm(dim)])

    # typed views of the chain, whose names belong to the file format
    @property
    def _first(self) -> MovingBatchNorm:
        return cast(MovingBatchNorm, self.chain[0])

    @property
    def _cnf(self) -> Cnf:
        return cast(Cnf, self.chain[1])

    @property
    def _last(self) -> MovingBatchNorm:
        return cast(MovingBatchNorm, self.chain[2])

    @property
    def mean(self) -> Tensor:
        """Mean of the codes as the first batch norm knows it, the same for all rows [L, D]."""
        return self._first.running_mean.expand(self.rows, self.dim)

    @property
    def std(self) -> Tensor:
        """Spread of the codes as the first batch norm knows it [L, D]."""
        return (self._first.running_var + MovingBatchNorm.EPS).sqrt().expand(self.rows, self.dim)

    @property
    def end_time(self) -> Tensor:
        """T, scalar, learned: the square of the stored parameter."""
        return self._cnf.sqrt_end_time.square()

    @torch.no_grad()
    def fit_statistics(self, codes: Tensor, s: Tensor, solver: SolverConfig | None = None) -> None:
        """Set the stored statistics of both norms to those of codes [N, L, D] with attributes s [N, A].

        Not in the published training, where they start at zero and one and follow the batches; see
        `PaperTrainingConfig.fit_statistics`.

        Raises:
            ContractError: Shapes that do not fit this flow.
        """
        self._check(codes, s)
        self._first.set_statistics(codes)
        y = self._transport(self._first.normalise(codes), s, 0.0, 1.0, solver, None)
        self._last.set_statistics(y)

    def velocity(self, t: Tensor, y: Tensor, s: Tensor) -> Tensor:
        """The field at normalised codes y [B, L, D], t in [0, T], s [B, A] -> [B, L, D]."""
        return self._net(t, y, s)[0]

    @property
    def _net(self) -> HyperNet:
        return self._cnf.odefunc.diffeq

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
        return self._last(self._transport(self._first(w_plus), s, 0.0, 1.0, solver, evaluations))

    def from_base(
        self, z: Tensor, s: Tensor, solver: SolverConfig | None = None, evaluations: Evaluations | None = None
    ) -> Tensor:
        """Base code z [B, L, D], s [B, A] -> w+ [B, L, D], inverse of `to_base` within the solver's accuracy.

        Raises:
            ContractError: Shapes that do not fit this flow.
        """
        self._check(z, s)
        y = self._transport(self._last.inverse(z), s, 1.0, 0.0, solver, evaluations)
        return self._first.inverse(y)

    def _transport(
        self,
        y: Tensor,
        s: Tensor,
        u0: float,
        u1: float,
        solver: SolverConfig | None,
        evaluations: Evaluations | None,
    ) -> Tensor:
        end = self.end_time  # integrated over u = t / T: gradients reach T through the scaled velocity

        def velocity(u: Tensor, state: Tensor) -> Tensor:
            return end * self.velocity(u * end, state, s)

        return integrate(velocity, y, u0, u1, solver or self.config.solver, evaluations)

    def base_and_log_det(
        self,
        w_plus: Tensor,
        s: Tensor,
        divergence: Divergence = "exact",
        *,
        probe: Tensor | None = None,
        solver: SolverConfig | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Base code z and log |det dz/dw+|, rows summed.

        The divergence comes from tangents pushed forward beside the state: the same numbers as by
        vector-Jacobian products, at the cost of one more matrix product a layer and probe, and a training
        step differentiates only once.

        Args:
            w_plus: [B, L, D].
            s: [B, A].
            divergence: `exact` pushes D tangents a row (rows do not see each other), `hutchinson` one.
            probe: [B, L, D] noise of zero mean and unit variance for `hutchinson`; published: N(0, I), one
                for the whole path.
            solver: Overrides the flow's.

        Returns:
            (z [B, L, D], log-determinant [B], batch norms included).

        Raises:
            ContractError: Shapes that do not fit, or `hutchinson` without a probe.
        """
        self._check(w_plus, s)
        if divergence == "hutchinson":
            self._check_probe(w_plus, probe)
            tangents = cast(Tensor, probe)[None]
        else:
            eye = torch.eye(self.dim, dtype=w_plus.dtype, device=w_plus.device)
            tangents = eye[:, None, None].expand(-1, *w_plus.shape)
        end = self.end_time

        def velocity(u: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            slope, pushed = self._net(u * end, state[0], s, tangents)
            return end * slope, end * (cast(Tensor, pushed) * tangents).sum(dim=(0, 2, 3))

        constant = self._first.log_det()
        start = (self._first(w_plus), w_plus.new_zeros(len(w_plus)))
        y, log_det = integrate(velocity, start, 0.0, 1.0, solver or self.config.solver)
        constant = constant + self._last.log_det()
        return self._last(y), log_det + self.rows * constant

    def log_prob(
        self,
        w_plus: Tensor,
        s: Tensor,
        divergence: Divergence = "hutchinson",
        *,
        probe: Tensor | None = None,
        solver: SolverConfig | None = None,
    ) -> Tensor:
        """Density log p(w+ | s) [B] in nats, with respect to w+ itself, rows summed.

        Args:
            w_plus: [B, L, D].
            s: [B, A].
            divergence: See `base_and_log_det`.
            probe: For `hutchinson`; None draws N(0, I) from a generator seeded with 0.
            solver: Overrides the flow's.

        Raises:
            ContractError: Shapes that do not fit.
        """
        if divergence == "hutchinson" and probe is None:
            probe = torch.randn(w_plus.shape, generator=torch.Generator().manual_seed(0)).to(w_plus)
        z, log_det = self.base_and_log_det(w_plus, s, divergence, probe=probe, solver=solver)
        return base_log_density(z) + log_det

    def solve_as_published(
        self,
        codes: Tensor,
        s: Tensor,
        *,
        reverse: bool,
        probe: Tensor,
        solver: SolverConfig | None = None,
        evaluations: Evaluations | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One way through the chain as the published code goes it, at inference too: the yardstick of cost.

        State, log-density a row and condition travel together through the adaptive solver, the divergence is
        a vector-Jacobian product by automatic differentiation at every evaluation. Nobody needs it for an
        edit: `to_base` and `from_base` give the same codes within the tolerances.

        Args:
            codes: w+, or z if `reverse` [B, L, D].
            s: [B, A].
            reverse: From z to w+.
            probe: N(0, I) [B, L, D].
            solver: Overrides the flow's; published: dopri5 at 1e-5.
            evaluations: Incremented once an evaluation of the field.

        Returns:
            (codes at the other end [B, L, D], log |det d(other end)/d codes| [B]). Differentiable when
            gradients are enabled.

        Raises:
            ContractError: Shapes that do not fit.
        """
        self._check(codes, s)
        self._check_probe(codes, probe)
        end, keep_graph = self.end_time, torch.is_grad_enabled()

        def velocity(u: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
            with torch.enable_grad():
                y = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
                slope = end * self.velocity(u * end, y, state[2])
                pulled = cast(Any, torch.autograd.grad)(
                    slope, y, grad_outputs=probe, create_graph=keep_graph
                )[0]
                trace = (pulled * probe).sum(dim=2, keepdim=True)
            if not keep_graph:
                slope, trace = slope.detach(), trace.detach()
            return slope, trace, torch.zeros_like(state[2])

        before, after = (self._last, self._first) if reverse else (self._first, self._last)
        constant = before.log_det()
        y = before.inverse(codes) if reverse else before(codes)
        ends = (1.0, 0.0) if reverse else (0.0, 1.0)
        start = (y, y.new_zeros(*y.shape[:2], 1), s)
        y, rows, _ = integrate(velocity, start, *ends, solver or self.config.solver, evaluations)
        constant = self.rows * (constant + after.log_det())
        out = after.inverse(y) if reverse else after(y)
        return out, rows.sum(dim=(1, 2)) + (-constant if reverse else constant)

    def _check(self, codes: Tensor, s: Tensor) -> None:
        require_fit(codes, s, self.rows, self.dim, self.attributes)

    def _check_probe(self, codes: Tensor, probe: Tensor | None) -> None:
        if probe is None or probe.shape != codes.shape:
            found = None if probe is None else list(probe.shape)
            raise ContractError("probe of the Hutchinson estimator", expected=list(codes.shape), found=found)
