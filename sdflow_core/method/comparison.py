"""Old models against new ones on the same people: figures that a policy can bound, and a page to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdflow_core.faces.networks import Networks, Pixels, to_tensor, to_uint8
from sdflow_core.faces.sheet import SheetRow, contact_sheet
from sdflow_core.method.editor import Editor
from sdflow_core.method.evaluation import inversion_psnr
from sdflow_core.method.rendering import (
    EditConfig,
    Variant,
    begin,
    draw_again,
    draw_edits,
    identities,
)
from sdflow_core.records.errors import ContractError

__all__ = ["Seen", "compare", "comparison_sheet", "edit_figures", "see"]

_WORST, _EVEN = 12, 24  # rows of the page: where the new one loses most, and evenly over the rest
_EDITS_AT_A_TIME = 64  # pictures in memory; without influence on the result


@dataclass(frozen=True)
class Seen:
    """N people as one bundle sees them, rows in one order."""

    attributes: tuple[str, ...]
    crops: Pixels  # [N, H, W, 3]
    codes: npt.NDArray[np.float32]  # [N, L, D]
    reconstructions: Pixels  # [N, H, W, 3]
    labels: npt.NDArray[np.float32]  # [N, A] of the crops
    reconstruction_labels: npt.NDArray[np.float32]  # [N, A]
    psnr_db: npt.NDArray[np.float32]  # [N]
    identity: npt.NDArray[np.float32]  # [N] cosine of crop and reconstruction


def see(networks: Networks, crops: Pixels, points: npt.NDArray[np.float64]) -> Seen:
    """Encode, render, label and recognise crops [N, H, W, 3]; facial points [N, 5, 2] in px of the crop."""
    codes = networks.encode(crops)
    rendered = networks.render(torch.from_numpy(codes))
    reconstructions = to_uint8(rendered)
    return Seen(
        networks.bundle.attributes,
        crops,
        codes,
        reconstructions,
        networks.scores(to_tensor(crops)).numpy(),
        networks.scores(rendered).numpy(),
        inversion_psnr(to_tensor(crops), rendered).numpy(),
        (networks.embed(crops, points) * networks.embed(reconstructions, points)).sum(1),
    )


def compare(old: Seen, new: Seen, sampled: int) -> dict[str, Any]:
    """Figures of two looks at the same people.

    Args:
        old: Row i shows the same person as row i of `new`.
        new: See `old`.
        sampled: People that were looked for; fewer rows mean that the new detector did not find all.

    Returns:
        `{"n", "faces_found", "old", "new", "label_agreement", "reconstruction_label_agreement",
        "latent_drift_mean", "latent_drift_p50", "latent_drift_p95"}`; `old` and `new` are `{"psnr_db",
        "psnr_db_p5", "identity", "identity_p5"}` with mean PSNR and median identity. Drift is the root mean
        square difference of a code's numbers in units of their spread over the old codes; None when the codes
        have another shape.

    Raises:
        ContractError: No rows, or no attribute in common.
    """
    names = [name for name in old.attributes if name in new.attributes]
    if not len(old.codes) or len(old.codes) != len(new.codes) or not names:
        raise ContractError(
            "old and new models to compare",
            expected="the same people, at least one, and an attribute in common",
            found=f"{len(old.codes)} and {len(new.codes)} rows, common attributes {names}",
        )
    out: dict[str, Any] = {
        "n": len(new.codes),
        "faces_found": _round(len(new.codes) / sampled),
        "old": _side(old),
        "new": _side(new),
        "label_agreement": _agreement(old, new, names, "labels"),
        "reconstruction_label_agreement": _agreement(old, new, names, "reconstruction_labels"),
        "latent_drift_mean": None,
        "latent_drift_p50": None,
        "latent_drift_p95": None,
    }
    if old.codes.shape == new.codes.shape:
        spread = np.maximum(old.codes.std(axis=0), 1e-3)
        drift = np.sqrt((((new.codes - old.codes) / spread) ** 2).mean(axis=(1, 2)))
        out["latent_drift_mean"] = _round(drift.mean())
        out["latent_drift_p50"] = _round(np.percentile(drift, 50))
        out["latent_drift_p95"] = _round(np.percentile(drift, 95))
    return out


def comparison_sheet(old: Seen, new: Seen, title: str) -> bytes:
    """Crop, old and new reconstruction: first where the new one loses most, then an even choice."""
    loss = old.psnr_db - new.psnr_db
    order = np.argsort(-loss, kind="stable")
    worst = [int(i) for i in order[:_WORST]]
    rest = np.linspace(0, len(loss) - 1, min(_EVEN, len(loss))).astype(int)
    even = [int(i) for i in rest if int(i) not in worst]

    def row(i: int) -> SheetRow:
        caption = (
            f"{old.psnr_db[i]:.1f} → {new.psnr_db[i]:.1f} dB · "
            f"identity {old.identity[i]:.2f} → {new.identity[i]:.2f}"
        )
        # a detector may cut another crop: the old reconstruction is shown in the size of the new one
        return SheetRow(
            new.crops[i], _fit(old.reconstructions[i], new.crops[i]), caption, new.reconstructions[i]
        )

    groups = {"Where the new models lose most": [row(i) for i in worst], "Others": [row(i) for i in even]}
    return contact_sheet(
        {name: rows for name, rows in groups.items() if rows},
        title,
        note=f"{len(loss)} faces compared; reconstruction PSNR and identity, old → new",
        labels=("Crop", "Old", "New"),
        unit="face",
    )


def edit_figures(
    networks: Networks,
    editor: Editor,
    crops: Pixels,
    points: npt.NDArray[np.float64],
    config: EditConfig | None = None,
) -> dict[str, Any]:
    """Every attribute of every person turned to its opposite, as edits are made; nobody is left out.

    Args:
        networks: Encode, render, steer, judge and recognise.
        editor: Of that encoder.
        crops: [N, H, W, 3].
        points: [N, 5, 2] px.
        config: How requests are carried out.

    Returns:
        `{"n", "accuracy", "judge_accuracy", "preservation", "identity"}`: shares by labeller and judge, share
        of other attributes that the judge sees unchanged, median cosine of edit and reconstruction.

    Raises:
        ContractError: The editor is of another encoder.
    """
    codes = torch.from_numpy(networks.encode(crops))
    editor.check(networks.digest("encoder"), (codes.shape[1], codes.shape[2]))
    config = config or EditConfig()
    begun = begin(networks, editor, codes, config)
    asked = [(name, row) for name in editor.attributes for row in range(len(codes))]
    hit: list[Tensor] = []
    seen: list[Tensor] = []
    kept: list[Tensor] = []
    identity: list[npt.NDArray[np.float32]] = []
    known = networks.bundle.attributes
    # all attributes together: an edit hangs on no neighbour, and few people fill no micro-batch
    for start in range(0, len(asked), _EDITS_AT_A_TIME):
        names, rows = zip(*asked[start : start + _EDITS_AT_A_TIME], strict=True)
        variants = [Variant(targets={name: "flip"}) for name in names]
        done = draw_edits(networks, editor, begun, variants, torch.tensor(rows), config)
        where = points[list(rows)]
        cosines = identities(networks, done.before, done.after, where)
        done, cosines = draw_again(networks, editor, begun, done, cosines, where, config)
        turned = torch.tensor([[known.index(name)] for name in names])
        before, after, judged = (
            scores.gather(1, turned)[:, 0] >= 0.5
            for scores in (done.labels_before, done.labels_after, done.judge_after)
        )
        hit.append(after != before)
        seen.append(judged != before)
        same = (done.judge_after >= 0.5) == (done.judge_before >= 0.5)
        others = torch.ones_like(same).scatter(1, turned, False)
        kept.append(same[others])
        identity.append(cosines)
    preserved = torch.cat(kept).float()
    return {
        "n": len(crops) * len(editor.attributes),
        "accuracy": _round(torch.cat(hit).float().mean()),
        "judge_accuracy": _round(torch.cat(seen).float().mean()),
        "preservation": _round(preserved.mean()) if len(preserved) else 1.0,
        "identity": _round(np.median(np.concatenate(identity))),
    }


def _side(seen: Seen) -> dict[str, float]:
    return {
        "psnr_db": _round(seen.psnr_db.mean()),
        "psnr_db_p5": _round(np.percentile(seen.psnr_db, 5)),
        "identity": _round(np.median(seen.identity)),
        "identity_p5": _round(np.percentile(seen.identity, 5)),
    }


def _agreement(old: Seen, new: Seen, names: list[str], field: str) -> float:
    sides = [
        getattr(seen, field)[:, [seen.attributes.index(name) for name in names]] >= 0.5 for seen in (old, new)
    ]
    return _round((sides[0] == sides[1]).mean())


def _fit(picture: Pixels, like: Pixels) -> Pixels:
    if picture.shape == like.shape:
        return picture
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((like.shape[1], like.shape[0])), dtype=np.uint8)


def _round(value: Any) -> float:
    return round(float(value), 4)
