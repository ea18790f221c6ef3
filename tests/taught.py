"""A small world for tests of the default training: 120 people, a labeller, a witness, a checkpoint slot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdflow_core.faces.labeller import Labeller, LabellerConfig
from sdflow_core.method.code_readers import ReaderConfig
from sdflow_core.method.condition import attributes_of
from sdflow_core.method.edit_map import EditMapConfig
from sdflow_core.method.principal import PrincipalConfig
from sdflow_core.method.trained import TrainedEditor
from sdflow_core.method.training import TrainingConfig, train_editor

ROWS, DIM, NAMES, PEOPLE = 3, 4, ("a", "b"), 120
SMALL: dict[str, Any] = {
    "flow": PrincipalConfig(directions=8, width=16, blocks=1, matrices=2),
    "edit_map": EditMapConfig(width=16, blocks=1, batch=16, readers=ReaderConfig(width=16, batch=16)),
    "steps": 6,
    "batch": 16,
    "checkpoint_every": 2,
    "early_stopping": None,
}


def people(n: int = PEOPLE) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    phi = torch.randn(n, 2, generator=rng).clamp(-1.9, 1.9)
    flat = torch.randn(n, ROWS * DIM, generator=rng)
    flat[:, :2] += 2 * phi
    return flat.unflatten(1, (ROWS, DIM)), attributes_of(phi)


def small_labeller() -> Labeller:
    torch.manual_seed(0)
    return Labeller(LabellerConfig(attributes=NAMES, resolution=16, channels=(4, 4))).eval()


class Glance:
    knows_people = True
    further = 1
    dimensions = 6

    def beside(self, rows: Tensor, w_plus: Tensor) -> Tensor:
        return torch.sigmoid(w_plus.flatten(1)[:, 2:3])

    def describe(self, rows: Tensor, w_plus: Tensor) -> Tensor:
        return torch.nn.functional.normalize(w_plus.flatten(1)[:, -6:], dim=1)

    def look(self, w_plus: Tensor) -> tuple[Tensor, Tensor | None]:
        return torch.sigmoid(w_plus.flatten(1)[:, :3]), self.describe(torch.zeros(0), w_plus)


class Slot:
    def __init__(self) -> None:
        self.data: bytes | None = None
        self.sizes: list[int] = []

    def save(self, data: bytes) -> None:
        self.data = data
        self.sizes.append(len(data))

    def load(self) -> bytes | None:
        return self.data


def train(
    labeller: Labeller, slot: Slot | None = None, progress: Any = None, **changes: Any
) -> TrainedEditor:
    codes, scores = people()
    config = TrainingConfig(
        **{**SMALL, **{k: v for k, v in changes.items() if k in TrainingConfig.model_fields}}
    )
    generator: Any = torch.nn.Identity()
    return train_editor(
        changes.get("codes", codes),
        None,
        changes.get("scores", scores),
        generator,
        labeller,
        config,
        slot,
        progress,
        witness=changes.get("witness", Glance()),
    )


def weights(trained: TrainedEditor) -> dict[str, Tensor]:
    parts = {"flow": trained.flow, "map": trained.edit_map, "semantic": trained.semantic_encoder}
    return {f"{n}.{k}": v for n, part in parts.items() if part for k, v in part.state_dict().items()}


def assert_same(a: TrainedEditor, b: TrainedEditor) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    assert a.history == b.history
