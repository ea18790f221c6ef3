"""Networks that cost what they are told to cost, and whose answers depend on the row alone."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sdflow_core.faces.detect import Face
from sdflow_core.weights.model_store import Bundle

ROWS, WIDTH = 10, 128  # of a code
# five points of a frontal face, as shares of the picture's side
_POINTS = np.array([[0.34, 0.4], [0.66, 0.4], [0.5, 0.6], [0.38, 0.76], [0.62, 0.76]])


@dataclass
class FakeNetworks:
    """Stands in for `faces.networks.Networks` in ingest, invert and label; see `tasks.runtime.networks_from`.

    Attributes:
        bundle: Whose attributes and resolution count.
        seconds_per_row: network -> what one row shall take; they sleep so long.
        rows: network -> rows it was called for.
        micro_batch: Rows that a shard task hands over at a time.
        spent: Seconds that were slept, and what little the fakes themselves cost.
    """

    bundle: Bundle
    seconds_per_row: dict[str, float] = field(default_factory=dict[str, float])
    calls: Counter[str] = field(default_factory=Counter[str])
    rows: Counter[str] = field(default_factory=Counter[str])
    micro_batch: int = 16
    spent: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def detector(self) -> FakeNetworks:
        """Itself: it finds faces too."""
        return self

    def find(self, picture: Any) -> list[Face]:
        """One face in the middle of every picture [H, W, 3]."""
        started = time.perf_counter()
        side = min(picture.shape[:2])
        box = np.array([0.15, 0.1, 0.7, 0.85]) * side
        return self._after(started, "detector", 1, [Face(box, _POINTS * side, 0.99)])

    def encode(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """[N, H, W, 3] -> codes [N, ROWS, WIDTH] that depend on the pixels."""
        started = time.perf_counter()
        seeds = [int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:4], "big") for image in images]
        codes = np.stack([np.full((ROWS, WIDTH), seed / 2**32, np.float32) for seed in seeds])
        return self._after(started, "encoder", len(images), codes)

    def render(self, w_plus: Tensor) -> Tensor:
        """[N, ROWS, WIDTH] -> grey pictures [N, 3, H, W]."""
        started = time.perf_counter()
        size = self.bundle.resolution
        images = (w_plus[:, 0, 0].reshape(-1, 1, 1, 1) * 2 - 1).expand(len(w_plus), 3, size, size)
        return self._after(started, "generator", len(w_plus), images)

    def scores(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> scores [N, A] in [0, 1]."""
        started = time.perf_counter()
        names = len(self.bundle.attributes)
        scores = (images[:, :1, ::8, ::8].mean((1, 2, 3)) + 1) / 2
        return self._after(started, "labeller", len(images), scores[:, None].repeat(1, names))

    def _after(self, started: float, name: str, rows: int, answer: Any) -> Any:
        left = rows * self.seconds_per_row.get(name, 0.0) - (time.perf_counter() - started)
        if left > 0:
            time.sleep(left)
        with self._lock:  # the detector is called by several threads
            self.calls[name] += 1
            self.rows[name] += rows
            self.spent += time.perf_counter() - started
        return answer
