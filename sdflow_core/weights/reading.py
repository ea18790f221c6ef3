"""Weight files of any origin as tensors and plain values. Nothing in a file is ever executed.

No part of Python's `pickle` and no `torch.load` is used: pickles are read by an interpreter of our own that knows
tensors and containers and refuses every other name (`weights.pickles`). Archives and headers are checked before
anything is allocated for them. Tensors are views of the mapped file, so a large file is not held twice; do not
write into a file while what was read from it is in use.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from sdflow_core.weights import arrays, pickles, torch_files, zips
from sdflow_core.weights.bounds import Budget, refused, shown
from sdflow_core.weights.pickles import Record

__all__ = ["Record", "WeightFile", "plain_of", "read_weights", "tensors_of"]

Container = Literal["torch", "pickle", "safetensors", "npy", "npz"]


@dataclass(frozen=True)
class WeightFile:
    """A weight file that was read.

    Attributes:
        path: Where it was.
        container: How it was written.
        sha256: Digest of its bytes.
        size: Bytes.
        content: Nested dicts, lists and tuples of `Tensor`, numbers, strings, bytes and None, and `Record` for
            the objects of NVIDIA's pickles. A safetensors file's own notes are under `__metadata__`.
    """

    path: str
    container: Container
    sha256: str
    size: int
    content: Any


def read_weights(path: str | Path, *, limit: int = 8 * 2**30) -> WeightFile:
    """Read a weight file without running anything in it.

    Args:
        path: A regular file.
        limit: Most bytes it may have.

    Returns:
        What is in it. Tensors are on the CPU and share the mapped file; writing to them changes no file.

    Raises:
        ContractError: Not a weight file, damaged, too large, or it holds more than tensors and plain values; the
            message names the file and the reason.
    """
    raise NotImplementedError


def tensors_of(content: Any) -> dict[str, Tensor]:
    """The state dict of what was read: bare, or under `g_ema`, `state_dict`, `G_ema` and the like.

    A leading `module.` of a data-parallel training is taken off. NVIDIA's records are named as their modules
    would name them (`mapping.fc0.weight`). A file that is one bare tensor has it under the name `tensor`.

    Raises:
        ContractError: Two tensors have one name.
    """
    raise NotImplementedError


def plain_of(content: Any) -> dict[str, Any]:
    """What lies beside the state dict: `latent_avg`, `opts`, `args`, `__metadata__`, init arguments of a record."""
    raise NotImplementedError
