"""Probabilities that mean what they say: slope and offset of the logits, fitted on people held out."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from sdflow_core.faces.labeller import AttributeNetwork
from sdflow_core.faces.pretraining.classifiers import predict_logits

__all__ = ["fit_calibration", "held_out"]

SHARE_PERCENT = 15  # of the people of each part
_FEWEST = 5  # labels of the rarer class; with fewer a fit would follow chance


def held_out(people: list[str]) -> npt.NDArray[np.bool_]:
    """Which rows show somebody kept for calibration: [N], by a hash of the name, so it never moves."""

    def kept(person: str) -> bool:
        return (
            int(hashlib.sha256(b"calibration " + person.encode()).hexdigest()[:8], 16) % 100 < SHARE_PERCENT
        )

    known = {person: kept(person) for person in set(people)}
    return np.array([known[person] for person in people], bool)


def fit_calibration(
    network: AttributeNetwork, images: npt.NDArray[np.uint8], scores: npt.NDArray[np.float32]
) -> dict[str, dict[str, float]]:
    """Fit and set slope and offset of each attribute; the order of the scores stays, so every AUC does.

    The network learned from soft labels; the fit asks for the probability that a label is above one half,
    in the mix of people there is, which also undoes the weights that rare attributes were drawn with.

    Args:
        network: Changed in place.
        images: uint8 [N, H, W, 3] of people it did not learn from.
        scores: [N, A] in [0, 1]; NaN rows of an attribute do not count.

    Returns:
        `{attribute: {"slope", "offset", "labels"}}`; an attribute with fewer than five labels of one class
        stays as trained.
    """
    count = len(network.attributes)
    network.calibrate(torch.ones(count), torch.zeros(count))
    raw = predict_logits(network, images)
    slopes, offsets = torch.ones(count), torch.zeros(count)
    out: dict[str, dict[str, float]] = {}
    for a, name in enumerate(network.attributes):
        known = ~np.isnan(scores[:, a])
        truth = scores[known, a] > 0.5
        if min(int(truth.sum()), int((~truth).sum())) >= _FEWEST:
            slopes[a], offsets[a] = _fit(raw[known, a], truth)
        out[name] = {
            "slope": round(float(slopes[a]), 4),
            "offset": round(float(offsets[a]), 4),
            "labels": int(known.sum()),
        }
    network.calibrate(slopes, offsets)
    return out


def _fit(logits: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]) -> tuple[float, float]:
    x, y = torch.from_numpy(logits).double(), torch.from_numpy(truth).double()
    free = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log of the slope, offset
    optimiser = torch.optim.LBFGS([free], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        fit = F.binary_cross_entropy_with_logits(x * free[0].exp() + free[1], y)
        # two classes that do not overlap would take the slope to infinity
        value = fit + (free[0].square() + 0.01 * free[1].square()) / len(x)
        value.backward()
        return value

    optimiser.step(loss)
    return float(free[0].detach().exp()), float(free[1].detach())
