"""What the reconstruction missed of a crop, carried over to where an edit changed little.

An encoder keeps a face and loses a mole, an ear-ring, the wall behind. crop - G(w) is what was lost. Where an
edit left the picture as it was, that residual is as true after as before; where it changed the picture, it
belongs to what is no longer there (teeth of a smile that is gone). So

    after = G(w') + m (crop - G(w)),    m = exp(-(c / SOFTNESS)^2),

c being the change |G(w') - G(w)| averaged over colours and smoothed. An edit that changes nothing is the
crop.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SOFTNESS", "carried", "changed_little"]

SOFTNESS = 0.06  # of the smoothed change, pictures in [-1, 1]: 8 of 255 levels
_SMOOTH = 1.0 / 32.0  # standard deviation of the smoothing, of the picture's width
_UNCHANGED = 0.5 / 255.0  # a smoothed change below a quarter of a level is none


def changed_little(before: Tensor, after: Tensor) -> Tensor:
    """The mask m: 1 where an edit changed nothing, towards 0 where it changed much.

    Args:
        before: G(w) [B, 3, H, W] in [-1, 1].
        after: G(w'), like `before`.

    Returns:
        [B, 1, H, W] in [0, 1].
    """
    change = (after - before).abs().mean(1, keepdim=True)
    smooth = _blurred(change)
    # what changes sharply at one point is a change there, however little its surroundings change
    change = (torch.maximum(smooth, change) - _UNCHANGED).clamp_min(0.0)
    return torch.exp(-((change / SOFTNESS) ** 2))


def carried(before: Tensor, after: Tensor, crop: Tensor) -> Tensor:
    """G(w') with the residual of the crop, [B, 3, H, W] in [-1, 1].

    Args:
        before: G(w) [B, 3, H, W] in [-1, 1].
        after: G(w'), like `before`.
        crop: What the code was made from, like `before`.

    Example:
        >>> picture, crop = torch.zeros(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
        >>> torch.equal(carried(picture, picture, crop), crop)
        True
    """
    return (after + changed_little(before, after) * (crop - before)).clamp(-1.0, 1.0)


def _blurred(values: Tensor) -> Tensor:
    """Gaussian blur of [B, 1, H, W], borders repeated; each row by itself."""
    sigma = max(values.shape[-1] * _SMOOTH, 0.5)
    reach = min(math.ceil(2.5 * sigma), values.shape[-1] - 1, values.shape[-2] - 1)
    x = torch.arange(-reach, reach + 1, dtype=values.dtype, device=values.device)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    wide = F.pad(values, (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(wide, kernel.view(1, 1, 1, -1))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1))
