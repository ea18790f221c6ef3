"""Refined codes and tuned copies: nearer to the photograph, near the encoder, alike in every batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdflow_core.faces.generator import Generator, GeneratorConfig
from sdflow_core.faces.inversion import NOT_FINITE, distortion, refine, spread_of
from sdflow_core.faces.qualities import (
    QUALITIES,
    RefineConfig,
    Spent,
    costs,
    refine_config,
)
from sdflow_core.faces.tuning import TuneConfig, tune
from sdflow_core.records.errors import ContractError

pytestmark = pytest.mark.weights

CONFIG = RefineConfig(steps=8, rate=0.1, micro_batch=3)


@pytest.fixture(scope="module")
def generator() -> Any:
    torch.manual_seed(0)
    small = GeneratorConfig(resolution=16, style_dim=8, channel_base=64, channel_max=8, mapping_layers=0)
    return Generator(small).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def people(generator: Any) -> tuple[Tensor, Tensor]:
    """Pictures [5, 3, 16, 16] and codes that an encoder might have guessed for them."""
    rng = torch.Generator().manual_seed(1)
    codes = torch.randn(5, generator.num_rows, 8, generator=rng)
    images = generator.synthesize(codes).clamp(-1, 1)
    return images, codes + 0.3 * torch.randn(codes.shape, generator=rng)


def test_a_refined_code_is_never_farther_from_its_photograph(
    generator: Any, people: tuple[Tensor, Tensor]
) -> None:
    images, codes = people
    found = refine(generator, images, codes, CONFIG)
    before = distortion(generator.synthesize(codes), images, CONFIG)
    after = distortion(generator.synthesize(found.w_plus), images, CONFIG)
    assert (after <= before).all() and (after < before).sum() >= 4
    assert found.reasons == ("",) * 5 and (found.step <= CONFIG.steps).all()
    # the figures of a row are those of its code
    error = (generator.synthesize(found.w_plus).clamp(-1, 1) - images).square().flatten(1).mean(1)
    assert torch.allclose(found.psnr_after, 10 * torch.log10(4 / error), atol=1e-3)
    moved = ((found.w_plus - codes) / spread_of(codes, generator.mean_w)).square().mean((1, 2)).sqrt()
    assert torch.allclose(found.moved, moved, atol=1e-5)


def test_a_row_is_refined_alike_in_every_batch(generator: Any, people: tuple[Tensor, Tensor]) -> None:
    images, codes = people
    whole = refine(generator, images, codes, CONFIG)
    again = refine(generator, images, codes, CONFIG)
    assert torch.equal(whole.w_plus, again.w_plus)
    for row in range(5):
        alone = refine(generator, images[row : row + 1], codes[row : row + 1], CONFIG)
        assert torch.equal(alone.w_plus[0], whole.w_plus[row])
        assert torch.equal(alone.psnr_after[0], whole.psnr_after[row])


def test_the_pull_keeps_codes_near_the_encoders(generator: Any, people: tuple[Tensor, Tensor]) -> None:
    images, codes = people
    moved = [
        float(refine(generator, images, codes, CONFIG.model_copy(update={"pull": pull})).moved.mean())
        for pull in (0.0, 0.5, 50.0)
    ]
    assert moved[0] > moved[1] > moved[2]


class _Breaking:
    """A generator whose picture of a marked code stops being finite once the code moves."""

    def __init__(self, generator: Any) -> None:
        self.inner, self.mean_w = generator, generator.mean_w

    def synthesize(self, codes: Tensor) -> Tensor:
        drawn = self.inner.synthesize(codes)
        marked = (codes[:, 0, 0] > 5) & (codes[:, 0, 0] != 9.0)
        return drawn + torch.where(marked, torch.nan, 0.0)[:, None, None, None]


def test_rows_that_stop_being_finite_keep_the_encoders_code(
    generator: Any, people: tuple[Tensor, Tensor]
) -> None:
    images, codes = people
    sound = refine(generator, images, codes, CONFIG)
    broken = codes.clone()
    broken[1, 0, 0] = 9.0
    broken[4, 2, 3] = torch.inf
    found = refine(_Breaking(generator), images, broken, CONFIG)
    assert [bool(why) for why in found.reasons] == [False, True, False, False, True]
    assert found.reasons[1] == NOT_FINITE
    assert torch.equal(found.w_plus[[1, 4]], broken[[1, 4]])
    assert found.step[1] == 0 and found.moved[1] == 0
    others = [0, 2, 3]
    assert torch.equal(found.w_plus[others], sound.w_plus[others])


def test_a_code_that_cannot_be_bettered_is_kept(generator: Any, people: tuple[Tensor, Tensor]) -> None:
    _, codes = people
    exact = generator.synthesize(codes)
    found = refine(generator, exact, codes, CONFIG)
    assert torch.equal(found.w_plus, codes)
    assert (found.step == 0).all() and (found.moved == 0).all()


def test_features_turn_towards_the_photographs(generator: Any, people: tuple[Tensor, Tensor]) -> None:
    images, codes = people
    mixing = torch.randn(3 * 16 * 16, 6, generator=torch.Generator().manual_seed(2))

    def features(pictures: Tensor) -> Tensor:
        return torch.tanh(pictures.flatten(1) @ mixing / 16)

    def alike(found: Any) -> float:
        drawn = generator.synthesize(found.w_plus)
        return float(torch.cosine_similarity(features(drawn), features(images)).mean())

    config = CONFIG.model_copy(update={"feature": 20.0})
    assert alike(refine(generator, images, codes, config, features=features)) > alike(
        refine(generator, images, codes, CONFIG)
    )


def test_refinement_refuses_what_does_not_fit(generator: Any, people: tuple[Tensor, Tensor]) -> None:
    images, codes = people
    with pytest.raises(ContractError, match="pictures and codes"):
        refine(generator, images[:2], codes, CONFIG)
    with pytest.raises(ContractError, match="pictures to refine"):
        refine(generator, images[:, :, :8], codes, CONFIG)


def test_tuning_draws_the_picture_and_leaves_the_given_generator_alone(
    generator: Any, people: tuple[Tensor, Tensor]
) -> None:
    images, codes = people
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    config = TuneConfig(steps=15, rate=0.02, locality=0.1)
    found = tune(generator, images[0], codes[0], config)
    away = [
        float(distortion(network.synthesize(codes[:1]), images[:1], CONFIG))
        for network in (generator, found.generator)
    ]
    assert away[1] < 0.7 * away[0] and found.step > 0
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in generator.parameters())
    assert not any(p.requires_grad for p in found.generator.parameters())
    again = tune(generator, images[0], codes[0], config)
    assert again.metrics() == found.metrics()
    drawn = [one.generator.synthesize(codes[:1]) for one in (found, again)]
    assert torch.equal(*drawn)


def test_locality_keeps_the_neighbourhood(generator: Any, people: tuple[Tensor, Tensor]) -> None:
    images, codes = people
    drift = [
        tune(generator, images[1], codes[1], TuneConfig(steps=15, rate=0.02, locality=weight)).drift_near
        for weight in (0.0, 5.0)
    ]
    assert drift[1] < drift[0]


def test_tuning_that_goes_astray_keeps_the_weights(generator: Any, people: tuple[Tensor, Tensor]) -> None:
    images, codes = people
    found = tune(generator, images[0], codes[0], TuneConfig(steps=4, rate=1e30))
    assert "not finite" in found.reason and found.step == 0
    assert all(
        torch.equal(value, generator.state_dict()[name])
        for name, value in found.generator.state_dict().items()
    )
    with pytest.raises(ContractError, match="finite"):
        tune(generator, images[0] * torch.nan, codes[0], TuneConfig())
    with pytest.raises(ContractError, match="to tune for"):
        tune(generator, images[0, :, :8], codes[0], TuneConfig())


def test_micro_batches_shrink_with_the_picture() -> None:
    sizes = [refine_config("good", side) for side in (64, 512, 1024)]
    assert [config and config.micro_batch for config in sizes] == [16, 4, 1]


def test_costs_follow_from_the_steps() -> None:
    refined = {c.quality: c for c in costs(Spent(10, QUALITIES["good"], 1.0, 2.0, 8.0), "good")}
    assert refined["good"].seconds_a_row == pytest.approx(1.1) and refined["good"].how == "measured"
    assert refined["fast"].seconds_a_row == pytest.approx(0.3)
    assert refined["best"].seconds_a_row == pytest.approx(0.3 + 0.8 * QUALITIES["best"] / QUALITIES["good"])
    assert all("estimate" in refined[name].how for name in ("fast", "best"))
    plain = {c.quality: c for c in costs(Spent(10, 0, 1.0, 2.0, 0.0), "fast")}
    assert plain["fast"].how == "measured" and plain["good"].seconds_a_row > plain["fast"].seconds_a_row
    with pytest.raises(ContractError, match="quality"):
        refine_config("perfect", 64)
