"""Second encoders: one that is as good and speaks another language, one that is worse."""

from __future__ import annotations

import pytest
import torch

from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.faces.pretraining import encoder_only
from sdflow_core.faces.pretraining.encoder_only import EncoderTraining, reconstruction_psnr, train_encoder
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.embedded import embedded_file
from tests.encoders import BAD, GOOD, trained


@pytest.fixture(autouse=True)
def _few_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a training measures at its end are no laws here."""
    monkeypatch.setattr(encoder_only, "_MEASURED", 8)


def networks() -> tuple[object, object, object]:
    kinds = ("generator", "prior", "encoder")
    return tuple(load_model(embedded_file(f"{kind}.safetensors"), expect=kind) for kind in kinds)  # pyright: ignore


LEARNED = EncoderTraining(steps=80, weight_pixel=0.0, weight_code=1.0)


@pytest.mark.parametrize("good", [GOOD, pytest.param(LEARNED, marks=[pytest.mark.long, pytest.mark.slow])])
def test_a_good_and_a_bad_one(good: EncoderTraining) -> None:
    generator, prior, given = networks()
    people = prior.sample(32, torch.Generator().manual_seed(99), truncation=0.8)  # pyright: ignore
    pictures = generator.synthesize(people).clamp(-1, 1)  # pyright: ignore
    first = reconstruction_psnr(generator, given, people)  # pyright: ignore
    other, bad = (load_model(trained(config)[0], expect="encoder") for config in (good, BAD))
    assert reconstruction_psnr(generator, other, people) > first - 0.3
    assert reconstruction_psnr(generator, bad, people) < first - 5.0
    with torch.no_grad():
        codes, others = given.encode(pictures), other.encode(pictures)  # pyright: ignore
    assert float(((others - codes) / codes.std(dim=0)).square().mean().sqrt()) > 0.05
    metrics = trained(good)[1]
    assert metrics["psnr_db"] > metrics["given_psnr_db"] - 0.3


def test_steps_teach_it_to_read_codes() -> None:
    generator, prior, _ = networks()
    people = prior.sample(8, torch.Generator().manual_seed(99), truncation=0.8)  # pyright: ignore
    with torch.no_grad():
        pictures = generator.synthesize(people).clamp(-1, 1)  # pyright: ignore
        spread = people.std(dim=0)

    def error(steps: int) -> float:
        data, _ = trained(BAD.model_copy(update={"steps": steps, "batch": 4, "learning_rate": 2e-3}))
        with torch.no_grad():
            read = load_model(data, expect="encoder").encode(pictures)
        return float(((read - people) / spread).abs().mean())

    assert error(12) < 0.5 * error(1)


def test_the_same_seed_gives_the_same_encoder_and_changes_nothing_else() -> None:
    generator, prior, given = networks()
    before = [save_model(network) for network in (generator, prior, given)]  # pyright: ignore
    config = EncoderTraining(steps=1, batch=2)
    with torch.random.fork_rng(devices=[]):
        one = train_encoder(generator, prior, given, config)[0]  # pyright: ignore
        torch.manual_seed(123)
        two = train_encoder(generator, prior, given, config)[0]  # pyright: ignore
    assert save_model(one) == save_model(two) != before[2]
    other = train_encoder(generator, prior, given, config.model_copy(update={"seed": 1}))[0]  # pyright: ignore
    assert save_model(other) != save_model(one)
    assert [save_model(network) for network in (generator, prior, given)] == before  # pyright: ignore


def test_a_diverging_training_says_so() -> None:
    generator, prior, given = networks()
    config = EncoderTraining(steps=3, batch=2, shake=1e30)
    with pytest.raises(ContractError, match="diverged"):
        train_encoder(generator, prior, given, config)  # pyright: ignore
