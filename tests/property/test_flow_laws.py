"""Laws of the flow: it inverts, its log-determinant is that of the real map, batch rows are independent."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdflow_core.method.field import FieldConfig
from sdflow_core.method.flow import ConditionalFlow, FlowConfig, rademacher
from sdflow_core.method.solvers import SolverConfig

ROWS, DIM, ATTRIBUTES = 3, 2, 2
FINE = SolverConfig(method="rk4", steps=24)
FIELDS = {
    "ours": FieldConfig(width=8, depth=3, row_index=True, mix=4, last_scale=1.0),
    "rows alone": FieldConfig(width=8, depth=3, row_index=True, mix=0, last_scale=1.0),
    "paper": FieldConfig(width=8, depth=6, row_index=False, mix=0, last_scale=1.0),
}


def tiny(name: str, seed: int = 0, solver: SolverConfig = FINE) -> ConditionalFlow:
    torch.manual_seed(seed)
    config = FlowConfig(field=FIELDS[name], solver=solver, signed=name != "paper")
    flow = ConditionalFlow(ROWS, DIM, ATTRIBUTES, config).double()
    with torch.no_grad():
        flow.mean.copy_(torch.randn(ROWS, DIM))
        flow.std.copy_(torch.rand(ROWS, DIM) + 0.3)
    return flow


def sample(n: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    w = torch.randn(n, ROWS, DIM, generator=rng, dtype=torch.float64)
    return w, torch.rand(n, ATTRIBUTES, generator=rng, dtype=torch.float64)


def jacobian(flow: ConditionalFlow, w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    def f(flat: torch.Tensor) -> torch.Tensor:
        return flow.to_base(flat.view(1, ROWS, DIM), s[None]).flatten()

    return torch.autograd.functional.jacobian(f, w.flatten())


@pytest.mark.parametrize("name", FIELDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 3.0))
def test_decoding_the_encoding_gives_the_code_back(name: str, seed: int, scale: float) -> None:
    flow = tiny(name, seed)
    w, s = sample(4, seed)
    with torch.no_grad():
        back = flow.from_base(flow.to_base(scale * w, s), s)
    assert (back - scale * w).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["dopri5", "rk4", "midpoint", "euler"])
def test_every_solver_inverts_better_when_it_works_harder(method: str) -> None:
    w, s = sample(4)

    def error(solver: SolverConfig) -> float:
        flow = tiny("ours", solver=solver)
        with torch.no_grad():
            return float((flow.from_base(flow.to_base(w, s), s) - w).abs().max())

    loose = error(SolverConfig(method=method, steps=4, rtol=1e-3, atol=1e-3))  # pyright: ignore
    tight = error(SolverConfig(method=method, steps=64, rtol=1e-7, atol=1e-7))  # pyright: ignore
    assert tight < loose


@pytest.mark.parametrize("name", FIELDS)
def test_log_det_is_that_of_the_jacobian_of_the_whole_code(name: str) -> None:
    flow = tiny(name)
    w, s = sample(3)
    _, log_det = flow.base_and_log_det(w, s, "exact")
    for i in range(3):
        expected = torch.linalg.slogdet(jacobian(flow, w[i], s[i])).logabsdet
        assert abs(float((log_det[i] - expected).detach())) < 1e-5


def test_the_jacobian_has_blocks_exactly_when_rows_do_not_mix() -> None:
    w, s = sample(1)
    outside = ~torch.block_diag(*[torch.ones(DIM, DIM, dtype=torch.bool)] * ROWS)
    assert jacobian(tiny("ours"), w[0], s[0])[outside].abs().max() > 1e-3
    for name in ("rows alone", "paper"):
        assert jacobian(tiny(name), w[0], s[0])[outside].abs().max() == 0


def test_hutchinson_is_unbiased_for_the_whole_state() -> None:
    flow = tiny("ours", solver=SolverConfig(method="rk4", steps=6))
    w, s = sample(1)
    _, exact = flow.base_and_log_det(w, s, "exact")
    n = 4000
    many_w, many_s = w.expand(n, -1, -1).contiguous(), s.expand(n, -1).contiguous()
    probe = rademacher(many_w, torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, estimate = flow.base_and_log_det(many_w, many_s, "hutchinson", probe=probe)
    spread = float(estimate.std()) / math.sqrt(n)
    assert spread > 0  # it is an estimate
    assert abs(float((estimate.mean() - exact[0]).detach())) < 4 * spread


def test_log_prob_of_the_untouched_flow_is_the_whitening_gaussian() -> None:
    flow = tiny("ours")
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
    w, s = sample(5)
    normal = torch.distributions.Normal(flow.mean, flow.std)
    expected = normal.log_prob(w).sum(dim=(1, 2))
    assert torch.allclose(flow.log_prob(w, s, "exact"), expected, atol=1e-9)
    assert torch.allclose(flow.log_prob(w, s), expected, atol=1e-9)


def test_density_integrates_to_one() -> None:
    torch.manual_seed(3)
    field = FieldConfig(width=6, depth=2, mix=2, last_scale=1.0)
    flow = ConditionalFlow(2, 1, 1, FlowConfig(field=field, solver=FINE)).double()
    axis = torch.linspace(-9, 9, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).reshape(-1, 2, 1)
    with torch.no_grad():
        log_prob = flow.log_prob(grid, torch.full((len(grid), 1), 0.3, dtype=torch.float64), "exact")
    assert abs(float(log_prob.exp().sum() * (axis[1] - axis[0]) ** 2) - 1) < 1e-2


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("name", FIELDS)
def test_the_likelihood_reaches_every_parameter(name: str, divergence: str) -> None:
    flow = tiny(name, solver=SolverConfig(steps=2))
    w, s = sample(4)
    s.requires_grad_(True)
    flow.log_prob(w, s, divergence).sum().backward()  # pyright: ignore
    for parameter_name, parameter in flow.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name
    assert s.grad is not None and s.grad.abs().max() > 0


@pytest.mark.parametrize("name", FIELDS)
def test_rows_of_a_batch_do_not_see_each_other(name: str) -> None:
    flow = tiny(name)
    w, s = sample(6)
    probe = rademacher(w, torch.Generator().manual_seed(0))
    order = torch.tensor([4, 1, 5])
    with torch.no_grad():
        z, log_det = flow.base_and_log_det(w, s, "hutchinson", probe=probe)
        z_some, log_det_some = flow.base_and_log_det(w[order], s[order], "hutchinson", probe=probe[order])
        assert torch.allclose(flow.to_base(w, s), z, atol=1e-12)
    assert torch.allclose(z[order], z_some, atol=1e-12)
    assert torch.allclose(log_det[order], log_det_some, atol=1e-12)


def test_no_graph_is_built_without_gradients() -> None:
    flow = tiny("ours")
    w, s = sample(2)
    with torch.no_grad():
        assert not flow.log_prob(w, s).requires_grad
        assert not flow.to_base(w, s).requires_grad
