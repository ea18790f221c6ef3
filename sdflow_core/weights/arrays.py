"""Plain tensors: safetensors, `.npy` and `.npz`. A header is compared with the bytes that are there."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any, cast

import torch
from torch import Tensor

from sdflow_core.weights.bounds import Budget, refused, shown
from sdflow_core.weights.numpy_pickles import array
from sdflow_core.weights.storages import Storage
from sdflow_core.weights.zips import Archive

__all__ = ["read_npy", "read_npz", "read_safetensors"]

_HEADER = 4 * 2**20  # bytes; 2,000 tensors take a quarter of a megabyte
_NPY_HEADER = 4096
_NPZ_BYTES = 512 * 2**20  # inflated, all arrays of a file together
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# The form in which numpy itself writes a header: a Python literal, which is compared and never evaluated.
_NPY = re.compile(
    r"\{'descr': '([^']{1,16})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,15}, ?)*(?:\d{1,15})?)\), ?\}\s*"
)


def read_safetensors(data: memoryview, budget: Budget) -> dict[str, Any]:
    """Tensors by name, and the file's own notes under `__metadata__` where it has some.

    Raises:
        ContractError: Damaged, or a header that does not fit the bytes.
    """
    size = int.from_bytes(data[:8], "little")
    if size > min(_HEADER, len(data) - 8):
        raise refused(budget.where, f"a safetensors header that declares {size} bytes")
    try:
        header: Any = json.loads(bytes(data[8 : 8 + size]), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise refused(budget.where, f"a damaged safetensors header: {str(error)[:100]}") from error
    if not isinstance(header, dict):
        raise refused(budget.where, "a safetensors header that is no table")
    numbers = data[8 + size :]
    content: dict[str, Any] = {}
    spans: list[tuple[int, int]] = []
    for name, value in cast(dict[str, Any], header).items():
        if name == "__metadata__":
            if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
                raise refused(budget.where, "notes in the safetensors header that are no text")
            content[name] = value
            continue
        content[name], span = _tensor(name, value, numbers, budget)
        spans.append(span)
    spans.sort()
    if any(before[1] > after[0] for before, after in itertools.pairwise(spans)):
        raise refused(budget.where, "tensors that lie on top of each other")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name that is there twice")
    return made


def _tensor(name: str, value: Any, numbers: memoryview, budget: Budget) -> tuple[Tensor, tuple[int, int]]:
    try:
        dtype, shape, (start, end) = _DTYPES[value["dtype"]], value["shape"], value["data_offsets"]
        inside = 0 <= start <= end <= len(numbers)
    except (KeyError, TypeError, ValueError) as error:
        raise refused(budget.where, f"the tensor {shown(name)} is described in an unknown way") from error
    if not inside:
        raise refused(
            budget.where, f"the tensor {shown(name)} reaches outside of the {len(numbers)} bytes there are"
        )
    count, step = 1, 1
    strides: list[int] = []
    for axis in reversed(cast(list[Any], shape) if isinstance(shape, list) else [None]):
        if not isinstance(axis, int) or not 0 <= axis < 2**48 or len(strides) >= 16:
            raise refused(budget.where, f"the tensor {shown(name)} has a shape that is none")
        strides.append(step)
        count, step = count * axis, step * max(axis, 1)
    made = Storage(dtype, count, numbers[start:end], budget).view(0, shape, strides[::-1])
    assert made is not None
    return made, (start, end)


def read_npy(data: memoryview, budget: Budget) -> Tensor:
    """One array of numbers.

    Raises:
        ContractError: Objects (which numpy would unpickle), or a header that does not fit the bytes.
    """
    at, code, fortran, shape = _npy_header(data, budget)
    return array(data[at:], code, shape, fortran, budget)


def _npy_header(data: memoryview, budget: Budget) -> tuple[int, str, bool, tuple[int, ...]]:
    """Where the numbers begin, their type, whether the first axis varies fastest, and the shape."""
    if bytes(data[:6]) != b"\x93NUMPY" or len(data) < 12 or data[6] not in (1, 2, 3):
        raise refused(budget.where, "it is no numpy file")
    width = 2 if data[6] == 1 else 4
    size = int.from_bytes(data[8 : 8 + width], "little")
    if size > min(_NPY_HEADER, len(data) - 8 - width):
        raise refused(budget.where, f"a numpy header that declares {size} bytes")
    text = bytes(data[8 + width : 8 + width + size]).decode("latin-1")
    if (match := _NPY.fullmatch(text)) is None:
        raise refused(
            budget.where, f"an unknown numpy header: {shown(text)}", expected="one array of numbers"
        )
    shape = tuple(int(number) for number in re.findall(r"\d+", match[3]))
    return 8 + width + size, match[1].lstrip("<|="), match[2] == "True", shape


def read_npz(archive: Archive, budget: Budget) -> dict[str, Tensor]:
    """Arrays by name.

    Raises:
        ContractError: As for one array; too much once inflated.
    """
    total = sum(entry.size for entry in archive.entries.values())
    if total > _NPZ_BYTES:
        raise refused(budget.where, f"arrays that declare {total} bytes, more than {_NPZ_BYTES}")
    made: dict[str, Tensor] = {}
    for name, entry in archive.entries.items():
        if not name.endswith(".npy"):
            raise refused(budget.where, f"the member {shown(name)} is no array")
        at, code, fortran, shape = _npy_header(archive.opened(entry, _NPY_HEADER + 12), budget)
        data = archive.opened(entry, entry.size)
        budget.copied += entry.size
        budget.tensors += entry.size
        made[name.removesuffix(".npy")] = array(data[at:], code, shape, fortran, budget)
    return made
