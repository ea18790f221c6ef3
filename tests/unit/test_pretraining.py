"""Pretraining on noise: what needs no hours of training, so resumption, splits, labels and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sdflow_core.faces.encoder import EncoderConfig
from sdflow_core.faces.generator import GeneratorConfig
from sdflow_core.faces.labeller import Labeller, LabellerConfig
from sdflow_core.faces.pretraining.adversary import Adversary, AdversaryConfig, augmented
from sdflow_core.faces.pretraining.autoencoder import AutoencoderConfig, AutoencoderTraining
from sdflow_core.faces.pretraining.calibration import held_out
from sdflow_core.faces.pretraining.classifiers import auc, calibration_error
from sdflow_core.faces.pretraining.data import DataConfig, FaceSet, part_of, person_of, read_labels
from sdflow_core.faces.pretraining.diary import Diary, drawn
from sdflow_core.faces.pretraining.run import PretrainConfig, _readable, pretrain, what_is_learned
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


class MeanColour:
    """Stands for a network that tells people apart: their mean colour is who they are."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) + 2


def training(**options: Any) -> AutoencoderTraining:
    torch.manual_seed(0)
    features = Labeller(LabellerConfig(attributes=("a",), channels=(4, 8))).eval().requires_grad_(False)
    config = TINY.model_copy(update=options.pop("config", {}))
    return AutoencoderTraining(noise(), features, config, **options)


class Kept(dict[str, bytes]):
    """Checkpoints and diary in memory."""

    def put(self, name: str, data: bytes) -> None:
        self[name] = data

    keep, find = put, dict[str, bytes].get

    def where(self, name: str) -> str:
        return f"somewhere/{name}.bin"


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_training() -> None:
    torch.manual_seed(5)  # nothing of the process may matter
    whole = training()
    faces = FaceSet(noise(), np.zeros((520, 1), np.float32), ("a",), np.arange(520) % 3, ("x",) * 520, {})
    for _ in range(TINY.steps):
        whole.step()
        assert len(drawn(whole, faces, 2)) == 4  # looking at it changes nothing
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
    assert whole.adversary.probability == again.adversary.probability


@pytest.mark.slow
def test_people_are_compared_where_a_network_can_and_from_the_step_that_was_said() -> None:
    told = training(identity=MeanColour(), config={"identity_from": 1, "identity_share": 0.5})
    assert "identity" not in told.step()
    assert told.step()["identity"] > 0
    assert "identity" not in training().step()


def test_pictures_are_drawn_in_proportion_to_their_weights() -> None:
    weights = np.zeros(520)
    weights[[3, 8]] = 1.0, 3.0
    drawn = training(weights=weights)
    known = {tuple(drawn.images[n].flatten()[:9].tolist()): n for n in (3, 8)}
    flipped = {tuple(drawn.images[n].flip(1).flatten()[:9].tolist()): n for n in (3, 8)}
    found = []
    for _ in range(60):
        for picture in drawn._batch()[0]:
            start = ((picture.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).flatten()[:9]
            found.append((known | flipped)[tuple(start.tolist())])
    assert 0.65 < np.mean(np.array(found) == 8) < 0.85
    for bad in (np.ones(519), np.full(520, np.nan), np.full(520, -1.0)):
        with pytest.raises(ContractError, match="weights of the images"):
            training(weights=bad)


def test_augmentation_grows_only_while_the_adversary_knows_the_set_by_heart() -> None:
    torch.manual_seed(0)
    config = AdversaryConfig(channels=(4, 4, 4, 4, 4), grow_images=40)
    one = Adversary(64, config, torch.device("cpu"), 0)
    one._adapt(1.0, 4)
    assert one.probability == 0.0  # one batch says little
    for _ in range(60):
        one._adapt(1.0, 4)
    grown = one.probability
    assert grown == 0.8  # and never so much that no picture is seen as it is
    for _ in range(200):
        one._adapt(0.0, 4)
    assert one.probability == 0.0
    off = Adversary(64, config.model_copy(update={"aim": -1.0}), torch.device("cpu"), 0)
    for _ in range(60):
        off._adapt(1.0, 4)
    assert off.probability == 0.0


def test_augmentation_changes_some_pictures_and_lets_gradients_through() -> None:
    images = torch.rand(64, 3, 32, 32).requires_grad_(True)
    rng = torch.Generator().manual_seed(0)
    assert augmented(images, 0.0, rng) is images
    seen = augmented(images, 0.3, rng)
    same = torch.isclose(seen, images, atol=1e-5).flatten(1).all(1)
    assert seen.shape == images.shape and 0 < int(same.sum()) < 64
    seen.sum().backward()
    assert images.grad is not None and bool((images.grad.flatten(1).abs().sum(1) > 0).all())


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ContractError, match="at least 500"):
        AutoencoderTraining(noise(20), Labeller(LabellerConfig(attributes=("a",))), TINY)


