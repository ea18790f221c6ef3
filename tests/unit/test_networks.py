"""Encoder, labeller, judge, prior: files, shapes, micro-batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sdflow_core.faces.checkpoint import load_model, read_header, save_model
from sdflow_core.faces.encoder import Encoder, EncoderConfig
from sdflow_core.faces.labeller import JudgeNetwork, Labeller, LabellerConfig
from sdflow_core.faces.networks import Networks, to_tensor, to_uint8
from sdflow_core.faces.prior import Prior
from sdflow_core.records.errors import ContractError
from sdflow_core.records.store import open_store
from sdflow_core.weights.embedded import embedded_manifest, install_embedded
from sdflow_core.weights.model_store import ModelStore

SMALL = LabellerConfig(attributes=("a", "b"), resolution=32, channels=(8, 12))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    store = open_store(str(tmp_path_factory.mktemp("models")))
    return Networks(ModelStore(store), install_embedded(store), micro_batch=4)


@pytest.mark.parametrize(
    "net", [Encoder(EncoderConfig()), Labeller(SMALL), JudgeNetwork(SMALL)], ids=lambda n: n.kind
)
def test_saved_and_loaded_is_the_same_network(net: torch.nn.Module) -> None:
    data = save_model(net)
    assert data == save_model(net)
    again = load_model(data)
    size = net.config.resolution  # type: ignore[union-attr]
    x = torch.rand(2, 3, size, size) * 2 - 1
    assert torch.equal(again(x), net.eval()(x))
    assert not any(p.requires_grad for p in again.parameters())


def test_another_kind_and_damage_are_refused() -> None:
    data = save_model(Labeller(SMALL))
    with pytest.raises(ContractError, match="model kind"):
        load_model(data, expect="encoder")
    with pytest.raises(ContractError):
        load_model(data[: len(data) // 2])
    with pytest.raises(ContractError, match="not a model file"):
        read_header(b"\x80\x04pickle")


def test_encoder_starts_with_one_code_for_all_rows() -> None:
    w = Encoder(EncoderConfig()).encode(torch.zeros(1, 3, 64, 64))
    assert torch.equal(w, w[:, :1].expand_as(w))
    with pytest.raises(ContractError, match="encoder input"):
        Encoder(EncoderConfig()).encode(torch.zeros(1, 3, 32, 32))


def test_prior_has_the_moments_it_was_fitted_to() -> None:
    torch.manual_seed(0)
    codes = torch.randn(4000, 2, 3) @ torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 0, 0.5]]) + 3
    prior = Prior.fit(codes, 6)
    drawn = prior.sample(20000, torch.Generator().manual_seed(1), truncation=1.0).flatten(1)
    assert torch.allclose(drawn.mean(0), codes.flatten(1).mean(0), atol=0.1)
    assert torch.allclose(torch.cov(drawn.T), torch.cov(codes.flatten(1).T), atol=0.25)
    same = [prior.sample(3, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*same)
    with pytest.raises(ContractError, match="more than"):
        Prior.fit(codes[:5], 6)


def test_pixels_survive_there_and_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(to_uint8(to_tensor(pixels)), pixels)


def test_a_row_has_the_same_bytes_in_every_batch(networks: Networks) -> None:
    w = networks.prior.sample(7, torch.Generator().manual_seed(2))
    images = networks.render(w)
    assert torch.equal(networks.render(w[5:6]), images[5:6])
    assert torch.equal(networks.scores(images)[6:], networks.scores(images[6:]))
    pixels = to_uint8(images)
    assert np.array_equal(networks.encode(pixels)[3:4], networks.encode(pixels[3:4]))


def test_every_call_is_counted(networks: Networks) -> None:
    before = dict(networks.calls)
    networks.scores(torch.zeros(9, 3, 64, 64))
    assert networks.calls["labeller"] - before.get("labeller", 0) == 3


def test_embedded_models_fit_each_other_and_the_size_limit(networks: Networks) -> None:
    manifest = embedded_manifest()
    assert networks.labeller.attributes == tuple(manifest["attributes"]) == networks.judge.attributes
    assert (
        networks.generator.config.resolution == manifest["resolution"] == networks.encoder.config.resolution
    )
    folder = Path(__import__("embedded_models").__file__).parent
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) <= 30e6


def test_samples_of_the_prior_are_faces_the_encoder_knows(networks: Networks) -> None:
    w = networks.prior.sample(24, torch.Generator().manual_seed(4), truncation=0.7)
    images = networks.render(w)
    again = networks.render(torch.from_numpy(networks.encode(to_uint8(images))))
    error = (images - again).square().mean(dim=(1, 2, 3))
    assert float((10 * torch.log10(4 / error)).median()) > 20  # dB
