"""How well a store's editor edits the faces of a dataset: figures and plots. Nothing is edited for good."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import canonical_json
from sdflow_core.records.store import Store
from tasks import recipes
from tasks.consented import ended, kept_sources, today
from tasks.runtime import editor_of, networks_of, pin_bundle

if TYPE_CHECKING:
    from torch import Tensor

    from sdflow_core.faces.networks import Networks
    from sdflow_core.method.sweeping import Observer, Sweep

__all__ = ["REPORTS", "STRENGTHS", "evaluate_dataset", "evaluated"]

REPORTS = "private/reports/evaluate"  # private: made of personal data
# shares of the way to the opposite; beyond 1 an editor is asked for more than a score can say
STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.25, 1.6)
LEVELS = (0.90, 0.95)
_READERS = ("labeller", "judge")


def evaluate_dataset(
    store: Store,
    dataset: str,
    *,
    images: int,
    attributes: tuple[str, ...] = (),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Flip every attribute of some faces at six strengths, and report what labeller, judge and SFace see.

    Only faces are used whose consent holds and allows all of these attributes. Gates and blending are off;
    failed edits count. The report and its plots lie under `private/reports/evaluate`.

    Args:
        store: With a bundle in force that has an editor.
        dataset: Whose latents.
        images: How many faces, drawn evenly; all where there are fewer.
        attributes: To be flipped; empty: all that the editor knows.
        seed: Of the draw.
        progress: Called with (pictures looked at, in all).

    Returns:
        Figures of each attribute, and where the report lies.

    Raises:
        ContractError: No editor, no latents, an unknown attribute.
    """
    import torch

    from sdflow_core.method.sweeping import sweep

    bundle = pin_bundle(store)
    if bundle.editor is None:
        raise ContractError(
            "the promoted bundle has no editor", where=store.uri, todo=f"run `sdflow train {dataset}`"
        )
    networks, editor = networks_of(store, bundle.digest), editor_of(store, bundle.editor)
    names = attributes or editor.attributes
    keys = _keys(store, dataset, bundle, names)
    drawn = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed))[:images].sort().values
    codes = _codes(store, dataset, [keys[row] for row in drawn])
    editor.check(networks.digest("encoder"), (codes.shape[1], codes.shape[2]), names)
    found = sweep(
        editor,
        codes,
        names,
        _strengths(len(names)),
        networks.render,
        _observers(networks),
        bundle.attributes,
        micro_batch=networks.micro_batch,
        progress=progress,
    )
    report = evaluated(found, bundle.attributes)
    report |= {"dataset": dataset, "editor": bundle.editor, "seed": seed, "faces": len(drawn)}
    report["trained_on"] = _trained_on(store, bundle.editor, dataset, keys)
    name = hashlib.sha256(canonical_json([report, names])).hexdigest()[:12]
    report["report"] = store.url(f"{REPORTS}/{dataset}-{name}.json")
    plots = _plots(found, bundle.attributes)
    report["plots"] = [store.url(f"{REPORTS}/{dataset}-{name}-{kind}.png") for kind in plots]
    for kind, data in plots.items():
        store.put(f"{REPORTS}/{dataset}-{name}-{kind}.png", data)
    store.put(f"{REPORTS}/{dataset}-{name}.json", canonical_json(report))
    return report


def evaluated(found: Sweep, tracked: tuple[str, ...]) -> dict[str, Any]:
    """Figures of a sweep, as plain values; None where a sweep does not reach an accuracy.

    Args:
        found: With observers `labeller`, `judge` and, where there is an identity network, `sface`.
        tracked: Names of the scores.

    Returns:
        {"attributes": name -> {"accuracy", "judge_accuracy": at strength 1; "best", "judge_best";
        "linearity"; "at_90", "at_95": by the labeller, {"preserved", "judge_preserved", "identity",
        "leakage"}}, "matrix": name -> tracked name -> change of the score at strength 1 in the direction of
        the flip}.
    """
    from sdflow_core.method.matched import curves, described, leakage, linearity

    seen = {name: curves(found, name, tracked, _READERS) for name in _READERS}
    labeller = seen["labeller"]
    if "sface" in found.after:
        labeller.values["identity"] = described(found, "sface", _cosines)
    full = 1 + min(range(found.strengths.shape[1]), key=lambda k: abs(float(found.strengths[0, k]) - 1.0))
    straight = linearity(found, "labeller", tracked)
    out: dict[str, Any] = {}
    for a, name in enumerate(found.attributes):
        out[name] = {
            "accuracy": _number(labeller.accuracy[a, full]),
            "judge_accuracy": _number(seen["judge"].accuracy[a, full]),
            "best": _number(labeller.accuracy[a].max()),
            "judge_best": _number(seen["judge"].accuracy[a].max()),
            "linearity": _number(straight[a]),
        }
    for level in LEVELS:
        values = labeller.matched(level)
        leaks = leakage(labeller.matched_matrix(level), found.attributes, tracked)
        for a, name in enumerate(found.attributes):
            out[name][f"at_{level * 100:.0f}"] = {
                "preserved": _number(values["preserved_labeller"][a]),
                "judge_preserved": _number(values["preserved_judge"][a]),
                "identity": _number(values["identity"][a]) if "identity" in values else None,
                "leakage": _number(leaks[a]),
            }
    matrix = {
        name: {other: _number(labeller.matrix[a, full, b]) for b, other in enumerate(tracked)}
        for a, name in enumerate(found.attributes)
    }
    return {
        "attributes": out,
        "matrix": matrix,
        "strengths": [round(float(v), 4) for v in found.strengths[0]],
    }


