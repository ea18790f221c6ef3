"""Second encoders: one that is as good and speaks another language, one that is worse."""

from __future__ import annotations

import pytest
import torch

from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.faces.pretraining.encoder_only import EncoderTraining, reconstruction_psnr, train_encoder
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.embedded import embedded_file
from tests.encoders import BAD, GOOD, trained


def networks() -> tuple[object, object, object]:
    kinds = ("generator", "prior", "encoder")
    return tuple(load_model(embedded_file(f"{kind}.safetensors"), expect=kind) for kind in kinds)  # pyright: ignore


@pytest.mark.slow
def test_a_good_and_a_bad_one() -> None:
    generator, prior, given = networks()
    people = prior.sample(32, torch.Generator().manual_seed(99), truncation=0.8)  # pyright: ignore
    pictures = generator.synthesize(people).clamp(-1, 1)  # pyright: ignore
    first = reconstruction_psnr(generator, given, people)  # pyright: ignore
    good, bad = (load_model(trained(config)[0], expect="encoder") for config in (GOOD, BAD))
    assert reconstruction_psnr(generator, good, people) > first - 0.3
    assert reconstruction_psnr(generator, bad, people) < first - 5.0
    with torch.no_grad():
        codes, others = given.encode(pictures), good.encode(pictures)  # pyright: ignore
    assert float(((others - codes) / codes.std(dim=0)).square().mean().sqrt()) > 0.05
    metrics = trained(GOOD)[1]
    assert metrics["psnr_db"] > metrics["given_psnr_db"] - 0.3


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
