"""Generators that users bring: told from shapes, equal to the published formulas, converted bit for bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.faces.generator import Generator, GeneratorConfig
from sdflow_core.records.errors import ContractError
from sdflow_core.weights import generator_layout, nvidia_files, stylegan2_files
from sdflow_core.weights.front import inspect, load_generator
from sdflow_core.weights.reading import read_weight_bytes
from tests import plain_generator as plain
from tests import weight_makers as make

pytestmark = pytest.mark.weights

PUBLISHED = [  # size, channel multiplier, parameters
    (256, 2, 30_034_338),
    (256, 1, 24_767_458),
    (512, 2, 30_276_583),
    (512, 1, 24_860_935),
    (1024, 2, 30_370_060),
    (1024, 1, 24_900_764),
]
KEYS = {256: 135, 512: 153, 1024: 171}


@pytest.mark.parametrize(("size", "multiplier", "parameters"), PUBLISHED)
def test_the_published_sizes_are_told_from_shapes(size: int, multiplier: int, parameters: int) -> None:
    shapes = make.rosinality_shapes(size, base=16384 * multiplier)
    assert len(shapes) == KEYS[size]
    for described in (
        stylegan2_files.recognise(make.on_meta(shapes), {"latent_avg": torch.zeros(512)}),
        nvidia_files.recognise(make.on_meta(make.nvidia_shapes(size, base=16384 * multiplier)), {}),
    ):
        assert described is not None and described.parameters == parameters
        assert (described.kind, described.resolution, described.style_dim) == ("generator", size, 512)
        assert (described.layers, described.depth) == (make.math.log2(size) * 2 - 2, 8)
        assert described.channels == make.channels(size, 16384 * multiplier) and described.notes == ()


def test_a_full_file_is_inspected(tmp_path: Path) -> None:
    path = tmp_path / "anything"
    state = {name: torch.ones(1).expand(shape) for name, shape in make.rosinality_shapes().items()}
    torch.save({"g_ema": {name: value.contiguous() for name, value in state.items()}}, path)
    found = inspect(path)
    assert found.container == "torch" and found.size == path.stat().st_size
    assert found.described.parameters == 30_370_060 and found.described.layers == 18
    assert "estimated" in found.described.notes[0] and "non-commercial" in str(found.described.licence)


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "sizes", "allowed"),
    [
        (64, {}, 1e-4),
        (64, {"style_dim": 512, "base": 32768, "top": 512, "depth": 1}, 1e-4),
        (256, {"base": 4096, "top": 64}, 1e-4),
        (1024, {"base": 4096, "top": 32}, 1e-3),
        pytest.param(256, {"style_dim": 512, "base": 32768, "top": 512}, 1e-4, marks=pytest.mark.long),
        pytest.param(1024, {"style_dim": 512, "base": 32768, "top": 512}, 1e-3, marks=pytest.mark.long),
    ],
)
def test_pictures_are_those_of_the_published_formulas(
    size: int, sizes: dict[str, int], allowed: float, tmp_path: Path
) -> None:
    path = tmp_path / "g.pt"
    state = make.rosinality_file(path, size, **sizes)["g_ema"]
    generator = load_generator(path)
    w = torch.randn(1, generator.num_rows, generator.config.style_dim)
    expected = plain.rosinality(state, w[0])
    assert float(expected.std()) > 0.1
    assert float((generator.synthesize(w)[0] - expected).abs().max()) <= allowed


@torch.no_grad()
def test_the_mapping_and_the_mean_w_are_those_of_the_published_formulas(tmp_path: Path) -> None:
    state = make.rosinality_file(tmp_path / "g.pt")["g_ema"]
    generator = load_generator(tmp_path / "g.pt")
    z = torch.randn(3, 16)
    rows = generator.map(z)
    for i in range(3):
        assert torch.allclose(rows[i], plain.mapped(state, z[i]).expand(10, -1), atol=1e-5)
    assert torch.equal(generator.mean_w, load_generator(tmp_path / "g.pt").mean_w)
    many = generator.map(torch.randn(20_000, 16))[:, 0]
    error = (generator.mean_w - many.mean(dim=0)).abs()
    assert float((error / many.std(dim=0)).max()) < 5 * (1 / 10_000 + 1 / 20_000) ** 0.5


@pytest.mark.parametrize("shape", [(16,), (1, 16), (10, 16), (1, 10, 16)])
def test_the_mean_w_of_any_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    mean = torch.randn(shape)
    make.rosinality_file(tmp_path / "g.pt", latent_avg=mean)
    assert torch.equal(load_generator(tmp_path / "g.pt").mean_w, mean.reshape(-1, 16).expand(10, 16))


@pytest.mark.parametrize("shape", [(18, 16), (2, 10, 16), (15,), (1, 1, 1, 16), ()])
def test_the_mean_w_of_another_generator_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    make.rosinality_file(tmp_path / "g.pt", latent_avg=torch.zeros(shape))
    with pytest.raises(ContractError, match=r"mean w of another generator.*\[10, 16\].*g\.pt"):
        load_generator(tmp_path / "g.pt")


def test_a_file_is_written_bit_for_bit(tmp_path: Path) -> None:
    for mean in (torch.randn(16), torch.randn(10, 16)):
        content = make.rosinality_file(tmp_path / "g.pt", latent_avg=mean, legacy=mean.ndim == 2)
        generator = load_generator(tmp_path / "g.pt")
        assert not generator.training and not any(p.requires_grad for p in generator.parameters())
        back = torch.load(io.BytesIO(stylegan2_files.write(generator)), weights_only=True)
        assert_same(back["g_ema"], content["g_ema"])
        assert torch.equal(back["latent_avg"], mean)
        again: Generator = load_model(save_model(generator))  # through our own files, too
        assert_same(again.state_dict(), generator.state_dict())


def as_rosinality(state: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """NVIDIA's tensors by rosinality's names, as the published table says."""
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "mapping":
            if parts[1].startswith("fc"):
                made[f"style.{int(parts[1][2:]) + 1}.{parts[2]}"] = value
            continue
        side = int(parts[1][1:])
        k = side.bit_length() - 4  # log2(side) - 3
        if parts[2] == "const":
            made["input.input"] = value[None]
            continue
        if parts[2] == "resample_filter":
            continue
        prefix = {"conv0": f"convs.{2 * k}", "conv1": f"convs.{2 * k + 1}", "torgb": f"to_rgbs.{k}"}[parts[2]]
        if side == 4:
            prefix = {"conv1": "conv1", "torgb": "to_rgb1"}[parts[2]]
        number = 0 if side == 4 else 2 * (k + 3) - (5 if parts[2] == "conv0" else 4)
        match parts[3:]:
            case ["weight"]:
                made[f"{prefix}.conv.weight"] = value[None]
            case ["bias"] if parts[2] == "torgb":
                made[f"{prefix}.bias"] = value.reshape(1, 3, 1, 1)
            case ["bias"]:
                made[f"{prefix}.activate.bias"] = value
            case ["affine", which]:
                made[f"{prefix}.conv.modulation.{which}"] = value
            case ["noise_strength"]:
                made[f"{prefix}.noise.weight"] = value.reshape(1)
            case ["noise_const"]:
                made[f"noises.noise_{number}"] = value[None, None]
            case _:
                assert parts[3] == "resample_filter"
    for k in range(size.bit_length() - 3):
        made[f"convs.{2 * k}.conv.blur.kernel"] = made[f"to_rgbs.{k}.upsample.kernel"] = make.filter_of(4.0)
    return made


def assert_same(found: Any, expected: Any) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape and torch.equal(found[name], value), name


@torch.no_grad()
@pytest.mark.parametrize("depth", [2, 8])
def test_nvidia_to_ours_to_rosinality_is_bit_exact(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "g.pkl"
    state = make.nvidia_pickle(path, 64, depth=depth)
    found = inspect(path)
    assert (found.container, found.described.family) == ("pickle", "stylegan2-nvidia")
    assert (found.described.depth, found.described.layers) == (depth, 10)
    generator = load_generator(path)
    content = torch.load(io.BytesIO(stylegan2_files.write(generator)), weights_only=True)
    assert_same(content["g_ema"], as_rosinality(state, 64))
    assert torch.equal(content["latent_avg"], state["mapping.w_avg"])
    w = torch.randn(1, 10, 16)
    assert float((generator.synthesize(w)[0] - plain.nvidia(state, w[0], 256)).abs().max()) <= 1e-4
    (tmp_path / "r.pt").write_bytes(stylegan2_files.write(generator))
    assert torch.equal(load_generator(tmp_path / "r.pt").synthesize(w), generator.synthesize(w))


@torch.no_grad()
def test_the_clamp_of_a_training_is_kept(tmp_path: Path) -> None:
    state = make.nvidia_pickle(tmp_path / "a.pkl", conv_clamp=0.5)
    make.nvidia_pickle(tmp_path / "b.pkl", conv_clamp=None)
    clamped, free = load_generator(tmp_path / "a.pkl"), load_generator(tmp_path / "b.pkl")
    assert (clamped.config.conv_clamp, free.config.conv_clamp) == (0.5, None)
    assert "+-0.5" in " ".join(inspect(tmp_path / "a.pkl").described.notes)
    w = torch.randn(1, 10, 16)
    assert float((clamped.synthesize(w)[0] - plain.nvidia(state, w[0], 0.5)).abs().max()) <= 1e-4
    assert float((clamped.synthesize(w) - free.synthesize(w)).abs().max()) > 0.1
    again: Generator = load_model(save_model(clamped))
    assert torch.equal(again.synthesize(w), clamped.synthesize(w))
    assert b"conv_clamp" not in save_model(free)  # models of before keep their digest


def test_the_first_pickles_of_tensorflow(tmp_path: Path) -> None:
    state = make.draw(make.nvidia_shapes(32, **make.SMALL))
    make.tensorflow_pickle(tmp_path / "tf.pkl", state)
    make.nvidia_pickle(tmp_path / "g.pkl", state=state, conv_clamp=None)
    found, expected = load_generator(tmp_path / "tf.pkl"), load_generator(tmp_path / "g.pkl")
    assert found.config == expected.config
    for name, value in expected.state_dict().items():
        assert torch.allclose(found.state_dict()[name], value, atol=1e-6), name  # (bias - 1) + 1


def test_stylegan3_and_conditional_generators_are_refused_by_name(tmp_path: Path) -> None:
    make.nvidia_pickle(tmp_path / "s3.pkl", state=make.draw(make.stylegan3_shapes()))
    found = inspect(tmp_path / "s3.pkl").described
    assert (found.family, found.resolution, found.layers) == ("stylegan3", 1024, 16)
    assert found.notes[0].startswith("refused")
    with pytest.raises(ContractError, match=r"StyleGAN3 is another network.*s3\.pkl.*import a StyleGAN2"):
        load_generator(tmp_path / "s3.pkl")
    state = make.draw(make.nvidia_shapes(16, **make.SMALL))
    state |= {"mapping.embed.weight": torch.zeros(16, 5), "mapping.fc0.weight": torch.zeros(16, 32)}
    make.nvidia_pickle(tmp_path / "c.pkl", state=state)
    assert "conditional" in inspect(tmp_path / "c.pkl").described.notes[0]
    with pytest.raises(ContractError, match=r"conditional.*embed\.weight \[16, 5\].*c\.pkl"):
        load_generator(tmp_path / "c.pkl")


def test_every_tensor_that_does_not_fit_is_named_with_its_shape(tmp_path: Path) -> None:
    content = make.rosinality_content()
    state = content["g_ema"]
    wrong = [f"extra.{i} [2, {i}] is unexpected" for i in range(30)]
    state.update({f"extra.{i}": torch.zeros(2, i) for i in range(30)})
    for name in ("convs.3.conv.weight", "to_rgbs.1.bias", "noises.noise_4"):
        wrong.append(f"{name} {list(state.pop(name).shape)} is missing")
    state["style.2.bias"] = torch.zeros(5)
    wrong.append("style.2.bias is [5], expected [16]")
    torch.save(content, tmp_path / "g.pt")
    with pytest.raises(ContractError, match=r"g\.pt") as caught:
        load_generator(tmp_path / "g.pt")
    assert [said for said in wrong if said not in str(caught.value)] == []
    state = make.draw(make.nvidia_shapes(16, **make.SMALL))
    del state["synthesis.b8.conv0.noise_strength"]
    make.nvidia_pickle(tmp_path / "g.pkl", state=state)
    with pytest.raises(ContractError, match=r"synthesis\.b8\.conv0\.noise_strength \[\] is missing"):
        load_generator(tmp_path / "g.pkl")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("to_rgbs.0.upsample.kernel", torch.ones(4, 4) / 4, "another resampling filter"),
        ("convs.0.conv.blur.kernel", torch.ones(2, 2), "another resampling filter"),
        ("convs.1.conv.weight", torch.full((1, 24, 24, 3, 3), float("nan")), r"not finite"),
        ("to_rgbs.1.conv.weight", torch.zeros(1, 3, 7, 1, 1), "not a generator|no known family"),
        ("to_rgbs.700000.conv.weight", torch.zeros(1, 3, 7, 1, 1), "no known family"),
    ],
)
def test_generators_that_would_draw_something_else_are_refused(
    name: str, value: Tensor, said: str, tmp_path: Path
) -> None:
    content = make.rosinality_content()
    content["g_ema"][name] = value
    torch.save(content, tmp_path / "g.pt")
    with pytest.raises(ContractError, match=said):
        load_generator(tmp_path / "g.pt")


def test_settings_that_no_shape_tells_are_refused(tmp_path: Path) -> None:
    state = make.draw(make.nvidia_shapes(16, **make.SMALL))
    with make.nvidia_modules():
        network = make.persistent_network(state, conv_clamp=256.0)
        network.state["_modules"]["synthesis"].state["_modules"]["b8"].state["architecture"] = "resnet"
        network.state["_modules"]["mapping"].state["_modules"]["fc0"].state["lr_multiplier"] = 1
        data = make.pickle.dumps({"G_ema": network})
    (tmp_path / "g.pkl").write_bytes(data)
    with pytest.raises(ContractError, match="architecture resnet") as caught:
        load_generator(tmp_path / "g.pkl")
    assert "lr_multiplier 1" in str(caught.value)


def test_a_file_without_noises_draws_the_same_ones_every_time(tmp_path: Path) -> None:
    content = make.rosinality_content(16)
    state = {name: value for name, value in content["g_ema"].items() if not name.startswith("noises.")}
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "g.pt")
    assert "noises" in " ".join(inspect(tmp_path / "g.pt").described.notes)
    a, b = load_generator(tmp_path / "g.pt"), load_generator(tmp_path / "g.pt")
    assert_same(a.state_dict(), b.state_dict())
    assert float(a.first.noise.std()) > 0.1


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    content = make.rosinality_content(16, latent_avg=torch.zeros(16))
    halved = {name: value.half() for name, value in content["g_ema"].items()}
    torch.save({"g_ema": halved}, tmp_path / "g.pt")
    found = load_generator(tmp_path / "g.pt").state_dict()
    assert all(value.dtype == torch.float32 for value in found.values())
    assert torch.equal(found["const"], halved["input.input"].float())


def test_the_averaged_generator_is_taken_before_the_trained_one(tmp_path: Path) -> None:
    content = make.rosinality_content(16)
    other = make.rosinality_content(16, seed=1)["g_ema"]
    torch.save({"g": other, "d": {}, "g_ema": content["g_ema"], "ada_aug_p": 0.5}, tmp_path / "g.pt")
    assert torch.equal(load_generator(tmp_path / "g.pt").const, content["g_ema"]["input.input"])


def test_a_channel_table_of_another_family_is_not_taken_for_one() -> None:
    table = make.channels(64, 512, 24)
    assert generator_layout.config_from_channels(table, 16, 3) == GeneratorConfig(
        resolution=64, style_dim=16, channel_base=512, channel_max=24, mapping_layers=3
    )
    assert generator_layout.config_from_channels({**table, 16: 23}, 16, 3) is None


def test_a_file_in_memory_is_the_same_as_on_disk(tmp_path: Path) -> None:
    make.rosinality_file(tmp_path / "g.pt", 16)
    data = (tmp_path / "g.pt").read_bytes()
    assert read_weight_bytes(data, "x").sha256 == inspect(tmp_path / "g.pt").sha256
