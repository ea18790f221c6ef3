"""The flow's face: shapes, whitening, exact solution of a linear field, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sdflow_core.method.field import PAPER_FIELD, ConcatSquash, ConcatSquashField, FieldConfig
from sdflow_core.method.flow import ConditionalFlow, FlowConfig
from sdflow_core.method.solvers import Evaluations, SolverConfig
from sdflow_core.records.errors import ContractError


def _flow(rows: int = 4, dim: int = 3, attributes: int = 2) -> ConditionalFlow:
    torch.manual_seed(0)
    return ConditionalFlow(rows, dim, attributes, FlowConfig(field=FieldConfig(width=8, mix=4)))


class _Linear(nn.Module):
    """dy/dt = y A^T on the flattened code, whatever s and t."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, t: Tensor, y: Tensor, s: Tensor) -> Tensor:
        return (y.flatten(1) @ self.matrix.T).view_as(y)


def test_linear_field_has_the_exact_density() -> None:
    flow = ConditionalFlow(
        2, 2, 1, FlowConfig(solver=SolverConfig(method="dopri5", rtol=1e-8, atol=1e-8))
    ).double()
    a = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.4
    flow.field = _Linear(a)  # pyright: ignore
    flow.std.mul_(2.0)
    w = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    s = torch.zeros(3, 1, dtype=torch.float64)
    transport = torch.linalg.matrix_exp(a)
    assert torch.allclose(flow.to_base(w, s).flatten(1), (w / 2).flatten(1) @ transport.T, atol=1e-6)
    _, log_det = flow.base_and_log_det(w, s, "exact")
    assert torch.allclose(log_det, (a.trace() - 4 * torch.tensor(2.0).log()).expand(3).double(), atol=1e-6)
    # w = 2 A^-1 z with z normal is Gaussian with a known covariance
    inverse = 2 * torch.linalg.inv(transport)
    normal = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), inverse @ inverse.T)
    assert torch.allclose(flow.log_prob(w, s, "exact"), normal.log_prob(w.flatten(1)), atol=1e-6)


def test_bound_flow_is_the_flow_with_its_condition() -> None:
    flow = _flow()
    w, s = torch.randn(5, 4, 3), torch.rand(5, 2)
    bound = flow(s)
    assert torch.equal(bound.to_base(w), flow.to_base(w, s))
    assert torch.equal(bound.from_base(w), flow.from_base(w, s))
    assert torch.equal(bound.log_prob(w), flow.log_prob(w, s))


def test_whitening_gives_unit_variance_and_leaves_constant_numbers_alone() -> None:
    flow = _flow()
    codes = torch.randn(500, 4, 3) * torch.rand(4, 3) * 5 + 7
    codes[:, 0, 0] = 3.0
    flow.fit_whitening(codes)
    y = flow.whiten(codes)
    assert torch.allclose(y.mean(0), torch.zeros(4, 3), atol=1e-3)
    assert torch.allclose(y.std(0).flatten()[1:], torch.ones(11), atol=1e-3)
    assert y[:, 0, 0].abs().max() < 1e-3
    assert torch.allclose(flow.unwhiten(y), codes, atol=1e-4)


def test_s_matters_and_so_does_the_row() -> None:
    flow = _flow()
    w = torch.randn(1, 1, 3).expand(1, 4, 3)
    z = flow.to_base(w, torch.rand(1, 2))
    assert not torch.allclose(z[0, 0], z[0, 1])
    assert not torch.allclose(z, flow.to_base(w, torch.rand(1, 2)))


def test_published_field_treats_equal_rows_equally() -> None:
    field = ConcatSquashField(4, 3, 2, PAPER_FIELD)
    y = torch.randn(2, 1, 3).expand(2, 4, 3)
    out = field(torch.tensor(0.3), y, torch.rand(2, 2))
    assert torch.allclose(out, out[:, :1].expand_as(out), atol=1e-6)
    # t, then the conditions; D -> 512 x 5 -> D as published for D = 512
    assert [layer.gate.in_features for layer in field.layers] == [3] * 6  # pyright: ignore
    published = ConcatSquashField(18, 512, 3, PAPER_FIELD)
    assert (
        sum(p.numel() for p in published.parameters()) == 1_605_633 - 1 - 4 * 512
    )  # less end time and batch norms


def test_layer_equals_the_formula_with_an_explicit_one_hot_row() -> None:
    torch.manual_seed(0)
    layer = ConcatSquash(3, 5, 2, 4, row_index=True)
    assert layer.row_gate is not None and layer.row_shift is not None
    y, c = torch.randn(2, 4, 3), torch.randn(2, 2)
    full = torch.cat([c[:, None].expand(2, 4, 2), torch.eye(4).expand(2, 4, 4)], dim=2)  # [B, L, C + L]
    g = torch.cat([layer.gate.weight, layer.row_gate.T], dim=1)
    h = torch.cat([layer.shift.weight, layer.row_shift.T], dim=1)
    expected = layer.layer(y) * torch.sigmoid(full @ g.T + layer.gate.bias) + full @ h.T
    assert torch.allclose(layer(y, c), expected, atol=1e-6)


def test_one_time_a_code_equals_one_time_for_all() -> None:
    flow = _flow()
    y, s = torch.randn(3, 4, 3), torch.rand(3, 2)
    together = flow.velocity(torch.tensor(0.4), y, s)
    assert torch.allclose(flow.velocity(torch.full((3,), 0.4), y, s), together, atol=1e-7)


def test_edit_time_evaluates_the_field_twice_a_midpoint_step_and_no_divergence() -> None:
    flow, cost = _flow(), Evaluations()
    with torch.inference_mode():  # a divergence would need gradients
        flow.to_base(torch.randn(2, 4, 3), torch.rand(2, 2), SolverConfig(method="midpoint", steps=4), cost)
    assert cost.count == 8


@pytest.mark.parametrize(
    ("shape", "conditions"), [((2, 3, 3), (2, 2)), ((2, 4, 4), (2, 2)), ((2, 4, 3), (1, 2))]
)
def test_misfits_are_refused_in_words(shape: tuple[int, ...], conditions: tuple[int, ...]) -> None:
    with pytest.raises(ContractError, match="do not fit the flow"):
        _flow().to_base(torch.zeros(shape), torch.zeros(conditions))


def test_bad_whitening_codes_are_refused() -> None:
    for bad in (torch.zeros(1, 4, 3), torch.zeros(5, 4, 4), torch.full((5, 4, 3), float("nan"))):
        with pytest.raises(ContractError, match="whiten"):
            _flow().fit_whitening(bad)
