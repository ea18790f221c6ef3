"""What may be asked of an editor, and how it is carried out: values only, so that planning needs no torch."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

__all__ = ["Change", "EditConfig", "Target", "Variant", "change_of", "check_variant", "checked_target"]

_CHANGE = r"^[+-](0?\.[0-9]+|[01](\.[0-9]*)?)$"


def checked_target(value: Any) -> float | str:
    """One target as it is written in a request.

    Args:
        value: A score in [0, 1], `flip`, or a change of the score such as "+0.3" or "-0.2": a text with its
            sign, because +0.3 as a number is the score 0.3.

    Returns:
        A float, or `flip`, or the change in its shortest spelling with at most six decimals: one request has
        one text.

    Raises:
        ValueError: Anything else; also a change of nothing (to six decimals), or of more than 1.

    Example:
        >>> checked_target(1), checked_target("+.30"), checked_target("flip")
        (1.0, '+0.3', 'flip')
    """
    if value == "flip":
        return "flip"
    if isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0:
        return float(value) + 0.0  # -0.0 is 0.0
    if isinstance(value, str) and re.fullmatch(_CHANGE, value) and abs(float(value)) <= 1.0:
        # never an exponent: "+1e-05" would be read as a score
        text = f"{float(value):+.6f}".rstrip("0").rstrip(".")
        if float(text) != 0.0:
            return text
    raise ValueError("expected a score in [0, 1], or flip, or a change such as '+0.3' or '-0.2'")


Change = Annotated[str, StringConstraints(pattern=_CHANGE)]
Target = Annotated[float | Literal["flip"] | Change, BeforeValidator(checked_target)]


def change_of(target: float | str) -> float | None:
    """What a change such as "+0.3" adds to the score that is read now; None for other targets."""
    return float(target) if isinstance(target, str) and target != "flip" else None


class Variant(Config):
    """One edit of a picture: attributes and where they shall go, together, all others held.

    Attributes:
        targets: name -> wanted labeller score in [0, 1]; or a change of it such as "+0.3", clipped to [0, 1];
            or `flip` for the opposite of what is shown.
    """

    targets: dict[str, Target]

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        # before the fields: a union would report one mistake once for each of its branches
        targets: Any = data.get("targets") if isinstance(data, dict) else None
        for name, value in targets.items() if isinstance(targets, dict) else ():
            try:
                checked_target(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}, found {value}") from None
        if isinstance(targets, dict) and not targets:
            raise ValueError("expected at least one attribute")
        return data

    def text(self) -> str:
        """Canonical JSON, as it stands in the table."""
        return json.dumps(self.targets, sort_keys=True, separators=(",", ":"))


class EditConfig(Config):
    """How requests are carried out; in the recipe.

    Attributes:
        tries: Renderings an edit may take until the labeller reads the target.
        furthest: Greatest |phi(s')| that is asked of the editor (`condition.features`; 1.95 is a score of
            0.98). An edit that is not there at this distance is `capped`.
        tolerance: A score so near to the wanted value has reached it.
        accepted_error: A score so near to the wanted value passes the gate; a flip passes where the attribute
            is on the other side of one half.
        flip_to: Score that a flip aims at on the present side; 1 - flip_to on the absent side. Twice as far
            from the end has reached it: 0.94 with 0.97.
        min_identity: Least cosine between edit and what it starts from (SFace's same-person threshold).
        max_other_change: Greatest mean change of the scores of attributes that were to be held.
        min_reconstruction_db: Least PSNR of the reconstruction against the crop, in dB, where it is known.
        retries: Shares of the way, tried in this order, for an edit that identity or the change of others
            holds back.
        hold: Correct the other attributes of the editor while the labeller sees them drift.
        carry_residual: Add what the reconstruction missed of the crop where the edit changed little.
        micro_batch: Rows a network call.
    """

    tries: int = Field(default=8, ge=1, le=50)
    furthest: float = Field(default=6.0, gt=0.0, le=50.0)
    tolerance: float = Field(default=0.02, gt=0.0, le=0.5)
    accepted_error: float = Field(default=0.15, ge=0.0, le=1.0)
    flip_to: float = Field(default=0.97, gt=0.5, lt=1.0)
    min_identity: float = Field(default=0.363, ge=-1.0, le=1.0)
    max_other_change: float = Field(default=0.5, ge=0.0, le=1.0)
    min_reconstruction_db: float = Field(default=10.0, ge=0.0, le=100.0)
    retries: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = (0.75, 0.5)
    hold: bool = False
    carry_residual: bool = False
    micro_batch: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _less_each_time(self) -> EditConfig:
        if any(not math.isfinite(value) for value in self.retries) or list(self.retries) != sorted(
            self.retries, reverse=True
        ):
            raise ValueError(f"retries: expected shares of the way that fall, found {self.retries}")
        return self


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
