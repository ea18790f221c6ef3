"""Training of the flows that the solver benchmarks time: the published objective and ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from flow_codes import ATTRIBUTES, DIM, ROWS, Codes
from torch import Tensor

from sdflow_core.method.code_source import TensorSource
from sdflow_core.method.code_survey import survey
from sdflow_core.method.flow import PAPER_FLOW, ConditionalFlow
from sdflow_core.method.principal import PrincipalFlow
from sdflow_core.method.row_field import velocity_and_trace
from sdflow_core.method.solvers import SolverConfig, integrate

FAST_TRAINING = SolverConfig(method="rk4", steps=2)
# one step of two fourth-order increments: memory that does not grow with the steps, at more evaluations
FRUGAL_TRAINING = SolverConfig(method="reversible", steps=1, base="rk4")


def trained_published(codes: Codes, steps: int, batch: int = 128) -> ConditionalFlow:
    """The published field (512 wide, 5 hidden layers, rows alone), maximum likelihood, rows drawn at random.

    The density of a code is the product of its rows', so single rows are an unbiased batch at an 18th of the
    cost. Whitening is the same for all rows, as the published batch norm's.
    """
    torch.manual_seed(0)
    flow = ConditionalFlow(ROWS, DIM, ATTRIBUTES, PAPER_FLOW)
    std, mean = torch.std_mean(codes.train.flatten(0, 1), dim=0)
    flow.mean.copy_(mean.expand(ROWS, DIM))
    flow.std.copy_(std.expand(ROWS, DIM))
    rng = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    solver = SolverConfig(method="midpoint", steps=2)
    for step in range(steps):
        picked = torch.randint(len(codes.train), (batch,), generator=rng)
        row = torch.randint(ROWS, (batch,), generator=rng)
        y = ((codes.train[picked, row] - mean) / std)[:, None]  # [B, 1, 512]
        probe = torch.randn(y.shape, generator=rng)
        loss = likelihood(flow, y, codes.s_train[picked], probe, solver)[0]
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (steps - step) / (0.3 * steps))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
    return flow.eval()


def likelihood(
    flow: ConditionalFlow, y: Tensor, s: Tensor, probe: Tensor, solver: SolverConfig
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood a number of the code (constant aside) and z, tangents pushed forward."""

    def velocity(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return velocity_and_trace(flow, t, state[0], s, probe)

    z, log_det = integrate(velocity, (y, y.new_zeros(len(y))), 0.0, flow.config.end_time, solver)
    return (0.5 * z.flatten(1).square().sum(1) - log_det).mean() / y[0].numel(), z


def fast_step(
    flow: ConditionalFlow, w: Tensor, s: Tensor, s_after: Tensor, probe: Tensor, solver: SolverConfig
) -> float:
    """The published step's flow terms by a fast solver: likelihood with z, and back without a divergence."""
    y = flow.whiten(w)
    loss, z = likelihood(flow, y, s, probe, solver)
    end = flow.config.end_time
    edited = integrate(lambda t, state: flow.velocity(t, state, s_after), z, end, 0.0, solver)
    loss = loss + (edited - y).square().mean()
    loss.backward()
    return float(loss.detach())


def matching_step(flow: PrincipalFlow, w: Tensor, s: Tensor, rng: torch.Generator) -> float:
    """One step of the objective that the product trains by default."""
    noise = torch.randn(len(w), len(flow.spread), generator=rng)
    loss = flow.matching(w, s, noise, torch.rand(len(w), generator=rng))
    loss.backward()
    return float(loss.detach())


def fitted_principal(codes: Codes, steps: int, batch: int = 64) -> PrincipalFlow:
    """The default flow, fit on the same codes and trained a little."""
    torch.manual_seed(0)
    flow = PrincipalFlow(ROWS, DIM, ATTRIBUTES)
    kept = slice(0, None, max(1, len(codes.train) // 600))  # the fit's cost grows with the cube of its rows
    flow.fit(survey(TensorSource(codes.train[kept], codes.s_train[kept])))
    optimizer = torch.optim.Adam(flow.field.parameters(), lr=1e-3)
    rng = torch.Generator().manual_seed(2)
    for _ in range(steps):
        picked = torch.randint(len(codes.train), (batch,), generator=rng)
        optimizer.zero_grad()
        matching_step(flow, codes.train[picked], codes.s_train[picked], rng)
        optimizer.step()
    return flow.eval()


def peak_bytes(work: Callable[[], object]) -> int:
    """Peak of what PyTorch's allocator holds beyond the start, by the profiler's record of it."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda item: item.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
