"""The published flow: names, plain rebuild, inverse, density, statistics of its batch norms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sdflow_core.method.flow_laws import base_log_density
from sdflow_core.method.paper import PaperFlow, PaperFlowConfig
from sdflow_core.method.paper_layers import MovingBatchNorm
from sdflow_core.method.paper_objective import nll_of_base, raw_closeness
from sdflow_core.method.solvers import Evaluations, SolverConfig
from sdflow_core.records.errors import ContractError

FINE = SolverConfig(method="dopri5", rtol=1e-10, atol=1e-10)


def _stir(flow: PaperFlow) -> PaperFlow:
    """Statistics, affine parts and T that are not those of the start, and a field that bends."""
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in flow.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(0.3 + torch.rand(value.shape, generator=rng))
            elif name.startswith(("chain.0", "chain.2")) and not name.endswith("step"):
                value.copy_(0.3 * torch.randn(value.shape, generator=rng))
            elif name.endswith("_layer.weight"):
                value.mul_(1.5)
        flow.state_dict()["chain.1.sqrt_end_time"].fill_(1.2)
    return flow


def _case(seed: int = 0) -> tuple[PaperFlow, Tensor, Tensor]:
    """A small float64 flow in evaluation mode, codes [3, 2, 3], attributes [3, 2]."""
    torch.manual_seed(seed)
    flow = _stir(PaperFlow(2, 3, 2, PaperFlowConfig(width=8, depth=4, solver=FINE))).double().eval()
    return flow, torch.randn(3, 2, 3).double(), torch.rand(3, 2).double()


def test_names_and_shapes_are_those_of_the_published_files() -> None:
    for k, parameters in ((3, 1_605_633), (5, 1_617_921), (17, 1_691_649), (40, 1_832_961)):
        flow = PaperFlow(18, 512, k)
        wanted: dict[str, tuple[int, ...]] = {"chain.1.sqrt_end_time": (), "chain.1.odefunc._num_evals": ()}
        for end in (0, 2):
            wanted[f"chain.{end}.step"] = (1,)
            for name in ("weight", "bias", "running_mean", "running_var"):
                wanted[f"chain.{end}.{name}"] = (512,)
        for n in range(6):
            layer = f"chain.1.odefunc.diffeq.layers.{n}."
            wanted[layer + "_layer.weight"] = (512, 512)
            wanted[layer + "_layer.bias"] = (512,)
            wanted[layer + "_hyper_bias.weight"] = (512, 1 + k)
            wanted[layer + "_hyper_gate.weight"] = (512, 1 + k)
            wanted[layer + "_hyper_gate.bias"] = (512,)
        assert {name: tuple(value.shape) for name, value in flow.state_dict().items()} == wanted
        assert sum(p.numel() for p in flow.parameters()) == parameters


def test_forward_agrees_with_a_plain_rebuild_from_the_facts() -> None:
    torch.manual_seed(1)
    flow = _stir(PaperFlow(3, 5, 2, PaperFlowConfig(width=7))).eval()
    w, s = torch.randn(4, 3, 5), torch.rand(4, 2)
    state = flow.state_dict()

    def norm(y: Tensor, at: int) -> Tensor:
        weight, bias, mean, var = (
            state[f"chain.{at}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) * torch.exp(-0.5 * torch.log(var + 1e-4)) * torch.exp(weight) + bias

    def field(t: float, y: Tensor) -> Tensor:
        rows = []
        for row in y:  # one code, one row of the condition at a time
            context = torch.cat([torch.tensor([t]), s[len(rows)]])
            for n in range(6):
                layer = {k.split(f"layers.{n}.")[1]: v for k, v in state.items() if f"layers.{n}." in k}
                gate = torch.sigmoid(layer["_hyper_gate.weight"] @ context + layer["_hyper_gate.bias"])
                row = (row @ layer["_layer.weight"].T + layer["_layer.bias"]) * gate
                row = row + layer["_hyper_bias.weight"] @ context
                row = torch.tanh(row) if n < 5 else row
            rows.append(row)
        return torch.stack(rows)

    y, steps = norm(w, 0), 40
    h = float(state["chain.1.sqrt_end_time"]) ** 2 / steps
    for n in range(steps):  # the classical Runge-Kutta step
        t = n * h
        a = field(t, y)
        b = field(t + h / 2, y + h / 2 * a)
        c = field(t + h / 2, y + h / 2 * b)
        y = y + h / 6 * (a + 2 * b + 2 * c + field(t + h, y + h * c))
    ours = flow.to_base(w, s, SolverConfig(method="dopri5", rtol=1e-7, atol=1e-7))
    assert torch.allclose(ours, norm(y, 2), atol=1e-5)


def test_inverse_and_independence_of_rows() -> None:
    flow, w, s = _case()
    z = flow.to_base(w, s)
    assert torch.allclose(flow.from_base(z, s), w, atol=1e-7)
    assert float((z - w).detach().abs().max()) > 0.1  # and it is not the identity
    changed = w.clone()
    changed[:, 1] += 1.0
    assert torch.allclose(flow.to_base(changed, s)[:, 0], z[:, 0], atol=1e-7)
    turned = flow.to_base(w.flip(1), s).flip(1)  # nobody tells the field which row it moves
    assert torch.allclose(turned, z, atol=1e-7)


def test_log_det_is_that_of_the_jacobian() -> None:
    flow, w, s = _case()
    _, log_det = flow.base_and_log_det(w, s, "exact")
    for i in range(len(w)):

        def alone(code: Tensor, i: int = i) -> Tensor:
            return flow.to_base(code.view(1, 2, 3), s[i : i + 1]).flatten()

        jacobian = torch.autograd.functional.jacobian(alone, w[i].flatten())
        assert abs(float(torch.linalg.slogdet(jacobian).logabsdet - log_det[i].detach())) < 1e-6
    wanted = torch.distributions.Normal(0.0, 1.0).log_prob(flow.to_base(w, s)).sum((1, 2)) + log_det
    assert torch.allclose(flow.log_prob(w, s, "exact"), wanted, atol=1e-8)


def test_hutchinson_is_unbiased_for_the_exact_divergence() -> None:
    flow, w, s = _case()
    solver = SolverConfig(method="rk4", steps=4)
    z, exact = flow.base_and_log_det(w, s, "exact", solver=solver)
    # the scaled unit vectors are a probe of mean zero and unit variance whose average is no estimate
    size, draws = 6, []
    for j in range(size):
        probe = torch.zeros(size, dtype=w.dtype)
        probe[j] = math.sqrt(size)
        moved, log_det = flow.base_and_log_det(
            w, s, "hutchinson", probe=probe.view(1, 2, 3).expand_as(w), solver=solver
        )
        assert torch.equal(moved, z)
        draws.append(log_det)
    assert torch.allclose(torch.stack(draws).mean(0), exact, atol=1e-10)
    assert float(torch.stack(draws).std(0).min()) > 1e-3  # each alone is something else
    # the published noise, N(0, I): within four standard errors
    many, count = w[:1].expand(4000, -1, -1), 4000
    probe = torch.randn(many.shape, generator=torch.Generator().manual_seed(3), dtype=w.dtype)
    _, drawn = flow.base_and_log_det(many, s[:1].expand(count, -1), "hutchinson", probe=probe, solver=solver)
    assert abs(float(drawn.mean() - exact[0])) < 4 * float(drawn.std()) / math.sqrt(count)


def test_as_published_gives_the_same_codes_and_the_same_divergence() -> None:
    flow, w, s = _case()
    probe = torch.randn(w.shape, generator=torch.Generator().manual_seed(2), dtype=w.dtype)
    cost = Evaluations()
    with torch.no_grad():
        z, log_det = flow.solve_as_published(w, s, reverse=False, probe=probe, evaluations=cost)
        back, log_det_back = flow.solve_as_published(z, s, reverse=True, probe=probe)
        # tangents pushed forward = products pulled back
        ours, forward = flow.base_and_log_det(w, s, "hutchinson", probe=probe)
    assert cost.count > 0 and not z.requires_grad
    assert torch.allclose(z, ours, atol=1e-7) and torch.allclose(back, w, atol=1e-7)
    assert torch.allclose(log_det, forward, atol=1e-7)
    assert torch.allclose(log_det_back, -log_det, atol=1e-6)


def test_batch_norm_is_invertible_and_uses_what_it_knew_before() -> None:
    norm = MovingBatchNorm(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -0.2, 0.0]))
        norm.bias.fill_(0.3)
        norm.running_mean.fill_(1.0)
        norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.0]))
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).double() * 3 + 5
    wanted = (x - 1.0) / (norm.running_var + 1e-4).sqrt() * norm.weight.exp() + 0.3
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    assert torch.allclose(norm.eval()(x), wanted, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert torch.allclose(norm.inverse(wanted), x, atol=1e-12)
    jacobian = torch.autograd.functional.jacobian(lambda v: norm(v.view(1, 1, 3)).flatten(), x[0, 0])
    assert torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, norm.log_det(), atol=1e-12)

    assert torch.allclose(norm.train()(x), wanted, atol=1e-12)  # by the old statistics, in training too
    rows = x.reshape(8, 3)
    assert torch.allclose(norm.running_mean, 0.9 * before["running_mean"] + 0.1 * rows.mean(0))
    unbiased = ((rows - rows.mean(0)) ** 2).sum(0) / 7
    assert torch.allclose(norm.running_var, 0.9 * before["running_var"] + 0.1 * unbiased)
    assert float(norm.step) == 1.0


def test_fitted_statistics_normalise_codes_and_base() -> None:
    flow, w, s = _case()
    with torch.no_grad():
        for end in (0, 2):
            flow.state_dict()[f"chain.{end}.weight"].zero_()
            flow.state_dict()[f"chain.{end}.bias"].zero_()
    step = flow.state_dict()["chain.0.step"].clone()
    flow.train().fit_statistics(w, s)
    rows = flow.eval().to_base(w, s).detach().reshape(-1, 3)
    assert float(rows.mean(0).abs().max()) < 1e-6
    assert torch.allclose(rows.var(0), torch.ones(3).double(), atol=1e-2)  # 1e-4 is added to the variance
    assert torch.allclose(flow.mean[0], w.reshape(-1, 3).mean(0)) and torch.equal(
        step, flow.state_dict()["chain.0.step"]
    )


def test_density_of_a_training_step_is_by_the_statistics_it_used() -> None:
    flow, w, s = _case()
    z, log_det = flow.base_and_log_det(w, s, "exact")
    flow.train()
    z_training, log_det_training = flow.base_and_log_det(w, s, "exact")
    assert torch.allclose(z, z_training) and torch.allclose(log_det, log_det_training)
    assert not torch.allclose(flow.base_and_log_det(w, s, "exact")[0], z)  # now they have moved


def test_every_parameter_gets_a_gradient() -> None:
    flow, w, s = _case()
    solver = SolverConfig(method="rk4", steps=2)
    probe = torch.randn(w.shape, dtype=w.dtype, generator=torch.Generator().manual_seed(0))
    z, log_det = flow.base_and_log_det(w, s, "hutchinson", probe=probe, solver=solver)
    s.requires_grad_()
    loss = nll_of_base(z, log_det) + raw_closeness(flow.from_base(z, 1 - s, solver), w)
    loss.backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name
    assert s.grad is not None and float(s.grad.abs().min()) > 0
    # that of T against a difference quotient
    root = dict(flow.named_parameters())["chain.1.sqrt_end_time"]
    analytic, values = float(root.grad), []  # type: ignore[arg-type]
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            root += step
            z, log_det = flow.base_and_log_det(w, s, "hutchinson", probe=probe, solver=solver)
            values.append(float(nll_of_base(z, log_det) + raw_closeness(flow.from_base(z, 1 - s, solver), w)))
            root -= step
    assert abs((values[0] - values[1]) / 2e-5 - analytic) < 1e-6


def test_whitening_for_metrics_is_that_of_the_first_norm() -> None:
    flow, _, _ = _case()
    assert flow.mean.shape == flow.std.shape == (2, 3)
    assert torch.equal(flow.mean[0], flow.mean[1])
    assert torch.allclose(flow.std[0] ** 2, flow.state_dict()["chain.0.running_var"] + 1e-4)


def test_misfits_are_refused_in_words() -> None:
    flow, w, s = _case()
    for call in (flow.to_base, flow.from_base, flow.base_and_log_det):
        with pytest.raises(ContractError, match="latents do not fit"):
            call(w[:, :1], s)
        with pytest.raises(ContractError, match="attributes do not fit"):
            call(w, s[:, :1])
    with pytest.raises(ContractError, match="probe"):
        flow.base_and_log_det(w, s, "hutchinson")
    with pytest.raises(ContractError, match="probe"):
        flow.solve_as_published(w, s, reverse=True, probe=w[:1])


def test_base_density_is_the_normal() -> None:
    z = torch.randn(2, 3, 4)
    wanted = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2))
    assert torch.allclose(base_log_density(z), wanted, atol=1e-5)
