"""How fast a chain of stages goes, and which of them keeps the others waiting."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

__all__ = ["Pace"]


@dataclass
class _Counts:
    workers: int
    done: int = 0
    busy_seconds: float = 0.0


@dataclass
class Pace:
    """Counters of one chain; may be read from any thread while it runs.

    Attributes:
        total: Items that are expected at the end; 0 where nobody knows.
        model: The stage whose waiting costs most; the busy share is about it.
        done: Items that came out at the end.
    """

    total: int = 0
    model: str = "model"
    done: int = 0
    _stages: dict[str, _Counts] = field(default_factory=dict[str, _Counts], repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _started: float | None = field(default=None, repr=False)
    _ended: float | None = field(default=None, repr=False)

    def begin(self, workers: dict[str, int]) -> None:
        """The chain starts now: its stages, and how many workers each has."""
        with self._lock:
            self._stages = {name: _Counts(count) for name, count in workers.items()}
            self._started = time.perf_counter()

    def worked(self, stage: str, seconds: float) -> None:
        """A stage has finished one of its items."""
        with self._lock:
            counts = self._stages[stage]
            counts.done += 1
            counts.busy_seconds += seconds

    def end(self) -> None:
        """The chain has stopped."""
        self._ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start, up to now or to the end."""
        if self._started is None:
            return 0.0
        return (self._ended or time.perf_counter()) - self._started

    @property
    def per_second(self) -> float:
        """Items a second that came out at the end, since the start."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None where it cannot be known."""
        if not self.total or not self.done:
            return None
        return max(0, self.total - self.done) / self.per_second

    def busy_share(self, stage: str | None = None) -> float:
        """Share of the time in which a stage's workers computed, in [0, 1]; 0 for a stage that is not there.

        Args:
            stage: Its name; the model's when not given.
        """
        with self._lock:
            counts = self._stages.get(stage or self.model)
            if counts is None or self.seconds <= 0:
                return 0.0
            return min(1.0, counts.busy_seconds / (self.seconds * counts.workers))

    def busy_seconds(self, stage: str) -> float:
        """Seconds in which a stage's workers computed, added up."""
        with self._lock:
            return self._stages[stage].busy_seconds

    def facts(self) -> dict[str, float]:
        """Plain figures for records: they say how a run went and are part of no digest."""
        shares = {f"busy_{name.replace(' ', '_')}": round(self.busy_share(name), 4) for name in self._stages}
        return {
            "images_per_second": round(self.per_second, 2),
            "busy_share": round(self.busy_share(), 4),
            **shares,
        }