def _keys(store: Store, dataset: str, bundle: Any, names: tuple[str, ...]) -> list[str]:
    """Row keys, in order, of the latents of faces under a consent that holds and allows these edits."""
    from sdflow_core.records.tables import Table

    day = today()
    faces = {
        source["face_id"]
        for source in kept_sources(store, dataset, recipes.ingest(bundle).key)
        if not ended(source, day) and _allowed(source["consent_attributes"] or (), names)
    }
    table = Table(store, dataset, "latents").read(
        recipe=recipes.invert(bundle).key, columns=["row_key", "face_id"], statuses=["kept"]
    )
    rows = table.filter([face in faces for face in table["face_id"].to_pylist()]).sort_by("row_key")
    if rows.num_rows == 0:
        raise ContractError(
            "there are no latents to evaluate an editor on",
            expected=f"codes by the promoted encoder, of faces whose consent allows {', '.join(names)}",
            where=f"dataset {dataset}",
            todo=f"run `sdflow invert {dataset}` with the bundle that is promoted now",
        )
    return rows["row_key"].to_pylist()


def _codes(store: Store, dataset: str, keys: list[str]) -> Tensor:
    """Latents [N, L, D] of these rows: of a large table nothing but their row groups is read."""
    import torch

    from sdflow_core.records.picking import pick_rows
    from sdflow_core.records.tables import Table, wplus_numpy

    rows = pick_rows(Table(store, dataset, "latents"), keys, ["w_plus"])
    return torch.from_numpy(wplus_numpy(rows, "w_plus").copy())


def _allowed(consent: Sequence[str], names: tuple[str, ...]) -> bool:
    return "*" in consent or set(names) <= set(consent)


def _trained_on(store: Store, editor: str, dataset: str, keys: list[str]) -> str:
    """Whether the editor has seen these faces: its card names the digest of the rows it learned from."""
    from sdflow_core.records.keys import dataset_digest
    from sdflow_core.weights.model_store import ModelStore

    card = ModelStore(store).card(editor)
    if not card.get("inputs"):
        return "unknown"
    if dataset_digest(keys) == card["inputs"][0]:
        return "yes"
    return "perhaps" if str(card.get("title", "")).endswith(f"dataset {dataset}") else "no"


def _strengths(attributes: int) -> Any:
    import numpy as np

    return np.tile(np.array(STRENGTHS, np.float32), (attributes, 1))


def _observers(networks: Networks) -> dict[str, Observer]:
    from sdflow_core.faces.networks import to_uint8
    from sdflow_core.faces.recognizer import CropRecognizer
    from sdflow_core.method.sweeping import Observer

    out = {
        "labeller": Observer(lambda pictures, rows: networks.scores(pictures).numpy()),
        "judge": Observer(lambda pictures, rows: networks.judged(pictures).numpy()),
    }
    if networks.bundle.identity is not None:
        recognizer = CropRecognizer(networks.identity, networks.bundle.template_scale)
        out["sface"] = Observer(lambda pictures, rows: recognizer.embed(to_uint8(pictures)))
    return out


def _plots(found: Sweep, tracked: tuple[str, ...]) -> dict[str, bytes]:
    """kind -> PNG: what is kept, and identity, against accuracy, a line an attribute."""
    from sdflow_core.method.matched import curves, described
    from sdflow_core.method.plots import panels

    curve = curves(found, "labeller", tracked, _READERS)
    quantities = {"Other attributes kept, by the judge": curve.values["preserved_judge"]}
    if "sface" in found.after:
        quantities["SFace cosine of edit and reconstruction"] = described(found, "sface", _cosines)
    charts = {
        title: {
            name: (curve.accuracy[a].tolist(), rows[a].tolist()) for a, name in enumerate(found.attributes)
        }
        for title, rows in quantities.items()
    }
    note = f"{found.wanted.shape[1]} faces, {len(STRENGTHS)} strengths; each line starts at no edit"
    return {"curves": panels(charts, title="The editor in force", x_label="editing accuracy", note=note)}


def _cosines(a: Any, b: Any) -> Any:
    return (a * b).sum(1)


def _number(value: Any) -> float | None:
    number = round(float(value), 4)
    return None if number != number else number
