"""Metrics on cases small enough to count by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sdflow_core.method import evaluation as ev
from sdflow_core.method.field import FieldConfig
from sdflow_core.method.flow import ConditionalFlow, FlowConfig
from sdflow_core.method.solvers import SolverConfig
from sdflow_core.records.errors import ContractError

BEFORE = torch.tensor([[0.1, 0.9, 0.2], [0.8, 0.3, 0.6]])  # [N = 2, K = 3]
AFTER = torch.tensor(
    [
        [[0.9, 0.9, 0.2], [0.7, 0.3, 0.4]],  # edited 0: flips image 0 only; image 1 loses attribute 2
        [[0.1, 0.2, 0.2], [0.8, 0.9, 0.6]],  # edited 1: flips both, touches nothing else
    ]
)


def test_accuracy_and_preservation_by_hand() -> None:
    assert ev.editing_accuracy(BEFORE, AFTER).tolist() == [0.5, 1.0]
    assert ev.attribute_preservation(BEFORE, AFTER).tolist() == [0.75, 1.0]


def test_edited_names_the_tracked_attribute() -> None:
    assert ev.editing_accuracy(BEFORE, AFTER[1:], [1]).tolist() == [1.0]
    assert ev.attribute_preservation(BEFORE, AFTER[1:], [1]).tolist() == [1.0]


def test_no_edit_has_no_accuracy_and_full_preservation() -> None:
    same = BEFORE.expand(3, -1, -1)
    assert ev.editing_accuracy(BEFORE, same).tolist() == [0.0] * 3
    assert ev.attribute_preservation(BEFORE, same).tolist() == [1.0] * 3
    assert ev.cross_attribute_matrix(BEFORE, same).abs().max() == 0


def test_cross_attribute_matrix() -> None:
    found = ev.cross_attribute_matrix(BEFORE, AFTER)
    expected = torch.tensor([[0.35, 0.0, -0.1], [0.0, -0.05, 0.0]])
    assert torch.allclose(found, expected, atol=1e-6)
    signed = ev.signed_cross_attribute_matrix(BEFORE, AFTER)
    assert abs(float(signed[1, 1]) - 0.65) < 1e-6  # both flips count as moves in the wanted direction
    assert ev.entanglement(torch.diag(torch.tensor([1.0, 2.0]))) == 0
    assert abs(ev.entanglement(torch.tensor([[1.0, 1.0], [0.0, 0.0]])) - 1.0) < 1e-6


def test_identity() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    b = torch.tensor([[1.0, 1.0], [0.0, 5.0]])
    assert torch.allclose(ev.identity_cosine(a, b), torch.tensor([0.5**0.5, 1.0]))
    summary = ev.identity_summary(a, a, b)
    assert summary.inversion == 1.0
    assert abs(summary.edit - summary.overall) < 1e-7


def test_psnr_of_known_errors() -> None:
    x = torch.zeros(2, 3, 4, 4)
    shifted = x + torch.tensor([0.02, 0.2])[:, None, None, None]
    assert torch.allclose(ev.inversion_psnr(x, shifted), torch.tensor([40.0, 20.0]), atol=1e-3)
    assert torch.allclose(ev.inversion_l2(x, shifted), torch.tensor([4e-4, 4e-2]))


def test_round_trip_error_falls_with_the_work_of_the_solver() -> None:
    torch.manual_seed(0)
    flow = ConditionalFlow(2, 3, 1, FlowConfig(field=FieldConfig(width=8, mix=4, last_scale=1.0)))
    w, s = torch.randn(4, 2, 3), torch.rand(4, 1)
    loose = ev.round_trip_error(flow, w, s, SolverConfig(method="euler", steps=2))
    tight = ev.round_trip_error(flow, w, s, SolverConfig(method="rk4", steps=16))
    assert tight.shape == (4,) and tight.max() < 1e-4 < loose.max()


def test_matched_comparison_interpolates_and_never_extrapolates() -> None:
    assert ev.at_accuracy([0.9, 0.5, 0.7], [0.6, 0.9, 0.8], 0.8) == pytest.approx(0.7)
    assert math.isnan(ev.at_accuracy([0.5, 0.7], [1.0, 0.9], 0.9))


def test_misfits_are_refused() -> None:
    with pytest.raises(ContractError):
        ev.editing_accuracy(BEFORE, AFTER[:, :1])
    with pytest.raises(ContractError):
        ev.editing_accuracy(BEFORE, AFTER, [0, 7])
    with pytest.raises(ContractError):
        ev.identity_cosine(torch.zeros(2, 3), torch.zeros(2, 4))
