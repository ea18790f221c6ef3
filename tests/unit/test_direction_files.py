"""Files of directions, and the editor that is made of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.faces.resnet import ResNetConfig, ResNetScorer
from sdflow_core.method.direction_editor import DirectionEditor
from sdflow_core.method.editing import Editor, LinearEditor, load_editor
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.records.errors import ContractError
from sdflow_core.weights import direction_files
from tests import encoder_makers as makers

pytestmark = pytest.mark.weights

ROWS, DIM = 6, 16


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _load(tensors: dict[str, Tensor], **options: Any) -> DirectionEditor | LinearEditor:
    return direction_files.load(tensors, {}, rows=ROWS, encoder_digest="e" * 64, **options)


def _own(tensors: dict[str, Tensor], **options: Any) -> DirectionEditor:
    editor = _load(tensors, **options)
    assert isinstance(editor, DirectionEditor)
    return editor


def _ganspace(count: int = 12, inner: tuple[int, ...] = (1,)) -> dict[str, Tensor]:
    return {
        "comp": _normal(count, *inner, DIM, seed=1),
        "mean": _normal(*inner, DIM, seed=2),
        "std": torch.rand(count, generator=torch.Generator().manual_seed(3)) + 0.5,
    }


def _edit(editor: Editor, w: Tensor, targets: list[list[float]], strength: float | Tensor = 1.0) -> Tensor:
    zeros = torch.zeros(len(w), len(editor.attributes))
    return editor.edit(w, None, zeros, torch.tensor(targets), strength).w_plus


@pytest.mark.parametrize("shape", [(DIM,), (1, DIM), (1, 1, DIM), (ROWS, DIM), (1, ROWS, DIM)])
def test_one_direction_in_every_shape(shape: tuple[int, ...]) -> None:
    direction, w = _normal(*shape), _normal(3, ROWS, DIM, seed=4)
    editor = _own({"tensor": direction.double()}, names=("age",))
    assert isinstance(editor, Editor) and editor.attributes == ("age",)
    wanted = w + torch.tensor([1.5, 0.0, -3.0])[:, None, None] * direction.reshape(1, -1, DIM)
    edited = _edit(editor, w, [[0.5], [0.0], [-1.0]], 3.0)
    torch.testing.assert_close(edited, wanted)
    assert torch.equal(edited[1], w[1])


def test_published_direction_files_are_recognised() -> None:
    for shape, layers in (((1, 512), 1), ((18, 512), 18)):
        said = direction_files.recognise({"tensor": torch.empty(shape, device="meta")}, {})
        assert said is not None and (said.kind, said.family) == ("directions", "directions")
        assert (said.layers, said.style_dim, said.attributes) == (layers, 512, 1)
        assert any("StyleGAN1" in note for note in said.notes)
    for inner in ((), (1,)):
        tensors = {
            "comp": torch.empty(80, *inner, 512, device="meta"),
            "mean": torch.empty(*inner, 512, device="meta"),
            "std": torch.empty(80, device="meta"),
        }
        said = direction_files.recognise(tensors, {})
        assert said is not None and (said.family, said.attributes, said.style_dim) == ("ganspace", 80, 512)


def test_several_directions_keep_their_names_and_order() -> None:
    tensors = {"smile": _normal(1, DIM, seed=1), "age": _normal(ROWS, DIM, seed=2)}
    editor, w = _own(tensors), _normal(1, ROWS, DIM)
    assert editor.attributes == ("smile", "age")
    edited = _edit(editor, w, [[2.0, -1.0]])
    torch.testing.assert_close(edited, w + 2 * tensors["smile"] - tensors["age"])
    stack = _own({"tensor": torch.stack([tensors["smile"].expand(ROWS, -1), tensors["age"]])})
    assert stack.attributes == ("direction_0", "direction_1")
    assert torch.equal(_edit(stack, w, [[2.0, -1.0]]), edited)


def test_only_some_rows_are_moved() -> None:
    editor, w = _own({"tensor": _normal(1, DIM)}, row_range=(2, 4)), _normal(1, ROWS, DIM)
    moved = (_edit(editor, w, [[1.0]]) != w).any(2)[0]
    assert moved.tolist() == [False, False, True, True, False, False]
    for wrong in [(0, 7), (3, 3), (-1, 2)]:
        with pytest.raises(ContractError, match="rows to move"):
            _load({"tensor": _normal(1, DIM)}, row_range=wrong)


@pytest.mark.parametrize("inner", [(), (1,)])
@pytest.mark.parametrize("before", [0.0, 0.7])
def test_strength_of_ganspace_is_a_place(inner: tuple[int, ...], before: float) -> None:
    pca, w = _ganspace(inner=inner), _normal(3, ROWS, DIM, seed=4)
    editor = _own(pca, components=(7, 2), row_range=(0, 4))
    assert editor.attributes == ("component_7", "component_2")
    comp, mean, std = pca["comp"].reshape(-1, DIM), pca["mean"].reshape(DIM), pca["std"]
    wanted = w.clone()
    for b, place in ((0, 2.0), (1, -3.0)):
        coordinate = ((w[b, 0] - mean) * comp[2]).sum() / std[2]
        wanted[b, :4] += (place - coordinate) * comp[2] * std[2]
    s = torch.full((3, 2), before)
    targets = s.clone()
    targets[0, 1], targets[1, 1] = 2.0, -3.0
    edited = editor.edit(w, None, s, targets)
    torch.testing.assert_close(edited.w_plus, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(edited.w_plus[2], w[2])  # what is not asked for is left alone, wherever it is


def test_a_code_is_at_the_place_that_was_asked_for() -> None:
    pca = _ganspace(4)
    pca["comp"] = torch.linalg.qr(
        _normal(DIM, 4)
    ).Q.T.contiguous()  # as principal components are: orthonormal
    editor, w = _own(pca), _normal(2, ROWS, DIM, seed=4)
    nan = float("nan")
    asked = torch.tensor([[0.0, nan, 1.5, nan], [nan, nan, nan, nan]])
    edited = editor.place(w, asked)
    found, before = editor.coordinates(edited.w_plus), editor.coordinates(w)
    wanted = torch.where(asked.isnan(), before, asked)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(edited.w_plus[1], w[1]) and edited.delta_norm[1] == 0
    with pytest.raises(ContractError, match="coordinates"):
        editor.place(w, asked[:, :2])
    with pytest.raises(ContractError, match="places on a direction"):
        _own({"tensor": _normal(1, DIM)}).coordinates(w)


def test_components_that_are_not_there_or_have_no_spread() -> None:
    assert len(_own(_ganspace(12)).attributes) == 8  # the first, unless others are asked for
    for wrong in ((12,), (-1,), (1, 1), ()):
        with pytest.raises(ContractError, match="components"):
            _load(_ganspace(12), components=wrong)
    flat = _ganspace(12)
    flat["std"][3] = 0
    with pytest.raises(ContractError, match="spread above 0"):
        _load(flat)
    with pytest.raises(ContractError, match="components"):
        _load({"tensor": _normal(1, DIM)}, components=(0,))


def test_a_direction_says_nothing_about_a_picture() -> None:
    editor = _own({"tensor": _normal(1, DIM)}, names=("age",))
    images, w = torch.zeros(2, 3, 8, 8), _normal(2, ROWS, DIM)
    assert torch.equal(editor.encode_semantics(images), torch.zeros(2, 1))
    with pytest.raises(ContractError, match="say nothing about a picture"):
        editor.semantic_encoder(images)
    again = editor.edit(w, images, None, torch.ones(2, 1), 0.5)
    torch.testing.assert_close(again.w_plus, w + 0.5 * editor.directions)


def test_with_a_semantic_encoder_strength_means_what_it_means_elsewhere() -> None:
    torch.manual_seed(0)
    scorer = SemanticEncoder(ResNetScorer(ResNetConfig(attributes=("age",), resolution=32)))
    direction, w = _normal(1, DIM), _normal(2, ROWS, DIM)
    editor = _load({"tensor": direction}, semantic_encoder=scorer)
    assert isinstance(editor, LinearEditor) and editor.attributes == ("age",)
    s = editor.encode_semantics(torch.zeros(2, 3, 32, 32))
    edited = editor.edit(w, None, s, torch.ones(2, 1)).w_plus
    torch.testing.assert_close(edited, w + (1 - s)[:, :, None] * direction)
    with pytest.raises(ContractError, match="names of directions"):
        _load({"tensor": direction}, semantic_encoder=scorer, names=("smile",))
    with pytest.raises(ContractError, match="one for each"):
        _load({"a": direction, "b": direction}, semantic_encoder=scorer)


@pytest.mark.parametrize("components", [False, True])
def test_an_editor_of_directions_travels_as_a_file(components: bool) -> None:
    editor = _own(_ganspace() if components else {"a": _normal(1, DIM), "b": _normal(ROWS, DIM)})
    data = editor.to_bytes()
    again = load_editor(data)
    assert isinstance(again, DirectionEditor) and again.to_bytes() == data
    assert (again.attributes, again.encoder_digest) == (editor.attributes, "e" * 64)
    w, targets = _normal(2, ROWS, DIM), [[1.0] * len(editor.attributes)] * 2
    assert torch.equal(_edit(again, w, targets), _edit(editor, w, targets))
    again.check("e" * 64, (ROWS, DIM))
    with pytest.raises(ContractError, match="latents of another shape"):
        again.check("e" * 64, (ROWS + 4, DIM))
    with pytest.raises(ContractError, match="not an editor file"):
        load_editor(data[: len(data) // 2])


def test_directions_for_another_generator_or_of_no_use_are_refused() -> None:
    with pytest.raises(ContractError, match=r"directions for another generator.*tensor \[18, 16\]"):
        _load({"tensor": _normal(18, DIM)})
    for bad in (float("nan"), float("inf")):
        unsound = _normal(1, DIM)
        unsound[0, 3] = bad
        with pytest.raises(ContractError, match="finite"):
            _load({"tensor": unsound})
        with pytest.raises(ContractError, match="finite"):
            _load({**_ganspace(), "mean": unsound})
    for name in ("comp", "mean", "std"):
        misfit = {**_ganspace(), name: _normal(5, DIM + 1)}
        assert direction_files.recognise(misfit, {}) is None
        with pytest.raises(ContractError, match="no directions"):
            _load(misfit)
    with pytest.raises(ContractError, match="different names"):
        _load({"tensor": _normal(1, DIM)}, names=("a", "b"))


def test_other_files_are_no_directions() -> None:
    for shapes in (makers.style_encoder(), makers.arcface(), makers.iresnet(), makers.classifier()):
        assert direction_files.recognise(makers.on_meta(shapes), {}) is None
    for tensor in (
        torch.zeros(70_000, 512),  # codes
        torch.zeros(1, 512, 4, 4),
        torch.zeros(1, 512, dtype=torch.int64),
        torch.zeros(()),
        torch.zeros(3),
    ):
        assert direction_files.recognise({"tensor": tensor}, {}) is None
    assert direction_files.recognise({"g.weight": torch.zeros(1, 512)}, {}) is None
    assert direction_files.recognise({"latent_avg": torch.zeros(1, 512)}, {}) is None
    assert direction_files.recognise({"a": torch.zeros(1, 512), "b": torch.zeros(1, 256)}, {}) is None
    assert direction_files.recognise({}, {}) is None


def test_a_network_without_weights_travels_too() -> None:
    network = _own({"tensor": _normal(1, DIM)}).semantic_encoder.network
    assert load_model(save_model(network), expect="unscored").attributes == ("direction_0",)
