"""The edit without inversion, and the faster evaluation of flows by rows."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdflow_core.faces.labeller import Labeller, LabellerConfig
from sdflow_core.method.code_source import TensorSource
from sdflow_core.method.code_survey import survey
from sdflow_core.method.condition import features
from sdflow_core.method.editing import FlowEditConfig, FlowEditor
from sdflow_core.method.field import FieldConfig
from sdflow_core.method.flow import ConditionalFlow, FlowConfig
from sdflow_core.method.inversion_free import inversion_free_edit
from sdflow_core.method.mirrored import as_numbers, classical, from_numbers, retrace, trace
from sdflow_core.method.principal import PrincipalConfig, PrincipalFlow
from sdflow_core.method.row_field import RowFlow, velocity_and_trace
from sdflow_core.method.scheme_fit import fitted
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.solvers import Evaluations, SolverConfig
from sdflow_core.records.errors import ContractError

ROWS, DIM, A = 3, 4, 2


def _batch(n: int = 6) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    return torch.randn(n, ROWS, DIM, generator=rng), torch.rand(n, A, generator=rng)


def _conditional(**field: Any) -> ConditionalFlow:
    torch.manual_seed(1)
    return ConditionalFlow(ROWS, DIM, A, FlowConfig(field=FieldConfig(width=8, last_scale=1.0, **field)))


def _principal() -> PrincipalFlow:
    torch.manual_seed(1)
    flow = PrincipalFlow(ROWS, DIM, A, PrincipalConfig(directions=5, width=8, blocks=1, matrices=2))
    w, s = _batch(200)
    flow.fit(survey(TensorSource(w + features(s)[:, :1, None], s)))
    return flow


def _disturbed(flow: PrincipalFlow) -> PrincipalFlow:
    with torch.no_grad():
        for parameter in flow.field.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow


FLOWS = {"conditional": lambda: _conditional(mix=4), "principal": lambda: _disturbed(_principal())}


class _Gaussian(ConditionalFlow):
    """The best field of straight matching where y(0) ~ N(m(s), I): its edit moves a code by m(s') - m(s)."""

    def centre(self, s: Tensor) -> Tensor:
        return 2.0 * s[:, :1, None].expand(-1, ROWS, DIM)

    def velocity(self, t: Tensor, y: Tensor, s: Tensor) -> Tensor:
        m, keep = self.centre(s), 1.0 - t
        away = (y - keep * m) / (keep**2 + t**2)
        return t * away - m - keep * away


@pytest.mark.parametrize("name", FLOWS)
@torch.no_grad()
def test_unchanged_rows_are_their_input_bit_for_bit(name: str) -> None:
    flow = FLOWS[name]()
    w, s = _batch()
    after = s.clone()
    after[2, 0] = 0.95
    edited = inversion_free_edit(flow, w, s, after, 3)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(edited[others], w[others])
    assert (edited[2] - w[2]).abs().max() > 1e-2


@pytest.mark.parametrize("name", FLOWS)
@torch.no_grad()
def test_noise_is_fixed_and_rows_do_not_know_their_neighbours(name: str) -> None:
    flow = FLOWS[name]()
    w, s = _batch()
    cost = Evaluations()
    whole = inversion_free_edit(flow, w, s, 1 - s, 3, draws=2, evaluations=cost)
    assert cost.count == 3 * 2 * 2
    assert torch.equal(whole, inversion_free_edit(flow, w, s, 1 - s, 3, draws=2))
    part = inversion_free_edit(flow, w[[4, 1]], s[[4, 1]], 1 - s[[4, 1]], 3, draws=2)
    assert torch.allclose(whole[[4, 1]], part, atol=1e-5)


@torch.no_grad()
def test_between_gaussians_of_equal_spread_it_is_the_known_shift_and_that_of_the_ode() -> None:
    flow = _Gaussian(ROWS, DIM, A)
    w, s = _batch()
    shift = flow.centre(1 - s) - flow.centre(s)
    coarse, fine = (inversion_free_edit(flow, w, s, 1 - s, steps, draws=1) - w for steps in (4, 64))
    assert (fine - shift).abs().max() < 2e-3 * float(shift.abs().max())
    assert (fine - shift).abs().max() < (coarse - shift).abs().max()
    solver = SolverConfig(method="rk4", steps=40)
    assert torch.allclose(flow.from_base(flow.to_base(w, s, solver), 1 - s, solver) - w, shift, atol=1e-3)


@torch.no_grad()
def test_without_a_field_the_principal_flow_moves_by_its_regression() -> None:
    flow = _principal()
    w, s = _batch()
    shift = ((features(1 - s) - features(s)) @ flow.slopes[1:]).unflatten(1, (ROWS, DIM))
    assert torch.allclose(inversion_free_edit(flow, w, s, 1 - s, 2), w + shift, atol=1e-6)


def test_the_editor_offers_it_and_a_flow_without_a_path_is_refused() -> None:
    semantic = SemanticEncoder(
        Labeller(LabellerConfig(attributes=("a", "b"), resolution=16, channels=(4, 4)))
    )
    solver = SolverConfig(method="euler", steps=5)
    editor = FlowEditor(
        _conditional(mix=4), semantic, "e", FlowEditConfig(solver=solver, inversion_free=True)
    )
    w, s = _batch()
    result = editor.edit(w, None, s, 1 - s)
    assert torch.equal(result.w_plus, inversion_free_edit(editor.flow, w, s, s + (1 - s - s), 5))
    assert result.nfe == 5 * 2 * 8
    assert torch.equal(editor.edit(w, None, s, s).w_plus, w)
    with pytest.raises(ContractError, match="known path"):
        inversion_free_edit(nn.Identity(), w, s, s, 2)


@pytest.mark.parametrize("row_index", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@torch.no_grad()
def test_evaluation_by_rows_equals_the_flow(row_index: bool, signed: bool) -> None:
    torch.manual_seed(2)
    config = FlowConfig(field=FieldConfig(width=8, mix=0, row_index=row_index, last_scale=1.0), signed=signed)
    flow = ConditionalFlow(ROWS, DIM, A, config).double()
    w, s = (part.double() for part in _batch())
    fast = RowFlow(flow)
    t = torch.tensor(0.3, dtype=torch.float64)
    kept = w.clone()
    assert torch.allclose(fast.velocity(t, w, s), flow.velocity(t, w, s), atol=1e-12)
    solver = SolverConfig(method="rk4", steps=3)
    z = fast.to_base(w, s, solver)
    assert torch.allclose(z, flow.to_base(w, s, solver), atol=1e-12)
    several = fast.from_base(z, torch.cat([s, 1 - s]), solver)
    assert torch.allclose(several[:6], flow.from_base(z, s, solver), atol=1e-12)
    assert torch.allclose(several[6:], flow.from_base(z, 1 - s, solver), atol=1e-12)
    assert torch.equal(w, kept)  # nothing was written into the caller's codes
    with pytest.raises(ContractError, match="mix"):
        RowFlow(_conditional(mix=4))


@pytest.mark.parametrize("row_index", [True, False])
def test_the_tangent_gives_the_trace_of_the_vector_jacobian_product(row_index: bool) -> None:
    torch.manual_seed(2)
    flow = ConditionalFlow(
        ROWS, DIM, A, FlowConfig(field=FieldConfig(width=8, mix=0, row_index=row_index, last_scale=1.0))
    ).double()
    w, s = (part.double() for part in _batch())
    probe = torch.randn(w.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor(0.3, dtype=torch.float64)
    y = w.clone().requires_grad_()
    slope = flow.velocity(t, y, s)
    (pulled,) = torch.autograd.grad(slope, y, probe, create_graph=True)
    wanted = (pulled * probe).flatten(1).sum(1)
    found_slope, found = velocity_and_trace(flow, t, w, s, probe)
    assert torch.allclose(found_slope, slope, atol=1e-12)
    assert torch.allclose(found, wanted, atol=1e-12)
    parameters = list(flow.field.parameters())
    theirs = torch.autograd.grad(wanted.square().sum(), parameters, allow_unused=True)
    ours = torch.autograd.grad(found.square().sum(), parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None and b is None) or torch.allclose(
            a if a is not None else torch.zeros(()), b if b is not None else torch.zeros(()), atol=1e-10
        )


def _rows_alone() -> ConditionalFlow:
    return _conditional(mix=0)


@torch.no_grad()
def test_the_mirrored_edit_is_exact_for_unchanged_rows_and_converges_to_the_edit_by_inversion() -> None:
    flow = _rows_alone().double()
    w, s = (part.double() for part in _batch())
    tight = SolverConfig(method="dopri5", rtol=1e-10, atol=1e-10)
    truth = flow.from_base(flow.to_base(w, s, tight), 1 - s, tight)
    errors: list[float] = []
    for steps in (1, 4, 8):
        scheme = classical([(i + 1) / steps for i in range(steps)])
        cost = Evaluations()
        walked = trace(flow, w, s, scheme, cost)
        assert torch.equal(retrace(flow, walked, s, scheme), w)
        edited = retrace(flow, walked, 1 - s, scheme, cost)
        assert cost.count == 8 * steps
        errors.append(float((edited - truth).norm() / (truth - w).norm()))
    assert errors[0] < 0.3
    assert errors[1] / errors[2] > 2**2 * 0.75  # at least of order 2
    assert errors[2] < 1e-3
    assert torch.allclose(walked.z, flow.to_base(w, s, SolverConfig(method="rk4", steps=60)), atol=1e-4)


@torch.no_grad()
def test_several_edits_share_one_way_there() -> None:
    flow = _rows_alone().double()
    w, s = (part.double() for part in _batch())
    scheme = classical([0.45, 1.0])
    walked = trace(flow, w, s, scheme)
    wanted = [1 - s, s, s.clamp(max=0.2)]
    together = retrace(flow, walked, torch.cat(wanted), scheme)
    alone = torch.cat([retrace(flow, walked, after, scheme) for after in wanted])
    assert torch.allclose(together, alone, atol=1e-12)
    fast = RowFlow(flow)
    assert torch.allclose(retrace(fast, trace(fast, w, s, scheme), 1 - s, scheme), alone[:6], atol=1e-12)


def test_a_scheme_bent_to_a_flow_is_better_on_codes_it_has_not_seen_and_still_exact() -> None:
    flow = _rows_alone().double().requires_grad_(False)
    with torch.no_grad():
        for parameter in flow.field.layers[-1].parameters():
            parameter.mul_(4.0)
    rng = torch.Generator().manual_seed(9)
    w, s = torch.randn(24, ROWS, DIM, generator=rng).double(), torch.rand(24, A, generator=rng).double()
    start = classical([1.0])
    bent = fitted(flow, start, w[:16], s[:16], 1 - s[:16], rounds=6)
    fine = classical([(i + 1) / 8 for i in range(8)])

    def error(scheme: Any) -> float:
        truth, found = (
            retrace(flow, trace(flow, w[16:], s[16:], sc), 1 - s[16:], sc) for sc in (fine, scheme)
        )
        return float((found - truth).norm() / (truth - w[16:]).norm())

    with torch.no_grad():
        assert error(bent) < 0.5 * error(start)
        assert torch.equal(retrace(flow, trace(flow, w, s, bent), s, bent), w)
        kept = from_numbers(json.loads(json.dumps(as_numbers(bent))))
        assert torch.equal(
            retrace(flow, trace(flow, w, s, kept), 1 - s, kept),
            retrace(flow, trace(flow, w, s, bent), 1 - s, bent),
        )


@torch.no_grad()
def test_steps_of_three_and_four_stages_have_the_order_of_the_lower() -> None:
    flow = _rows_alone().double()
    w, s = (part.double() for part in _batch())
    tight = SolverConfig(method="dopri5", rtol=1e-10, atol=1e-10)
    z = flow.to_base(w, s, tight)
    errors = [
        float((trace(flow, w, s, classical([(i + 1) / n for i in range(n)], [3, 4] * (n // 2))).z - z).norm())
        for n in (2, 4)
    ]
    assert errors[0] / errors[1] > 2**3 * 0.75


def test_numbers_that_are_no_scheme_are_refused() -> None:
    numbers = as_numbers(classical([1.0]))
    for wrong in ({"times": [0.0]}, {"mirror": [9, 2, 1, 0]}, {"inner": "none"}):
        with pytest.raises(ContractError, match="mirrored scheme"):
            from_numbers({**numbers, **wrong})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ContractError, match="stages of a mirrored scheme"):
        classical([0.5, 1.0], (4, 2))


@pytest.mark.parametrize("ends", [[], [0.5], [0.6, 0.4, 1.0]])
def test_grids_that_do_not_reach_the_end_are_refused(ends: list[float]) -> None:
    with pytest.raises(ContractError, match="grid of a mirrored scheme"):
        classical(ends)
