"""Laws of the principal flow: it inverts, its density is that of the real map, its closed form is closed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sdflow_core.method import principal
from sdflow_core.method.code_source import TensorSource
from sdflow_core.method.code_survey import survey
from sdflow_core.method.condition import attributes_of, features
from sdflow_core.method.principal import PrincipalConfig, PrincipalFlow
from sdflow_core.method.solvers import Evaluations, SolverConfig
from sdflow_core.records.errors import ContractError

ROWS, DIM, ATTRIBUTES = 3, 4, 2
FINE = SolverConfig(method="rk4", steps=24)


def people(n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Codes whose mean moves with phi(s), with correlated numbers."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(ROWS * DIM, ROWS * DIM, generator=torch.Generator().manual_seed(7))
    slopes = torch.randn(ATTRIBUTES, ROWS * DIM, generator=torch.Generator().manual_seed(8))
    phi = torch.randn(n, ATTRIBUTES, generator=rng).clamp(-1.9, 1.9)
    flat = torch.randn(n, ROWS * DIM, generator=rng) @ mixing + phi @ slopes + 3.0
    return flat.unflatten(1, (ROWS, DIM)), attributes_of(phi)


def fitted(directions: int = 6, seed: int = 0, *, disturbed: bool = True) -> PrincipalFlow:
    torch.manual_seed(seed)
    config = PrincipalConfig(directions=directions, width=16, blocks=1, matrices=2, solver=FINE)
    flow = PrincipalFlow(ROWS, DIM, ATTRIBUTES, config)
    flow.fit(survey(TensorSource(*people(4000))))
    if disturbed:  # a field that does something
        with torch.no_grad():
            for parameter in flow.field.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
    return flow.eval().requires_grad_(False)


@pytest.mark.parametrize("directions", [1, 6, 12, 500])
def test_decoding_the_encoding_gives_the_code_back(directions: int) -> None:
    flow = fitted(directions).double()
    w, s = people(8, seed=1)
    w, s = w.double(), s.double()
    assert len(flow.basis) == min(directions, ROWS * DIM)
    z = flow.to_base(w, s)
    assert (flow.from_base(z, s) - w).abs().max() < 1e-4
    assert (flow.from_base(z, 1 - s) - w).abs().max() > 0.1


def test_without_a_field_z_has_no_mean_given_s_and_unit_spread() -> None:
    flow = fitted(12, disturbed=False)
    w, s = people(20_000, seed=3)
    z = flow.to_base(w, s).flatten(1)
    phi = features(s)
    assert (z.T @ phi / len(z)).abs().max() < 0.1
    assert abs(float(z.square().mean()) - 1.0) < 0.1


def test_log_prob_without_a_field_is_that_of_the_conditional_gaussian() -> None:
    flow = fitted(12, disturbed=False).double()
    w, s = people(5, seed=4)
    w, s = w.double(), s.double()
    mean = flow.mean.flatten() + torch.cat([torch.ones(5, 1), features(s)], 1).double() @ flow.slopes
    covariance = flow.basis.T @ torch.diag(flow.spread**2) @ flow.basis
    wanted = torch.distributions.MultivariateNormal(mean, covariance).log_prob(w.flatten(1))
    assert torch.allclose(flow.log_prob(w, s, "exact"), wanted, atol=1e-8)


@pytest.mark.parametrize("directions", [5, 12])
def test_log_det_is_that_of_the_jacobian_of_the_whole_code(directions: int) -> None:
    flow = fitted(directions).double()
    w, s = people(2, seed=5)
    w, s = w.double(), s.double()
    _, log_det = flow.base_and_log_det(w, s, "exact")
    for i in range(2):

        def f(flat: Tensor, i: int = i) -> Tensor:
            return flow.to_base(flat.view(1, ROWS, DIM), s[i : i + 1]).flatten()

        jacobian = torch.autograd.functional.jacobian(f, w[i].flatten())
        assert abs(float(log_det[i].detach() - torch.linalg.slogdet(jacobian).logabsdet)) < 1e-5


def test_hutchinson_is_unbiased_for_the_exact_divergence() -> None:
    flow = fitted(6).double()
    w, s = people(1, seed=6)
    many = 4000
    w, s = w.double().expand(many, ROWS, DIM), s.double().expand(many, ATTRIBUTES)
    coarse = SolverConfig(method="rk4", steps=2)
    probe = torch.randn(many, ROWS, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, estimates = flow.base_and_log_det(w, s, "hutchinson", probe=probe, solver=coarse)
    _, exact = flow.base_and_log_det(w[:1], s[:1], "exact", solver=coarse)
    error = float(estimates.std()) / math.sqrt(many)
    assert abs(float(estimates.mean() - exact[0])) < 4 * error
    assert error > 0


def test_matching_of_gaussian_codes_has_zero_as_its_best_field() -> None:
    """The arc's promise: nothing is left to learn where the closed form says all."""
    flow = fitted(12, disturbed=False)
    w, s = people(20_000, seed=9)
    rng = torch.Generator().manual_seed(2)
    noise, u = torch.randn(len(w), 12, generator=rng), torch.rand(len(w), generator=rng)
    silent = float(flow.matching(w, s, noise, u))
    with torch.no_grad():
        flow.field.last.bias.fill_(0.3)
    assert silent < float(flow.matching(w, s, noise, u))
    assert abs(silent - 1.0) < 0.05


