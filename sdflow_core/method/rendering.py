"""From a request to pictures: targets, strength search, rendering, metrics and gates, for a batch of rows."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdflow_core.faces.networks import Networks, count_call, to_uint8
from sdflow_core.method.editing import search_strength
from sdflow_core.method.editor import Editor
from sdflow_core.method.request import EditConfig, Target, Variant, check_variant

__all__ = [
    "DrawnEdits",
    "EditConfig",
    "RenderedEdits",
    "Target",
    "Variant",
    "check_variant",
    "draw_edits",
    "gate",
    "identities",
    "render_edits",
    "wanted_scores",
]

_NEAR_ENOUGH = 0.05  # a score so near the wanted one has reached it


@dataclass(frozen=True)
class DrawnEdits:
    """Edits of B rows as the networks of the device gave them, in the order of the input; not gated yet."""

    w_plus: Tensor  # [B, L, D]
    before: npt.NDArray[np.uint8]  # [B, H, W, 3] reconstructions
    after: npt.NDArray[np.uint8]  # [B, H, W, 3]
    s_before: Tensor  # [B, A] by the semantic encoder, attributes of the editor
    s_after: Tensor  # [B, A]
    labels_before: Tensor  # [B, K] by the labeller, on the reconstruction, all that it knows
    labels_after: Tensor
    judge_before: Tensor  # [B, K] by the judge: reported, never steering
    judge_after: Tensor
    strength: Tensor  # [B]
    reached: Tensor  # [B] bool, whether the target was reached
    drift: Tensor  # [B] mean change of the labels that were to stay


@dataclass(frozen=True)
class RenderedEdits(DrawnEdits):
    """Edits with their metrics and gates."""

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
    """Edit a batch of codes by one variant, and measure the edits: `draw_edits`, then `identities`, `gate`.

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
    drawn = draw_edits(networks, editor, w_plus, variant, config)
    identity = identities(networks, drawn.before, drawn.after, points)
    gates = [
        gate(bool(r), float(i), float(d), config)
        for r, i, d in zip(drawn.reached, identity, drawn.drift, strict=True)
    ]
    return RenderedEdits(
        **{item.name: getattr(drawn, item.name) for item in fields(drawn)}, identity=identity, gate=gates
    )


def draw_edits(
    networks: Networks, editor: Editor, w_plus: Tensor, variant: Variant, config: EditConfig
) -> DrawnEdits:
    """What the device does for a batch of edits. Identity and gates are left to other threads.

    Several attributes are edited one after another, each search starting from the codes of the one before.
    Arguments and errors: see `render_edits`.
    """
    attributes = networks.bundle.attributes
    check_variant(variant, editor.attributes)
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
            editor.attributes.index(name),
            wanted,
            networks.render,
            networks.scores,
            config.strengths,
            s_before=s,
            scores_before=labels,
            tolerance=1.0 - config.flip_to if variant.targets[name] == "flip" else _NEAR_ENOUGH,
            micro_batch=config.micro_batch,
            read=index,
        )
        count_call(networks.calls, "flow")
        codes, pictures, labels = found.edited.w_plus, found.images, found.scores
        s = networks.batched("semantic_encoder", editor.encode_semantics, pictures)
        strength = torch.maximum(strength, found.strength)
        # a picture on the wanted side of one half shows the attribute; the exact score is the search's aim,
        # not the gate's
        side = torch.where(wanted >= 0.5, labels[:, index] >= 0.5, labels[:, index] < 0.5)
        reached &= found.reached | side
    held = [i for i, name in enumerate(attributes) if name not in variant.targets]
    drift = (labels - labels_before).abs()[:, held].mean(1) if held else torch.zeros(len(labels))
    return DrawnEdits(
        w_plus=codes,
        before=to_uint8(reconstruction),
        after=to_uint8(pictures),
        s_before=s_before,
        s_after=s,
        labels_before=labels_before,
        labels_after=labels,
        judge_before=networks.judged(reconstruction),
        judge_after=networks.judged(pictures),
        strength=strength,
        reached=reached,
        drift=drift,
    )


def identities(
    networks: Networks,
    before: npt.NDArray[np.uint8],
    after: npt.NDArray[np.uint8],
    points: npt.NDArray[np.float64],
) -> npt.NDArray[np.float32]:
    """Cosines [B] of edits and reconstructions [B, H, W, 3] with points [B, 5, 2]; a row hangs on itself."""
    return (networks.embed(before, points) * networks.embed(after, points)).sum(1)


def gate(reached: bool, identity: float, drift: float, config: EditConfig) -> str:
    """Why a person has to look first; empty where nothing speaks against the edit."""
    if not reached:
        return "the edit did not reach its target at the greatest strength"
    if identity < config.min_identity:
        return f"identity {identity:.2f} below {config.min_identity:.2f}"
    if drift > config.max_other_change:
        return f"other attributes changed by {drift:.2f}, at most {config.max_other_change:.2f} allowed"
    return ""
