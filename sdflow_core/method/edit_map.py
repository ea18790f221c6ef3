"""An edit in one pass: a map from a code, its attributes and the wanted ones to the edited code.

w' = w + (phi(s') - phi(s)) B + V^T (m(a, phi(s), phi(s')) - m(a, phi(s), phi(s)))

with a = V (w - mean), V the flow's principal directions, B its regression of w+ on phi(s), and m a small
network. An edit with s' = s is its input by construction, exactly. The map is taught after the flow, which
stays as it is: it still says what z is, how likely a code is, and how far an edit left z. The map is held to
z(w', s') = z(w, s), to what readers see (`code_readers`), and nothing else; it replaces two solutions of the
differential equation by two evaluations of m.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sdflow_core.method.code_readers import ReaderConfig, Readers
from sdflow_core.method.principal import PrincipalFlow
from sdflow_core.method.solvers import SolverConfig
from sdflow_core.records.config import Config

_IDENTITY_ROWS = 2048


class EditMapConfig(Config):
    """What the edit map is made of, and what it is held to.

    Attributes:
        width: Hidden width of m.
        blocks: Residual blocks of m.
        steps: Optimizer steps; None is two thirds of the flow's.
        batch: Codes a step.
        learning_rate: Of Adam.
        aim: Weight: the attributes asked for, in phi, by all attribute readers.
        hold: Weight: the attributes that were not to change, in phi, against what the same readers see in the
            source.
        beside: Weight: all further attributes that the labeller knows, held likewise. Where the world makes
            two attributes go together (age and grey hair), readers of both can tell them apart and the codes'
            statistics cannot.
        identity: Weight: 1 - cosine of the identity embeddings read from edit and source; 0 where no identity
            network was at hand.
        kept: Weight: mean square change of z(w, s) a principal number.
        kept_solver: Solver of the flow in that term.
        reach: Wanted attributes are drawn evenly with |phi| up to this; edits ask for no more than that.
        several: Share of the codes with more than one attribute changed.
        identity_rows: Training pictures whose identity is embedded (20 ms each) for the readers; None is as
            many as the flow has steps, at most 2,048.
        looked_at: Edits of the half-taught map that are rendered, scored and embedded for the readers; None
            is three quarters of `identity_rows`.
        readers: The readers it is taught by.
    """

    width: int = Field(default=384, ge=1)
    blocks: int = Field(default=2, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    aim: float = Field(default=1.0, ge=0)
    hold: float = Field(default=3.0, ge=0)
    beside: float = Field(default=0.03, ge=0)
    identity: float = Field(default=12.0, ge=0)
    kept: float = Field(default=10.0, ge=0)
    kept_solver: SolverConfig = SolverConfig(method="midpoint", steps=2)
    reach: float = Field(default=2.5, gt=0)
    several: float = Field(default=0.25, ge=0, le=1)
    identity_rows: int | None = Field(default=None, ge=1)
    looked_at: int | None = Field(default=None, ge=0)
    readers: ReaderConfig = ReaderConfig()

    def steps_of(self, flow_steps: int) -> int:
        """Optimizer steps of the map after a flow of so many."""
        return self.steps or max(1, round(flow_steps * 2 / 3))

    def pictures_of(self, flow_steps: int) -> tuple[int, int]:
        """How many training pictures are embedded, and how many edits are looked at."""
        described = self.identity_rows or min(_IDENTITY_ROWS, max(16, flow_steps))
        return described, described * 3 // 4 if self.looked_at is None else self.looked_at


class EditMap(nn.Module):
    """The network m and the coordinates it works in.

    Args:
        size: K of the flow.
        attributes: A.
        config: Sizes.
    """

    def __init__(self, size: int, attributes: int, config: EditMapConfig) -> None:
        super().__init__()
        self.config, self.attributes = config, attributes
        width = config.width
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(size))  # spread of a among people
        self.condition = nn.Sequential(nn.Linear(2 * attributes, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.first = nn.Linear(size + 2 * attributes, width)
        self.modulation = nn.ModuleList(nn.Linear(64, 2 * width) for _ in range(config.blocks))
        self.widen = nn.ModuleList(nn.Linear(width, width) for _ in range(config.blocks))
        self.narrow = nn.ModuleList(nn.Linear(width, width) for _ in range(config.blocks))
        self.last = nn.Linear(width, size)
        with torch.no_grad():
            self.last.weight.mul_(0.1)

    def network(self, x: Tensor, phi: Tensor, phi_after: Tensor) -> Tensor:
        """m, whitened: x [B, K], phi and phi_after [B, A] -> [B, K]."""
        both = torch.cat([phi, phi_after - phi], dim=1)
        context = self.condition(both)
        h = self.first(torch.cat([x, both], dim=1))
        for modulation, widen, narrow in zip(self.modulation, self.widen, self.narrow, strict=True):
            gate, shift = modulation(context).chunk(2, dim=1)
            h = h + narrow(F.silu(widen(h) * (1.0 + gate) + shift))
        return self.last(F.silu(h))

    def along(self, a: Tensor, phi: Tensor, phi_after: Tensor) -> Tensor:
        """Change of the principal numbers [B, K] that m adds to the regression's."""
        x = a / self.scale
        change = self.network(x, phi, phi_after) - self.network(x, phi, phi)
        return change * self.scale

    def forward(self, flow: PrincipalFlow, w_plus: Tensor, phi: Tensor, phi_after: Tensor) -> Tensor:
        """Codes [B, L, D] with phi(s) and phi(s') [B, A] -> edited codes [B, L, D]."""
        straight = ((phi_after - phi) @ flow.slopes[1:]).unflatten(1, (flow.rows, flow.dim))
        return w_plus + straight + flow.lift(self.along(flow.along(w_plus), phi, phi_after))


