"""Files of the 40 + 6 attribute classifier in both depths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdflow_core.faces.attribute_classifier import (
    AGE_ATTRIBUTES,
    CELEBA_ATTRIBUTES,
    AttributeClassifier,
    AttributeClassifierConfig,
)
from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.records.errors import ContractError
from sdflow_core.weights import classifier_files
from tests import encoder_makers as makers
from tests import encoder_rebuilds as rebuilds

pytestmark = pytest.mark.weights


def _state(depth: int = 34, heads: int = 40, ages: int = 6, first: int = 4) -> dict[str, Tensor]:
    return makers.draw(makers.classifier(depth, first, heads, ages))


def _pictures() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("depth", "parameters"), [(34, 74_234_542), (50, 551_164_078)])
def test_published_sizes_are_told_from_shapes(depth: int, parameters: int) -> None:
    shapes = makers.classifier(depth)
    said = classifier_files.recognise(makers.on_meta(shapes), {})
    assert said is not None and said.kind == "attribute_classifier"
    assert (said.parameters, said.depth, said.attributes) == (parameters, depth, 46)
    with torch.device("meta"):
        network = AttributeClassifier(AttributeClassifierConfig(depth=50 if depth == 50 else 34))
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == shapes


@pytest.mark.parametrize("depth", [34, 50])
def test_logits_are_those_of_a_rebuild(depth: int) -> None:
    state, images = _state(depth), _pictures()
    network = classifier_files.load(state, {}, resolution=64)
    with torch.no_grad():
        wanted = rebuilds.classifier(state, depth, images, 40)
        found = network.logits(images)
        assert found.shape == (2, 46)
        torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)
        assert torch.equal(network.scores(images), found.sigmoid())
        assert torch.equal(network.age_groups(images), (wanted[:, 40:].sigmoid() > 0.5).sum(1))
    assert network.attributes == CELEBA_ATTRIBUTES + AGE_ATTRIBUTES


def test_the_order_of_celeba() -> None:
    assert len(CELEBA_ATTRIBUTES) == 40 and len(set(CELEBA_ATTRIBUTES)) == 40
    assert [CELEBA_ATTRIBUTES[i] for i in (15, 20, 31, 39)] == ["eyeglasses", "male", "smiling", "young"]


@pytest.mark.parametrize("depth", [34, 50])
def test_traces_of_a_data_parallel_training_are_taken_off(depth: int) -> None:
    state = _state(depth, heads=40)
    dressed = {
        name.replace("extractor.", "extractor.module.").replace("attr_heads.", "module.attr_heads."): value
        for name, value in state.items()
    }
    assert classifier_files.recognise(dressed, {}) == classifier_files.recognise(state, {})
    networks = [classifier_files.load(s, {}, resolution=64) for s in (state, dressed)]
    assert torch.equal(networks[0](_pictures()), networks[1](_pictures()))
    with pytest.raises(ContractError, match=r"there twice.*age_heads\.fc\.bias"):
        classifier_files.load({**state, "module.age_heads.fc.bias": torch.zeros(6)}, {})


def test_other_outputs_need_names() -> None:
    state = _state(heads=3, ages=2)
    with pytest.raises(ContractError, match="3 different names"):
        classifier_files.load(state, {}, ages=("a", "b"))
    with pytest.raises(ContractError, match="2 different names"):
        classifier_files.load(state, {}, attributes=("x", "y", "z"))
    with pytest.raises(ContractError, match="3 different names"):
        classifier_files.load(state, {}, attributes=("x", "y", "x"), ages=("a", "b"))
    network = classifier_files.load(state, {}, attributes=("x", "y", "z"), ages=("a", "b"))
    assert network.attributes == ("x", "y", "z", "a", "b")


def test_every_tensor_that_does_not_fit_is_named() -> None:
    state = _state(heads=2)
    del state["attr_heads.1.9.weight"]
    state["attr_heads.0.3.bias"] = torch.zeros(31)
    state["extractor.fc.weight"] = torch.zeros(10, 32)
    state["age_heads.bn1.running_var"] = -torch.ones(4)
    with pytest.raises(ContractError) as caught:
        classifier_files.load(state, {}, attributes=("x", "y"), where="r34.pth")
    for part in (
        "attr_heads.1.9.weight [1, 32] is missing",
        "attr_heads.0.3.bias is [31], expected [32]",
        "extractor.fc.weight [10, 32] is unexpected",
        "age_heads.bn1.running_var [4] has negative variances",
        "r34.pth",
    ):
        assert part in str(caught.value)


def test_other_networks_are_no_classifier() -> None:
    for shapes in (makers.resnet(34), makers.iresnet(), makers.arcface()):
        assert classifier_files.recognise(makers.on_meta(shapes), {}) is None
        with pytest.raises(ContractError, match="not an attribute classifier"):
            classifier_files.load(makers.on_meta(shapes), {})
    made_up = {**_state(heads=1), "attr_heads.999999.0.weight": torch.zeros(1)}
    assert classifier_files.recognise(made_up, {}) is None


def test_a_classifier_scores_pictures_of_any_size_and_serves_as_semantic_encoder() -> None:
    network = classifier_files.load(_state(heads=2), {}, attributes=("x", "y"), resolution=64)
    again = load_model(save_model(network), expect="attribute_classifier")
    large = torch.nn.functional.interpolate(_pictures(), (96, 96), mode="nearest")
    assert torch.equal(SemanticEncoder(again)(large), network.scores(large))
    with pytest.raises(ContractError, match="pictures to score"):
        network.logits(torch.zeros(1, 1, 64, 64))


def test_some_of_the_outputs_are_those_of_the_whole() -> None:
    whole = classifier_files.load(_state(heads=5, ages=2), {}, attributes=tuple("abcde"), ages=("x", "y"))
    asked = ("d", "a", "y")
    part, pictures = whole.only(asked), _pictures()
    index = [whole.attributes.index(name) for name in asked]
    with torch.no_grad():
        torch.testing.assert_close(part.logits(pictures), whole.logits(pictures)[:, index])
        without = whole.only(("b",))
        torch.testing.assert_close(without.logits(pictures), whole.logits(pictures)[:, 1:2])
    assert without.age_heads is None and part.attributes == asked
    with pytest.raises(ContractError, match="age groups"):
        without.age_groups(pictures)
    for wrong in (("a", "a"), ("z",), (), ("x", "a"), ("x",)):
        with pytest.raises(ContractError, match="attributes of a network"):
            whole.only(wrong)
