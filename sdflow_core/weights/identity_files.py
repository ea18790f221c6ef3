"""Files of identity networks: ArcFace IR-SE-50 (`model_ir_se50.pth`) and insightface's iresnet.

Both are bare state dicts. Sizes are told from shapes. Plain IR networks without squeeze-and-excitation
(CurricularFace) are recognised and refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from sdflow_core.faces.ir_se import ArcFace, ArcFaceConfig
from sdflow_core.faces.iresnet import IResNet, IResNetConfig
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.describing import Described
from sdflow_core.weights.fitting import count_parameters, fill, numbers
from sdflow_core.weights.ir_se_files import backbone_sizes

__all__ = ["load", "recognise"]

_LICENCE_IR_SE = (
    "the code that published this network is MIT; the file says nothing of its weights, and the photographs "
    "on which such networks are trained were collected for research"
)
_LICENCE_IRESNET = (
    "insightface publishes its weights for non-commercial research; the file itself says nothing"
)
_IRESNETS = {(3, 4, 6, 3): 34, (3, 4, 14, 3): 50, (3, 13, 30, 3): 100}
_NO_SQUEEZE = (
    "an IR network without squeeze-and-excitation (CurricularFace and its kin): only IR-SE and iresnet are "
    "read"
)


def recognise(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Described | None:
    """Tell an identity network from names and shapes; works on `meta` tensors.

    Returns:
        What it is, or None for something else. `resolution` is the side of the face that it takes.
    """
    del plain
    if _is_plain_ir(tensors):
        notes = ("refused: " + _NO_SQUEEZE,)
        return Described(
            kind="identity",
            family="ir",
            parameters=count_parameters(tensors),
            notes=notes,
            licence=_LICENCE_IR_SE,
        )
    sizes = _ir_se_sizes(tensors)
    if sizes is not None:
        depth = 2 * sum(sizes["units"]) + 2
        return Described(
            kind="identity",
            family=f"ir-se-{depth}",
            resolution=sizes["side"],
            depth=depth,
            parameters=count_parameters(tensors),
            notes=("takes the face in [-1, 1]",),
            licence=_LICENCE_IR_SE,
        )
    sizes = _iresnet_sizes(tensors)
    if sizes is None:
        return None
    depth = _IRESNETS.get(sizes["units"])
    return Described(
        kind="identity",
        family=f"iresnet{depth or ''}",
        resolution=sizes["side"],
        depth=depth,
        parameters=count_parameters(tensors),
        notes=("fed [0, 1], as the original method feeds it; pictures are still given in [-1, 1]",),
        licence=_LICENCE_IRESNET,
    )


def load(
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    *,
    unit_range: bool = True,
    where: str = "the file",
) -> ArcFace | IResNet:
    """Make the identity network of a file.

    Args:
        tensors: The state dict.
        plain: What lies beside it; nothing is read from it.
        unit_range: Feed iresnet [0, 1] instead of [-1, 1], see `iresnet.IResNetConfig`. IR-SE is always fed
            [-1, 1].
        where: The file, for messages.

    Returns:
        The network in evaluation mode, without gradients.

    Raises:
        ContractError: Not such a file, or every tensor that is missing, unexpected, of another shape or not
            finite.
    """
    del plain
    if _is_plain_ir(tensors):
        raise ContractError(
            _NO_SQUEEZE, expected="body.*.res_layer.5.fc1", found="no such tensor", where=where
        )
    squeezed, plain_sizes = _ir_se_sizes(tensors), _iresnet_sizes(tensors)
    sizes = squeezed or plain_sizes
    if sizes is None:
        raise ContractError(
            "not an identity network",
            expected="IR-SE (body.*, output_layer.*) or iresnet (layer1.*, fc.*, features.*)",
            found=", ".join(list(tensors)[:8]) or "no tensors",
            where=where,
        )
    try:
        with torch.device("meta"):
            network = (
                ArcFace(ArcFaceConfig(**sizes))
                if squeezed
                else IResNet(IResNetConfig(**sizes, unit_range=unit_range))
            )
    except ValidationError as error:
        raise ContractError(
            "an identity network of sizes that do not go together", found=f"{sizes}: {error}", where=where
        ) from error
    fill(network, tensors, what=type(network).__name__, where=where)
    return network


def _is_plain_ir(tensors: Mapping[str, Tensor]) -> bool:
    return (
        "input_layer.0.weight" in tensors
        and any(name.startswith("body.") for name in tensors)
        and not any(name.endswith(".fc1.weight") for name in tensors)
    )


def _ir_se_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    sizes, head = backbone_sizes(tensors), tensors.get("output_layer.3.weight")
    if sizes is None or head is None or head.ndim != 2:
        return None
    small = math.isqrt(max(1, head.shape[1] // sizes["widths"][-1]))
    return {**sizes, "side": small * 2 ** len(sizes["widths"]), "dimensions": head.shape[0]}


def _iresnet_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    stem, head = tensors.get("conv1.weight"), tensors.get("fc.weight")
    widths = [tensors.get(f"layer{stage}.0.conv1.weight") for stage in range(1, 5)]
    if "features.weight" not in tensors or "layer1.0.prelu.weight" not in tensors:
        return None  # a ResNet of torchvision has neither
    if stem is None or head is None or head.ndim != 2 or any(weight is None for weight in widths):
        return None
    channels = tuple(weight.shape[0] for weight in widths if weight is not None)
    units = tuple(numbers(tensors, rf"layer{stage}\.(\d+)\.")[-1] + 1 for stage in range(1, 5))
    if max(units) > len(tensors) or not channels[-1]:  # a number made up to cost memory
        return None
    small = math.isqrt(max(1, head.shape[1] // channels[-1]))
    return {
        "stem": stem.shape[0],
        "widths": channels,
        "units": units,
        "side": small * 2 ** len(channels),
        "dimensions": head.shape[0],
    }
