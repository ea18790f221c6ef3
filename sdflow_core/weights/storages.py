"""Tensors over the bytes of a mapped file: every declared size is checked before a tensor is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdflow_core.weights.bounds import Budget, refused, shown

__all__ = ["STORAGES", "Storage", "tensor_over"]

STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

_MOST_AXES = 16


def tensor_over(data: memoryview, dtype: torch.dtype, budget: Budget) -> Tensor:
    """One row of numbers over some bytes, without a copy where the bytes lie as the dtype needs.

    Args:
        data: Whole elements, little-endian.
        dtype: Of the elements.
        budget: What the file may still use; a copy counts.

    Returns:
        [len(data) / itemsize].
    """
    if len(data) == 0:
        return torch.empty(0, dtype=dtype)
    raw = torch.frombuffer(data, dtype=torch.uint8)
    if dtype is torch.bool:
        return _truths(raw, budget)
    if raw.data_ptr() % dtype.itemsize:  # inside a pickle values lie anywhere
        budget.spend("copied", len(data))
        raw = raw.clone()
    return raw.view(dtype)


def _truths(raw: Tensor, budget: Budget) -> Tensor:
    """[N] bytes as [N] bool; a bool of another byte than 0 and 1 is undefined behaviour in torch."""
    budget.spend("copied", len(raw))
    return raw != 0


class Storage:
    """Numbers that tensors are views of.

    Args:
        dtype: Of the numbers.
        count: How many are declared.
        data: Their bytes; None while only the structure of a file is read.
        budget: What the file may still use.

    Raises:
        ContractError: The bytes are not as many as declared.
    """

    def __init__(self, dtype: torch.dtype, count: int, data: memoryview | None, budget: Budget) -> None:
        if data is not None and len(data) != count * dtype.itemsize:
            raise refused(
                budget.where,
                f"a tensor declares {shown(count)} numbers of {dtype} where {len(data)} bytes are stored",
            )
        self.dtype, self.count, self.data, self.budget = dtype, count, data, budget
        self.row: Tensor | None = None

    def part(self, start: int, count: int) -> Storage:
        """A storage that is a piece of this one.

        Raises:
            ContractError: It reaches outside.
        """
        if not 0 <= start <= start + count <= self.count:
            raise refused(self.budget.where, "a tensor reaches outside of what is stored for it")
        size = self.dtype.itemsize
        data = None if self.data is None else self.data[start * size : (start + count) * size]
        return Storage(self.dtype, count, data, self.budget)

    def view(self, offset: Any, shape: Any, strides: Any) -> Tensor | None:
        """A tensor of the numbers; None while only the structure is read.

        Raises:
            ContractError: It reaches outside of what is stored, or is far larger than it.
        """
        sizes, steps = self._whole(shape), self._whole(strides)
        (first,) = self._whole((offset,))
        if len(sizes) != len(steps):
            raise refused(self.budget.where, "a tensor has a shape and strides of different length")
        elements = math.prod(sizes)
        last = first + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
        if elements and last >= self.count:
            raise refused(
                self.budget.where,
                f"a tensor of shape {_shape(sizes)} reaches outside of its {self.count} stored numbers",
            )
        if self.data is None:
            return None
        if elements > self.count:
            self.budget.spend("expanded", elements)
        self.budget.spend("tensors", elements * self.dtype.itemsize)
        if self.row is None:
            self.row = tensor_over(self.data, self.dtype, self.budget)
        if elements == 0:
            return torch.empty(sizes, dtype=self.dtype)
        return torch.as_strided(self.row, sizes, steps, first)

    def _whole(self, values: Any) -> tuple[int, ...]:
        if not isinstance(values, tuple | list) or len(values) > _MOST_AXES:
            raise refused(self.budget.where, f"a tensor has the shape {shown(values)}")
        for value in values:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**48:
                raise refused(self.budget.where, f"a tensor has the size or offset {shown(value)}")
        return tuple(values)


def _shape(sizes: Sequence[int]) -> str:
    return "[" + ", ".join(str(size) for size in sizes) + "]"
