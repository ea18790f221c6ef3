"""numpy's arrays and numbers inside of pickles, as tensors and plain numbers."""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from sdflow_core.weights.bounds import Budget, refused, shown
from sdflow_core.weights.pickles import Builder, Late
from sdflow_core.weights.storages import Storage

__all__ = ["DTYPES", "array", "builders"]

DTYPES: dict[str, torch.dtype] = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}


def array(data: memoryview, code: str, shape: Any, fortran: bool, budget: Budget) -> Tensor:
    """An array over its bytes.

    Args:
        data: The numbers, little-endian.
        code: numpy's letter and size, such as `f4`.
        shape: Of the array.
        fortran: Whether the first axis varies fastest.
        budget: What the file may still use.

    Raises:
        ContractError: Objects, text or another type that has no tensor; not as many bytes as the shape needs.
    """
    if code not in DTYPES:
        words = "an array of objects, which is a pickle inside of numpy" if code[:1] == "O" else None
        raise refused(
            budget.where, words or f"an array of type {shown(code)}", expected="an array of numbers"
        )
    if not isinstance(shape, tuple) or any(
        not isinstance(n, int) or n < 0 for n in cast(tuple[Any, ...], shape)
    ):
        raise refused(budget.where, "an array with a shape that is none")
    sizes = cast(tuple[int, ...], shape)
    steps: list[int] = []
    step = 1
    for size in sizes if fortran else reversed(sizes):
        steps.append(step)
        step *= max(size, 1)
    strides = tuple(steps if fortran else reversed(steps))
    made = Storage(DTYPES[code], math.prod(sizes), data, budget).view(0, sizes, strides)
    assert made is not None  # a storage with bytes always gives a tensor
    return made


class _Dtype(Late):
    """numpy.dtype: its code, and its byte order once the state is known."""

    def __init__(self, code: Any, budget: Budget) -> None:
        self.code, self.budget = str(code)[:8].lstrip("<=|"), budget

    def set(self, state: Any) -> None:
        """(version, order, subtype, names, fields, size, alignment, flags)."""
        if not isinstance(state, tuple) or any(
            part is not None for part in cast(tuple[Any, ...], state)[2:5]
        ):
            raise refused(self.budget.where, "an array of records")
        if cast(tuple[Any, ...], state)[1] not in ("<", "|", "="):
            raise refused(self.budget.where, "an array that is not little-endian")

    def value(self) -> str:
        """The code."""
        return self.code


class _Array(Late):
    """numpy.ndarray: empty until its state is known."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.tensor: Tensor | None = None

    def set(self, state: Any) -> None:
        """(version, shape, dtype, fortran, bytes)."""
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, memoryview):
            raise refused(self.budget.where, "an array of objects")
        self.tensor = array(data, dtype.code, shape, bool(fortran), self.budget)

    def value(self) -> Tensor:
        """The array."""
        if self.tensor is None:
            raise refused(self.budget.where, "an array without numbers")
        return self.tensor


def builders(budget: Budget) -> Mapping[tuple[str, str], Builder]:
    """What numpy's names make of their arguments; `numpy.core` is `numpy._core` since numpy 2."""

    def named(args: tuple[Any, ...]) -> Any:
        raise refused(budget.where, "it calls numpy.ndarray")

    def dtype(args: tuple[Any, ...]) -> _Dtype:
        if not isinstance(args[0], str):
            raise refused(budget.where, f"an array of type {shown(args[0])}")
        return _Dtype(args[0], budget)

    def scalar(args: tuple[Any, ...]) -> Any:
        kind, data = args
        if not isinstance(kind, _Dtype) or not isinstance(data, memoryview):
            raise refused(budget.where, "a numpy number that is an object")
        return array(data, kind.code, (), False, budget).item()

    def from_buffer(args: tuple[Any, ...]) -> Tensor:
        data, kind, shape, order = args
        if not isinstance(kind, _Dtype) or not isinstance(data, memoryview):
            raise refused(budget.where, "an array of objects")
        return array(data, kind.code, shape, order == "F", budget)

    def encoded(args: tuple[Any, ...]) -> memoryview:
        text, encoding = args
        if not isinstance(text, str) or encoding != "latin1":
            raise refused(budget.where, "text in an unexpected encoding")
        budget.spend("copied", len(text))
        return memoryview(bytearray(codecs.encode(text, "latin-1")))

    known: dict[tuple[str, str], Builder] = {
        ("numpy", "ndarray"): named,
        ("numpy", "dtype"): dtype,
        ("_codecs", "encode"): encoded,
    }
    for core in ("numpy.core", "numpy._core"):
        known[f"{core}.multiarray", "_reconstruct"] = lambda args: _Array(budget)
        known[f"{core}.multiarray", "scalar"] = scalar
        known[f"{core}.numeric", "_frombuffer"] = from_buffer
    return known
