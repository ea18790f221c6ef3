"""Large feature maps: every way to compute them is the published function; half precision and previews."""

from __future__ import annotations

import copy
import itertools
from typing import cast

import pytest
import torch
from torch import Tensor

from sdflow_core.faces import large_features
from sdflow_core.faces.generator import Generator, GeneratorConfig, StyledConv, ToRGB, fir_kernel, upsample
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.front import load_generator
from tests import plain_generator as plain
from tests import weight_makers as make

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def at_256(tmp_path_factory: pytest.TempPathFactory) -> tuple[Generator, Tensor, Tensor]:
    """A generator, codes [2, 14, 16], and their pictures by the published formulas."""
    path = tmp_path_factory.mktemp("weights") / "g.pt"
    state = make.rosinality_file(path, 256, base=2048, top=16)["g_ema"]
    generator = load_generator(path)
    w = torch.randn(2, 14, 16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return generator, w, torch.stack([plain.rosinality(state, row) for row in w])


@torch.no_grad()
@pytest.mark.parametrize("band", [large_features.BAND, 256 * 8 * 24, 1])
@pytest.mark.parametrize("form", ["banded", "factorised", "grouped"])
def test_every_form_is_the_published_function(
    form: large_features.Form,
    band: int,
    at_256: tuple[Generator, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator, w, expected = at_256
    monkeypatch.setattr(large_features, "BAND", band)  # one band, bands that do not divide the rows, many
    assert float((generator.synthesize(w, form=form) - expected).abs().max()) <= 1e-4


@torch.no_grad()
def test_a_picture_has_the_same_bytes_in_every_batch(at_256: tuple[Generator, Tensor, Tensor]) -> None:
    generator, w, _ = at_256
    pictures = generator.synthesize(w)
    assert torch.equal(pictures, generator.synthesize(w))
    assert torch.equal(pictures[[1]], generator.synthesize(torch.stack([w[1]] * 2))[:1])


def test_with_gradients_it_is_the_same_function(at_256: tuple[Generator, Tensor, Tensor]) -> None:
    generator, w, expected = at_256
    codes = w.clone().requires_grad_()
    allowed: dict[large_features.Precision, float] = {"fp32": 1e-4, "bf16": 0.05 * float(expected.std())}
    for precision, most in allowed.items():
        pictures = generator.synthesize(codes, precision=precision)
        assert float((pictures.detach() - expected).abs().mean()) <= most
        (gradient,) = torch.autograd.grad(pictures.square().mean(), codes)
        assert bool((gradient.abs().amax(dim=(0, 2)) > 0).all())


@torch.no_grad()
def test_small_pictures_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Tensor:
        raise AssertionError("small feature maps went the way of the large ones")

    monkeypatch.setattr(large_features, "finished", never)
    net = Generator(GeneratorConfig(resolution=64, style_dim=8, channel_base=256, channel_max=8))
    assert net.synthesize(torch.randn(2, 10, 8)).shape == (2, 3, 64, 64)


@torch.no_grad()
@pytest.mark.parametrize("form", ["banded", "factorised", "grouped"])
@pytest.mark.parametrize(("precision", "of_range"), [("fp16", 0.005), ("bf16", 0.03)])
def test_half_precision_stays_near(
    precision: large_features.Precision,
    of_range: float,
    form: large_features.Form,
    at_256: tuple[Generator, Tensor, Tensor],
) -> None:
    generator, w, expected = at_256
    pictures = generator.synthesize(w[:1], precision=precision, form=form)
    assert pictures.dtype == torch.float32 and not torch.equal(pictures, expected[:1])
    assert float((pictures - expected[:1]).abs().max()) <= of_range * float(expected.max() - expected.min())


@torch.no_grad()
@pytest.mark.parametrize("form", ["banded", "factorised", "grouped"])
def test_features_of_half_precision_are_bounded(form: large_features.Form) -> None:
    torch.manual_seed(0)
    net = Generator(GeneratorConfig(resolution=64, style_dim=8, channel_base=256, channel_max=8))
    for layers in (net.up_convs, net.convs):
        for layer in cast(list[StyledConv], list(layers)):
            layer.bias.fill_(1e6)  # beyond what 16 bits hold
    pictures = net.synthesize(torch.randn(1, 10, 8), precision="fp16", form=form)
    assert bool(pictures.isfinite().all())
    # 256 from each of the four resolutions that are computed so; the filter adds nothing to a constant
    assert float((pictures - net.synthesize(torch.zeros(1, 10, 8), up_to=4).mean()).abs().max()) < 5 * 256


@torch.no_grad()
def test_the_clamp_of_the_training_holds_in_every_form() -> None:
    torch.manual_seed(0)
    config = GeneratorConfig(resolution=128, style_dim=8, channel_base=512, channel_max=8, conv_clamp=0.5)
    net = Generator(config)
    w = torch.randn(1, net.num_rows, 8)
    with torch.enable_grad():
        expected = net.synthesize(w)  # layer by layer
    free = Generator(config.model_copy(update={"conv_clamp": None}))
    free.load_state_dict(net.state_dict())
    for form in ("banded", "factorised", "grouped"):
        assert torch.allclose(net.synthesize(w, form=form), expected, atol=1e-5)
        assert not torch.allclose(free.synthesize(w, form=form), expected, atol=1e-1)


@torch.no_grad()
def test_noise(at_256: tuple[Generator, Tensor, Tensor]) -> None:
    generator, w, expected = at_256
    for form in ("banded", "factorised", "grouped"):
        without = generator.synthesize(w, noise="none", form=form)
        drawn = [generator.synthesize(w, noise="random", form=form) for _ in range(2)]
        assert not torch.allclose(without, expected, atol=1e-3)
        assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)
    twice = generator.synthesize(w[:1].expand(2, -1, -1), noise="random")  # a draw for each row
    assert not torch.allclose(twice[0], twice[1], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("side", [4, 64, 128, 256])
def test_a_preview_is_the_picture_so_far(side: int, at_256: tuple[Generator, Tensor, Tensor]) -> None:
    generator, w, _ = at_256
    preview = generator.synthesize(w, up_to=side)
    assert preview.shape == (2, 3, side, side)
    silent = copy.deepcopy(generator)
    for layer in cast(list[ToRGB], list(silent.rgbs))[side.bit_length() - 3 :]:  # of finer resolutions
        layer.conv.weight.zero_()
        layer.bias.zero_()
    whole = silent.synthesize(w)
    grown = preview
    while grown.shape[2] < 256:
        grown = upsample(grown, fir_kernel())
    assert torch.allclose(grown, whole, atol=1e-4)


def test_what_cannot_be_asked_for(at_256: tuple[Generator, Tensor, Tensor]) -> None:
    generator, w, _ = at_256
    with pytest.raises(ContractError, match=r"preview.*128, 256.*512"):
        generator.synthesize(w, up_to=512)
    with pytest.raises(ContractError, match="precision.*fp8"):
        generator.synthesize(w, precision="fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [1, 2, 5, 8])
def test_doubling_is_the_resampling_filter(side: int) -> None:
    x = torch.randn(2, 3, side, side)
    assert torch.allclose(large_features.doubled(x), upsample(x, fir_kernel()), atol=1e-6)


@pytest.mark.parametrize(("side", "channels"), [(128, 1), (128, 512), (1024, 32), (1024, 4096)])
def test_bands_cover_the_rows_once(side: int, channels: int) -> None:
    found = list(large_features.bands(side, channels))
    assert found[0][0] == 0 and found[-1][1] == side
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    assert all(first % 2 == last % 2 == 0 < last - first for first, last in found)
