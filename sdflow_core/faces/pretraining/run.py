"""The whole pretraining: feature network, generator + encoder, prior, labeller, judge.

Metrics are taken on people nobody learned from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator
from torch import nn

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.faces.labeller import AttributeNetwork, JudgeNetwork, Labeller, LabellerConfig
from sdflow_core.faces.networks import to_tensor, to_uint8
from sdflow_core.faces.pretraining.autoencoder import (
    LEAST_IMAGES,
    AutoencoderConfig,
    AutoencoderTraining,
    Identity,
    channels_last,
)
from sdflow_core.faces.pretraining.calibration import fit_calibration, held_out
from sdflow_core.faces.pretraining.classifiers import predict, train_classifier
from sdflow_core.faces.pretraining.configuration import check_prior
from sdflow_core.faces.pretraining.data import (
    JUDGE_PART,
    LABELLER_PART,
    TEST_PART,
    DataConfig,
    FaceSet,
)
from sdflow_core.faces.pretraining.diary import Diary, drawn
from sdflow_core.faces.pretraining.figures import (
    Figure,
    group_masks,
    group_table,
    psnr_db,
    reader_figures,
    reliability,
)
from sdflow_core.faces.pretraining.people import check_labels, check_teachers
from sdflow_core.faces.pretraining.sampling import sampling_weights
from sdflow_core.faces.prior import Prior
from sdflow_core.records.errors import ContractError, SDFlowError
from sdflow_core.records.keys import canonical_json

Progress = Callable[[str, int, int], None]


class PretrainConfig(NetworkConfig):
    """What to train.

    Attributes:
        attributes: Outputs of labeller and judge.
        data: Which pictures teach, and how often each is drawn.
        feature_steps: Steps of the network whose features serve as perceptual distance; it learns
            the same attributes.
        autoencoder: Generator and encoder.
        teacher: sha256 of the network that tells people apart (`faceres.teacher_digest`); empty: none.
        labeller_steps: Steps of fine-tuning on photographs and reconstructions in turn.
        judge_steps: Likewise, from scratch, on other people.
        prior_factors: Principal factors kept of the codes.
        checkpoint_every: Steps of the autoencoder between two checkpoints.
    """

    attributes: tuple[str, ...] = ("smiling", "young", "male", "eyeglasses")
    data: DataConfig = DataConfig()
    feature_steps: int = Field(default=3000, ge=1)
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    teacher: str = ""
    labeller_steps: int = Field(default=1200, ge=1)
    judge_steps: int = Field(default=3000, ge=1)
    prior_factors: int = Field(default=256, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)

    @field_validator("data")
    @classmethod
    def _enough(cls, value: DataConfig) -> DataConfig:
        if value.minimum < LEAST_IMAGES:
            raise ValueError(f"minimum: expected at least {LEAST_IMAGES}, which generator and encoder need")
        return value


class Checkpoint(Protocol):
    """Named states of the stages; `put` replaces atomically."""

    def put(self, name: str, data: bytes) -> None:
        """Keep a state."""
        ...

    def get(self, name: str) -> bytes | None:
        """The last kept state."""
        ...

    def where(self, name: str) -> str:
        """Where a state lies, for who has to delete it."""
        ...


@dataclass(frozen=True)
class Pretrained:
    """The networks that ship, and what was measured on the test people."""

    networks: dict[str, nn.Module]
    metrics: dict[str, Any]


def train_features(faces: FaceSet, config: PretrainConfig, progress: Progress) -> Labeller:
    """The feature network: all attributes of the faces, people of the labeller's part only."""
    rows = (faces.part == LABELLER_PART) & ~_calibrates(faces) & _labelled(faces.scores)
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


def _calibrates(faces: FaceSet) -> npt.NDArray[np.bool_]:
    return held_out(list(faces.people))


