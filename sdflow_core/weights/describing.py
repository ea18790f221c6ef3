"""What a weight file is, in one record: told from names and shapes of tensors, never from a file name."""

from __future__ import annotations

from typing import Literal

from sdflow_core.records.config import Config

__all__ = ["Described", "Kind"]

Kind = Literal[
    "generator",
    "encoder",
    "identity",
    "attribute_classifier",
    "flow",
    "semantic_encoder",
    "directions",
]


class Described(Config):
    """One weight file. What does not apply to a kind is None.

    Attributes:
        kind: What the network does.
        family: Layout of the file, such as `stylegan2-rosinality`, `e4e` or `ir-se-50`.
        resolution: Side of the picture in pixels that is made or read.
        layers: L, rows of w+.
        style_dim: D, width of one row.
        channels: Feature channels by resolution in pixels, of a generator.
        depth: Layers of a generator's mapping network, or the depth in the name of a ResNet.
        attributes: How many attributes are scored, or condition a flow.
        parameters: Trained numbers; running statistics, fixed noises and filters are buffers and not counted.
        notes: What a reader must know, one sentence each.
        licence: Hint at the terms of the weights; it says nothing about this file's own history.
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
    licence: str | None = None
