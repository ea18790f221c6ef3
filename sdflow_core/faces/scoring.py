"""What networks that score pictures share: what may be asked of them, and the size they look at."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sdflow_core.records.errors import ContractError

__all__ = ["check_names", "sized"]


def check_names(asked: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Refuse names that a network does not know, a name twice, or none.

    Raises:
        ContractError: Naming them.
    """
    unknown = [name for name in asked if name not in known]
    if unknown or len(set(asked)) != len(asked) or not asked:
        raise ContractError(
            "attributes of a network",
            expected=f"some of {', '.join(known)}, each once",
            found=", ".join(unknown or asked) or "none",
        )


def sized(images: Tensor, side: int, what: str = "pictures to score") -> Tensor:
    """Pictures [B, 3, H, W], H = W, brought to [B, 3, side, side]; those of that size as they are.

    Raises:
        ContractError: Not a batch of square RGB pictures.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ContractError(what, expected="[B, 3, S, S], RGB and square", found=list(images.shape))
    if images.shape[2] == side:
        return images
    # antialiased as when a picture file is resized: otherwise a larger one would be sampled with holes
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)
