"""Editors: nothing asked, nothing changed; equal editors, equal files; misfits refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdflow_core.faces.labeller import Labeller, LabellerConfig
from sdflow_core.method.editing import (
    Editor,
    FlowEditConfig,
    FlowEditor,
    LinearEditor,
    load_editor,
)
from sdflow_core.method.field import FieldConfig
from sdflow_core.method.flow import ConditionalFlow, FlowConfig
from sdflow_core.method.linear import fit_linear
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.solvers import SolverConfig
from sdflow_core.records.errors import ContractError

ROWS, DIM = 3, 4
NAMES = ("a", "b")


def _semantic() -> SemanticEncoder:
    torch.manual_seed(0)
    return SemanticEncoder(Labeller(LabellerConfig(attributes=NAMES, resolution=16, channels=(4, 4))))


def _flow_editor(**config: Any) -> FlowEditor:
    semantic = _semantic()
    torch.manual_seed(1)
    flow = ConditionalFlow(ROWS, DIM, 2, FlowConfig(field=FieldConfig(width=8, mix=4, last_scale=1.0)))
    return FlowEditor(flow, semantic, "encoder-1", FlowEditConfig(**config))


def _linear_editor() -> LinearEditor:
    return LinearEditor(
        torch.randn(2, ROWS, DIM, generator=torch.Generator().manual_seed(2)), _semantic(), "encoder-1"
    )


EDITORS = {
    "flow": _flow_editor,
    "plain flow": lambda: _flow_editor(corrected=False),
    "dopri5": lambda: _flow_editor(solver=SolverConfig(method="dopri5")),
    "linear": _linear_editor,
}


@pytest.fixture(params=EDITORS)
def editor(request: pytest.FixtureRequest) -> Any:
    return EDITORS[request.param]()


def _batch(n: int = 5) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    return torch.randn(n, ROWS, DIM, generator=rng), torch.rand(n, 2, generator=rng)


def test_protocol_is_met(editor: Editor) -> None:
    assert isinstance(editor, Editor)
    assert editor.attributes == NAMES
    s = editor.encode_semantics(torch.zeros(2, 3, 16, 16))
    assert s.shape == (2, 2) and s.min() > 0 and s.max() < 1


def test_unchanged_s_returns_the_input_exactly(editor: Editor) -> None:
    w, s = _batch()
    result = editor.edit(w, None, s, s.clone(), strength=2.0)
    assert torch.equal(result.w_plus, w) and result.delta_norm.max() == 0
    targets = s.clone()
    targets[1, 0] = 1.0
    result = editor.edit(w, None, s, targets)
    assert [bool(d > 0) for d in result.delta_norm] == [False, True, False, False, False]
    assert torch.equal(result.w_plus[0], w[0])
    assert torch.equal(editor.edit(w, None, s, targets, strength=0.0).w_plus, w)


def test_corrected_edit_has_no_jump_at_small_changes() -> None:
    """Without correction even the smallest change drags the solver's round trip error along."""
    w, s = _batch()
    coarse = SolverConfig(method="euler", steps=2)
    near = s + 1e-4
    corrected = _flow_editor(solver=coarse).edit(w, None, s, near).delta_norm
    plain = _flow_editor(solver=coarse, corrected=False).edit(w, None, s, near).delta_norm
    assert corrected.max() < 1e-3 < 1e-2 < plain.min()


def test_flow_edit_is_the_formula() -> None:
    editor = _flow_editor(solver=SolverConfig(method="dopri5", rtol=1e-7, atol=1e-7))
    w, s = _batch()
    targets = torch.rand(5, 2, generator=torch.Generator().manual_seed(4))
    solver = editor.config.solver
    expected = editor.flow.from_base(editor.flow.to_base(w, s, solver), s + 1.5 * (targets - s), solver)
    result = editor.edit(w, None, s, targets, 1.5)
    assert torch.allclose(result.w_plus, expected, atol=1e-3)
    assert torch.allclose(result.delta_norm, (result.w_plus - w).flatten(1).norm(dim=1))
    assert result.source is w and result.nfe > 0


