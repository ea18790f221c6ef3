"""Weight files of TensorFlow.js: a manifest in JSON, and the tensors one after the other in a binary file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdflow_core.records.errors import ContractError

_PLAIN = {"float32": "<f4", "int32": "<i4", "uint8": "|u1", "bool": "|u1"}
_QUANTISED = {"uint8": "|u1", "uint16": "<u2", "float16": "<f2"}


def read_tensors(manifest: Sequence[dict[str, Any]], data: bytes) -> dict[str, Tensor]:
    """Tensors of one group of a manifest.

    A quantised tensor holds whole numbers q that stand for `min + scale * q`; float16 stands for itself.

    Args:
        manifest: Entries with `name`, `shape`, `dtype` and, where quantised, `quantization`, in file order.
        data: The binary file (or its parts, joined).

    Returns:
        name -> float32 tensor in TensorFlow's layout.

    Raises:
        ContractError: An unknown type, or a file of another length than the manifest says.
    """
    tensors: dict[str, Tensor] = {}
    at = 0
    for entry in manifest:
        packing = entry.get("quantization")
        name, kinds = (packing or entry)["dtype"], _QUANTISED if packing else _PLAIN
        if name not in kinds:
            raise ContractError("weight file: type of a tensor", expected=sorted(kinds), found=name)
        kind, count = np.dtype(kinds[name]), math.prod(entry["shape"])
        end = at + count * kind.itemsize
        if end > len(data):
            raise ContractError(
                "weight file: too short",
                expected=f"at least {end} bytes",
                found=f"{len(data)} bytes",
                where=entry["name"],
            )
        values = np.frombuffer(data, kind, count, at).astype(np.float32)
        if packing and name != "float16":
            values = values * np.float32(packing["scale"]) + np.float32(packing["min"])
        tensors[entry["name"]] = torch.from_numpy(values.reshape(entry["shape"]))
        at = end
    if at != len(data):
        raise ContractError("weight file: too long", expected=f"{at} bytes", found=f"{len(data)} bytes")
    return tensors


def load_tensors(manifest: Path) -> dict[str, Tensor]:
    """Tensors named by a manifest file, or by a graph model that carries one; the data lie beside it.

    Raises:
        ContractError: No manifest in the file, or the data do not fit it.
    """
    content = json.loads(manifest.read_bytes())
    groups = content.get("weightsManifest", []) if isinstance(content, dict) else content
    if not groups:
        raise ContractError("weight file without a manifest", where=manifest.name)
    tensors: dict[str, Tensor] = {}
    for group in groups:
        # only names: a manifest must not lead out of its folder
        parts = [(manifest.parent / Path(path).name).read_bytes() for path in group["paths"]]
        tensors |= read_tensors(group["weights"], b"".join(parts))
    return tensors
