"""How well a photograph is inverted: names that people choose from, and what each of them costs.

Imports no torch: the command line and the plans ask here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sdflow_core.faces.micro_batch import micro_batch_for
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

__all__ = [
    "QUALITIES",
    "Cost",
    "RefineConfig",
    "Spent",
    "check_quality",
    "costs",
    "refine_config",
]

QUALITIES = {"fast": 0, "good": 40, "best": 200}  # steps of refinement
_PASS_AND_BACK = 2.3  # a step by renderings: measured 2.25 at 64 px on a CPU


class RefineConfig(Config):
    """How codes are refined; all of it changes results.

    Attributes:
        steps: k, steps of Adam.
        rate: Length of the first steps, in units of the code's own spread (see `spread_of`); it falls to 0
            along a half cosine.
        pull: Weight of the squared distance to the encoder's code, in the same units.
        levels: Sizes at which pictures are compared, each half the one before.
        absolute: Weight of the mean absolute difference beside the mean squared one.
        feature: Weight of 1 - cosine of the features, where a network is given.
        micro_batch: Rows a call.
    """

    steps: PositiveInt = 60
    rate: PositiveFloat = 0.1
    pull: NonNegativeFloat = 0.02
    levels: int = Field(default=4, ge=1, le=8)
    absolute: NonNegativeFloat = 0.1
    feature: NonNegativeFloat = 0.1
    micro_batch: PositiveInt = 16


def check_quality(quality: str) -> str:
    """The name, if it is one.

    Raises:
        ContractError: It is not.
    """
    if quality not in QUALITIES:
        raise ContractError("the quality of codes", expected=", ".join(QUALITIES), found=quality)
    return quality


def refine_config(quality: str, resolution: int) -> RefineConfig | None:
    """How codes of a quality are refined at a resolution; None: not at all."""
    steps = QUALITIES[check_quality(quality)]
    if not steps:
        return None
    return RefineConfig(steps=steps, micro_batch=micro_batch_for(resolution))


@dataclass(frozen=True)
class Spent:
    """What runs of one quality took on the models' thread.

    Attributes:
        rows: How many.
        steps: Of refinement, a row.
        encode_seconds: Of all rows.
        render_seconds: Of all rows, one rendering each.
        refine_seconds: Of all rows and steps.
    """

    rows: int
    steps: int
    encode_seconds: float
    render_seconds: float
    refine_seconds: float


@dataclass(frozen=True)
class Cost:
    """Seconds a row of one quality, and whether they were measured or are an estimate."""

    quality: str
    steps: int
    seconds_a_row: float
    how: str

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "quality": self.quality,
            "steps": self.steps,
            "seconds_a_row": round(self.seconds_a_row, 4),
            "how": self.how,
        }


def costs(spent: Spent, quality: str) -> list[Cost]:
    """Seconds a row of every quality, from what runs of one of them took.

    The other ones are estimates: the same encoding and rendering, and steps as long as the measured ones;
    where none was measured a step counts as one rendering and the way back through it.
    """
    rows = max(spent.rows, 1)
    fixed = (spent.encode_seconds + spent.render_seconds) / rows
    if spent.steps:
        step, by = spent.refine_seconds / rows / spent.steps, "estimate from the measured steps"
    else:
        step, by = _PASS_AND_BACK * spent.render_seconds / rows, "estimate from a rendering"
    return [
        Cost(name, steps, fixed + steps * step, "measured" if name == quality else by)
        for name, steps in QUALITIES.items()
    ]
