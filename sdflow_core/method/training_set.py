"""What an editor learns from: a dataset's codes, and samples of the prior rendered, labelled on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sdflow_core.faces.networks import Networks, to_uint8
from sdflow_core.faces.scoring import sized
from sdflow_core.method.training_config import TrainingConfig, paper_training
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

CONFIGS = ("default", "paper")
# larger renderings are kept at this size for the rest of the training: 5,000 people at 1024 px would be
# 15 GB, and no network that scores or recognises faces looks at more
KEPT_SIDE_PX = 256
_CHUNK, _LARGE_CHUNK = 512, 32
USUAL_ATTRIBUTES = ("smiling", "young", "male", "eyeglasses")


class EditorTraining(Config):
    """Everything that changes an editor, beside its data and networks.

    Plain values may name a setting to start from: `config="paper"` is the published one
    (`training_config.paper_training`), and what `training` says beside it replaces single values of it. The
    name is not kept: a recipe holds the values themselves.

    Example:
        >>> paper = EditorTraining.model_validate({"config": "paper", "training": {"steps": 9}})
        >>> paper.training.flow.kind, paper.training.batch, paper.training.steps
        ('paper', 8, 9)

    Attributes:
        attributes: What the editor edits: s of the flow. What the labeller knows beside them moves along with
            them as it does among people, and is measured, not held. Empty: the usual four where the labeller
            knows them all, else all that it knows.
        training: Flow, objective, schedule.
        prior_samples: People drawn from the prior and added to the dataset's.
        prior_truncation: 0 the mean face, 1 the full spread.
        prior_seed: Of the draw.
        micro_batch: Rows a network call while the training set is made.
    """

    attributes: tuple[str, ...] = ()
    training: TrainingConfig = TrainingConfig()
    prior_samples: int = Field(default=5000, ge=0)
    prior_truncation: float = Field(default=0.9, ge=0.0, le=1.5)
    prior_seed: int = 1
    micro_batch: int = 16

    @model_validator(mode="before")
    @classmethod
    def _starting_from(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "config" not in values:
            return values
        given = dict(cast("Mapping[str, Any]", values))
        name, training = given.pop("config"), given.get("training", {})
        if name not in CONFIGS:
            raise ValueError(f"config: expected one of {', '.join(CONFIGS)}, found {name!r}")
        if name == "paper":
            if isinstance(training, TrainingConfig):
                training = training.model_dump(exclude_unset=True)
            if not isinstance(training, Mapping):
                raise ValueError("training: expected names and values")
            published = paper_training().model_dump(mode="json")
            given["training"] = _changed(published, cast("Mapping[str, Any]", training))
        return given

    def known_to(self, labeller: tuple[str, ...]) -> EditorTraining:
        """The same with its attributes named, in the order of the labeller's.

        Raises:
            ContractError: An attribute that the labeller does not know.
        """
        wanted = self.attributes or (USUAL_ATTRIBUTES if set(USUAL_ATTRIBUTES) <= set(labeller) else labeller)
        if unknown := sorted(set(wanted) - set(labeller)):
            raise ContractError(
                "attributes to train an editor for",
                expected=f"some of {', '.join(labeller)}",
                found=", ".join(unknown),
                todo="choose some of the expected, or promote a labeller that knows them",
            )
        return self.model_copy(update={"attributes": tuple(name for name in labeller if name in wanted)})


def _changed(values: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """Values with some replaced, table by table."""
    out = dict(values)
    for name, value in by.items():
        both = isinstance(value, Mapping) and isinstance(out.get(name), Mapping)
        out[name] = _changed(out[name], cast("Mapping[str, Any]", value)) if both else value
    return out


@dataclass(frozen=True)
class TrainingSet:
    """Codes, what they render to, and the labeller's scores of that, row by row."""

    codes: Tensor  # [N, L, D]
    images: Tensor  # uint8 [N, 3, S, S], S the bundle's resolution and at most KEPT_SIDE_PX
    scores: Tensor  # [N, A] in [0, 1], of the attributes to edit, read at full resolution


def make_training_set(networks: Networks, codes: Tensor, config: EditorTraining) -> TrainingSet:
    """Add prior samples to a dataset's codes [N, L, D], render all, label all.

    The scores are read from the renderings, not from the photographs: the flow must know what a *code* shows.
    """
    known = networks.bundle.attributes
    index = [known.index(name) for name in config.known_to(known).attributes]
    rng = torch.Generator().manual_seed(config.prior_seed)
    parts = [codes]
    if config.prior_samples:
        parts.append(networks.people(config.prior_samples, rng, config.prior_truncation))
    everything = torch.cat(parts)
    resolution = networks.bundle.resolution
    side = min(resolution, KEPT_SIDE_PX)
    # float pictures of all rows never lie in memory at once
    chunk = _CHUNK if resolution <= KEPT_SIDE_PX else _LARGE_CHUNK
    pictures = torch.empty(len(everything), 3, side, side, dtype=torch.uint8)
    scores: list[Tensor] = []
    for start in range(0, len(everything), chunk):
        images = networks.render(everything[start : start + chunk])
        scores.append(networks.scores(images)[:, index])
        kept = to_uint8(sized(images, side))
        pictures[start : start + chunk] = torch.from_numpy(kept).permute(0, 3, 1, 2)
    return TrainingSet(everything, pictures, torch.cat(scores))
