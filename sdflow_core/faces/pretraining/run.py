"""The whole pretraining: feature network, generator + encoder, prior, labeller, judge.

Metrics are taken on people nobody learned from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.faces.labeller import AttributeNetwork, JudgeNetwork, Labeller, LabellerConfig
from sdflow_core.faces.networks import to_tensor, to_uint8
from sdflow_core.faces.pretraining.autoencoder import AutoencoderConfig, AutoencoderTraining, channels_last
from sdflow_core.faces.pretraining.classifiers import auc, calibration_error, predict, train_classifier
from sdflow_core.faces.pretraining.data import JUDGE_PART, LABELLER_PART, TEST_PART, FaceSet
from sdflow_core.faces.prior import Prior
from sdflow_core.records.errors import ContractError

Progress = Callable[[str, int, int], None]


class PretrainConfig(NetworkConfig):
    """What to train.

    Attributes:
        attributes: Outputs of labeller and judge.
        feature_steps: Steps of the network whose features serve as perceptual distance; it learns all columns
            of the label CSV.
        autoencoder: Generator and encoder.
        labeller_steps: Steps of fine-tuning on photographs and reconstructions in turn.
        judge_steps: Likewise, from scratch, on other people.
        prior_factors: Principal factors kept of the codes.
        checkpoint_every: Steps of the autoencoder between two checkpoints.
    """

    attributes: tuple[str, ...] = ("smiling", "young", "male", "eyeglasses")
    feature_steps: int = 3000
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    labeller_steps: int = 1200
    judge_steps: int = 3000
    prior_factors: int = 256
    checkpoint_every: int = 500


class Checkpoint(Protocol):
    """Named states of the stages; `put` replaces atomically."""

    def put(self, name: str, data: bytes) -> None:
        """Keep a state."""
        ...

    def get(self, name: str) -> bytes | None:
        """The last kept state."""
        ...


@dataclass(frozen=True)
class Pretrained:
    """The networks that ship, and what was measured on the test people."""

    networks: dict[str, nn.Module]
    metrics: dict[str, Any]


def pick_outputs(network: Labeller, attributes: tuple[str, ...]) -> Labeller:
    """A labeller for some of the attributes of a wider one: the same trunk, a slice of its head."""
    small = Labeller(network.config.model_copy(update={"attributes": attributes}))
    state = dict(network.state_dict())
    index = [network.attributes.index(name) for name in attributes]
    state["head.weight"], state["head.bias"] = state["head.weight"][index], state["head.bias"][index]
    small.load_state_dict(state)
    return channels_last(small)


def train_features(faces: FaceSet, config: PretrainConfig, progress: Progress) -> Labeller:
    """The feature network: all attributes of the CSV, people of the labeller's part only."""
    rows = (faces.part == LABELLER_PART) & ~np.isnan(faces.scores).any(1)
    torch.manual_seed(1)
    net = Labeller(
        LabellerConfig(attributes=faces.attributes, resolution=config.autoencoder.generator.resolution)
    )
    net = channels_last(net)
    train_classifier(
        net,
        faces.images[rows],
        faces.scores[rows],
        steps=config.feature_steps,
        seed=1,
        progress=lambda done, total, _: progress("features", done, total),
    )
    return net


def reconstruct(
    generator: Any, encoder: Any, images: npt.NDArray[np.uint8], batch: int = 200
) -> npt.NDArray[np.uint8]:
    """uint8 [N, H, W, 3] -> what the generator makes of their codes, uint8 [N, H, W, 3]."""
    out: list[npt.NDArray[np.uint8]] = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            out.append(
                to_uint8(generator.synthesize(encoder.encode(to_tensor(images[start : start + batch]))))
            )
    return np.concatenate(out)


