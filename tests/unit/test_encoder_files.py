"""Files of e4e, pSp and ReStyle: what they are, what their networks compute, and what is refused and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.faces.style_encoder import IteratedEncoder, StyleEncoder, StyleEncoderConfig
from sdflow_core.records.errors import ContractError
from sdflow_core.weights import encoder_files
from tests import encoder_makers as makers
from tests import encoder_rebuilds as rebuilds

pytestmark = pytest.mark.weights


def _pictures(count: int = 2, side: int = 64, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _mean(rows: int = 18) -> Tensor:
    return torch.randn(rows, 32, generator=torch.Generator().manual_seed(5))


def _load(content: dict[str, Any], **options: Any) -> StyleEncoder:
    return encoder_files.load(*makers.split(content), **options)


def _far(a: Tensor, b: Tensor) -> float:
    """Largest difference, as a part of the largest value."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(
    ("rows", "restyle", "parameters", "keys"),
    [(18, False, 267_136_704, 621), (14, False, 209_450_688, 565), (18, True, 205_585_792, 565)],
)
def test_published_sizes_are_told_from_shapes(rows: int, restyle: bool, parameters: int, keys: int) -> None:
    shapes = makers.style_encoder(rows, restyle=restyle)
    assert len(shapes) == keys
    content = makers.encoder_content(makers.on_meta(shapes), encoder_type="GradualStyleEncoder")
    said = encoder_files.recognise(*makers.split(content))
    assert said is not None and said.kind == "encoder"
    assert said.family == ("restyle-psp" if restyle else "psp")
    assert (said.parameters, said.layers, said.style_dim) == (parameters, rows, 512)
    assert (said.resolution, said.depth) == (256, 50)
    with torch.device("meta"):
        config = StyleEncoderConfig(
            flavour="psp", rows=rows, pyramid=not restyle, input_channels=6 if restyle else 3
        )
        network = StyleEncoder(config)
    own = {name: tuple(value.shape) for name, value in network.state_dict().items() if name != "mean_w"}
    assert own == shapes


@pytest.mark.parametrize("flavour", ["e4e", "psp"])
@pytest.mark.parametrize("rows", [18, 14])
def test_codes_are_those_of_a_rebuild(flavour: str, rows: int) -> None:
    state, mean = makers.small_encoder(rows), _mean(rows)
    kind = {"e4e": "Encoder4Editing", "psp": "GradualStyleEncoder"}[flavour]
    encoder = _load(makers.encoder_content(state, encoder_type=kind, latent_avg=mean))
    images = _pictures()
    with torch.no_grad():
        wanted = mean + rebuilds.codes(state, images, rows, e4e=flavour == "e4e")
        assert encoder.encode(images).shape == (2, rows, 32)
        assert _far(encoder.encode(images), wanted) < 1e-5


def test_the_same_tensors_mean_other_codes_as_e4e_and_as_psp() -> None:
    content = makers.encoder_content(makers.small_encoder(), encoder_type=None, latent_avg=_mean())
    images = _pictures(1)
    e4e, psp = (_load(content, flavour=flavour).encode(images) for flavour in ("e4e", "psp"))
    assert torch.equal(e4e[:, 0], psp[:, 0])
    torch.testing.assert_close(e4e[:, 1:] - psp[:, 1:], (psp[:, :1] - _mean()[:1]).expand(-1, 17, -1))


def test_pictures_of_another_size_are_brought_to_the_encoders() -> None:
    encoder = _load(makers.encoder_content(makers.small_encoder(), latent_avg=_mean()))
    large = _pictures(1, 160)
    fitted = F.interpolate(large, (64, 64), mode="bilinear", antialias=True)
    assert torch.equal(encoder(large), encoder.encode(fitted))
    for shape in [(1, 3, 64, 48), (1, 1, 64, 64), (3, 64, 64)]:
        with pytest.raises(ContractError, match="encoder input"):
            encoder.encode(torch.zeros(shape))