def test_training_the_matching_removes_a_difference_of_covariance() -> None:
    rng = torch.Generator().manual_seed(3)
    n = 4000
    s = torch.where(torch.rand(n, 1, generator=rng) < 0.5, 0.05, 0.95)
    w = torch.randn(n, 1, 4, generator=rng) * torch.where(s > 0.5, 1.6, 0.6)[:, :, None]
    torch.manual_seed(0)
    flow = PrincipalFlow(1, 4, 1, PrincipalConfig(directions=4, width=16, blocks=1, matrices=2))
    flow.fit(survey(TensorSource(w, s)))

    def ratio() -> float:
        z = flow.to_base(w, s).flatten(1)
        present = s[:, 0] > 0.5
        return float(z[present].std() / z[~present].std())

    with torch.no_grad():
        before = ratio()
    optimizer = torch.optim.Adam(flow.field.parameters(), lr=5e-3)
    for _ in range(300):
        rows = torch.randint(n, (256,), generator=rng)
        loss = flow.matching(
            w[rows], s[rows], torch.randn(256, 4, generator=rng), torch.rand(256, generator=rng)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = ratio()
    assert before > 2.2
    assert after < 1.25


def test_rows_of_a_batch_do_not_know_each_other_and_evaluations_are_counted() -> None:
    flow = fitted()
    w, s = people(6, seed=10)
    cost = Evaluations()
    whole = flow.to_base(w, s, SolverConfig(method="rk4", steps=3), cost)
    assert cost.count == 12
    alone = torch.cat(
        [flow.to_base(w[i : i + 1], s[i : i + 1], SolverConfig(method="rk4", steps=3)) for i in range(6)]
    )
    assert torch.allclose(whole, alone, atol=1e-5)


def test_directions_of_large_codes_by_iteration_catch_what_the_exact_ones_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = torch.Generator().manual_seed(0)
    scales = 1.0 / torch.arange(1, 121, dtype=torch.float64)
    codes = torch.randn(300, 120, generator=rng, dtype=torch.float64) * scales
    exact = principal._principal_directions(codes, 10)
    monkeypatch.setattr(principal, "_EXACT", 64)
    near = principal._principal_directions(codes, 10)
    assert torch.equal(near, principal._principal_directions(codes, 10))
    assert torch.allclose(near @ near.T, torch.eye(10, dtype=torch.float64), atol=1e-10)
    caught = [float((codes @ basis.T).square().sum()) for basis in (exact, near)]
    assert caught[1] > 0.999 * caught[0]
    assert not torch.equal(near, exact)


def test_fewer_codes_than_directions_still_give_an_orthonormal_basis() -> None:
    w, s = people(5)
    flow = PrincipalFlow(ROWS, DIM, ATTRIBUTES, PrincipalConfig(directions=10, width=8, blocks=1))
    flow.fit(survey(TensorSource(w, s)))
    assert torch.allclose(flow.basis @ flow.basis.T, torch.eye(10), atol=1e-5)
    assert torch.isfinite(flow.to_base(w, s)).all()


def test_what_does_not_fit_is_refused_in_words() -> None:
    flow = fitted()
    w, s = people(4)
    with pytest.raises(ContractError, match="latents do not fit the flow"):
        flow.to_base(w[:, :2], s)
    with pytest.raises(ContractError, match="attributes do not fit the flow"):
        flow.from_base(w, s[:, :1])
    with pytest.raises(ContractError, match="codes to fit the flow to"):
        PrincipalFlow(ROWS, DIM + 1, ATTRIBUTES).fit(survey(TensorSource(w, s)))
    with pytest.raises(ContractError, match="Hutchinson"):
        flow.base_and_log_det(w, s, "hutchinson")


def test_features_are_monotone_continuous_and_invertible() -> None:
    s = torch.linspace(-1.0, 2.0, 3001, dtype=torch.float64)
    phi = features(s)
    steps = phi.diff()
    assert (steps > 0).all()
    assert steps.max() < 0.03
    assert torch.allclose(attributes_of(phi), s, atol=1e-9)
