"""In which order rows are trained on: shuffled each epoch, near rows together, known by the step alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from sdflow_core.method.training_checks import check_batch


class RowOrder:
    """Rows of step 0, 1, 2, ..., without a state: a resumed training asks for its step and goes on.

    Rows lie in blocks that are read at once (row groups of Parquet). Each epoch draws the blocks in another
    order, takes `window` of them at a time and shuffles their rows, so that a batch needs no more than a few
    blocks in memory. What is left over at the end of an epoch, less than a batch, is left out of it.

    Args:
        blocks: Rows of each block, in the order of the row numbers.
        batch: Rows a step.
        seed: Of every draw.
        window: Blocks that are shuffled together.
        without: Row numbers never to give, ascending.

    Raises:
        ContractError: Fewer rows than a batch.

    Example:
        >>> order = RowOrder([4, 4], 4, seed=0)
        >>> sorted(order.rows(0).tolist() + order.rows(1).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def __init__(
        self, blocks: Sequence[int], batch: int, seed: int, window: int = 8, without: Tensor | None = None
    ) -> None:
        self.batch, self.seed, self.window = batch, seed, window
        sizes = torch.tensor(list(blocks), dtype=torch.int64)
        self.starts = sizes.cumsum(0) - sizes
        self.sizes = sizes
        self.without = torch.zeros(0, dtype=torch.int64) if without is None else without
        # rows of each block that are left: what is held out is counted, never listed a row
        edges = torch.searchsorted(self.without, torch.cat([self.starts, sizes.sum()[None]]))
        self.left = sizes - edges.diff()
        self.count = int(self.left.sum())
        check_batch(self.count, batch)
        self._windows: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._epoch: tuple[int, Tensor, Tensor] | None = None

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return self.count // self.batch

    def rows(self, step: int) -> Tensor:
        """Row numbers int64 [batch] of a step."""
        epoch, within = divmod(step, self.steps)
        order, ends = self._blocks(epoch)
        start, stop = within * self.batch, (within + 1) * self.batch
        first = int(torch.searchsorted(ends, start, right=True))
        parts: list[Tensor] = []
        while start < stop:
            begins = int(ends[first - 1]) if first else 0
            rows = self._rows(epoch, first, order)
            part = rows[start - begins : stop - begins]
            parts.append(part)
            start += len(part)
            first += 1
        return torch.cat(parts)

    def _blocks(self, epoch: int) -> tuple[Tensor, Tensor]:
        """(order of the blocks, where each window's rows end in the epoch)."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = torch.randperm(len(self.sizes), generator=self._rng(epoch, -1))
            ends = torch.stack([part.sum() for part in self.left[order].split(self.window)]).cumsum(0)
            self._epoch = epoch, order, ends
        return self._epoch[1], self._epoch[2]

    def _rows(self, epoch: int, window: int, order: Tensor) -> Tensor:
        key = epoch, window
        if key not in self._windows:
            chosen = order[window * self.window : (window + 1) * self.window]
            rows = torch.cat(
                [torch.arange(int(self.starts[b]), int(self.starts[b] + self.sizes[b])) for b in chosen]
            )
            if len(self.without):
                rows = rows[~torch.isin(rows, self.without)]
            self._windows[key] = rows[torch.randperm(len(rows), generator=self._rng(epoch, window))]
            while len(self._windows) > 2:
                self._windows.popitem(last=False)
        return self._windows[key]

    def _rng(self, epoch: int, window: int) -> torch.Generator:
        # distinct for all epochs below 2^20 and windows below 2^20
        number = ((self.seed * 1_000_003 + epoch) * 1_048_583 + window + 1) % (2**62)
        return torch.Generator().manual_seed(number)
