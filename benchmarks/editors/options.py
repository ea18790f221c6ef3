"""What the benchmark of editors is asked for, and the names under which it keeps what it has computed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sdflow_core.method.solvers import REFERENCE, SolverConfig
from sdflow_core.records.config import Config

# two steps of RK4 give the losses of the reference to 1e-4 and its gradient to .03 % at a third of its time
PUBLISHED_SOLVERS = {"rk4": SolverConfig(method="rk4", steps=2), "reference": REFERENCE}
# counts up when what is kept under a name is computed otherwise
FORMAT = 1


class Budget(Config):
    """How much is trained and measured; everything here changes figures.

    Attributes:
        images: Held-out people, one picture each.
        block: Pictures measured at a time; what is measured is kept block by block.
        real: Photographs of the training people whose codes are trained on; 0 without photographs.
        samples: People drawn from the prior and trained on.
        pick: Training codes that an editor's strengths are found on.
        flow_steps: Of the principal flow; readers and map follow it.
        published_steps: Of SDFlow as published; the original trains 10,000 of batch 8.
        frozen_steps: Of the same flow on frozen scores, likelihood alone: a step costs a third.
        published_solver: Solver of that training (`PUBLISHED_SOLVERS`); it edits by the reference.
        first_steps: Of the first-generation editor.
        ceiling: Most pairs of photographs an attribute.
    """

    images: int = Field(default=240, ge=8)
    block: int = Field(default=40, ge=1)
    real: int = Field(default=4000, ge=0)
    samples: int = Field(default=14_000, ge=64)
    pick: int = Field(default=24, ge=4)
    flow_steps: int = Field(default=2000, ge=1)
    published_steps: int = Field(default=600, ge=1)
    frozen_steps: int = Field(default=900, ge=1)
    published_solver: Literal["rk4", "reference"] = "rk4"
    first_steps: int = Field(default=800, ge=1)
    ceiling: int = Field(default=200, ge=0)


QUICK = Budget(
    images=8,
    block=8,
    real=64,
    samples=256,
    pick=4,
    flow_steps=20,
    published_steps=2,
    frozen_steps=2,
    first_steps=4,
    ceiling=20,
)


class Options(Config):
    """Where things lie, and the budget.

    Attributes:
        data: Folder with `lfw.tar`, `lfw_attributes.csv`; None: people drawn from the prior only.
        judges: Folder of the judges' packages; None is the user's cache.
        cache: Folder of prepared photographs.
        work: Folder of trained editors and measured arrays.
        attributes: To be flipped.
        budget: See there.
        identity: Ask SFace too (20 ms a picture beside dlib's 16).
        detector: Ask the detector whether there is a face.
    """

    data: Path | None = None
    judges: Path | None = None
    cache: Path
    work: Path
    attributes: tuple[str, ...] = ("smiling", "young", "male", "eyeglasses")
    budget: Budget = Budget()
    identity: bool = True
    detector: bool = True


def named(kind: str, **parts: Any) -> str:
    """A file name made of everything that a result depends on."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
