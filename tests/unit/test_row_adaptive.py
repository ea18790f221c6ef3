"""Edits whose effort is chosen row by row: exact where nothing is asked, else below the bound."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sdflow_core.method.field import FieldConfig
from sdflow_core.method.flow import ConditionalFlow, FlowConfig
from sdflow_core.method.mirrored import classical, retrace, trace
from sdflow_core.method.row_adaptive import (
    Effort,
    RowAdaptive,
    adapted,
    as_numbers,
    edited,
    from_numbers,
)
from sdflow_core.method.row_field import RowFlow
from sdflow_core.method.solvers import SolverConfig
from sdflow_core.records.errors import ContractError

ROWS, DIM, A = 5, 6, 2
BOUND = 1e-4


def _codes(n: int, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Codes whose rows lie at very different distances from the middle, so that some are hard."""
    rng = torch.Generator().manual_seed(seed)
    w = torch.randn(n, ROWS, DIM, generator=rng, dtype=torch.float64)
    w = w * torch.rand(n, ROWS, 1, generator=rng, dtype=torch.float64).square() * 3
    s = torch.rand(n, A, generator=rng, dtype=torch.float64)
    return w, s, torch.rand(n, A, generator=rng, dtype=torch.float64)


def _flow(**field: Any) -> ConditionalFlow:
    """A few steps of training away from its start; whitening that differs by row."""
    torch.manual_seed(1)
    flow = ConditionalFlow(
        ROWS, DIM, A, FlowConfig(field=FieldConfig(width=16, mix=0, last_scale=1.0, **field))
    )
    flow = flow.double()
    w, s, _ = _codes(64)
    flow.fit_whitening(w + torch.arange(ROWS)[:, None])
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        (-flow.log_prob(w, s, solver=SolverConfig(method="rk4", steps=1)).mean()).backward()
        optimizer.step()
    return flow.requires_grad_(False)


@pytest.fixture(scope="module", params=[True, False], ids=["rows told apart", "rows alike"])
def flow(request: pytest.FixtureRequest) -> RowFlow:
    return RowFlow(_flow(row_index=request.param))


@pytest.fixture(scope="module")
def by(flow: RowFlow) -> RowAdaptive:
    return adapted(flow, classical([1.0]), *_codes(300, 8), bound=BOUND)


def _all_by(flow: RowFlow, scheme: Any, w: Tensor, s: Tensor, after: Tensor) -> Tensor:
    return retrace(flow, trace(flow, w, s, scheme), after, scheme)


def test_the_error_stays_below_the_bound_on_codes_that_had_no_part_in_it(
    flow: RowFlow, by: RowAdaptive
) -> None:
    w, s, after = _codes(64, 9)
    tight = SolverConfig(method="dopri5", rtol=1e-10, atol=1e-10)
    truth = flow.from_base(flow.to_base(w, s, tight), after, tight)
    effort = Effort()
    found = edited(flow, w, s, after, by, effort)
    cheap = _all_by(flow, by.scheme, w, s, after)
    assert float((cheap - truth).abs().max()) > BOUND  # or the cheap scheme alone would do
    assert float((found - truth).abs().max()) <= BOUND
    assert effort.rows == 64 * ROWS
    assert 0 < effort.back_again < effort.rows


def test_unchanged_attributes_give_the_source_and_cost_nothing_more(flow: RowFlow, by: RowAdaptive) -> None:
    w, s, _ = _codes(7)
    effort = Effort()
    assert torch.equal(edited(flow, w, s, s, by, effort), w)
    assert effort.back_again == 0


def test_all_rows_walked_again_are_the_finer_scheme_and_none_the_cheap_one(
    flow: RowFlow, by: RowAdaptive
) -> None:
    w, s, after = _codes(7)
    for limit, scheme in ((0.0, by.finer), (float("inf"), by.scheme)):
        found = edited(flow, w, s, after, replace(by, limit=limit))
        assert torch.allclose(found, _all_by(flow, scheme, w, s, after), atol=1e-12)


def test_several_edits_share_their_codes_and_are_those_of_one_by_one(flow: RowFlow, by: RowAdaptive) -> None:
    w, s, after = _codes(40)
    wanted = [after, s, 1 - after]
    effort = Effort()
    together = edited(flow, w, s, torch.cat(wanted), by, effort)
    alone = torch.cat([edited(flow, w, s, part, by) for part in wanted])
    assert torch.allclose(together, alone, atol=1e-12)
    assert effort.rows == 3 * 40 * ROWS
    assert 0 < effort.there_again < effort.back_again  # a row that is hard in two edits walks there once


def test_a_row_does_not_know_its_neighbours(flow: RowFlow, by: RowAdaptive) -> None:
    w, s, after = _codes(40)
    whole = edited(flow, w, s, after, by)
    for i in (0, 17, 39):
        assert torch.allclose(
            edited(flow, w[i : i + 1], s[i : i + 1], after[i : i + 1], by), whole[i : i + 1], atol=1e-12
        )
    other = w.clone()
    other[:, 1:] = _codes(40, 11)[0][:, 1:]
    assert torch.allclose(edited(flow, other, s, after, by)[:, 0], whole[:, 0], atol=1e-12)


def test_numbers_outlive_json_and_strange_ones_are_refused(flow: RowFlow, by: RowAdaptive) -> None:
    w, s, after = _codes(9)
    numbers = json.loads(json.dumps(as_numbers(by)))
    assert torch.equal(edited(flow, w, s, after, from_numbers(numbers)), edited(flow, w, s, after, by))
    gauge = numbers["gauge"]
    for wrong in (
        {"gauge": {**gauge, "weights": gauge["weights"][:-1]}},
        {"gauge": {**gauge, "features": [["sideways", 1, 0], *gauge["features"][1:]]}},
        {"gauge": {**gauge, "weights": [-1.0, *gauge["weights"][1:]]}},
        {"limit": "high"},
        {"scheme": {}},
        {"gauge": None},
    ):
        with pytest.raises(ContractError):
            from_numbers({**numbers, **wrong})


def test_where_the_cheap_scheme_is_good_enough_for_all_no_row_is_walked_again(flow: RowFlow) -> None:
    w, s, after = _codes(100, 8)
    eight = classical([(i + 1) / 8 for i in range(8)])
    by = adapted(flow, eight, w, s, after, bound=1.0)
    edited(flow, w, s, after, by, effort := Effort())
    assert effort.back_again == 0
    assert len(by.finer.times) == 4 * 8  # nothing is known of rows beyond the limit: the finest


@pytest.mark.parametrize(("count", "bound"), [(3, 1e-3), (100, 0.0)])
def test_too_few_codes_or_no_bound_are_refused(flow: RowFlow, count: int, bound: float) -> None:
    with pytest.raises(ContractError, match="codes to adapt a scheme on"):
        adapted(flow, classical([1.0]), *_codes(count), bound=bound)


def test_products_by_numpy_are_those_of_torch_to_rounding() -> None:
    flow = _flow(row_index=True).float()
    w, s, _ = (part.float() for part in _codes(6))
    one, other = RowFlow(flow), RowFlow(flow, "numpy")
    assert torch.allclose(one.to_base(w, s), other.to_base(w, s), atol=1e-5)
    picked = other.picked(torch.tensor([2] * 6))
    assert torch.allclose(picked.to_base(w[:, 2:3], s), one.to_base(w, s)[:, 2:3], atol=1e-5)
    with pytest.raises(ContractError, match="matrix products by numpy"):
        RowFlow(flow.to("meta"), "numpy")
