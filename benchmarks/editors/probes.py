"""What a probe still reads of an attribute from codes or from z: the area under the ROC curve, held-out rows.

.5 is nothing, 1 is everything. Beside the linear probe a small network is asked: mean and covariance can hide
from the first what the second finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdflow_core.faces.pretraining.classifiers import auc
from sdflow_core.records.errors import ContractError

ProbeKind = Literal["linear", "mlp"]
KINDS: tuple[ProbeKind, ...] = ("linear", "mlp")
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_HIDDEN = 256
_BATCH, _RATE, _DECAY = 256, 1e-3, 1e-2
_EPOCHS, _PATIENCE = 40, 5


def probe_auc(features: Tensor, labels: Tensor, kind: ProbeKind = "linear", seed: int = 0) -> float:
    """Teach a probe on six tenths of the rows, choose by one tenth, judge on the other three.

    The parts are told apart by the last digit of the row number (7, 8, 9: judged on; 6: chosen by), so that
    sets that lie one after the other are in all parts. Features are standardised by the rows of the first
    two parts. `linear` is a logistic regression whose ridge is chosen, `mlp` has two hidden layers of 256 and
    stops where the choosing part is read best.

    Args:
        features: [N, ...], flattened to [N, K].
        labels: bool [N].
        kind: Which probe.
        seed: Of the network's weights and batches; the linear probe draws nothing.

    Returns:
        AUC on held-out rows. Below .5 by chance only: nothing is turned round.

    Raises:
        ContractError: Not one label a row, values that are not finite, or a part with one class only.

    Example:
        >>> x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        >>> probe_auc(x, x[:, 1] > 0) > 0.99
        True
    """
    x, y = features.detach().flatten(1).float(), labels.bool()
    if x.ndim != 2 or y.shape != (len(x),) or not bool(torch.isfinite(x).all()):
        raise ContractError(
            "what a probe reads",
            expected="finite features [N, K], one label a row",
            found=f"{list(features.shape)} and {list(labels.shape)}",
        )
    digit = torch.arange(len(x)) % 10
    parts = {"taught": digit < 6, "choosing": digit == 6, "judged": digit > 6}
    for name, rows in parts.items():
        if not bool(y[rows].any()) or bool(y[rows].all()):
            raise ContractError(
                "labels of a probe", expected="both classes", found="one", where=f"{name} part"
            )
    known = ~parts["judged"]
    std, mean = torch.std_mean(x[known], dim=0)
    x = (x - mean) / std.clamp_min(1e-6)
    taught, chosen = (x[parts["taught"]], y[parts["taught"]]), (x[parts["choosing"]], y[parts["choosing"]])
    if kind == "linear":
        weight, bias = max(
            (_logistic(*taught, ridge) for ridge in _RIDGES),
            key=lambda fit: _auc(_line(chosen[0], fit), chosen[1]),
        )
        return _auc(x[parts["judged"]] @ weight + bias, y[parts["judged"]])
    network = _network(taught, chosen, seed)
    with torch.no_grad():
        return _auc(network(x[parts["judged"]])[:, 0], y[parts["judged"]])


def probe_table(
    features: Mapping[str, Tensor],
    scores: Tensor,
    attributes: Sequence[str],
    kinds: Sequence[ProbeKind] = KINDS,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """`probe_auc` of every attribute (score > 0.5) from each kind of features.

    Args:
        features: Name (such as "z" or "w") -> [N, ...].
        scores: [N, A] in [0, 1].
        attributes: A names.
        kinds: Probes to ask.
        seed: See `probe_auc`.

    Returns:
        Name -> probe -> attribute -> AUC.
    """
    return {
        name: {
            kind: {a: probe_auc(rows, scores[:, i] > 0.5, kind, seed) for i, a in enumerate(attributes)}
            for kind in kinds
        }
        for name, rows in features.items()
    }


def _auc(values: Tensor, labels: Tensor) -> float:
    return auc(values.numpy().astype(np.float32), labels.numpy())


def _line(x: Tensor, fit: tuple[Tensor, Tensor]) -> Tensor:
    return x @ fit[0] + fit[1]


def _logistic(x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights [K] and bias [] of a ridge logistic regression."""
    weight = torch.zeros(x.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")
    target = y.float()

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.binary_cross_entropy_with_logits(x @ weight + bias, target) + ridge * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        cast(Any, solver).step(loss)
    return weight.detach(), bias.detach()


def _network(taught: tuple[Tensor, Tensor], chosen: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    """Two hidden layers, stopped where the choosing part is read best."""
    x, y = taught[0], taught[1].float()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = nn.Sequential(
            *(nn.Linear(x.shape[1], _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU()),
            nn.Linear(_HIDDEN, 1),
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
        best, kept, since = -1.0, {k: v.clone() for k, v in network.state_dict().items()}, 0
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(x)).split(_BATCH):
                optimizer.zero_grad(set_to_none=True)
                F.binary_cross_entropy_with_logits(network(x[rows])[:, 0], y[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                read = _auc(network(chosen[0])[:, 0], chosen[1])
            if read > best:
                best, kept, since = read, {k: v.clone() for k, v in network.state_dict().items()}, 0
            else:
                since += 1
            if since >= _PATIENCE:
                break
    network.load_state_dict(kept)
    return network.eval()
