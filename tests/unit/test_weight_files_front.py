"""One door for weight files: every family by its tensors, whatever the file is called, and no other."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdflow_core.faces.resnet import ResNetConfig, ResNetScorer
from sdflow_core.method.paper import PaperFlow, PaperFlowConfig
from sdflow_core.records.errors import ContractError
from sdflow_core.weights import front
from tests import encoder_makers, weight_makers

pytestmark = pytest.mark.weights

SMALL = PaperFlowConfig(width=8)


def flow(attributes: int = 3) -> dict[str, Any]:
    torch.manual_seed(0)
    return PaperFlow(10, 16, attributes, SMALL).state_dict()


def encoder() -> dict[str, Any]:
    """With its generator: 10 heads, 64 px."""
    return encoder_makers.encoder_content(
        encoder_makers.small_encoder(10),
        latent_avg=torch.ones(10, 32),
        decoder=weight_makers.rosinality_content(64, style_dim=32)["g_ema"],
    )


CONTENTS: dict[str, Callable[[], Any]] = {
    "encoder": encoder,
    "identity": lambda: encoder_makers.draw(encoder_makers.arcface(encoder_makers.SMALL, 8, 2, 16)),
    "attribute_classifier": lambda: encoder_makers.draw(encoder_makers.classifier(34, 4)),
    "flow": flow,
    "semantic_encoder": lambda: ResNetScorer(ResNetConfig(attributes=("a", "b", "c"))).state_dict(),
    "generator": weight_makers.rosinality_content,
    "directions": lambda: torch.ones(1, 32),
}
LOADERS: dict[str, Callable[[Path], Any]] = {
    "encoder": front.load_encoder,
    "identity": front.load_identity,
    "attribute_classifier": front.load_attribute_classifier,
    "flow": lambda path: front.load_flow(path, rows=10),
    "semantic_encoder": front.load_semantic_encoder,
    "generator": front.load_generator,
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_kind_is_told_and_loaded_and_taken_for_no_other(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a name that says nothing"
    torch.save(CONTENTS[kind](), path)
    found = front.inspect(path)
    assert found.described.kind == kind and found.described.licence
    assert len(found.sha256) == 64 and found.size == path.stat().st_size
    for other, load in LOADERS.items():
        if other == kind:
            network = load(path)
            assert not network.training and not any(p.requires_grad for p in network.parameters())
            assert sum(p.numel() for p in network.parameters()) == found.described.parameters
        elif (kind, other) != ("encoder", "generator"):  # which has one inside
            with pytest.raises(ContractError, match=rf"another kind.*{kind.replace('_', ' ')}.*says nothing"):
                load(path)


@torch.no_grad()
def test_the_generator_inside_an_encoders_file(tmp_path: Path) -> None:
    torch.save(encoder(), tmp_path / "e.pt")
    generator, made = front.load_generator(tmp_path / "e.pt"), front.load_encoder(tmp_path / "e.pt")
    assert (generator.config.resolution, generator.num_rows) == (64, 10)
    assert torch.equal(generator.mean_w, torch.ones(10, 32))
    w = made.encode(torch.randn(1, 3, 64, 64).clamp(-1, 1))
    assert generator.synthesize(w).shape == (1, 3, 64, 64)


@torch.no_grad()
def test_a_flow_goes_to_its_base_and_back(tmp_path: Path) -> None:
    torch.save(flow(5), tmp_path / "prior")
    found = front.inspect(tmp_path / "prior").described
    assert (found.attributes, found.style_dim, found.depth) == (5, 16, 6)
    made = front.load_flow(tmp_path / "prior", rows=10)
    w, s = torch.randn(2, 10, 16), torch.rand(2, 5)
    assert torch.allclose(made.from_base(made.to_base(w, s), s), w, atol=1e-3)
    with pytest.raises(ContractError, match=r"D 512.*D 16.*prior"):
        front.load_flow(tmp_path / "prior", dim=512)


@pytest.mark.parametrize(
    ("k", "parameters"), [(3, 1_605_633), (5, 1_617_921), (17, 1_691_649), (40, 1_832_961)]
)
def test_published_flows(k: int, parameters: int, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = PaperFlow(18, 512, k).state_dict()
    torch.save({name: torch.zeros(value.shape) for name, value in state.items()}, tmp_path / "prior-0010000")
    found = front.inspect(tmp_path / "prior-0010000").described
    assert (found.parameters, found.attributes) == (parameters, k)


def test_the_container_makes_no_difference(tmp_path: Path) -> None:
    state = dict(weight_makers.rosinality_content(16)["g_ema"])
    torch.save(state, tmp_path / "new")
    torch.save(state, tmp_path / "old", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "safe")
    np.savez(tmp_path / "arrays.npz", **{name: value.numpy() for name, value in state.items()})
    paths = [tmp_path / name for name in ("new", "old", "safe", "arrays.npz")]
    assert [front.inspect(p).container for p in paths] == ["torch", "torch", "safetensors", "npz"]
    first, *others = (front.load_generator(p).state_dict() for p in paths)
    for other in others:
        assert all(torch.equal(other[name], value) for name, value in first.items())


def test_a_file_of_no_family_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({f"layer.{i}": torch.zeros(i, 2, 2, 2) for i in range(20)}, tmp_path / "x.pt")
    with pytest.raises(ContractError, match=r"no known family.*layer\.3 \[3, 2, 2, 2\].*12 more.*x\.pt"):
        front.inspect(tmp_path / "x.pt")
    torch.save({"a": 1}, tmp_path / "y.pt")
    with pytest.raises(ContractError, match="no tensors"):
        front.inspect(tmp_path / "y.pt")


def test_tensors_among_other_things_in_a_state_dict_are_not_dropped(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2), "b": "text"}}, tmp_path / "x.pt")
    with pytest.raises(ContractError, match="not a state dict.*'b'"):
        front.inspect(tmp_path / "x.pt")
    torch.save({"state_dict": {"a": torch.zeros(2), "module.a": torch.zeros(2)}}, tmp_path / "x.pt")
    with pytest.raises(ContractError, match="twice"):
        front.inspect(tmp_path / "x.pt")


def test_writing_into_what_was_read_changes_no_file(tmp_path: Path) -> None:
    weight_makers.rosinality_file(tmp_path / "g.pt", 16)
    before = (tmp_path / "g.pt").read_bytes()
    generator = front.load_generator(tmp_path / "g.pt")
    with torch.no_grad():
        for value in generator.state_dict().values():
            value.add_(1)
    assert (tmp_path / "g.pt").read_bytes() == before
    buffer = io.BytesIO()
    torch.save(generator.state_dict(), buffer)  # and the network can be written anywhere
    assert buffer.tell() > 0
