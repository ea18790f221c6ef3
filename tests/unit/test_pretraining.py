"""Pretraining on noise: what needs no hours of training, so resumption, splits, labels and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdflow_core.faces.encoder import EncoderConfig
from sdflow_core.faces.generator import GeneratorConfig
from sdflow_core.faces.labeller import Labeller, LabellerConfig
from sdflow_core.faces.pretraining.autoencoder import AutoencoderConfig, AutoencoderTraining
from sdflow_core.faces.pretraining.classifiers import auc, calibration_error
from sdflow_core.faces.pretraining.data import FaceSet, part_of, person_of, read_labels
from sdflow_core.faces.pretraining.run import PretrainConfig, pick_outputs, pretrain
from sdflow_core.records.errors import ContractError

TINY = AutoencoderConfig(
    generator=GeneratorConfig(resolution=64, style_dim=8, channel_base=256, channel_max=12, mapping_layers=0),
    encoder=EncoderConfig(style_dim=8, channels=(4, 6, 8, 8, 8), hidden=16),
    steps=6,
    adversarial_from=3,
    batch=4,
)


def noise(count: int = 520) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def training() -> AutoencoderTraining:
    torch.manual_seed(0)
    features = Labeller(LabellerConfig(attributes=("a",), channels=(4, 8))).eval().requires_grad_(False)
    return AutoencoderTraining(noise(), features, TINY)


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_training() -> None:
    whole = training()
    for _ in range(TINY.steps):
        whole.step()
    half = training()
    for _ in range(4):
        half.step()
    state = half.state()
    again = training()
    again.restore(state)
    for _ in range(TINY.steps - 4):
        again.step()
    for a, b in zip(whole.ema_generator.parameters(), again.ema_generator.parameters(), strict=True):
        assert torch.equal(a, b)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ContractError, match="at least 500"):
        AutoencoderTraining(noise(20), Labeller(LabellerConfig(attributes=("a",))), TINY)


@pytest.mark.slow
def test_the_whole_story_gives_five_networks_and_figures() -> None:
    class Kept(dict[str, bytes]):
        def put(self, name: str, data: bytes) -> None:
            self[name] = data

    rng = np.random.default_rng(1)
    faces = FaceSet(
        noise(800), rng.random((800, 2)).astype(np.float32), ("a", "b"), np.arange(800) % 3, ("x",) * 800, {}
    )
    config = PretrainConfig(
        attributes=("b",),
        feature_steps=2,
        autoencoder=TINY,
        labeller_steps=2,
        judge_steps=2,
        prior_factors=16,
    )
    done = pretrain(faces, config, Kept(), lambda *_: None)
    assert set(done.networks) == {"generator", "encoder", "prior", "labeller", "judge"}
    assert done.metrics["psnr_db"] > 0 and "judge_auc_b" in done.metrics


def test_people_stay_on_one_side() -> None:
    assert person_of("lfw/Ann/Ann_0001.jpg") == person_of("Ann/Ann_0002.jpg") == "Ann"
    parts = [part_of(f"person {i}") for i in range(4000)]
    assert np.bincount(parts) / 4000 == pytest.approx([0.55, 0.35, 0.10], abs=0.03)


def test_label_files_are_checked() -> None:
    good = b"path,Smiling,extra\na.jpg,0.25,x\n"
    assert read_labels(good, ("smiling",)) == {"a.jpg": [0.25]}
    with pytest.raises(ContractError, match="no column"):
        read_labels(good, ("young",))
    for bad in (b"a.jpg,1.5,x", b"a.jpg,nan,x", b"a.jpg,,x"):
        with pytest.raises(ContractError, match="line 2"):
            read_labels(b"path,Smiling,extra\n" + bad, ("smiling",))
    with pytest.raises(ContractError, match="listed twice"):
        read_labels(good + b"a.jpg,0.5,y\n", ("smiling",))


def test_a_slice_of_a_labeller_gives_the_same_scores() -> None:
    wide = Labeller(LabellerConfig(attributes=("a", "b", "c"), channels=(4, 8))).eval()
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(pick_outputs(wide, ("c", "a")).eval().scores(x), wide.scores(x)[:, [2, 0]])


def test_ranks_and_calibration_by_hand() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8], np.float32)
    assert auc(scores, np.array([False, False, True, True])) == 0.75
    assert auc(np.full(4, 0.5, np.float32), np.array([True, False, True, False])) == 0.5
    error = calibration_error(np.array([0.9] * 10, np.float32), np.arange(10) < 9)
    assert error == pytest.approx(0.0, abs=1e-6)
