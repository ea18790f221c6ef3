"""Files of ArcFace IR-SE-50 and iresnet: sizes, embeddings, how they are fed, and the crop of the face."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.faces.identity_network import face_of
from sdflow_core.faces.ir_se import ArcFace, ArcFaceConfig
from sdflow_core.faces.iresnet import IResNet, IResNetConfig
from sdflow_core.records.errors import ContractError
from sdflow_core.weights import identity_files
from tests import encoder_makers as makers
from tests import encoder_rebuilds as rebuilds

pytestmark = pytest.mark.weights


def _faces(side: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _arcface(small: int = 2) -> dict[str, Tensor]:
    return makers.draw(makers.arcface(makers.SMALL, 8, small, 16))


def _iresnet(small: int = 2) -> dict[str, Tensor]:
    return makers.draw(makers.iresnet(makers.SMALL, (3, 4, 14, 3), small, 16))


def test_published_sizes_of_ir_se_50() -> None:
    shapes = makers.arcface()
    said = identity_files.recognise(makers.on_meta(shapes), {})
    assert said is not None and (said.kind, said.family) == ("identity", "ir-se-50")
    assert (said.parameters, said.depth, said.resolution) == (43_797_696, 50, 112)
    with torch.device("meta"):
        network = ArcFace(ArcFaceConfig())
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert own == shapes and len(own) == 397


@pytest.mark.parametrize(
    ("depth", "units", "parameters"),
    [(34, (3, 4, 6, 3), 34_139_328), (50, (3, 4, 14, 3), 43_590_848), (100, (3, 13, 30, 3), 65_156_160)],
)
def test_published_sizes_of_iresnet(depth: int, units: tuple[int, int, int, int], parameters: int) -> None:
    shapes = makers.iresnet(units=units)
    said = identity_files.recognise(makers.on_meta(shapes), {})
    assert said is not None and (said.kind, said.family) == ("identity", f"iresnet{depth}")
    assert (said.parameters, said.depth, said.resolution) == (parameters, depth, 112)
    with torch.device("meta"):
        network = IResNet(IResNetConfig(units=units))
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == shapes


@pytest.mark.parametrize("small", [1, 2])
def test_arcface_is_that_of_a_rebuild(small: int) -> None:
    state, faces = _arcface(small), _faces(16 * small)
    network = identity_files.load(state, {})
    with torch.no_grad():
        found = network.embed(faces)
        torch.testing.assert_close(found, rebuilds.arcface(state, faces), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
        assert torch.equal(network(faces), found)


@pytest.mark.parametrize("unit_range", [True, False])
def test_iresnet_is_that_of_a_rebuild_as_it_is_fed(unit_range: bool) -> None:
    state, faces = _iresnet(), _faces(32)
    network = identity_files.load(state, {}, unit_range=unit_range)
    fed = faces * 0.5 + 0.5 if unit_range else faces
    with torch.no_grad():
        raw = rebuilds.iresnet(state, fed)
        torch.testing.assert_close(network.describe(faces), raw, atol=1e-5 * float(raw.abs().max()), rtol=0)
        torch.testing.assert_close(network.embed(faces), F.normalize(raw, dim=1), atol=1e-5, rtol=0)
        other = identity_files.load(state, {}, unit_range=not unit_range).embed(faces)
        assert float((other - network.embed(faces)).abs().max()) > 1e-3  # it matters


def test_small_variances_show_the_eps_of_every_layer() -> None:
    for state, rebuild in ((_arcface(), rebuilds.arcface), (_iresnet(), rebuilds.iresnet)):
        small = makers.with_small_variances(state)
        network = identity_files.load(small, {}, unit_range=False)
        with torch.no_grad():
            wanted = F.normalize(rebuild(small, _faces(32)), dim=1)
            torch.testing.assert_close(network.embed(_faces(32)), wanted, atol=1e-5, rtol=0)


def test_how_a_network_is_fed_travels_with_it() -> None:
    for state, kind in ((_arcface(), "arcface"), (_iresnet(), "iresnet")):
        network = identity_files.load(state, {}, unit_range=False)
        again = load_model(save_model(network), expect=kind)
        assert again.config == network.config
        assert torch.equal(again.embed(_faces(32)), network.embed(_faces(32)))


def test_the_face_of_an_aligned_picture() -> None:
    row, column = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    images = torch.stack([row, column, row * 0])[None]
    assert torch.equal(face_of(images, 188), images[:, :, 35:223, 32:220])
    pooled = face_of(images, 112)
    assert torch.equal(pooled, F.adaptive_avg_pool2d(images[:, :, 35:223, 32:220], 112))
    sampled = face_of(images, 112, "bilinear")
    assert sampled[0, 0, 0, 0] == 35 and sampled[0, 0, -1, 0] == 222  # corners are those of the box
    assert sampled[0, 1, 0, 0] == 32 and sampled[0, 1, 0, -1] == 219
    large = F.interpolate(images, (1024, 1024), mode="nearest")
    assert torch.equal(face_of(large, 188), images[:, :, 35:223, 32:220])
    for shape in [(1, 3, 64, 32), (1, 1, 64, 64), (3, 64, 64)]:
        with pytest.raises(ContractError, match="aligned pictures"):
            face_of(torch.zeros(shape), 112)


def test_aligned_pictures_are_embedded_by_their_face() -> None:
    network, images = identity_files.load(_arcface(), {}), _faces(256)
    assert torch.equal(network.embed_aligned(images), network.embed(face_of(images, 32)))
    with pytest.raises(ContractError, match=r"identity input.*\[B, 3, 32, 32\]"):
        network.embed(images)


@pytest.mark.parametrize("which", ["arcface", "iresnet"])
def test_every_tensor_that_does_not_fit_is_named(which: str) -> None:
    state = _arcface() if which == "arcface" else _iresnet()
    last = "output_layer.4" if which == "arcface" else "features"
    del state[f"{last}.running_mean"]
    state[f"{last}.running_var"] = torch.zeros(3)
    state["stray"] = torch.zeros(4, 5)
    with pytest.raises(ContractError) as caught:
        identity_files.load(state, {}, where="id.pth")
    text = str(caught.value)
    for part in (
        f"{last}.running_mean [16] is missing",
        f"{last}.running_var is [3], expected [16]",
        "stray [4, 5] is unexpected",
        "id.pth",
    ):
        assert part in text


def test_an_ir_network_without_squeeze_and_excitation_is_refused() -> None:
    state = {name: value for name, value in makers.on_meta(makers.arcface()).items() if ".5.fc" not in name}
    said = identity_files.recognise(state, {})
    assert said is not None and said.family == "ir" and "CurricularFace" in said.notes[0]
    with pytest.raises(ContractError, match="without squeeze-and-excitation"):
        identity_files.load(state, {})


def test_other_networks_are_no_identity() -> None:
    for shapes in (makers.style_encoder(), makers.classifier(), makers.resnet(50)):
        tensors = makers.on_meta(shapes)
        assert identity_files.recognise(tensors, {}) is None
        with pytest.raises(ContractError, match="not an identity network"):
            identity_files.load(tensors, {})
    made_up = {**_iresnet(), "layer2.999999.x": torch.zeros(1)}
    assert identity_files.recognise(made_up, {}) is None