def _generator(w_plus: Tensor) -> Tensor:
    """Any pictures of 128 px that depend on every row."""
    waves = torch.linspace(0.1, 3.0, 128)
    rows = (w_plus.mean(2)[:, :, None] * waves).sin().mean(1)  # [B, 128]
    picture = rows[:, None, :, None] * waves.cos()
    return picture.expand(-1, 3, -1, -1) * torch.tensor([1.0, -0.5, 0.25])[:, None, None]


@pytest.mark.parametrize(("kind", "e4e"), [("ProgressiveBackboneEncoder", True), ("BackboneEncoder", False)])
def test_restyle_goes_on_from_its_own_reconstruction(kind: str, e4e: bool) -> None:
    state, mean, images = makers.small_encoder(10, restyle=True), _mean(10), _pictures()
    network = _load(makers.encoder_content(state, encoder_type=kind, latent_avg=mean))
    with pytest.raises(ContractError, match="IteratedEncoder"):
        network.encode(images)
    with torch.no_grad():
        passes = IteratedEncoder(network, _generator).passes(images)
        assert len(passes) == 5 and not torch.allclose(passes[0], passes[1])
        for steps in (1, 3):
            wanted = rebuilds.restyle(state, images, mean, _generator, steps=steps, e4e=e4e)
            found = IteratedEncoder(network, _generator, steps).encode(images)
            assert _far(found, wanted) < 1e-5
            assert torch.equal(found, passes[steps - 1])


def test_an_encoder_of_one_pass_is_not_iterated() -> None:
    encoder = _load(makers.encoder_content(makers.small_encoder(4), latent_avg=_mean(4)))
    with pytest.raises(ContractError, match="6 input channels"):
        IteratedEncoder(encoder, _generator)
    restyle = _load(makers.encoder_content(makers.small_encoder(4, restyle=True), latent_avg=_mean(4)))
    with pytest.raises(ContractError, match="at least one pass"):
        IteratedEncoder(restyle, _generator, 0)


def test_who_does_not_say_e4e_or_psp_is_asked() -> None:
    state = makers.small_encoder(4)
    for kind in (None, "SomethingElse"):
        content = makers.encoder_content(state, encoder_type=kind, latent_avg=_mean(4))
        said = encoder_files.recognise(*makers.split(content))
        assert said is not None and said.family == "e4e or psp"
        assert any("say it" in note for note in said.notes)
        with pytest.raises(ContractError, match="flavour e4e or psp"):
            _load(content)
        assert _load(content, flavour="psp").config.flavour == "psp"
    content = makers.encoder_content(state, latent_avg=_mean(4))
    assert _load(content, flavour="e4e").config.flavour == "e4e"
    with pytest.raises(ContractError, match="differ"):
        _load(content, flavour="psp")


def test_heads_are_counted_and_options_are_not_believed() -> None:
    content = makers.encoder_content(makers.small_encoder(18), latent_avg=_mean(), stylegan_size=512)
    said = encoder_files.recognise(*makers.split(content))
    assert said is not None and said.layers == 18
    assert any("512 px" in note and "18 heads" in note for note in said.notes)
    assert _load(content).config.rows == 18
    content["opts"]["stylegan_size"] = 1024
    said = encoder_files.recognise(*makers.split(content))
    assert said is not None and not any("options say" in note for note in said.notes)


@pytest.mark.parametrize("shape", [(32,), (1, 32), (18, 32), (1, 18, 32)])
def test_the_mean_w_comes_in_every_shape(shape: tuple[int, ...]) -> None:
    mean = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    state = makers.small_encoder()
    held = _load(makers.encoder_content(state, latent_avg=mean))
    assert torch.equal(held.mean_w, mean.reshape(-1, 32).expand(18, 32))
    lost = makers.encoder_content(state, start_from_latent_avg=True)
    with pytest.raises(ContractError, match="without its mean w"):
        _load(lost)
    assert torch.equal(_load(lost, mean_w=mean).mean_w, held.mean_w)


