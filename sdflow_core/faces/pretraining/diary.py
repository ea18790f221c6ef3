"""The diary of a training: its losses as lines of JSON with their dates, its pictures, beside its checkpoint.

Nothing is computed from it: it is for the people who decide whether to go on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from sdflow_core.faces.networks import to_tensor, to_uint8
from sdflow_core.faces.pretraining.data import TEST_PART, FaceSet
from sdflow_core.faces.pretraining.pictures import loss_curves, sample_sheet
from sdflow_core.faces.prior import Prior

HISTORY = "history.jsonl"
CURVES = "losses-{stage}.png"
SHEET = "samples.png"


class Drawer(Protocol):
    """A place for named files; `keep` replaces atomically."""

    def keep(self, name: str, data: bytes) -> None:
        """Write a file."""
        ...

    def find(self, name: str) -> bytes | None:
        """Read a file, if there is one."""
        ...


@dataclass
class _Sum:
    """Losses since the last line."""

    count: int = 0
    total: dict[str, float] = field(default_factory=dict[str, float])
    seen: dict[str, int] = field(default_factory=dict[str, int])


class Diary:
    """Losses and pictures of one training; goes on where an earlier one stopped.

    Args:
        drawer: Where the files lie.
        every: Steps that one line stands for; it holds their means.
    """

    def __init__(self, drawer: Drawer, every: int = 20) -> None:
        self.drawer, self.every = drawer, every
        self.lines: list[dict[str, Any]] = []
        self._open: dict[str, _Sum] = {}
        self._unwritten: dict[str, int] = {}  # stage -> its latest step
        for line in (drawer.find(HISTORY) or b"").splitlines():
            with suppress(ValueError):  # a damaged line of the history costs nothing but itself
                found = json.loads(line)
                if _is_line(found):
                    self.lines.append(found)

    def rewind(self, stage: str, step: int) -> None:
        """Forget what a stage did after `step`: a killed run does it again."""
        self._open.pop(stage, None)
        self.lines = [x for x in self.lines if x["stage"] != stage or x["step"] <= step]

    def note(self, stage: str, step: int, losses: dict[str, float]) -> None:
        """Take down the losses of a step; what is not finite is kept as a gap."""
        self._unwritten[stage] = step
        sums = self._open.setdefault(stage, _Sum())
        sums.count += 1
        for name, value in losses.items():
            sums.total[name] = sums.total.get(name, 0.0) + value
            sums.seen[name] = sums.seen.get(name, 0) + 1
        if sums.count >= self.every or not all(map(math.isfinite, losses.values())):
            self._close(stage, step)

    def page(self, stage: str, step: int, rows: Sequence[tuple[str, npt.NDArray[np.uint8]]] = ()) -> None:
        """Write the lines and the curves, and a sheet of what the training draws by now.

        Args:
            stage: Whose curves.
            step: Now.
            rows: As for `sample_sheet`; none: no new sheet.
        """
        self._unwritten.pop(stage, None)
        if stage in self._open:
            self._close(stage, step)
        when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        self.drawer.keep(HISTORY, "".join(json.dumps(x, sort_keys=True) + "\n" for x in self.lines).encode())
        history, steps = self.history(stage)
        note = f"step {step:,}, {when}"
        self.drawer.keep(
            CURVES.format(stage=stage), loss_curves(history, steps, title=f"Losses of {stage}", note=note)
        )
        if rows:
            sheet = sample_sheet(rows, title=f"Samples of {stage}", note=note)
            self.drawer.keep(f"samples-{step:07d}.png", sheet)
            self.drawer.keep(SHEET, sheet)

    def close(self) -> None:
        """Write down what is not yet written: the training ends here."""
        for stage, step in list(self._unwritten.items()):
            self.page(stage, step)

    def history(self, stage: str) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
        """name -> values, and name -> their steps."""
        values: dict[str, list[float]] = {}
        steps: dict[str, list[int]] = {}
        for line in self.lines:
            if line["stage"] == stage:
                for name, value in line["losses"].items():
                    values.setdefault(name, []).append(float("nan") if value is None else value)
                    steps.setdefault(name, []).append(line["step"])
        return values, steps

    def _close(self, stage: str, step: int) -> None:
        sums = self._open.pop(stage)
        if not sums.seen:
            return
        means = {name: sums.total[name] / sums.seen[name] for name in sums.seen}
        self.lines.append(
            {
                "at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
                "stage": stage,
                "step": step,
                "losses": {k: round(v, 6) if math.isfinite(v) else None for k, v in means.items()},
            }
        )


def _is_line(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("stage"), str)
        and isinstance(found.get("step"), int)
        and isinstance(found.get("losses"), dict)
        and all(value is None or isinstance(value, int | float) for value in found["losses"].values())
    )


@torch.no_grad()
def drawn(training: Any, faces: FaceSet, count: int = 12) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Rows of a sheet: people of the test, their reconstructions, samples of a prior fitted for it.

    Neither the training nor any of its random streams is touched.

    Args:
        training: An `AutoencoderTraining`.
        faces: What it learns from.
        count: Pictures a row.
    """
    shown = faces.images[faces.part == TEST_PART][:count]
    codes = training.ema_encoder.encode(to_tensor(shown).to(training.device))
    rows = [
        ("People nobody learns from", shown),
        ("Their reconstructions", to_uint8(training.ema_generator.synthesize(codes))),
    ]
    known = training.codes(np.arange(min(len(training.images), 1000)))
    if bool(torch.isfinite(known).all()) and len(known) > 1:
        prior = Prior.fit(known, min(256, len(known) - 1))
        for truncation in (0.7, 1.0):
            sampled = prior.sample(count, torch.Generator().manual_seed(1), truncation=truncation)
            pictures = to_uint8(training.ema_generator.synthesize(sampled.to(training.device)))
            rows.append((f"Samples, truncation {truncation}", pictures))
    return rows
