"""What an editor is: the protocol that stories rely on, its values, and the checks that all editors share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sdflow_core.faces.checkpoint import save_model
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.training_checks import check_score_values, require_finite_rows
from sdflow_core.records.errors import ContractError


@dataclass(frozen=True)
class EditedBatch:
    """Edited latents, same row order as the input."""

    w_plus: Tensor  # [B, L, D] edited
    source: Tensor  # [B, L, D] untouched input
    delta_norm: Tensor  # [B] ||w_plus - source||_2, in W+ units
    nfe: int  # evaluations of the field; 0 for linear editors


@dataclass(frozen=True)
class Prepared:
    """Codes with all that does not depend on the request; reused over strengths."""

    w_plus: Tensor  # [B, L, D]
    s: Tensor  # [B, A] before
    base: Tensor  # [B, L, D] z of a flow; w+ itself for linear editors
    decoded: Tensor  # [B, L, D] D(z, s); w+ itself for linear editors
    nfe: int

    def take(self, rows: Tensor) -> Prepared:
        """Some rows, in the order of the index tensor."""
        return Prepared(self.w_plus[rows], self.s[rows], self.base[rows], self.decoded[rows], self.nfe)


@runtime_checkable
class Editor(Protocol):
    """What stories need of an editor. s is [B, A] in [0, 1]; images are [B, 3, H, W] in [-1, 1]."""

    attributes: tuple[str, ...]
    encoder_digest: str

    def encode_semantics(self, images: Tensor) -> Tensor:
        """Images -> s."""
        ...

    def prepare(self, w_plus: Tensor, s: Tensor) -> Prepared:
        """The part of an edit that no request changes."""
        ...

    def apply(self, prepared: Prepared, targets: Tensor, strength: float | Tensor = 1.0) -> EditedBatch:
        """Edit prepared codes to s + strength * (targets - s)."""
        ...

    def edit(
        self,
        w_plus: Tensor,
        images: Tensor | None,
        s_before: Tensor | None,
        targets: Tensor,
        strength: float | Tensor = 1.0,
    ) -> EditedBatch:
        """`prepare` and `apply` in one; s is read from the images when `s_before` is None."""
        ...

    def check(
        self,
        encoder_digest: str,
        latents: tuple[int, int] | None = None,
        attributes: tuple[str, ...] | None = None,
    ) -> None:
        """Raise ContractError unless latents (L, D) of this encoder and these attributes can be edited."""
        ...

    def to_bytes(self) -> bytes:
        """The editor as a file; equal editors give equal bytes."""
        ...


class EditorBase:
    """Checks, and the two-step edit, shared by all editors."""

    kind: str

    def __init__(self, semantic_encoder: SemanticEncoder, encoder_digest: str, rows: int, dim: int) -> None:
        self.semantic_encoder = semantic_encoder.eval().requires_grad_(False)
        self.attributes: tuple[str, ...] = semantic_encoder.attributes
        self.encoder_digest, self.rows, self.dim = encoder_digest, rows, dim

    @torch.no_grad()
    def encode_semantics(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> s [B, A]."""
        return self.semantic_encoder(images)

    def prepare(self, w_plus: Tensor, s: Tensor) -> Prepared:
        """See `Editor.prepare`."""
        raise NotImplementedError

    def move(self, prepared: Prepared, s_after: Tensor) -> tuple[Tensor, int]:
        """Prepared codes at other attributes [B, A] -> (w+ [B, L, D], evaluations)."""
        raise NotImplementedError

    @torch.no_grad()
    def apply(self, prepared: Prepared, targets: Tensor, strength: float | Tensor = 1.0) -> EditedBatch:
        """Edit prepared codes.

        Args:
            prepared: From `prepare`.
            targets: Desired s [B, A]. Entries equal to `prepared.s` are left alone.
            strength: Scalar or [B]. s' = s + strength * (targets - s) is not clamped: > 1 extrapolates.

        Returns:
            The edit. A row with s' = s is exactly its input.

        Raises:
            ContractError: Targets or strengths of another shape or not finite; the row is named.
        """
        if targets.shape != prepared.s.shape:
            raise ContractError("edit targets", expected=list(prepared.s.shape), found=list(targets.shape))
        require_finite_rows("edit targets", targets)
        factor = torch.as_tensor(strength, dtype=prepared.s.dtype, device=prepared.s.device)
        if factor.ndim not in (0, 1) or (factor.ndim == 1 and len(factor) != len(targets)):
            raise ContractError(
                "edit strength", expected=f"a number or [{len(targets)}]", found=list(factor.shape)
            )
        require_finite_rows("edit strength", factor.reshape(-1, 1))
        step = factor.reshape(-1, 1) * (targets.to(prepared.s) - prepared.s)
        edited, nfe = self.move(prepared, prepared.s + step)
        changed = (step != 0).any(dim=1)[:, None, None]
        edited = torch.where(changed, edited, prepared.w_plus)
        delta = (edited - prepared.w_plus).flatten(1).norm(dim=1)
        return EditedBatch(edited, prepared.w_plus, delta, prepared.nfe + nfe)

    def edit(
        self,
        w_plus: Tensor,
        images: Tensor | None,
        s_before: Tensor | None,
        targets: Tensor,
        strength: float | Tensor = 1.0,
    ) -> EditedBatch:
        """Edit codes [B, L, D] to targets [B, A]; see `apply`.

        Raises:
            ContractError: Neither images nor `s_before` given, or shapes that do not fit.
        """
        if s_before is None:
            if images is None:
                raise ContractError(
                    "attributes before the edit", expected="s_before or images", found="neither"
                )
            s_before = self.encode_semantics(images)
        return self.apply(self.prepare(w_plus, s_before), targets, strength)

    def check(
        self,
        encoder_digest: str,
        latents: tuple[int, int] | None = None,
        attributes: tuple[str, ...] | None = None,
    ) -> None:
        """Refuse latents this editor was not trained for.

        Args:
            encoder_digest: Digest of the encoder that made the latents.
            latents: Their (L, D), when known.
            attributes: Attributes to be edited; each must be known here.

        Raises:
            ContractError: On any difference.
        """
        todo = "train an editor on these latents, or promote the bundle this editor belongs to"
        if encoder_digest != self.encoder_digest:
            raise ContractError(
                "latents of another encoder", expected=self.encoder_digest, found=encoder_digest, todo=todo
            )
        if latents is not None and tuple(latents) != (self.rows, self.dim):
            raise ContractError(
                "latents of another shape", expected=(self.rows, self.dim), found=tuple(latents), todo=todo
            )
        unknown = [name for name in attributes or () if name not in self.attributes]
        if unknown:
            raise ContractError(
                "unknown attribute",
                expected=self.attributes,
                found=unknown,
                todo="choose one of the expected",
            )

    def require(self, w_plus: Tensor, s: Tensor) -> None:
        """Raise ContractError unless codes [B, L, D] and s [B, A] fit this editor: the row is named."""
        if w_plus.ndim != 3 or tuple(w_plus.shape[1:]) != (self.rows, self.dim):
            raise ContractError(
                "latents do not fit the editor",
                expected=f"[B, {self.rows}, {self.dim}]",
                found=list(w_plus.shape),
                todo="use latents made by the encoder this editor was trained on",
            )
        if tuple(s.shape) != (len(w_plus), len(self.attributes)):
            raise ContractError(
                "attributes before the edit",
                expected=f"[{len(w_plus)}, {len(self.attributes)}]",
                found=list(s.shape),
            )
        require_finite_rows("latents to edit", w_plus)
        check_score_values(s, self.attributes, what="attributes before the edit")

    def pack(self, tensors: dict[str, Tensor], config: dict[str, Any]) -> bytes:
        """Tensors, semantic encoder and configuration as deterministic safetensors bytes."""
        network = save_model(self.semantic_encoder.network)
        inner = load_tensors(network)
        tensors = {**tensors, **{f"semantic.{name}": value for name, value in inner.items()}}
        document = {
            "kind": self.kind,
            "attributes": self.attributes,
            "rows": self.rows,
            "dim": self.dim,
            "encoder_digest": self.encoder_digest,
            "config": config,
            "semantic": file_metadata(network),
        }
        # a single metadata key: safetensors does not promise the order of several
        body = {name: value.detach().cpu().contiguous() for name, value in sorted(tensors.items())}
        return save_tensors(body, metadata={"sdflow": json.dumps(document, sort_keys=True)})


def file_metadata(data: bytes) -> dict[str, str]:
    """The metadata of safetensors bytes."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size])["__metadata__"]