def test_strength_may_differ_by_row_and_z_is_reused(editor: Editor) -> None:
    w, s = _batch()
    targets = 1 - s
    prepared = editor.prepare(w, s)
    strength = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5])
    together = editor.apply(prepared, targets, strength).w_plus
    for i, value in enumerate(strength.tolist()):
        alone = editor.apply(prepared, targets, value).w_plus[i]
        assert torch.allclose(
            together[i], alone, atol=1e-3
        )  # dopri5 steps depend on the batch, within tolerance


def test_s_is_read_from_the_images_when_not_given(editor: Editor) -> None:
    w, _ = _batch(2)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    s = editor.encode_semantics(images)
    read, given = (editor.edit(w, im, before, 1 - s).w_plus for im, before in [(images, None), (None, s)])
    assert torch.equal(read, given)
    with pytest.raises(ContractError, match="before the edit"):
        editor.edit(w, None, None, s)


def test_bytes_are_deterministic_and_complete(editor: Any) -> None:
    data = editor.to_bytes()
    again = load_editor(data)
    assert type(again) is type(editor) and again.attributes == editor.attributes
    assert again.to_bytes() == data == editor.to_bytes()
    w, s = _batch()
    assert torch.equal(again.edit(w, None, s, 1 - s).w_plus, editor.edit(w, None, s, 1 - s).w_plus)
    image = torch.zeros(1, 3, 16, 16)
    assert torch.equal(again.encode_semantics(image), editor.encode_semantics(image))


def test_other_latents_are_refused(editor: Editor) -> None:
    editor.check("encoder-1", (ROWS, DIM), ("b",))
    for bad in [("encoder-2",), ("encoder-1", (ROWS + 1, DIM)), ("encoder-1", (ROWS, DIM), ("c",))]:
        with pytest.raises(ContractError):
            editor.check(*bad)
    w, s = _batch()
    with pytest.raises(ContractError, match="do not fit the editor"):
        editor.edit(w[:, :2], None, s, s)
    with pytest.raises(ContractError):
        editor.edit(w, None, s[:, :1], s)
    with pytest.raises(ContractError, match="targets"):
        editor.edit(w, None, s, s * float("nan"))
    with pytest.raises(ContractError, match="strength"):
        editor.edit(w, None, s, s, torch.ones(3))


def test_damaged_files_are_refused() -> None:
    data = _flow_editor().to_bytes()
    for bad in (b"", b"nonsense", data[:100], data[:-8], data.replace(b"flow_editor", b"slow_editor")):
        with pytest.raises(ContractError, match="not an editor file"):
            load_editor(bad)


@pytest.mark.parametrize("kind", ["class_mean", "logistic"])
def test_linear_fit_finds_the_planted_direction_and_projection_frees_it_of_the_other(kind: str) -> None:
    rng = torch.Generator().manual_seed(0)
    planted = torch.zeros(2, ROWS * DIM)
    planted[0, 0], planted[1, 1] = 1.0, 1.0
    present = torch.rand(2000, 2, generator=rng) > 0.5
    present[:, 1] = torch.where(
        torch.rand(2000, generator=rng) < 0.7, present[:, 0], present[:, 1]
    )  # correlated
    codes = present.float() @ planted * 2 + 0.5 * torch.randn(2000, ROWS * DIM, generator=rng)
    codes = codes.unflatten(1, (ROWS, DIM))
    found = fit_linear(codes, present.float(), kind=kind).flatten(1)  # pyright: ignore
    assert torch.cosine_similarity(found, planted).min() > 0.7
    free = fit_linear(codes, present.float(), kind=kind, project=True).flatten(1)  # pyright: ignore
    std = codes.flatten(1).std(0)
    assert abs(float((free[0] / std) @ (found[1] / std))) < 1e-3
    with pytest.raises(ContractError, match="both classes"):
        fit_linear(codes, torch.ones(2000, 2))
