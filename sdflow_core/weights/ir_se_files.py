"""Sizes of an IR-SE backbone, from the shapes of its tensors: the encoders and ArcFace have it in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sdflow_core.weights.fitting import count_stages, numbers

__all__ = ["backbone_sizes"]


def backbone_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Sizes by the names of `ir_se.IrSeConfig`.

    A unit whose tensors are missing is counted as one of the stage before it: who fills the network then
    names them, instead of somebody guessing what else the file might be.

    Returns:
        The sizes; None where this is no backbone with squeeze-and-excitation.
    """
    stem = tensors.get("input_layer.0.weight")
    units = numbers(tensors, r"body\.(\d+)\.")
    narrow = next(
        (name for name in tensors if name.startswith("body.") and name.endswith(".res_layer.5.fc1.weight")),
        None,
    )
    if stem is None or stem.ndim != 4 or not units or narrow is None or tensors[narrow].ndim != 4:
        return None
    if units[-1] >= len(tensors):  # a number made up to cost memory
        return None
    depths: list[int] = []
    for i in range(units[-1] + 1):
        weight = tensors.get(f"body.{i}.res_layer.1.weight")
        depths.append(weight.shape[0] if weight is not None else (depths[-1] if depths else stem.shape[0]))
    widths, counts = count_stages(depths)
    squeezed, width = tensors[narrow].shape[:2]
    return {
        "input_channels": stem.shape[1],
        "stem": stem.shape[0],
        "widths": widths,
        "units": counts,
        "reduction": max(1, width // max(1, squeezed)),
    }
