"""Weight files of any origin as tensors and plain values. Nothing in a file is ever executed.

No part of Python's `pickle` and no `torch.load` is used: pickles are read by an interpreter of our own that
knows tensors and containers and refuses every other name (`weights.pickles`). Archives and headers are
checked before anything is allocated for them. Tensors are views of the mapped file, so a large file is not
held twice; do not write into a file while what was read from it is in use.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from sdflow_core.records.errors import ContractError
from sdflow_core.weights import arrays, torch_files, zips
from sdflow_core.weights.bounds import Budget, refused, shown
from sdflow_core.weights.pickles import Record
from sdflow_core.weights.resolving import resolved

__all__ = ["Record", "WeightFile", "plain_of", "read_weight_bytes", "read_weights", "tensors_of"]

# Where state dicts lie, in the order of preference: the averaged generator before the trained one.
_STATE_KEYS = ("g_ema", "params_ema", "state_dict", "model_state_dict", "model", "net", "params", "g")
_LEGACY = b"\x02\x8a\x0a" + torch_files.MAGIC.to_bytes(10, "little")  # protocol 2, a number of ten bytes
_KNOWN = (
    (b"version https://git-lfs", "it is a pointer of Git LFS, the weights themselves were not fetched"),
    (b"<", "it is a web page"),
    (b"PK", "it is an archive without members"),
    (b"\x1f\x8b", "it is compressed with gzip"),
    (b"c", "it may be a pickle of protocol 0, which no weight file is"),
    (b"(", "it may be a pickle of protocol 0, which no weight file is"),
)

_DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)

Container = Literal["torch", "pickle", "safetensors", "npy", "npz"]


@dataclass(frozen=True)
class WeightFile:
    """A weight file that was read.

    Attributes:
        path: Where it was.
        container: How it was written.
        sha256: Digest of its bytes.
        size: Bytes.
        content: Nested dicts, lists and tuples of `Tensor`, numbers, strings, bytes and None, and `Record`
            for the objects of NVIDIA's pickles. A safetensors file's own notes are under `__metadata__`.
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
        ContractError: Not a weight file, damaged, too large, or it holds more than tensors and plain values;
            the message names the file and the reason.
    """
    where = str(path)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for a writer
    except OSError as error:
        raise refused(where, f"it cannot be opened: {error.strerror}") from error
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise refused(where, "it is no regular file")
        if facts.st_size > limit:
            raise refused(where, f"it has {facts.st_size} bytes, more than {limit}")
        if facts.st_size < 8:
            raise refused(where, f"it has {facts.st_size} bytes")
        mapped = mmap.mmap(
            handle, 0, access=mmap.ACCESS_COPY
        )  # pages are loaded when used, and can be dropped
        container, content = _checked(memoryview(mapped), where)
        with open(handle, "rb", closefd=False) as stream:  # read, not mapped: the pages do not stay with us
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    finally:
        os.close(handle)
    return WeightFile(where, container, digest, facts.st_size, content)


def read_weight_bytes(data: bytes, where: str) -> WeightFile:
    """The same for a file that is in memory already.

    Args:
        data: The whole file; it is copied once.
        where: What to call it in messages.

    Raises:
        ContractError: As for `read_weights`.
    """
    if len(data) < 8:
        raise refused(where, f"it has {len(data)} bytes")
    container, content = _checked(memoryview(bytearray(data)), where)
    return WeightFile(where, container, hashlib.sha256(data).hexdigest(), len(data), content)


def tensors_of(content: Any, where: str | None = None) -> dict[str, Tensor]:
    """The state dict of what was read: bare, or under `g_ema`, `state_dict`, `G_ema` and the like.

    A leading `module.` of a data-parallel training is taken off. NVIDIA's records are named as their modules
    would name them (`mapping.fc0.weight`). A file that is one bare tensor has it under the name `tensor`.

    Args:
        content: Of a `WeightFile`.
        where: The file, for messages.

    Raises:
        ContractError: Two tensors have one name, or something else lies among the tensors of a state dict.
    """
    if isinstance(content, Tensor):
        return {"tensor": content}
    if isinstance(record := _network(content), Record):
        return _of_record(record)
    if not isinstance(content, dict):
        return {}
    table = cast(dict[Any, Any], content)
    key = _state_key(table)
    chosen = table if key is None else cast(dict[Any, Any], table[key])
    made: dict[str, Tensor] = {}
    for name, value in chosen.items():
        if not isinstance(value, Tensor):
            if key is None:
                continue
            raise ContractError(
                "not a state dict",
                expected=f"tensors by name under {key}",
                found=f"{shown(name)}: {shown(value)}",
                where=where,
            )
        short = str(name).removeprefix("module.")
        if short in made:
            raise ContractError("a tensor that is there twice", found=short, where=where)
        made[short] = value
    return made


def plain_of(content: Any) -> dict[str, Any]:
    """What lies beside the state dict: `latent_avg`, `opts`, `args`, `__metadata__`.

    Of NVIDIA's files it is the record of the network itself, under `G_ema`.
    """
    if isinstance(record := _network(content), Record):
        beside = cast(dict[str, Any], content) if isinstance(content, dict) else {}
        plain = {name: value for name, value in beside.items() if not isinstance(value, Record)}
        return plain | {"G_ema": record}
    if not isinstance(content, dict):
        return {}
    table = cast(dict[Any, Any], content)
    key = _state_key(table)
    return {
        str(name): value
        for name, value in table.items()
        if name != key and (key is not None or not isinstance(value, Tensor))
    }


def _state_key(table: Mapping[Any, Any]) -> str | None:
    """Under which name the state dict lies; None if the table is one itself."""
    for key in _STATE_KEYS:
        inner = table.get(key)
        if isinstance(inner, dict) and any(isinstance(v, Tensor) for v in cast(Any, inner).values()):
            return key
    return None


def _network(content: Any) -> Record | None:
    """The network of an NVIDIA pickle that is meant for use: the averaged generator."""
    if isinstance(content, Record):
        return content
    if isinstance(content, dict):
        found = cast(dict[str, Any], content).get("G_ema")
        return found if isinstance(found, Record) else None
    if isinstance(content, tuple) and len(cast(tuple[Any, ...], content)) == 3:  # (G, D, Gs) of TensorFlow
        found = cast(tuple[Any, ...], content)[2]
        return found if isinstance(found, Record) else None
    return None


def _of_record(record: Record, prefix: str = "") -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    variables = record.state.get("variables")  # TensorFlow's networks, and those inside of them
    for pair in cast(list[Any], variables if isinstance(variables, list) else []):
        if isinstance(pair, tuple) and len(cast(Any, pair)) == 2 and isinstance(pair[1], Tensor):
            made[f"{prefix}{pair[0]}"] = pair[1]
    for name, value in _table(record.state.get("components")).items():
        if isinstance(value, Record):
            made |= _of_record(value, f"{prefix}{name}/")
    for kind in ("_parameters", "_buffers"):
        for name, value in _table(record.state.get(kind)).items():
            if isinstance(value, Tensor):
                made[f"{prefix}{name}"] = value
    for name, value in _table(record.state.get("_modules")).items():
        if isinstance(value, Record):
            made |= _of_record(value, f"{prefix}{name}.")
    return made


def _table(value: Any) -> dict[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _checked(data: memoryview, where: str) -> tuple[Container, Any]:
    """What a file is and holds; whatever else goes wrong in damaged bytes is said in the same words."""
    try:
        return _read(data, Budget(where, len(data)))
    except _DAMAGE as error:
        raise refused(where, f"it is damaged: {type(error).__name__}: {str(error)[:100]}") from error


def _read(data: memoryview, budget: Budget) -> tuple[Container, Any]:
    start = bytes(data[:64])
    if start[:4] == b"PK\x03\x04":
        archive = zips.Archive(data, budget)
        if any(name.endswith(".npy") for name in archive.entries):
            return "npz", arrays.read_npz(archive, budget)
        if any(name.endswith("/constants.pkl") for name in archive.entries):
            raise refused(
                budget.where, "it is TorchScript, which is code", todo="save the state dict of the network"
            )
        return "torch", resolved(torch_files.read_zip(archive, budget), budget)
    if start[:6] == b"\x93NUMPY":
        return "npy", arrays.read_npy(data, budget)
    if start[0] == 0x80:
        if start[1:14] == _LEGACY:
            return "torch", resolved(torch_files.read_legacy(data, budget), budget)
        return "pickle", resolved(torch_files.read_pickle(data, budget), budget)
    if start[8:9] == b"{":
        return "safetensors", arrays.read_safetensors(data, budget)
    raise refused(
        budget.where,
        next((words for begin, words in _KNOWN if start.startswith(begin)), "it is of no known format")
        + f"; it begins with {shown(start[:16])}",
        expected="a file of torch.save, a pickle of NVIDIA's, safetensors, .npy or .npz",
    )
