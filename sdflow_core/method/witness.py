"""The product's witness: renders codes, asks the labeller what they show and SFace who it is."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sdflow_core.faces.networks import Networks, Pixels, count_call, to_uint8
from sdflow_core.faces.recognizer import CropRecognizer


class PictureWitness:
    """What a bundle's networks see; see `map_training.Witness`.

    Args:
        networks: Of the bundle; the identity network is used where there is one.
        images: uint8 [N, 3, H, W], what the training set renders to; None renders its codes again.
        attributes: Which of the labeller's scores, by index, in order.
        threads: Pictures embedded at a time. The result does not depend on it.
    """

    def __init__(
        self, networks: Networks, images: Tensor | None, attributes: Sequence[int], threads: int = 2
    ) -> None:
        self.networks, self.images, self.index, self.threads = networks, images, list(attributes), threads
        known = len(networks.bundle.attributes)
        self._further = [column for column in range(known) if column not in self.index]

    @property
    def further(self) -> int:
        """See `Witness.further`."""
        return len(self._further)

    @property
    def knows_people(self) -> bool:
        """See `Witness.knows_people`."""
        return self.networks.bundle.identity is not None

    @property
    def dimensions(self) -> int:
        """See `Witness.dimensions`."""
        return self.networks.identity.dimensions

    @cached_property
    def _recognizer(self) -> CropRecognizer:
        return CropRecognizer(self.networks.identity, self.networks.bundle.template_scale)

    def describe(self, rows: Tensor, w_plus: Tensor) -> Tensor:
        """See `Witness.describe`."""
        if self.images is None:
            return self._embed(to_uint8(self.networks.render(w_plus)))
        return self._embed(self.images[rows].permute(0, 2, 3, 1).contiguous().numpy())

    def beside(self, rows: Tensor, w_plus: Tensor) -> Tensor:
        """See `Witness.beside`."""
        if self.images is None:
            images = self.networks.render(w_plus)
        else:
            images = self.images[rows].float() / 127.5 - 1.0
        return self.networks.scores(images)[:, self._further]

    def look(self, w_plus: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Witness.look`."""
        images = self.networks.render(w_plus)
        scores = self.networks.scores(images)[:, self.index + self._further]
        return scores, self._embed(to_uint8(images)) if self.knows_people else None

    def _embed(self, images: Pixels) -> Tensor:
        """[n, H, W, 3] -> [n, 128]; each row depends on its own picture only."""
        count_call(self.networks.calls, "identity", len(images))
        parts = np.array_split(images, min(self.threads, len(images)))
        with ThreadPoolExecutor(self.threads) as pool:
            return torch.from_numpy(np.concatenate(list(pool.map(self._recognizer.embed, parts))))