def test_a_training_without_mean_w_starts_from_zero() -> None:
    content = makers.encoder_content(makers.small_encoder(4), start_from_latent_avg=False)
    assert not _load(content).mean_w.any()
    content["latent_avg"] = _mean(4)  # there, but not what the training started from
    assert not _load(content).mean_w.any()
    del content["opts"]["start_from_latent_avg"]
    assert torch.equal(_load(content).mean_w, _mean(4))


def test_a_mean_w_of_another_generator_is_refused() -> None:
    for shape in [(14, 32), (64,), (2, 18, 32), (18, 64)]:
        content = makers.encoder_content(makers.small_encoder(), latent_avg=torch.zeros(shape))
        with pytest.raises(ContractError, match="mean w of another generator"):
            _load(content)
    unsound = _mean(4)
    unsound[0, 0] = float("nan")
    with pytest.raises(ContractError, match="mean_w .*not finite"):
        _load(makers.encoder_content(makers.small_encoder(4), latent_avg=unsound))


def test_every_tensor_that_does_not_fit_is_named_with_its_shape() -> None:
    state = makers.small_encoder(4)
    del state["styles.2.linear.weight"], state["latlayer2.bias"], state["body.5.res_layer.1.weight"]
    state["styles.1.convs.0.bias"] = torch.zeros(5)
    state["encoder.stray"] = torch.zeros(2, 3)
    state["body.3.res_layer.4.running_var"] = -torch.ones(16)
    state["input_layer.2.weight"] = torch.full((8,), float("inf"))
    with pytest.raises(ContractError) as caught:
        _load(makers.encoder_content(state, latent_avg=_mean(4)), where="e.pt")
    text = str(caught.value)
    for part in (
        "7 tensors do not fit",
        "styles.2.linear.weight [32, 32] is missing",
        "latlayer2.bias [32] is missing",
        "body.5.res_layer.1.weight [16, 16, 3, 3] is missing",
        "styles.1.convs.0.bias is [5], expected [32]",
        "encoder.stray [2, 3] is unexpected",  # the prefix is taken off once
        "body.3.res_layer.4.running_var [16] has negative variances",
        "input_layer.2.weight [8] has values that are not finite",
        "e.pt",
    ):
        assert part in text


def test_a_head_that_is_missing_is_named() -> None:
    state = {k: v for k, v in makers.small_encoder(6).items() if not k.startswith("styles.3.")}
    with pytest.raises(ContractError, match=r"styles\.3\.linear\.bias \[32\] is missing"):
        _load(makers.encoder_content(state, latent_avg=_mean(6)))


def test_counters_of_a_training_may_be_missing_together_only() -> None:
    state = makers.small_encoder(4)
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    images = _pictures(1)
    whole, without = (_load(makers.encoder_content(s, latent_avg=_mean(4))) for s in (state, old))
    assert torch.equal(whole.encode(images), without.encode(images))
    del state["body.9.res_layer.0.num_batches_tracked"]
    with pytest.raises(ContractError, match=r"body\.9\.res_layer\.0\.num_batches_tracked \[\] is missing"):
        _load(makers.encoder_content(state, latent_avg=_mean(4)))


def test_the_generator_in_the_file_is_handed_out_and_must_fit() -> None:
    colours = {f"to_rgbs.{i}.bias": torch.full((1, 3, 1, 1), float(i)) for i in range(8)}
    decoder = {**colours, "decoder.odd": torch.zeros(1)}
    tensors, plain = makers.split(
        makers.encoder_content(makers.small_encoder(18), latent_avg=_mean(), decoder=decoder)
    )
    assert set(encoder_files.decoder_tensors(tensors)) == set(decoder)  # the prefix is taken off once
    encoder_files.load(tensors, plain)
    said = encoder_files.recognise(tensors, plain)
    assert said is not None and any("of 18 layers" in note for note in said.notes)
    small = makers.encoder_content(makers.small_encoder(14), latent_avg=_mean(14), decoder=decoder)
    with pytest.raises(ContractError, match="18 heads, as many.*Found: 14 heads"):
        _load(small)
    with pytest.raises(ContractError, match=r"discriminator\.weight \[2\]"):
        encoder_files.load({**tensors, "discriminator.weight": torch.zeros(2)}, plain)


