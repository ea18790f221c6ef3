"""From requests to pictures: start, search, metrics, gates and retries with less strength, for many rows.

Three steps, so that identity may be computed beside the device: `begin` does once for each code what all its
edits share, `draw_edits` searches, and after `identities` has looked, `draw_again` tries those that a gate
holds back with less strength. `render_edits` is all of it in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdflow_core.faces.networks import Networks, count_call, to_tensor, to_uint8
from sdflow_core.method.aiming import Aims, aim, aims_of, strength_of
from sdflow_core.method.condition import features
from sdflow_core.method.drawing import Look, draw_at, prepare_each
from sdflow_core.method.editor import Editor, Prepared
from sdflow_core.method.request import EditConfig, Target, Variant, check_variant
from sdflow_core.method.residual import carried

__all__ = [
    "Begun",
    "DrawnEdits",
    "EditConfig",
    "RenderedEdits",
    "Target",
    "Variant",
    "begin",
    "check_variant",
    "draw_again",
    "draw_edits",
    "gate",
    "identities",
    "render_edits",
]

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Begun:
    """What all edits of N codes share; rows in the order of the codes."""

    prepared: Prepared
    reconstruction: Tensor  # [N, 3, H, W] G(w)
    crops: Tensor | None  # [N, 3, H, W], where the residual is carried over
    images: Tensor  # [N, 3, H, W] what edits start from: the crop where it is carried over, else G(w)
    labels: Tensor  # [N, K] of these images, by the labeller
    judged: Tensor  # [N, K]
    lost: tuple[str, ...]  # [N] "" or why there is nothing to edit


@dataclass(frozen=True)
class DrawnEdits:
    """Edits of B rows as the networks of the device gave them, in the order of the input; not gated yet."""

    rows: Tensor  # [B] which codes of `begun`
    aims: Aims
    phi: Tensor  # [B, A] float64, phi(s') that was asked of the editor
    w_plus: Tensor  # [B, L, D]
    before: Pixels  # [B, H, W, 3] what the edits start from
    after: Pixels  # [B, H, W, 3]
    s_before: Tensor  # [B, A] by the semantic encoder, attributes of the editor
    s_after: Tensor  # [B, A]
    labels_before: Tensor  # [B, K] by the labeller, all that it knows
    labels_after: Tensor
    judge_before: Tensor  # [B, K] by the judge: reported, never steering
    judge_after: Tensor
    strength: Tensor  # [B] see `aiming.strength_of`
    tries: Tensor  # [B] renderings of the row
    reached: Tensor  # [B] bool, whether what is shown passes for what was asked
    capped: Tensor  # [B] bool, whether the search ended at the greatest distance
    drift: Tensor  # [B] mean change of the labels that were to stay
    lost: tuple[str, ...]  # [B] "" or why there is no edit


@dataclass(frozen=True)
class RenderedEdits(DrawnEdits):
    """Edits with their metrics and gates."""

    identity: npt.NDArray[np.float32]  # [B] cosine of edit and what it starts from
    gate: list[str]  # [B] "" or why a person has to look first


def render_edits(
    networks: Networks,
    editor: Editor,
    w_plus: Tensor,
    points: npt.NDArray[np.float64],
    variant: Variant,
    config: EditConfig,
    crops: Pixels | None = None,
    reconstruction_db: npt.NDArray[np.float32] | None = None,
) -> RenderedEdits:
    """Edit a batch of codes by one variant, measure the edits, and retry what a gate holds back.

    Args:
        networks: Of the editor's bundle.
        editor: Any.
        w_plus: [B, L, D].
        points: [B, 5, 2] facial points in px of the crop, for the identity gate.
        variant: The request.
        config: How it is carried out.
        crops: [B, H, W, 3] what the codes were made from; needed to carry the residual over.
        reconstruction_db: [B] PSNR of the reconstructions against the crops, for its gate.

    Raises:
        ContractError: An unknown attribute, or codes that do not fit.
    """
    check_variant(variant, editor.attributes)
    begun = begin(networks, editor, w_plus, config, crops)
    drawn = draw_edits(networks, editor, begun, [variant] * len(w_plus), torch.arange(len(w_plus)), config)
    identity = identities(networks, drawn.before, drawn.after, points)
    drawn, identity = draw_again(networks, editor, begun, drawn, identity, points, config)
    known = reconstruction_db if reconstruction_db is not None else np.full(len(w_plus), np.nan, np.float32)
    gates = [gate(drawn, i, float(identity[i]), float(known[i]), config) for i in range(len(w_plus))]
    return RenderedEdits(**vars(drawn), identity=identity, gate=gates)


def begin(
    networks: Networks, editor: Editor, w_plus: Tensor, config: EditConfig, crops: Pixels | None = None
) -> Begun:
    """Once for each code [N, L, D]: picture, scores, s, and what the editor prepares. See `render_edits`.

    Codes that are not finite, or whose numbers are all the same, are named in `lost` and prepared as zeros,
    so that a micro-batch keeps its size; nobody is shown what becomes of them. So are those with which the
    editor's solver does not get through.
    """
    flat = w_plus.flatten(1)
    finite = torch.isfinite(flat).all(1)
    constant = finite & (flat.amax(1) == flat.amin(1))
    codes = torch.where((finite & ~constant)[:, None, None], w_plus, 0.0)
    reconstruction = networks.render(codes)
    drawn = torch.isfinite(reconstruction).flatten(1).all(1)
    reconstruction = torch.where(drawn[:, None, None, None], reconstruction, 0.0)
    s = networks.batched("semantic_encoder", editor.encode_semantics, reconstruction)
    readable = torch.isfinite(s).all(1)
    s = torch.where(readable[:, None], s, 0.5)
    prepared, diverged = prepare_each(editor, codes, s, config.micro_batch)
    count_call(networks.calls, "flow", -(-len(codes) // config.micro_batch))
    whole = to_tensor(crops) if crops is not None and config.carry_residual else None
    images = reconstruction if whole is None else whole
    lost = tuple(
        "the latent holds numbers that are not finite"
        if not ok
        else "the latent is constant: no encoder gives such a code"
        if flat_
        else ""
        if seen and row not in diverged
        else "the reconstruction holds numbers that are not finite"
        if not seen
        else f"the editor's solver gives no z for this latent: {diverged[row]}"
        for row, (ok, flat_, seen) in enumerate(zip(finite, constant, drawn & readable, strict=True))
    )
    return Begun(
        prepared=prepared,
        reconstruction=reconstruction,
        crops=whole,
        images=images,
        labels=networks.scores(images),
        judged=networks.judged(images),
        lost=lost,
    )


def draw_edits(
    networks: Networks,
    editor: Editor,
    begun: Begun,
    variants: Sequence[Variant],
    rows: Tensor,
    config: EditConfig,
) -> DrawnEdits:
    """What the device does for a batch of edits. Identity and gates are left to other threads.

    Args:
        networks: Of the editor's bundle.
        editor: Any.
        begun: What edits of one code share.
        variants: B requests; the attributes of one are edited together.
        rows: [B] which code each of them is about.
        config: How they are carried out.
    """
    columns = _columns(networks, editor)
    labels_before = begun.labels[rows]
    aims = aims_of(variants, editor.attributes, labels_before[:, columns], config)
    prepared, before = begun.prepared.take(rows), begun.images[rows]
    look, gone = _look(networks, begun, rows), [bool(begun.lost[int(row)]) for row in rows]
    found = aim(editor, prepared, before, labels_before, aims, columns, look, config, gone)
    lost = tuple(
        begun.lost[int(row)]
        or ("" if ok else "the edit gave numbers that are not finite" + (why and f": {why}"))
        for row, ok, why in zip(rows, found.finite, found.why, strict=True)
    )
    count_call(networks.calls, "flow", -(-int(found.tries.sum()) // config.micro_batch))
    return DrawnEdits(
        rows=rows,
        aims=aims,
        phi=found.phi,
        w_plus=found.w_plus,
        before=to_uint8(before),
        after=to_uint8(found.images),
        s_before=prepared.s,
        s_after=networks.batched("semantic_encoder", editor.encode_semantics, found.images),
        labels_before=labels_before,
        labels_after=found.scores,
        judge_before=begun.judged[rows],
        judge_after=networks.judged(found.images),
        strength=found.strength,
        tries=found.tries,
        reached=_passes(found.scores[:, columns], aims, config),
        capped=found.capped,
        drift=_drift(found.scores, labels_before, aims, columns),
        lost=lost,
    )


def draw_again(
    networks: Networks,
    editor: Editor,
    begun: Begun,
    drawn: DrawnEdits,
    identity: npt.NDArray[np.float32],
    points: npt.NDArray[np.float64],
    config: EditConfig,
) -> tuple[DrawnEdits, npt.NDArray[np.float32]]:
    """Less strength for edits that identity or the change of others holds back.

    Each is drawn at `config.retries` of its way in phi until both gates let it pass; where what is then shown
    no longer passes for what was asked, and where no retry helps, the edit stays as it was.

    Args:
        networks: See `draw_edits`.
        editor: See `draw_edits`.
        begun: See `draw_edits`.
        drawn: From `draw_edits`.
        identity: [B] from `identities`.
        points: [B, 5, 2].
        config: Gates and retries.

    Returns:
        The edits and their identity; rows in the same order.
    """
    out, cosines = drawn, identity.copy()
    columns = _columns(networks, editor)
    start = features(drawn.s_before.double())
    held = torch.tensor(
        [
            not lost and bool(reached) and _held_back(float(cos), float(drift), config)
            for lost, reached, cos, drift in zip(
                drawn.lost, drawn.reached, identity, drawn.drift, strict=True
            )
        ],
        dtype=torch.bool,
    )
    for share in config.retries:
        rows = torch.nonzero(held)[:, 0]
        if not len(rows):
            break
        phi = start[rows] + share * (drawn.phi[rows] - start[rows])
        phi = torch.where(drawn.phi[rows] == start[rows], start[rows], phi)
        prepared = begun.prepared.take(drawn.rows)
        look = _look(networks, begun, drawn.rows)
        codes, images, labels = draw_at(editor, prepared, phi, rows, look, config.micro_batch)
        aims = drawn.aims.take(rows)
        after = to_uint8(images)
        cos = identities(networks, drawn.before[rows.numpy()], after, points[rows.numpy()])
        drift = _drift(labels, drawn.labels_before[rows], aims, columns)
        finite = torch.isfinite(images).flatten(1).all(1) & torch.isfinite(codes).flatten(1).all(1)
        moved = _passes(labels[:, columns], aims, config) & finite
        passes = torch.tensor(
            [not _held_back(float(c), float(d), config) for c, d in zip(cos, drift, strict=True)]
        )
        out = replace(out, tries=out.tries.index_add(0, rows, torch.ones_like(rows)))
        good = moved & passes
        taken = rows[good]
        held[rows[~moved]] = False  # still less would move still less
        held[taken] = False
        if not len(taken):
            continue
        strength = strength_of(
            phi[good], start[taken], drawn.labels_before[taken][:, columns], drawn.aims.take(taken)
        )
        cosines[taken.numpy()] = cos[good.numpy()]
        out = replace(
            out,
            phi=_put(out.phi, taken, phi[good]),
            w_plus=_put(out.w_plus, taken, codes[good]),
            after=_put_pixels(out.after, taken, after[good.numpy()]),
            s_after=_put(
                out.s_after,
                taken,
                networks.batched("semantic_encoder", editor.encode_semantics, images[good]),
            ),
            labels_after=_put(out.labels_after, taken, labels[good]),
            judge_after=_put(out.judge_after, taken, networks.judged(images[good])),
            strength=_put(out.strength, taken, strength),
            drift=_put(out.drift, taken, drift[good]),
        )
    return out, cosines


def identities(
    networks: Networks, before: Pixels, after: Pixels, points: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Cosines [B] of edits and what they start from [B, H, W, 3] with points [B, 5, 2].

    A row hangs on itself.
    """
    return (networks.embed(before, points) * networks.embed(after, points)).sum(1)


