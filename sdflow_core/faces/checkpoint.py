"""Networks as safetensors bytes: tensors plus the configuration they were built from, nothing executable.

`save_model` gives the same bytes for the same weights, so the digest of a model is the sha256 of its file.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Protocol, cast

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load as _load_tensors
from safetensors.torch import save as _save_tensors
from torch import Tensor, nn

from sdflow_core.records.errors import ContractError


class NetworkConfig(BaseModel):
    """Numbers a network is built from; they travel in the file's metadata."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SavedNetwork(Protocol):
    """A module that `save_model` and `load_model` can handle."""

    kind: ClassVar[str]
    config: Any


def _registry() -> dict[str, Any]:
    # resolved on use: every network module imports this one
    from sdflow_core.faces import (
        attribute_classifier,
        encoder,
        generator,
        ir_se,
        iresnet,
        labeller,
        prior,
        resnet,
        style_encoder,
        unscored,
    )

    classes: list[Any] = [
        generator.Generator,
        encoder.Encoder,
        labeller.Labeller,
        labeller.JudgeNetwork,
        prior.Prior,
        resnet.ResNetScorer,
        style_encoder.StyleEncoder,
        ir_se.ArcFace,
        iresnet.IResNet,
        attribute_classifier.AttributeClassifier,
        unscored.Unscored,
    ]
    return {c.kind: c for c in classes}


def save_model(model: nn.Module, *, half: bool = False) -> bytes:
    """Serialise a network.

    Args:
        model: One of the networks of `sdflow_core.faces`.
        half: Store floating tensors as float16 (read back as float32). Halves the file; relative rounding
            is 2^-11.

    Returns:
        safetensors bytes with `kind` and `config` in the metadata.
    """
    saved = cast(Any, model)
    tensors: dict[str, Tensor] = {}
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        tensors[name] = value.half() if half and value.is_floating_point() else value
    meta = {
        "sdflow": json.dumps(
            {"kind": saved.kind, "config": saved.config.model_dump(mode="json")}, sort_keys=True
        )
    }
    return _save_tensors(tensors, metadata=meta)


def read_header(data: bytes) -> dict[str, Any]:
    """`{"kind", "config"}` of a file made by `save_model`.

    Raises:
        ContractError: Not such a file.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        return json.loads(header["__metadata__"]["sdflow"])
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(
            "not a model file of this project",
            expected="safetensors with an `sdflow` header",
            found=f"{len(data)} bytes",
        ) from error


def load_model(data: bytes, *, expect: str | None = None, device: str | torch.device = "cpu") -> Any:
    """Rebuild a network from `save_model`'s bytes, in evaluation mode, in float32, without gradients.

    Raises:
        ContractError: Unknown kind, another kind than `expect`, missing or unexpected tensors.
    """
    header = read_header(data)
    known = _registry()
    if header["kind"] not in known or (expect is not None and header["kind"] != expect):
        raise ContractError("model kind", expected=expect or sorted(known), found=header["kind"])
    cls = known[header["kind"]]
    model: nn.Module = cls(cls.Config(**header["config"]))
    try:
        tensors = _load_tensors(data)
    except SafetensorError as error:
        raise ContractError("damaged model file", found=str(error), todo="import the model again") from error
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    result = model.load_state_dict(tensors, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise ContractError(
            "tensors do not fit the model",
            expected=f"exactly the tensors of {header['kind']}",
            found=f"missing {result.missing_keys}, unexpected {result.unexpected_keys}",
        )
    return model.to(device).eval().requires_grad_(False)