def test_a_bare_encoder_needs_no_prefix() -> None:
    state = makers.small_encoder(4)
    encoder = encoder_files.load(state, {}, flavour="e4e", mean_w=_mean(4))
    same = _load(makers.encoder_content(state, latent_avg=_mean(4)))
    assert torch.equal(encoder.encode(_pictures()), same.encode(_pictures()))


def _refusable() -> dict[str, tuple[dict[str, Tensor], str]]:
    backbone = makers.draw(makers.ir_se(3, makers.SMALL, reduction=8))
    one = {**backbone, "linear.weight": torch.zeros(32, 32), "linear.bias": torch.zeros(32)}
    maps = makers.draw(makers.style_encoder(4, widths=makers.SMALL, reduction=8, convs=2, channels=19))
    basic = {"conv1.weight": torch.zeros(64, 6, 7, 7), "styles.0.linear.weight": torch.zeros(512, 512)}
    return {
        "hyperstyle": ({"hypernet.conv.weight": torch.zeros(2)}, "HyperStyle changes the weights"),
        "one code": ({f"encoder.{k}": v for k, v in one.items()}, "one code for all rows"),
        "psp-input": ({f"encoder.{k}": v for k, v in maps.items()}, "does not take RGB pictures"),
        "restyle-resnet34": ({f"encoder.{k}": v for k, v in basic.items()}, "ResNet-34 backbone"),
    }


@pytest.mark.parametrize("family", ["hyperstyle", "one code", "psp-input", "restyle-resnet34"])
def test_encoders_that_are_not_read_are_named_with_the_reason(family: str) -> None:
    tensors, reason = _refusable()[family]
    said = encoder_files.recognise(tensors, {})
    assert said is not None and said.family == family and reason in said.notes[0]
    with pytest.raises(ContractError, match=reason):
        encoder_files.load(tensors, {}, flavour="e4e", mean_w=torch.zeros(32))


def test_a_training_for_one_code_is_refused() -> None:
    content = makers.encoder_content(makers.small_encoder(4), latent_avg=_mean(4), learn_in_w=True)
    with pytest.raises(ContractError, match="one code for all rows"):
        _load(content)


@pytest.mark.parametrize(
    "name", ["styles.999999.linear.weight", "body.888888.x", "styles.0.convs.777777.bias"]
)
def test_a_number_made_up_to_cost_memory_is_no_encoder(name: str) -> None:
    tensors = {**makers.small_encoder(2), name: torch.zeros(32, 32)}
    assert encoder_files.recognise(tensors, {}) is None
    with pytest.raises(ContractError, match="not an encoder into w"):
        encoder_files.load(tensors, {}, flavour="e4e")


def test_other_networks_are_no_encoders() -> None:
    for shapes in (makers.arcface(), makers.iresnet(), makers.classifier()):
        assert encoder_files.recognise(makers.on_meta(shapes), {}) is None
    assert encoder_files.recognise({}, {}) is None


def test_an_imported_encoder_travels_in_our_own_files() -> None:
    encoder = _load(makers.encoder_content(makers.small_encoder(6), latent_avg=_mean(6)))
    data = save_model(encoder)
    again = load_model(data, expect="style_encoder")
    assert torch.equal(again.encode(_pictures()), encoder.encode(_pictures()))
    assert save_model(again) == data
    assert not any(p.requires_grad for p in again.parameters()) and not again.training
