"""ArcFace and its like as the gate's judge of identity: the same call as SFace's, on pictures and points."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from sdflow_core.faces.identity import to_template
from sdflow_core.faces.identity_network import IdentityNetwork


class BroughtIdentity:
    """An identity network of one's own behind the interface of `faces.identity.Identity`.

    Faces are brought to the template of ArcFace by their points, as these networks were trained; their side
    of 112 px is resized where a network was made smaller.

    Args:
        network: Takes faces [B, 3, side, side] in [-1, 1].
        device: Where it is.
    """

    def __init__(self, network: IdentityNetwork, device: str | torch.device = "cpu") -> None:
        self.network, self.device = network, device

    @property
    def dimensions(self) -> int:
        """F, length of an embedding."""
        return self.network.config.dimensions

    @torch.no_grad()
    def embed(self, images: NDArray[np.uint8], points: ArrayLike) -> NDArray[np.float32]:
        """Pictures uint8 [B, H, W, 3] and points [B, 5, 2] px -> [B, F] float32, rows of length 1.

        Each row depends on its own picture only: pictures are seen one at a time.

        Raises:
            ContractError: As `Identity.embed`.
        """
        faces = to_template(images, points)
        rows: list[NDArray[np.float32]] = []
        for face in faces:
            x = torch.from_numpy(face).permute(2, 0, 1)[None].float().to(self.device) / 127.5 - 1.0
            side = self.network.config.side
            if side != x.shape[2]:
                x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=True)
            rows.append(self.network.embed(x)[0].float().cpu().numpy())
        return np.stack(rows)
