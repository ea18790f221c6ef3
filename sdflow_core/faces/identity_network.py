"""What the identity networks that users bring share: the face inside an aligned picture, and unit length.

They differ in how they are fed. IR-SE-50 takes [-1, 1]; iresnet50 was fed [0, 1] by those who published
figures with it (see `iresnet.IResNetConfig.unit_range`). Pictures come in as [-1, 1] always.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sdflow_core.records.errors import ContractError

Resize = Literal["pool", "bilinear"]

# The face in an FFHQ-aligned picture of 256 px, as every published identity figure of this family crops it:
# rows 35 to 223, columns 32 to 220.
_TOP, _LEFT, _SIDE, _OF = 35, 32, 188, 256


def face_of(images: Tensor, side: int, resize: Resize = "pool") -> Tensor:
    """Cut the face out of FFHQ-aligned pictures.

    Args:
        images: [B, 3, H, W], H = W, any size; the box of 256 px is scaled and rounded down.
        side: Pixels of the result.
        resize: `pool` averages whole areas (pSp, e4e, ReStyle); `bilinear` samples with aligned corners
            (SDFlow, AdaTrans).

    Returns:
        [B, 3, side, side], values as they came.

    Raises:
        ContractError: Not a batch of square RGB pictures.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ContractError("aligned pictures", expected="[B, 3, S, S]", found=list(images.shape))
    size = images.shape[2]
    top, left, width = (value * size // _OF for value in (_TOP, _LEFT, _SIDE))
    box = images[:, :, top : top + width, left : left + width]
    if resize == "pool":
        return F.adaptive_avg_pool2d(box, side)
    return F.interpolate(box, (side, side), mode="bilinear", align_corners=True)


class IdentityNetwork(nn.Module, ABC):
    """A face -> a direction; the cosine of two says how alike the persons are."""

    config: Any  # has `side` and `dimensions`

    @abstractmethod
    def describe(self, faces: Tensor) -> Tensor:
        """[B, 3, side, side] RGB in [-1, 1] -> [B, dimensions], of any length."""

    def embed(self, faces: Tensor) -> Tensor:
        """Describe faces that are cut out already.

        Args:
            faces: [B, 3, side, side] RGB in [-1, 1].

        Returns:
            [B, dimensions], rows of length 1.

        Raises:
            ContractError: Another shape.
        """
        side = self.config.side
        if faces.ndim != 4 or tuple(faces.shape[1:]) != (3, side, side):
            raise ContractError("identity input", expected=f"[B, 3, {side}, {side}]", found=list(faces.shape))
        return F.normalize(self.describe(faces), dim=1)

    def embed_aligned(self, images: Tensor, resize: Resize = "pool") -> Tensor:
        """`embed` of the faces in FFHQ-aligned pictures [B, 3, S, S] in [-1, 1]; see `face_of`."""
        return self.embed(face_of(images, self.config.side, resize))

    def forward(self, faces: Tensor) -> Tensor:
        """Alias of `embed`."""
        return self.embed(faces)
