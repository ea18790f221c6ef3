"""What a file of weights is, in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "generator",
    "encoder",
    "identity",
    "attribute_classifier",
    "flow",
    "semantic_encoder",
    "directions",
]


@dataclass(frozen=True)
class Described:
    """What names and shapes tell.

    `parameters` counts what was learned: no BatchNorm statistics, kernels or noises.
    """

    kind: Kind
    family: str
    resolution: int | None = None
    layers: int | None = None
    style_dim: int | None = None
    channels: dict[int, int] | None = None
    depth: int | None = None
    attributes: int | None = None
    parameters: int | None = None
    notes: tuple[str, ...] = ()
    licence: str = ""