def _labelled(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    return np.any(~np.isnan(scores), axis=1)


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
    """Labeller and judge, each on its own people, on photographs and reconstructions in turn.

    Each is calibrated on some of its own people, whom it did not learn from.
    """
    index = [faces.attributes.index(name) for name in config.attributes]
    scores = faces.scores[:, index]
    rebuilt = reconstruct(generator, encoder, faces.images)
    kept, labelled = _calibrates(faces), _labelled(scores)
    own, others = labelled & (faces.part == LABELLER_PART), labelled & (faces.part == JUDGE_PART)
    mine, other = own & ~kept, others & ~kept
    labeller = channels_last(features.only(config.attributes))
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
    for net, rows in ((labeller, own & kept), (judge, others & kept)):
        if rows.any():
            fit_calibration(net, faces.images[rows], scores[rows])
    return labeller, judge


def measure(faces: FaceSet, networks: dict[str, Any], attributes: tuple[str, ...]) -> dict[str, Any]:
    """Figures on test people: reconstruction, agreement of both readers with the labels, labels it keeps.

    Returns:
        Flat figures, `reliability` (reader -> attribute -> curve) and, where the labels have groups,
        `groups`, `worst` and `mean` of `figures.group_table`.
    """
    index = [faces.attributes.index(name) for name in attributes]
    rows = (faces.part == TEST_PART) & _labelled(faces.scores[:, index])
    images, scores = faces.images[rows], faces.scores[rows][:, index]
    rebuilt = reconstruct(networks["generator"], networks["encoder"], images)
    pixels = psnr_db(images, rebuilt)
    everybody = np.ones(len(images), bool)
    out: dict[str, Any] = {
        "test_people_images": int(rows.sum()),
        "psnr_db": round(float(pixels.mean()), 2),
        "reliability": {},
    }
    by_rows: dict[str, Figure] = {"psnr_db": lambda chosen: float(pixels[chosen].mean())}
    for kind in ("labeller", "judge"):
        net: AttributeNetwork = networks[kind]
        on_photo, on_rebuilt = predict(net, images), predict(net, rebuilt)
        figures = reader_figures(on_photo, on_rebuilt, scores, attributes)
        by_rows |= {f"{kind}_{key}" if kind == "judge" else key: figure for key, figure in figures.items()}
        for key, figure in figures.items():
            name = key.replace("agree_", "reconstruction_agrees_")
            value = figure(everybody)
            out[f"{kind}_{name}"] = None if value is None else round(value, 4)
        curves = out["reliability"][kind] = {}
        for i, name in enumerate(attributes):
            known = ~np.isnan(scores[:, i])
            curves[name] = reliability(on_photo[known, i], scores[known, i] > 0.5)
    columns: dict[str, tuple[str, ...]] = faces.groups
    chosen = {name: [v for v, used in zip(c, rows, strict=True) if used] for name, c in columns.items()}
    masks = group_masks(chosen)
    return out | (group_table(by_rows, masks) if masks else {})


def pretrain(
    faces: FaceSet,
    config: PretrainConfig,
    checkpoint: Checkpoint,
    progress: Progress,
    diary: Diary | None = None,
    identity: Identity | None = None,
    device: str = "cpu",
) -> Pretrained:
    """Train everything; a killed run goes on at the last checkpoint of the autoencoder.

    Earlier stages are not repeated. A diary is given losses, and pictures at each checkpoint.

    Args:
        faces: What to learn from.
        config: What to train.
        checkpoint: Where states are kept.
        progress: Called as (stage, steps done, steps).
        diary: Where losses and sheets go.
        identity: The network that `config.teacher` names.
        device: Of generator and encoder.

    Raises:
        ContractError: An attribute without labels, too few pictures, or labelled ones of a part, a state
            that cannot be read, or a training that diverged.
    """
    from sdflow_core.faces.checkpoint import load_model, save_model

    unknown = [name for name in config.attributes if name not in faces.attributes]
    if unknown:
        raise ContractError("attributes to learn", expected=faces.attributes, found=unknown)
    index = [faces.attributes.index(name) for name in config.attributes]
    check_labels(faces.part, _calibrates(faces), _labelled(faces.scores[:, index]))
    rows = faces.part != TEST_PART
    check_teachers(int(rows.sum()), LEAST_IMAGES)
    check_prior(config, int(rows.sum()))
    learn, weights = faces.images[rows], None
    if config.data.groups:
        balance, cap = config.data.balance, config.data.balance_cap
        weights = sampling_weights(faces, config.data.groups, balance, cap=cap, rows=rows)[rows]
    saved = checkpoint.get("features")
    if saved:
        with _readable(checkpoint.where("features")):
            features = load_model(saved)
    else:
        features = train_features(faces, config, progress)
        checkpoint.put("features", save_model(features))
    features = channels_last(features)
    training = AutoencoderTraining(
        learn,
        features,
        config.autoencoder,
        identity=identity,
        weights=weights,
        inside=faces.inside(np.flatnonzero(rows)) if len(faces.frames) else None,
        device=device,
    )
    state = checkpoint.get("autoencoder")
    if state:
        with _readable(checkpoint.where("autoencoder")):
            training.restore(state)
    if diary is not None:
        diary.rewind("autoencoder", training.done)
    total = config.autoencoder.steps
    while training.done < total:
        losses = training.step()
        progress("autoencoder", training.done, total)
        if diary is not None:
            diary.note("autoencoder", training.done, losses)
        if training.done % config.checkpoint_every == 0 or training.done == total:
            checkpoint.put("autoencoder", training.state())
            if diary is not None:
                diary.page("autoencoder", training.done, drawn(training, faces))
    prior = Prior.fit(training.codes(np.arange(len(learn))), config.prior_factors)
    # what follows is small and computes on the CPU, wherever the autoencoder was trained
    generator, encoder = training.ema_generator.eval().cpu(), training.ema_encoder.eval().cpu()
    features = features.cpu()
    labeller, judge = train_readers(faces, features, generator, encoder, config, progress)
    networks: dict[str, nn.Module] = {
        "generator": generator,
        "encoder": encoder,
        "prior": prior,
        "labeller": labeller,
        "judge": judge,
    }
    return Pretrained(networks, measure(faces, networks, config.attributes))


def what_is_learned(faces: FaceSet) -> str:
    """sha256 of all that a training learns from beside the pixels: who is on which side, labels, groups.

    Names of files tell only through the split: files that are renamed within their person change nothing.
    """
    found = hashlib.sha256()
    for array in (faces.part, _calibrates(faces), faces.scores):
        found.update(np.ascontiguousarray(array).tobytes())
    found.update(canonical_json([list(faces.attributes), faces.groups]))
    return found.hexdigest()


@contextmanager
def _readable(where: str) -> Generator[None]:
    """What any reader may say of a damaged state, as one error that tells what to do."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise  # the state is good, and may be hours of work
    except Exception as error:  # torch, zip, pickle and safetensors each have words of their own
        said = error.found or error.what if isinstance(error, SDFlowError) else error
        raise ContractError(
            "a state of the training cannot be read",
            found=(str(said).splitlines() or [type(error).__name__])[0][:200],
            where=where,
            todo="delete the file: this stage is then done again from its start",
        ) from error
