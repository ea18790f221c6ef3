"""Directions of the linear baseline, fitted on codes and scores."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from sdflow_core.records.errors import ContractError


def fit_linear(
    codes: Tensor,
    scores: Tensor,
    *,
    kind: Literal["class_mean", "logistic"] = "class_mean",
    project: bool = False,
) -> Tensor:
    """Directions of the linear baseline.

    Args:
        codes: w+ [N, L, D].
        scores: [N, A] in [0, 1]; a class is score > 0.5.
        kind: Difference of class means, or that difference seen along the normal of a regularised logistic
            regression.
        project: Remove from each direction its part in the span of the others, keeping its length.

    Returns:
        [A, L, D]: what to add to w+ to move an attribute from 0 to 1.

    Raises:
        ContractError: An attribute with only one class among the codes.
    """
    flat = codes.flatten(1).double()
    std, mean = torch.std_mean(flat, dim=0)
    std = std.clamp_min(1e-6)
    x = (flat - mean) / std
    directions: list[Tensor] = []
    for a in range(scores.shape[1]):
        present = scores[:, a] > 0.5
        if not bool(present.any()) or bool(present.all()):
            raise ContractError(
                "codes to fit a direction to", expected="both classes", found="one", where=f"attribute {a}"
            )
        difference = x[present].mean(0) - x[~present].mean(0)
        if kind == "logistic":
            normal = _logistic_normal(x, present.double())
            difference = normal * (normal @ difference)
        directions.append(difference)
    found = torch.stack(directions)  # [A, L*D], whitened
    if project and len(found) > 1:
        found = torch.stack([_without(found, a) for a in range(len(found))])
    return (found * std).float().unflatten(1, codes.shape[1:])


def _without(directions: Tensor, a: int) -> Tensor:
    """Direction a without its part in the span of the other directions, at its old length."""
    others = torch.cat([directions[:a], directions[a + 1 :]])
    basis = torch.linalg.qr(others.T).Q  # [L*D, A-1]
    rest = directions[a] - basis @ (basis.T @ directions[a])
    return rest * (directions[a].norm() / rest.norm().clamp_min(1e-12))


def _logistic_normal(x: Tensor, y: Tensor, ridge: float = 1e-2, iterations: int = 200) -> Tensor:
    """Unit normal [K] of a ridge logistic regression of y [N] in {0, 1} on whitened x [N, K]."""
    weight = torch.zeros(x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros((), dtype=x.dtype, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = x @ weight + bias
        value = nn.functional.binary_cross_entropy_with_logits(logits, y) + ridge * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        cast(Any, solver).step(loss)
    return weight.detach() / weight.detach().norm().clamp_min(1e-12)