@pytest.mark.slow
def test_the_whole_story_gives_five_networks_and_figures() -> None:
    rng = np.random.default_rng(1)
    faces = FaceSet(
        noise(800), rng.random((800, 2)).astype(np.float32), ("a", "b"), np.arange(800) % 3, ("x",) * 800, {},
        groups={"side": ("left",) * 799 + ("right",)},
    )  # fmt: skip
    config = PretrainConfig(
        attributes=("b",),
        data=DataConfig(groups=("side",)),
        feature_steps=2,
        autoencoder=TINY,
        labeller_steps=2,
        judge_steps=2,
        prior_factors=16,
    )
    kept = Kept()
    done = pretrain(faces, config, kept, lambda *_: None, Diary(kept, every=2))
    assert set(done.networks) == {"generator", "encoder", "prior", "labeller", "judge"}
    assert done.metrics["psnr_db"] > 0 and "judge_auc_b" in done.metrics
    assert {"features", "autoencoder", "history.jsonl", "losses-autoencoder.png", "samples.png"} <= set(kept)
    assert set(Diary(kept).history("autoencoder")[0]) >= {"loss", "mse", "adversary"}


def test_a_training_that_diverges_stops_at_its_last_good_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    scores = rng.random((800, 1)).astype(np.float32)
    faces = FaceSet(noise(800), scores, ("a",), np.arange(800) % 3, ("x",) * 800, {})
    kept, step = Kept(), AutoencoderTraining.step
    config = PretrainConfig(
        attributes=("a",), feature_steps=2, labeller_steps=1, judge_steps=1, prior_factors=16,
        autoencoder=TINY, checkpoint_every=2,
    )  # fmt: skip

    def poisoned(self: AutoencoderTraining) -> dict[str, float]:
        if self.done == 3:
            next(self.generator.parameters()).data.fill_(float("nan"))
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderTraining, "step", poisoned)
        with pytest.raises(ContractError, match="diverged.*step 3"):
            pretrain(faces, config, kept, lambda *_: None)
    seen: list[int] = []
    pretrain(faces, config, kept, lambda what, done, _: seen.append(done) if what == "autoencoder" else None)
    assert seen == [3, 4, 5, 6]