def gate(drawn: DrawnEdits, row: int, identity: float, reconstruction_db: float, config: EditConfig) -> str:
    """Why a person has to look first at this row; empty where nothing speaks against the edit.

    Args:
        drawn: The edits.
        row: Which of them.
        identity: Its cosine.
        reconstruction_db: PSNR of its reconstruction; NaN where it is not known.
        config: The limits.
    """
    if reconstruction_db < config.min_reconstruction_db:
        return (
            f"the reconstruction is {reconstruction_db:.1f} dB from the crop, "
            f"at least {config.min_reconstruction_db:.1f} asked"
        )
    if not bool(drawn.reached[row]):
        if bool(drawn.capped[row]):
            return "the edit did not reach its target at the greatest strength"
        return f"the edit did not reach its target in {int(drawn.tries[row])} tries"
    drift = float(drawn.drift[row])
    if identity < config.min_identity:
        return f"identity {identity:.2f} below {config.min_identity:.2f}"
    if drift > config.max_other_change:
        return f"other attributes changed by {drift:.2f}, at most {config.max_other_change:.2f} allowed"
    return ""


def _columns(networks: Networks, editor: Editor) -> list[int]:
    """Of each attribute of the editor its column of the labeller's scores."""
    return [networks.bundle.attributes.index(name) for name in editor.attributes]


