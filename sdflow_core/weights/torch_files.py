"""What `torch.save` writes, in its zip form and the older one, and the names a pickle of weights may use.

The older form is five pickles in a row and then the numbers: magic number, protocol, machine, the content, the
keys of the storages. Storages inside a larger pickle (NVIDIA's files) are files of that form themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

from sdflow_core.weights import numpy_pickles
from sdflow_core.weights.bounds import Budget, refused, shown
from sdflow_core.weights.pickles import Builder, Name, PickleReader, Record
from sdflow_core.weights.storages import STORAGES, Storage
from sdflow_core.weights.zips import Archive

__all__ = ["MAGIC", "builders", "read_legacy", "read_pickle", "read_zip"]

MAGIC = 0x1950A86A20F9469CFC6C  # first value of a file of the older form
_PROTOCOL = 1001
_DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)


def read_zip(archive: Archive, budget: Budget) -> Any:
    """The content of a zip file of `torch.save`.

    Raises:
        ContractError: Damaged, or more than tensors and plain values.
    """
    prefix = archive.folder_of("data.pkl")
    order = archive.entries.get(f"{prefix}byteorder")
    if order is not None and bytes(archive.stored(order)[:16]).strip() != b"little":
        raise refused(budget.where, "its numbers are not little-endian")

    @functools.cache
    def of(dtype_name: str, key: str, count: int) -> Storage:
        entry = archive.entries.get(f"{prefix}data/{key}")
        if entry is None:
            raise refused(budget.where, f"the numbers of storage {shown(key)} are missing")
        return Storage(STORAGES[dtype_name], count, archive.stored(entry), budget)

    def persistent(identity: Any) -> Storage:
        dtype_name, key, count, _ = _identity(identity, budget)
        return of(dtype_name, key, count)

    data = archive.stored(archive.entries[f"{prefix}data.pkl"])
    return PickleReader(data, budget, builders(budget, None), persistent).read()


def read_legacy(data: memoryview, budget: Budget) -> Any:
    """The content of a file in the older form of `torch.save`.

    Raises:
        ContractError: Damaged, or more than tensors and plain values.
    """
    names = builders(budget, None)

    def header(at: int) -> tuple[Any, int]:
        reader = PickleReader(data[at:], budget, {})
        return reader.read(), at + reader.at

    magic, at = header(0)
    protocol, at = header(at)
    machine, at = header(at)
    if magic != MAGIC or protocol != _PROTOCOL:
        raise refused(budget.where, "it begins like a file of torch.save, but of no known protocol")
    if not isinstance(machine, dict) or cast(dict[str, Any], machine).get("little_endian") is not True:
        raise refused(budget.where, "its numbers are not little-endian")

    declared: dict[str, Storage] = {}

    def register(identity: Any) -> Storage:
        dtype_name, key, count, part = _identity(identity, budget)
        storage = declared.setdefault(key, Storage(STORAGES[dtype_name], count, None, budget))
        return storage if part is None else storage.part(*part)

    # Once for the structure, because the numbers come after everything that refers to them; then with them.
    first = PickleReader(data[at:], budget, names, register)
    first.read()
    keys, behind = header(at + first.at)
    if not isinstance(keys, list) or sorted(map(str, cast(list[Any], keys))) != sorted(declared):
        raise refused(budget.where, "the keys of its storages are not those that its tensors ask for")
    filled: dict[str, Storage] = {}
    for key in cast(list[str], keys):
        storage = declared[key]
        size = storage.count * storage.dtype.itemsize
        counted = int.from_bytes(data[behind : behind + 8], "little")
        if counted != storage.count or size > len(data) - behind - 8:
            raise refused(
                budget.where,
                f"a tensor declares {storage.count} numbers where {counted} are announced and "
                f"{max(len(data) - behind - 8, 0)} bytes are left",
            )
        numbers = data[behind + 8 : behind + 8 + size]
        filled[key] = Storage(storage.dtype, storage.count, numbers, budget)
        behind += 8 + size

    def persistent(identity: Any) -> Storage:
        _, key, _, part = _identity(identity, budget)
        return filled[key] if part is None else filled[key].part(*part)

    return PickleReader(data[at:], budget, names, persistent).read()


def read_pickle(data: memoryview, budget: Budget) -> Any:
    """The content of a plain pickle: NVIDIA's networks, or arrays.

    Raises:
        ContractError: Damaged, or more than tensors, plain values and known records.
    """
    kept: dict[tuple[int, int], Any] = {}  # the same bytes asked for twice are read once

    def nested(piece: memoryview) -> Any:
        place = _address(piece), len(piece)
        if place not in kept:
            kept[place] = read_legacy(piece, budget)
        return kept[place]

    return PickleReader(data, budget, builders(budget, nested)).read()


def builders(budget: Budget, nested: Callable[[memoryview], Any] | None) -> Mapping[tuple[str, str], Builder]:
    """What every known name makes of its arguments.

    Args:
        budget: What the file may still use.
        nested: Reads a file of the older form inside of the pickle; None where none may be.
    """

    def tensor(args: tuple[Any, ...]) -> Tensor | None:
        storage, offset, shape, strides = args[:4]
        if not isinstance(storage, Storage) or len(args) > 7:
            raise refused(budget.where, "a tensor without numbers of its own")
        return storage.view(offset, shape, strides)

    def parameter(args: tuple[Any, ...]) -> Any:
        if not isinstance(args[0], Tensor) and args[0] is not None:
            raise refused(budget.where, f"a parameter that is {shown(args[0])}")
        return args[0]

    def named(args: tuple[Any, ...]) -> Any:
        raise refused(budget.where, "it calls a type of numbers")

    def size(args: tuple[Any, ...]) -> Any:
        return tuple(several(args))

    def several(args: tuple[Any, ...]) -> list[Any]:
        if not args:
            return []
        if not isinstance(args[0], list | tuple):
            raise refused(budget.where, f"a group of values made of {shown(args[0])}")
        values = cast("list[Any] | tuple[Any, ...]", args[0])
        budget.spend("values", len(values))
        return list(values)

    def pairs(args: tuple[Any, ...]) -> dict[Any, Any]:
        """A dict that is filled later, or from one list of pairs as Python 2 wrote it."""
        made: dict[Any, Any] = {}
        for key, value in several(args):
            if not isinstance(key, str):
                raise refused(budget.where, f"a dict with {shown(key)} as a key")
            made[key] = value
        return made

    def device(args: tuple[Any, ...]) -> str:
        return ":".join(str(part) for part in args[:2] if isinstance(part, str | int))

    def persistent_class(args: tuple[Any, ...]) -> Record:
        (meta,) = args
        kind, state = meta.get("class_name"), meta.get("state")
        if meta.get("type") != "class" or not isinstance(kind, str) or not isinstance(state, dict):
            raise refused(budget.where, "an object of NVIDIA's kind without class and state")
        # the source text of the class, `module_src`, goes no further
        return Record("torch_utils.persistence", kind, (), cast(dict[str, Any], state))

    def inside(args: tuple[Any, ...]) -> Any:
        (piece,) = args
        if nested is None or not isinstance(piece, memoryview):
            raise refused(budget.where, "numbers inside of numbers")
        return nested(piece)

    def empty_record(module: str, name: str) -> Builder:
        return lambda args: Record(module, name, args)

    known: dict[tuple[str, str], Builder] = {
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("torch.storage", "_load_from_bytes"): inside,
        ("torch", "Size"): size,
        ("torch", "device"): device,
        ("collections", "OrderedDict"): pairs,
        ("dnnlib.util", "EasyDict"): pairs,
        ("builtins", "dict"): pairs,
        ("builtins", "set"): several,
        ("__builtin__", "set"): several,
        ("builtins", "frozenset"): several,
        ("argparse", "Namespace"): empty_record("argparse", "Namespace"),
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): persistent_class,
        ("dnnlib.tflib.network", "Network"): empty_record("dnnlib.tflib.network", "Network"),
    }
    known |= {("torch", name): named for name in (*STORAGES, *_DTYPES)}
    return known | numpy_pickles.builders(budget)


def _identity(identity: Any, budget: Budget) -> tuple[str, str, int, tuple[int, int] | None]:
    """Dtype, key, count and part of a storage, as torch writes them into a pickle."""
    if not isinstance(identity, tuple) or not 5 <= len(cast(tuple[Any, ...], identity)) <= 6:
        raise refused(budget.where, "the pickle refers to something that is no storage of torch")
    word, kind, key, _, count, *rest = cast(tuple[Any, ...], identity)
    if (
        word != "storage"
        or not isinstance(kind, Name)
        or kind.module != "torch"
        or kind.name not in STORAGES
        or not isinstance(key, str)
        or not _is_count(count)
    ):
        raise refused(budget.where, "the pickle refers to something that is no storage of torch")
    part: tuple[int, int] | None = None
    if rest and rest[0] is not None:
        _, start, length = rest[0]
        if not _is_count(start) or not _is_count(length):
            raise refused(budget.where, "the pickle refers to something that is no part of a storage")
        part = start, length
    return kind.name, key, count, part


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _address(piece: memoryview) -> int:
    import numpy as np

    return int(np.frombuffer(piece, dtype=np.uint8).ctypes.data) if len(piece) else 0