def wanted_features(phi: Tensor, config: EditMapConfig, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw what a step asks for.

    Args:
        phi: phi(s) [B, A].
        config: `reach` and `several`.
        rng: CPU generator.

    Returns:
        (phi(s') [B, A], which entries were changed [B, A] as 0 and 1).
    """
    count, attributes = phi.shape
    changed = F.one_hot(torch.randint(attributes, (count,), generator=rng), attributes).bool()
    more = torch.rand(count, 1, generator=rng) < config.several
    changed |= more & (torch.rand(count, attributes, generator=rng) < 0.5)
    fresh = (2.0 * torch.rand(count, attributes, generator=rng) - 1.0) * config.reach
    mask = changed.to(phi.device)
    return torch.where(mask, fresh.to(phi), phi), mask.to(phi)


def map_terms(
    edit_map: EditMap,
    flow: PrincipalFlow,
    attributes: Readers,
    identity: Readers | None,
    a: Tensor,
    phi: Tensor,
    phi_after: Tensor,
    changed: Tensor,
    z: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms the map is taught by: `aim`, `hold`, `beside`, `identity`, `kept`; each a scalar, unweighted.

    Args:
        edit_map: The map.
        flow: Trained, not changed.
        attributes: Readers of phi [.., A], further attributes that the labeller knows behind them.
        identity: Readers of the identity embedding, if any.
        a: Principal numbers [B, K] of the codes.
        phi: phi(s) [B, A].
        phi_after: phi(s') [B, A].
        changed: Which entries were asked to change, 0 or 1 [B, A].
        z: What the flow says of the codes by `kept_solver` [B, K]; None computes it.
    """
    goal = edit_map.config
    straight = ((phi_after - phi) @ flow.slopes[1:]) @ flow.basis.T
    after = a + straight + edit_map.along(a, phi, phi_after)
    x, y = a / edit_map.scale, after / edit_map.scale
    terms: dict[str, Tensor] = {}
    count = phi.shape[1]
    read_after, beside_after = attributes(y).tensor_split([count], dim=-1)
    with torch.no_grad():
        read, beside = attributes(x).tensor_split([count], dim=-1)
    if goal.aim > 0:
        wanted = phi_after.expand_as(read_after)
        error = F.smooth_l1_loss(read_after, wanted, beta=0.5, reduction="none")
        terms["aim"] = (error * changed).sum(-1).mean()
    if goal.hold > 0:
        error = F.smooth_l1_loss(read_after, read, beta=0.5, reduction="none")
        terms["hold"] = (error * (1.0 - changed)).sum(-1).mean()
    if goal.beside > 0 and beside.shape[-1]:
        terms["beside"] = F.smooth_l1_loss(beside_after, beside, beta=0.5, reduction="none").sum(-1).mean()
    if goal.identity > 0 and identity is not None:
        with torch.no_grad():
            person = identity(x)
        terms["identity"] = (1.0 - F.cosine_similarity(identity(y), person, dim=-1)).mean()
    if goal.kept > 0:
        if z is None:
            with torch.no_grad():
                z = flow.base_along(a, phi, goal.kept_solver)
        if bool(torch.isfinite(after).all()):
            terms["kept"] = (flow.base_along(after, phi_after, goal.kept_solver) - z).square().mean()
        else:  # the solver would refuse it; the training says what happened
            terms["kept"] = after.sum() * torch.nan
    return terms
