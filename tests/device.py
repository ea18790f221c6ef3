"""A device that is not there: it takes its time and no CPU, one batch after another."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from tests.fakes import FakeNetworks

BATCH, BATCH_SECONDS = 32, 0.4


class Device:
    """A latency without work: one batch at a time, in proportion to its rows."""

    def __init__(self, row_seconds: float = BATCH_SECONDS / BATCH) -> None:
        self.row_seconds, self.busy_seconds, self.rows = row_seconds, 0.0, 0
        self._lock = threading.Lock()

    def run(self, rows: int, already_seconds: float = 0.0) -> None:
        """Compute `rows` rows; what the stand-in itself took counts as part of it."""
        with self._lock:
            time.sleep(max(0.0, rows * self.row_seconds - already_seconds))
            self.rows += rows
            self.busy_seconds += rows * self.row_seconds  # what it was asked for, not what sleeping took


class OnDevice(FakeNetworks):
    """Networks whose every call takes its time on the simulated device."""

    device: Device | None = None

    def digest(self, kind: str) -> str:
        """Of the bundle."""
        return getattr(self.bundle, kind)

    def batched(self, name: str, call: Any, rows: Any) -> Any:
        """The semantic encoder reads what the labeller reads."""
        return self.scores(rows)

    def judged(self, images: Any) -> Any:
        """The judge too."""
        return self.scores(images)

    def embed(self, images: Any, points: Any) -> Any:
        """One direction for everybody; identity runs on the CPU and is not what is measured."""
        return np.full((len(images), 1), 1.0, np.float32)

    def _after(self, started: float, name: str, rows: int, answer: Any) -> Any:
        if self.device is not None and name != "detector":
            self.device.run(rows, time.perf_counter() - started)
        return answer
