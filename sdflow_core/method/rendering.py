"""From a request to pictures: targets, strength search, rendering, metrics and gates, for a batch of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdflow_core.faces.networks import Networks, to_uint8
from sdflow_core.method.editing import search_strength
from sdflow_core.method.editor import Editor
from sdflow_core.method.request import EditConfig, Target, Variant, check_variant

__all__ = [
    "EditConfig",
    "RenderedEdits",
    "Target",
    "Variant",
    "check_variant",
    "render_edits",
    "wanted_scores",
]


@dataclass(frozen=True)
class RenderedEdits:
    """Edits of B rows, in the order of the input."""

    w_plus: Tensor  # [B, L, D]
    before: npt.NDArray[np.uint8]  # [B, H, W, 3] reconstructions
    after: npt.NDArray[np.uint8]  # [B, H, W, 3]
    s_before: Tensor  # [B, A] by the semantic encoder
    s_after: Tensor  # [B, A]
    labels_before: Tensor  # [B, A] by the labeller, on the reconstruction
    labels_after: Tensor
    judge_before: Tensor  # [B, A] by the judge: reported, never steering
    judge_after: Tensor
    strength: Tensor  # [B]
    identity: npt.NDArray[np.float32]  # [B] cosine of edit and reconstruction
    gate: list[str]  # [B] "" or why a person has to look first


def wanted_scores(target: Target, before: Tensor, flip_to: float) -> Tensor:
    """Scores to reach [B], given the scores now [B]."""
    if target == "flip":
        return torch.where(before < 0.5, flip_to, 1.0 - flip_to)
    return torch.full_like(before, float(target))


def render_edits(
    networks: Networks,
    editor: Editor,
    w_plus: Tensor,
    points: npt.NDArray[np.float64],
    variant: Variant,
    config: EditConfig,
) -> RenderedEdits:
    """Edit a batch of codes by one variant.

    Several attributes are edited one after another, each search starting from the codes of the one before.

    Args:
        networks: Of the editor's bundle.
        editor: Flow or baseline.
        w_plus: [B, L, D].
        points: [B, 5, 2] facial points in px of the crop, for the identity gate.
        variant: The request.
        config: Strengths and gates.

    Raises:
        ContractError: An unknown attribute, or codes that do not fit.
    """
    attributes = editor.attributes
    check_variant(variant, attributes)
    reconstruction = networks.render(w_plus)
    labels_before = networks.scores(reconstruction)
    s_before = networks.batched("semantic_encoder", editor.encode_semantics, reconstruction)
    codes, pictures, labels, s = w_plus, reconstruction, labels_before, s_before
    strength = torch.zeros(len(w_plus))
    reached = torch.ones(len(w_plus), dtype=torch.bool)
    for name in sorted(variant.targets):
        index = attributes.index(name)
        wanted = wanted_scores(variant.targets[name], labels_before[:, index], config.flip_to)
        found = search_strength(
            editor,
            codes,
            None,
            index,
            wanted,
            networks.render,
            networks.scores,
            config.strengths,
            s_before=s,
            scores_before=labels,
            micro_batch=config.micro_batch,
        )
        networks.calls["flow"] += 1
        codes, pictures, labels = found.edited.w_plus, found.images, found.scores
        s = networks.batched("semantic_encoder", editor.encode_semantics, pictures)
        strength = torch.maximum(strength, found.strength)
        # a picture on the wanted side of one half shows the attribute; the exact score is the search's aim,
        # not the gate's
        side = torch.where(wanted >= 0.5, labels[:, index] >= 0.5, labels[:, index] < 0.5)
        reached &= found.reached | side
    before, after = to_uint8(reconstruction), to_uint8(pictures)
    identity = (networks.embed(before, points) * networks.embed(after, points)).sum(1)
    held = [i for i, name in enumerate(attributes) if name not in variant.targets]
    drift = (labels - labels_before).abs()[:, held].mean(1) if held else torch.zeros(len(labels))
    return RenderedEdits(
        codes,
        before,
        after,
        s_before,
        s,
        labels_before,
        labels,
        networks.judged(reconstruction),
        networks.judged(pictures),
        strength,
        identity,
        [
            _gate(bool(r), float(i), float(d), config)
            for r, i, d in zip(reached, identity, drift, strict=True)
        ],
    )


def _gate(reached: bool, identity: float, drift: float, config: EditConfig) -> str:
    if not reached:
        return "the edit did not reach its target at the greatest strength"
    if identity < config.min_identity:
        return f"identity {identity:.2f} below {config.min_identity:.2f}"
    if drift > config.max_other_change:
        return f"other attributes changed by {drift:.2f}, at most {config.max_other_change:.2f} allowed"
    return ""
