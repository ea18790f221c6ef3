"""A row that the flow's solver does not get through with is a row with a reason; its neighbours are well."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdflow_core.faces.labeller import Labeller, LabellerConfig
from sdflow_core.method.drawing import prepare_all, prepare_each
from sdflow_core.method.editing import FlowEditor
from sdflow_core.method.editor import EditorBase, Prepared
from sdflow_core.method.field import FieldConfig
from sdflow_core.method.flow import ConditionalFlow, FlowConfig
from sdflow_core.method.rendering import EditConfig, RenderedEdits, Variant, render_edits
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.solvers import DivergedError
from sdflow_core.records.errors import ContractError

NAMES, ROWS, DIM, SIDE = ("a", "b"), 2, 6, 16


class _Explosive(ConditionalFlow):
    """Shifts the first two numbers by s; past `bounds` of the first or the last number it overflows."""

    def __init__(self, most: float, most_s: float) -> None:
        super().__init__(ROWS, DIM, len(NAMES), FlowConfig(field=FieldConfig(width=8, depth=2, mix=0)))
        self.most, self.most_s = most, most_s

    def velocity(self, t: Tensor, y: Tensor, s: Tensor) -> Tensor:
        slope = torch.zeros_like(y)
        slope[:, 0, :2] = -4.0 * (s - 0.5)
        bad = (y[:, 1, -1] > self.most) | (s[:, 0] > self.most_s)
        return torch.where(bad[:, None, None], torch.inf, slope)


class _Networks:
    """The first two numbers of a code are what is read of a and b."""

    def __init__(self) -> None:
        self.bundle, self.calls = SimpleNamespace(attributes=NAMES), Counter[str]()

    def batched(self, name: str, call: Any, rows: Tensor) -> Tensor:
        del name
        return torch.cat([call(row[None]) for row in rows])

    def render(self, codes: Tensor) -> Tensor:
        images = torch.zeros(len(codes), 3, SIDE, SIDE)
        images[:, :, :8, :8] = (codes[:, 0, 0] / 8)[:, None, None, None]
        images[:, :, 8:, :8] = (codes[:, 0, 1] / 8)[:, None, None, None]
        return images

    def scores(self, images: Tensor) -> Tensor:
        return torch.sigmoid(8 * torch.stack([images[:, 0, 0, 0], images[:, 0, 8, 0]], dim=1))

    judged = scores

    def embed(self, images: Any, points: Any) -> np.ndarray[Any, Any]:
        del points
        return np.ones((len(images), 1), np.float32)


def _editor(most: float = torch.inf, most_s: float = torch.inf) -> FlowEditor:
    torch.manual_seed(0)
    network = Labeller(LabellerConfig(attributes=NAMES, resolution=SIDE, channels=(4, 4)))
    editor = FlowEditor(_Explosive(most, most_s), SemanticEncoder(network), "encoder")
    editor.encode_semantics = _Networks().scores  # type: ignore[method-assign]
    return editor


def _codes(count: int = 6) -> Tensor:
    codes = torch.zeros(count, ROWS, DIM)
    codes[:, 0, 0] = torch.linspace(-1.5, 1.0, count)
    codes[:, 1, -1] = torch.arange(count) / count
    return codes


def _edit(editor: EditorBase, codes: Tensor, targets: dict[str, Any], **config: Any) -> RenderedEdits:
    networks: Any = _Networks()
    settings = EditConfig.model_validate({"micro_batch": 4, "min_identity": -1.0, **config})
    return render_edits(
        networks, editor, codes, np.zeros((len(codes), 5, 2)), Variant(targets=targets), settings
    )


def test_a_latent_without_z_costs_its_row_and_no_other() -> None:
    codes = _codes()
    codes[2, 1, -1] = 5.0
    whole = _edit(_editor(), codes, {"a": "flip"})
    found = _edit(_editor(most=4.0), codes, {"a": "flip"})
    assert not any(whole.lost)
    assert [bool(reason) for reason in found.lost] == [False, False, True, False, False, False]
    assert "solver" in found.lost[2] and "NaN or infinity" in found.lost[2]
    rest = [0, 1, 3, 4, 5]
    assert np.array_equal(found.after[rest], whole.after[rest]) and found.reached[rest].all()
    assert torch.equal(found.labels_after[rest], whole.labels_after[rest])
    assert np.array_equal(found.after[2], found.before[2]) and found.tries[2] == 0
    assert torch.isfinite(found.w_plus).all() and torch.isfinite(found.labels_after).all()


def test_an_edit_that_diverges_costs_its_row_and_no_other() -> None:
    codes = _codes()
    # up to s' = .9 the field is well: who only comes down, and who is asked for little, is not touched
    whole = _edit(_editor(), codes, {"a": "flip"}, tries=1)
    found = _edit(_editor(most_s=0.9), codes, {"a": "flip"}, tries=1)
    upwards = found.labels_before[:, 0] < 0.5
    assert [bool(reason) for reason in found.lost] == upwards.tolist() and 0 < upwards.sum() < len(codes)
    assert all("not finite" in reason and "overflows" in reason for reason in found.lost if reason)
    rest = ~upwards.numpy()
    assert np.array_equal(found.after[rest], whole.after[rest])
    assert np.array_equal(found.after[~rest], found.before[~rest])
    # with tries left, half of the way is tried after it
    again = _edit(_editor(most_s=0.9), codes, {"a": "flip"})
    assert not any(again.lost) and again.reached.all() and (again.tries[upwards] > 1).all()


def test_all_rows_lost_are_all_rows_with_reasons() -> None:
    found = _edit(_editor(most=-1.0), _codes(), {"a": "flip"})
    assert all("solver" in reason for reason in found.lost) and np.array_equal(found.after, found.before)


def test_who_prepares_codes_without_marking_rows_is_told_which() -> None:
    codes, s = _codes(), torch.full((6, 2), 0.5)
    codes[5, 1, -1] = 5.0
    prepared, why = prepare_each(_editor(most=4.0), codes, s, 4)
    assert list(why) == [5] and torch.isfinite(prepared.base).all() and prepared.base.shape == codes.shape
    with pytest.raises(DivergedError, match="row 5"):
        prepare_all(_editor(most=4.0), codes, s, 4)


def test_what_is_wrong_with_all_rows_is_no_reason_of_one() -> None:
    """Codes of another width are a mistake of who asks: the shard stops."""

    class Narrow(FlowEditor):
        def prepare(self, w_plus: Tensor, s: Tensor) -> Prepared:
            return super().prepare(w_plus[:, :, :-1], s)

    editor = _editor()
    narrow = Narrow(editor.flow, editor.semantic_encoder, "encoder")
    with pytest.raises(ContractError, match="do not fit") as told:
        prepare_each(narrow, _codes(), torch.full((6, 2), 0.5), 4)
    assert not isinstance(told.value, DivergedError)
