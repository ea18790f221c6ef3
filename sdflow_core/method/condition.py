"""What the principal flow and the edit map are given of s: logits, bounded, continued by a straight line.

A labeller's scores pile up at 0 and 1, where differences of s say nothing and differences of the logit say a
lot. If s is a function of w, p(w | s) sits on level sets and a likelihood has no bound; the bound of the
logit and the noise that training adds to it (`TrainingConfig.s_noise`) keep it finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

EDGE = 0.02  # scores nearer to 0 or 1 count as this near
_HALF = 0.5
# d phi / d s beyond the edges: an aim of 1.35 (twice the way from 0.3 to 0.8, say) is one more unit
_BEYOND = 3.0


def features(s: Tensor) -> Tensor:
    """Attributes s [..., A] -> phi(s) [..., A], about unit variance among people.

    phi = logit(s) / 2 between the edges 0.02 and 0.98 (phi = -1.95 and 1.95); beyond them, where an edit asks
    for more than a score can say, a straight line of slope 3. Monotone and continuous; differentiable but at
    the edges.

    Example:
        >>> features(torch.tensor([0.5, 0.9, 2.0])).round(decimals=2)
        tensor([0.0000, 1.1000, 5.0100])
    """
    inner = s.clamp(EDGE, 1.0 - EDGE)
    return _HALF * torch.logit(inner) + _BEYOND * (s - inner)


def attributes_of(phi: Tensor) -> Tensor:
    """Inverse of `features`: phi [..., A] -> s [..., A].

    Example:
        >>> s = torch.tensor([-0.2, 0.02, 0.3, 0.98, 1.4])
        >>> bool(torch.allclose(attributes_of(features(s)), s, atol=1e-6))
        True
    """
    edge = _HALF * torch.logit(torch.tensor(1.0 - EDGE, dtype=phi.dtype, device=phi.device))
    inner = phi.clamp(-edge, edge)
    return torch.sigmoid(inner / _HALF) + (phi - inner) / _BEYOND
