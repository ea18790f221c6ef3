"""Several processes that train one flow: each computes its share of every batch, gradients are averaged.

Every process draws the same rows and the same noise for the whole batch and takes its own share of them, so
that the loss curve is that of one process at equal batch, up to the order of sums. See `train_parallel`.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from sdflow_core.records.errors import ContractError

_PATIENCE = timedelta(hours=6)  # the others wait while the first surveys all codes


@dataclass(frozen=True)
class Group:
    """This process among those that train together.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that surveys, saves and speaks."""
        return self.rank == 0

    def check(self, batch: int) -> None:
        """Raise ContractError unless a batch can be shared evenly."""
        if batch % self.size:
            raise ContractError(
                "a batch that cannot be shared evenly",
                expected=f"a multiple of {self.size} processes",
                found=batch,
                where="batch",
            )

    def share(self, whole: Tensor) -> Tensor:
        """This process's part of a batch [B, ...] -> [B / size, ...]."""
        return whole[self.rank :: self.size]

    def average_gradients(self, module: nn.Module) -> None:
        """Gradients of all processes, averaged in one exchange."""
        if self.size == 1:
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        _call("all_reduce", flat)
        flat /= self.size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, value: float) -> float:
        """Mean of a number over the processes."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        _call("all_reduce", shared)
        return float(shared) / self.size

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """What the first process has, in place, for all."""
        if self.size > 1:
            for tensor in tensors:
                _call("broadcast", tensor, 0)

    def told(self, value: bytes | None) -> bytes | None:
        """What the first process says, for all."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        _call("broadcast_object_list", box, 0)
        return box[0]


ALONE = Group()


@contextmanager
def joined() -> Generator[Group]:
    """The group that `torchrun` started this process in, over gloo; alone without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Group(distributed.get_rank(), size)
        _call("barrier")  # the first process may still be writing: nobody leaves before it
    finally:
        distributed.destroy_process_group()


def _call(name: str, *values: Any) -> None:
    getattr(distributed, name)(*values)