def train_readers(
    faces: FaceSet,
    features: Labeller,
    generator: Any,
    encoder: Any,
    config: PretrainConfig,
    progress: Progress,
) -> tuple[Labeller, JudgeNetwork]:
    """Labeller and judge, each on its own people, on photographs and reconstructions in turn."""
    index = [faces.attributes.index(name) for name in config.attributes]
    scores = faces.scores[:, index]
    labelled = ~np.isnan(scores).any(1)
    rebuilt = reconstruct(generator, encoder, faces.images)
    mine, other = labelled & (faces.part == LABELLER_PART), labelled & (faces.part == JUDGE_PART)
    labeller = pick_outputs(features, config.attributes)
    train_classifier(
        labeller,
        faces.images[mine],
        scores[mine],
        steps=config.labeller_steps,
        lr=7e-4,
        seed=2,
        reconstructions=rebuilt[mine],
        progress=lambda d, t, _: progress("labeller", d, t),
    )
    torch.manual_seed(3)
    judge = JudgeNetwork(LabellerConfig(attributes=config.attributes, resolution=features.config.resolution))
    judge = channels_last(judge)
    train_classifier(
        judge,
        faces.images[other],
        scores[other],
        steps=config.judge_steps,
        seed=3,
        reconstructions=rebuilt[other],
        progress=lambda d, t, _: progress("judge", d, t),
    )
    return labeller, judge


def measure(faces: FaceSet, networks: dict[str, Any], attributes: tuple[str, ...]) -> dict[str, Any]:
    """Figures on test people: reconstruction, agreement of both readers with the labels, labels it keeps."""
    index = [faces.attributes.index(name) for name in attributes]
    rows = (faces.part == TEST_PART) & ~np.isnan(faces.scores[:, index]).any(1)
    images, scores = faces.images[rows], faces.scores[rows][:, index]
    rebuilt = reconstruct(networks["generator"], networks["encoder"], images)
    error = ((images.astype(np.float64) - rebuilt) ** 2).mean(axis=(1, 2, 3))
    out: dict[str, Any] = {
        "test_people_images": int(rows.sum()),
        "psnr_db": round(float(np.mean(10 * np.log10(255**2 / error))), 2),
    }
    for kind in ("labeller", "judge"):
        net: AttributeNetwork = networks[kind]
        on_photo, on_rebuilt = predict(net, images), predict(net, rebuilt)
        for i, name in enumerate(attributes):
            truth = scores[:, i] > 0.5
            out[f"{kind}_auc_{name}"] = round(auc(on_photo[:, i], truth), 4)
            out[f"{kind}_ece_{name}"] = round(calibration_error(on_photo[:, i], truth), 4)
            out[f"{kind}_reconstruction_agrees_{name}"] = round(
                float(((on_photo[:, i] > 0.5) == (on_rebuilt[:, i] > 0.5)).mean()), 4
            )
    return out


def pretrain(
    faces: FaceSet, config: PretrainConfig, checkpoint: Checkpoint, progress: Progress
) -> Pretrained:
    """Train everything; a killed run goes on at the last checkpoint of the autoencoder.

    Earlier stages are not repeated.

    Raises:
        ContractError: An attribute without labels, or a training that diverged.
    """
    from sdflow_core.faces.checkpoint import load_model, save_model

    unknown = [name for name in config.attributes if name not in faces.attributes]
    if unknown:
        raise ContractError("attributes to learn", expected=faces.attributes, found=unknown)
    saved = checkpoint.get("features")
    features = load_model(saved) if saved else train_features(faces, config, progress)
    if not saved:
        checkpoint.put("features", save_model(features))
    features = channels_last(features)
    learn = faces.images[faces.part != TEST_PART]
    training = AutoencoderTraining(learn, features, config.autoencoder)
    state = checkpoint.get("autoencoder")
    if state:
        training.restore(state)
    total = config.autoencoder.steps
    while training.done < total:
        training.step()
        progress("autoencoder", training.done, total)
        if training.done % config.checkpoint_every == 0 or training.done == total:
            checkpoint.put("autoencoder", training.state())
    generator, encoder = training.ema_generator.eval(), training.ema_encoder.eval()
    prior = Prior.fit(training.codes(np.arange(len(learn))), config.prior_factors)
    labeller, judge = train_readers(faces, features, generator, encoder, config, progress)
    networks: dict[str, nn.Module] = {
        "generator": generator,
        "encoder": encoder,
        "prior": prior,
        "labeller": labeller,
        "judge": judge,
    }
    return Pretrained(networks, measure(faces, networks, config.attributes))
