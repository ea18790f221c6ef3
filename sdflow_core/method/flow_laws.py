"""What all flows share, whatever their field: which codes fit, and the density of the base."""

from __future__ import annotations

import math

from torch import Tensor

from sdflow_core.records.errors import ContractError


def require_fit(codes: Tensor, s: Tensor, rows: int, dim: int, attributes: int) -> None:
    """Raise ContractError unless codes are [B, rows, dim] and s is [B, attributes]."""
    if codes.ndim != 3 or tuple(codes.shape[1:]) != (rows, dim):
        raise ContractError(
            "latents do not fit the flow",
            expected=f"[B, {rows}, {dim}]",
            found=list(codes.shape),
            todo="use latents made by the encoder this editor was trained on",
        )
    if tuple(s.shape) != (codes.shape[0], attributes):
        raise ContractError(
            "attributes do not fit the flow",
            expected=f"[{codes.shape[0]}, {attributes}]",
            found=list(s.shape),
        )


def base_log_density(z: Tensor) -> Tensor:
    """log N(z; 0, I) of whole codes [B, L, D] -> [B] in nats."""
    flat = z.flatten(1)
    return -0.5 * flat.square().sum(1) - 0.5 * flat.shape[1] * math.log(2 * math.pi)