def test_a_damaged_state_is_named_and_can_be_deleted() -> None:
    rng = np.random.default_rng(1)
    faces = FaceSet(
        noise(800), rng.random((800, 1)).astype(np.float32), ("a",), np.arange(800) % 3,
        tuple(f"{i}.png" for i in range(800)), {},
    )  # fmt: skip
    config = PretrainConfig(
        attributes=("a",),
        feature_steps=2,
        labeller_steps=1,
        judge_steps=1,
        prior_factors=16,
        autoencoder=TINY,
    )
    kept = Kept()
    pretrain(faces, config, kept, lambda *_: None)
    for name in ("features", "autoencoder"):
        whole = kept[name]
        kept[name] = whole[: len(whole) // 2]
        with pytest.raises(ContractError, match=rf"somewhere/{name}\.bin.*delete the file") as refused:
            pretrain(faces, config, kept, lambda *_: None)
        assert "import the model" not in str(refused.value), "no model was imported"
        del kept[name]
        pretrain(faces, config, kept, lambda *_: None)


def test_a_state_that_memory_does_not_hold_is_not_called_damaged() -> None:
    for kind in (MemoryError, torch.OutOfMemoryError):
        with pytest.raises(kind), _readable("autoencoder.bin"):
            raise kind("no room")


def test_what_cannot_come_to_its_end_is_refused_before_anything_is_learned() -> None:
    def faces(count: int, labelled: int) -> FaceSet:
        scores = np.full((count, 1), np.nan, np.float32)
        scores[:labelled] = 0.5
        names = tuple(f"{i}.png" for i in range(count))
        return FaceSet(
            np.zeros((count, 64, 64, 3), np.uint8), scores, ("a",), np.arange(count) % 3, names, {}
        )

    for given, options, said in (
        (faces(800, 90), {}, "too few labels to train on.*64 labelled pictures for the judge"),
        (faces(700, 700), {}, "at least 500 pictures of people who are not kept for the test"),
        (
            faces(800, 800),
            {"prior_factors": 9999},
            "more than 1,280 pictures .* Found: 534.*lower prior_factors",
        ),
        (faces(800, 800), {"data": DataConfig(groups=("side",))}, "groups to balance"),
    ):
        kept = Kept()
        steps = {"feature_steps": 1, "labeller_steps": 1, "judge_steps": 1}
        config = PretrainConfig(attributes=("a",), autoencoder=AutoencoderConfig(steps=1), **steps, **options)
        with pytest.raises(ContractError, match=said):
            pretrain(given, config, kept, lambda *_: None)
        assert not kept


def test_another_split_is_another_training() -> None:
    def faces(names: list[str], part: np.ndarray, **options: Any) -> FaceSet:
        scores = np.linspace(0, 1, 12, dtype=np.float32)[:, None]
        return FaceSet(noise(12), scores, ("a",), part, tuple(names), {}, **options)

    flat = [f"{i:02d}.png" for i in range(12)]
    part = np.arange(12) % 3
    known = what_is_learned(faces(flat, part))
    assert known == what_is_learned(faces(list(flat), part.copy()))
    assert known != what_is_learned(faces(flat, part[::-1].copy()))
    # the same people to labeller, judge and test, others to calibration
    folders = next(
        names
        for seed in range(100)
        for names in ([f"p{seed + i:03d}/{i:02d}.png" for i in range(12)],)
        if (held_out([person_of(n) for n in names]) != held_out(flat)).any()
    )
    assert known != what_is_learned(faces(folders, part))
    assert known != what_is_learned(faces(flat, part, groups={"side": ("left",) * 12}))


def test_people_stay_on_one_side() -> None:
    assert person_of("lfw/Ann/Ann_0001.jpg") == person_of("Ann/Ann_0002.jpg") == "Ann"
    parts = [part_of(f"person {i}") for i in range(4000)]
    assert np.bincount(parts) / 4000 == pytest.approx([0.55, 0.35, 0.10], abs=0.03)


def test_label_files_are_checked() -> None:
    good = b"path,Smiling,extra\na.jpg,0.25,x\n"
    assert read_labels(good, ("smiling",)) == {"a.jpg": [0.25]}
    with pytest.raises(ContractError, match="no column"):
        read_labels(good, ("young",))
    for bad in (b"a.jpg,1.5,x", b"a.jpg,nan,x"):
        with pytest.raises(ContractError, match="line 2"):
            read_labels(b"path,Smiling,extra\n" + bad, ("smiling",))
    with pytest.raises(ContractError, match="listed twice"):
        read_labels(good + b"a.jpg,0.5,y\n", ("smiling",))


def test_a_slice_of_a_labeller_gives_the_same_scores() -> None:
    wide = Labeller(LabellerConfig(attributes=("a", "b", "c"), channels=(4, 8))).eval()
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(wide.only(("c", "a")).scores(x), wide.scores(x)[:, [2, 0]])


def test_ranks_and_calibration_by_hand() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8], np.float32)
    assert auc(scores, np.array([False, False, True, True])) == 0.75
    assert auc(np.full(4, 0.5, np.float32), np.array([True, False, True, False])) == 0.5
    error = calibration_error(np.array([0.9] * 10, np.float32), np.arange(10) < 9)
    assert error == pytest.approx(0.0, abs=1e-6)
