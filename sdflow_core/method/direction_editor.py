"""An editor made of directions that somebody brought: how far to go is said along the direction.

A direction comes without a network that could say how much of it a picture has. Here s is therefore a place
on the direction and no score: before the edit it counts as 0, and what is asked for is how far to go, in
units of the file. GANSpace's components are different: they come with a mean and a spread, so that a code has
a place on each, and what is asked for is that place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdflow_core.faces.unscored import Unscored, UnscoredConfig
from sdflow_core.method.editor import EditedBatch, EditorBase, Prepared
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.records.errors import ContractError


class DirectionEditor(EditorBase):
    """Edits w' = w + amount * direction, the amount as it is asked for.

    Without `places` the amount is s' - s: with s = 0, as `encode_semantics` has it, targets of 1 and a
    strength of 3 move by three times the direction. With `places` what is asked for is a place: a row and
    direction with s' other than s goes to coordinate s', wherever it was.

    Args:
        directions: [A, L, D].
        attributes: A names.
        encoder_digest: Encoder of the codes.
        mean: [D], what coordinates are measured from; with `places` only.
        places: [A, D], so that (row 0 of w+ - mean) . places[a] is the coordinate of a code on direction a.

    Raises:
        ContractError: Shapes that do not fit together, values that are not finite, or a name twice.
    """

    kind = "direction_editor"

    def __init__(
        self,
        directions: Tensor,
        attributes: Sequence[str],
        encoder_digest: str,
        *,
        mean: Tensor | None = None,
        places: Tensor | None = None,
    ) -> None:
        names = tuple(attributes)
        found = [list(value.shape) for value in (directions, mean, places) if value is not None]
        fits = directions.ndim == 3 and len(directions) == len(names) == len(set(names)) > 0
        if fits and places is not None and mean is not None:
            fits = places.shape == (len(names), directions.shape[2]) and mean.shape == (directions.shape[2],)
        if not fits or (places is None) != (mean is None):
            raise ContractError(
                "directions of an editor",
                expected="[A, L, D] and A different names; mean [D] and places [A, D] both or neither",
                found=f"{found}, names {', '.join(names) or 'none'}",
            )
        for value in (directions, mean, places):
            if value is not None and not bool(torch.isfinite(value).all()):
                raise ContractError(
                    "directions of an editor", expected="finite numbers", found="NaN or infinity"
                )
        unscored = SemanticEncoder(Unscored(UnscoredConfig(attributes=names)))
        super().__init__(unscored, encoder_digest, directions.shape[1], directions.shape[2])
        self.directions = directions.detach()
        self.mean = None if mean is None else mean.detach()
        self.places = None if places is None else places.detach()

    def encode_semantics(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> zeros [B, A]: where the edit counts from; nothing is read from the pictures."""
        return torch.zeros(len(images), len(self.attributes), device=images.device)

    def coordinates(self, w_plus: Tensor) -> Tensor:
        """Places [B, A] of codes [B, L, D] on the directions, measured on row 0.

        Raises:
            ContractError: These directions have no places.
        """
        if self.places is None or self.mean is None:
            raise ContractError(
                "places on a direction",
                expected="components with mean and spread (GANSpace)",
                found="directions alone",
            )
        return (w_plus[:, 0] - self.mean.to(w_plus)) @ self.places.to(w_plus).T

    @torch.no_grad()
    def place(self, w_plus: Tensor, coordinates: Tensor) -> EditedBatch:
        """Bring codes [B, L, D] to coordinates [B, A]; NaN leaves a direction alone, 0 is the average.

        Raises:
            ContractError: Shapes that do not fit, or directions without places.
        """
        self.require(w_plus, torch.zeros(len(w_plus), len(self.attributes)))
        if coordinates.shape != (len(w_plus), len(self.attributes)):
            raise ContractError(
                "coordinates",
                expected=[len(w_plus), len(self.attributes)],
                found=list(coordinates.shape),
            )
        wanted = coordinates.to(w_plus)
        amount = torch.where(wanted.isnan(), 0.0, wanted - self.coordinates(w_plus))
        edited = self._moved(w_plus, amount)
        return EditedBatch(edited, w_plus, (edited - w_plus).flatten(1).norm(dim=1), 0)

    def prepare(self, w_plus: Tensor, s: Tensor) -> Prepared:
        """Nothing to compute but the checks.

        Raises:
            ContractError: Shapes that do not fit.
        """
        self.require(w_plus, s)
        return Prepared(w_plus, s, w_plus, w_plus, 0)

    def move(self, prepared: Prepared, s_after: Tensor) -> tuple[Tensor, int]:
        """See `EditorBase.move`."""
        w_plus, asked = prepared.w_plus, (s_after - prepared.s).to(prepared.w_plus)
        if self.places is not None:
            to_place = s_after.to(w_plus) - self.coordinates(w_plus)
            asked = torch.where(asked != 0, to_place, torch.zeros_like(asked))
        return self._moved(w_plus, asked), 0

    def to_bytes(self) -> bytes:
        """Directions, and what places are measured with, as safetensors."""
        tensors = {"directions": self.directions}
        if self.mean is not None and self.places is not None:
            tensors |= {"mean": self.mean, "places": self.places}
        return self.pack(tensors, {})

    def _moved(self, w_plus: Tensor, amount: Tensor) -> Tensor:
        return w_plus + torch.einsum("ba,ald->bld", amount, self.directions.to(w_plus))