def _look(networks: Networks, begun: Begun, rows: Tensor) -> Look:
    def look(codes: Tensor, some: Tensor) -> tuple[Tensor, Tensor]:
        images = networks.render(codes)
        if begun.crops is not None:
            of = rows[some]
            images = carried(begun.reconstruction[of], images, begun.crops[of])
        return images, networks.scores(images)

    return look


def _passes(read: Tensor, aims: Aims, config: EditConfig) -> Tensor:
    """Whether what is read of the asked attributes [B, A] passes for what was asked [B]."""
    flipped = torch.where(aims.goal >= 0.5, read >= 0.5, read < 0.5)
    # a float32 score is seldom the decimal number that was asked for
    near = (read - aims.goal).abs() <= config.accepted_error + 1e-6
    return (torch.where(aims.flip, flipped, near) | ~aims.asked).all(1)


def _held_back(identity: float, drift: float, config: EditConfig) -> bool:
    return identity < config.min_identity or drift > config.max_other_change


def _drift(after: Tensor, before: Tensor, aims: Aims, columns: list[int]) -> Tensor:
    """Mean change [B] of all scores [B, K] but those that were asked to change; 0 where there are none."""
    stays = torch.ones(after.shape, dtype=torch.bool)
    stays[:, columns] = ~aims.asked
    change = torch.where(stays, (after - before).abs(), 0.0).sum(1)
    return change / stays.sum(1).clamp_min(1)


def _put(into: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    out = into.clone()
    out[rows] = values.to(out)
    return out


def _put_pixels(into: Pixels, rows: Tensor, values: Pixels) -> Pixels:
    out = into.copy()
    out[rows.numpy()] = values
    return out
