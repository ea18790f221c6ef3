"""What may be asked of an editor, and how it is carried out: values only, so that planning needs no torch."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field, model_validator

from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

__all__ = ["EditConfig", "Target", "Variant", "check_variant"]

Target = float | Literal["flip"]


class Variant(Config):
    """One edit of a picture: attributes and where they shall go, all others held.

    Attributes:
        targets: name -> wanted labeller score in [0, 1], or `flip` for the opposite of what is shown.
    """

    targets: dict[str, Target]

    @model_validator(mode="after")
    def _bounds(self) -> Variant:
        for name, value in self.targets.items():
            if value != "flip" and not 0.0 <= float(value) <= 1.0:
                raise ValueError(f"{name}: expected a value in [0, 1] or 'flip', found {value}")
        if not self.targets:
            raise ValueError("expected at least one attribute")
        return self

    def text(self) -> str:
        """Canonical JSON, as it stands in the table."""
        return json.dumps(self.targets, sort_keys=True, separators=(",", ":"))


class EditConfig(Config):
    """How requests are carried out; in the recipe.

    Attributes:
        strengths: Tried in this order until the labeller reads the target.
        flip_to: Score that a flip aims at on the present side; 1 - flip_to on the absent side. Twice as far
            from the end has reached it: 0.94 with 0.97.
        min_identity: Least cosine between edit and reconstruction (SFace's same-person threshold).
        max_other_change: Greatest mean change of the scores of attributes that were to be held.
        micro_batch: Rows a network call.
    """

    strengths: tuple[float, ...] = (1.0, 1.4, 2.0, 2.8)
    flip_to: float = Field(default=0.97, gt=0.5, lt=1.0)
    min_identity: float = Field(default=0.363, ge=-1.0, le=1.0)
    max_other_change: float = Field(default=0.5, ge=0.0, le=1.0)
    micro_batch: int = 16


def check_variant(variant: Variant, attributes: tuple[str, ...]) -> None:
    """Refuse attributes that the editor does not know.

    Raises:
        ContractError: Naming the attribute and the known ones.
    """
    unknown = [name for name in variant.targets if name not in attributes]
    if unknown:
        raise ContractError(
            "unknown attribute",
            expected=f"one of {', '.join(attributes)}",
            found=", ".join(unknown),
            todo="choose one of the expected, or train an editor with labels for it",
        )
