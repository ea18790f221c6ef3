"""The two gates of a refresh: old and new models on a sample, old and new editor on people nobody trained on.

Figures and the page to look at are written once, under `private/refresh/<id>/`; a refresh that is started
again reads them. A gate is opened by the policy, or by a person for the figures that the person could see.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import canonical_json, sha256_hex
from sdflow_core.records.refreshes import (
    Refreshes,
    RefreshPolicy,
    canary_complaints,
    editor_complaints,
)
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table
from tasks import recipes
from tasks.reingest import Origin, origins, read_again
from tasks.runtime import editor_of, load_bundle, networks_of
from tasks.step import StepRun, step

if TYPE_CHECKING:
    from sdflow_core.faces.networks import Networks, Pixels
    from sdflow_core.weights.model_store import Bundle

HELD_SEED = 1_000_003  # of people that no training draws: their seeds are small
HELD_TRUNCATION = 0.8


class RefreshPlan(Config):
    """A refresh: from which models to which.

    Attributes:
        refresh: Its id.
        old: Bundle in service before, by digest.
        new: Bundle in force, by digest; its editor, if any, may be stale.
        due: Whether there is anything to do.
        paused: Whether a person asked to wait.
        train: Whether an editor has to be trained on this dataset.
        rows: Rows of ingest, invert and label to compute.
    """

    refresh: str
    old: str
    new: str
    due: bool
    paused: bool
    train: bool
    rows: int


class Gate(Config):
    """What became of a gate.

    Attributes:
        name: "canary" or "editor".
        open: Whether the refresh may go on.
        by: "policy", the name of a person, or empty while it waits.
        why: What the policy complains about.
    """

    name: str
    open: bool
    by: str
    why: tuple[str, ...]


def figures_key(refresh: str, name: str) -> str:
    """Where the figures of a gate lie."""
    return f"private/refresh/{refresh}/{name}.json"


def read_figures(store: Store, refresh: str, name: str) -> dict[str, Any] | None:
    """Figures of a gate, or None where they were not taken yet."""
    key = figures_key(refresh, name)
    return json.loads(store.read(key)) if store.exists(key) else None


@step("canary")
def canary(run: StepRun, plan: RefreshPlan, policy: RefreshPolicy, person: str) -> Gate:
    """Compare old and new models on a sample of the dataset; say whether everything may be computed anew.

    `person` says go whatever the figures are; empty: nobody does.
    """
    store, new = run.store, load_bundle(run.store, plan.new)
    old = load_bundle(store, plan.old)
    key = figures_key(plan.refresh, "canary")
    if not store.exists(key):
        figures: dict[str, Any] = {}
        if _differ(old, new):
            figures, page = _compared(run, plan, policy)
            store.put(f"private/refresh/{plan.refresh}/canary.png", page)
        store.create(key, canonical_json(figures))
    data = store.read(key)
    # a person may let a sample pass unseen: nothing but time is lost until the editor's gate
    return _gate(run, plan, "canary", data, canary_complaints(json.loads(data), policy), policy, person)


@step("editor gate")
def editor_gate(run: StepRun, plan: RefreshPlan, editor: str, policy: RefreshPolicy, person: str) -> Gate:
    """Compare old and new editor; say whether the new one may be promoted."""
    store = run.store
    name = f"editor-{editor[:12]}"
    key = figures_key(plan.refresh, name)
    seen = store.exists(key)
    if not seen:
        store.create(key, canonical_json(_editors_compared(run, plan, editor, policy)))
    data = store.read(key)
    # a go counts for figures that could be seen when it was given
    person = person if seen else ""
    return _gate(run, plan, "editor", data, editor_complaints(json.loads(data), policy), policy, person)


def _gate(
    run: StepRun,
    plan: RefreshPlan,
    name: str,
    figures: bytes,
    complaints: list[str],
    policy: RefreshPolicy,
    person: str,
) -> Gate:
    journal, digest = Refreshes(run.store), sha256_hex(figures)
    run.facts["config"] = {"figures": json.loads(figures), "policy": policy.model_dump(mode="json")}
    told = tuple(text[:200] for text in complaints)
    before = journal.opened(plan.refresh, name, digest)
    if before is not None:
        return Gate(name=name, open=True, by=str(before.payload["by"]), why=told)
    asks = policy.ask == "always" and json.loads(figures) != {}
    by = person or ("" if complaints or asks else "policy")
    if not by:
        return Gate(name=name, open=False, by="", why=told or ("the policy asks a person each time",))
    journal.open_gate(plan.refresh, run.job.dataset, name, digest, by)
    return Gate(name=name, open=True, by=by, why=told)


def _differ(old: Bundle, new: Bundle) -> bool:
    return any(made(old).key != made(new).key for made in (recipes.ingest, recipes.invert, recipes.label))


# -- models


def _compared(run: StepRun, plan: RefreshPlan, policy: RefreshPolicy) -> tuple[dict[str, Any], bytes]:
    from sdflow_core.faces.pixels import read_png
    from sdflow_core.method.comparison import compare, comparison_sheet, see

    store = run.store
    old, new = (networks_of(store, digest) for digest in (plan.old, plan.new))
    sample = _sample(run, old.bundle, policy.canary_rows)
    crops = [read_png(store.read(row["crop"])) for row in sample]
    points = [np.array(row["points"]).reshape(5, 2) for row in sample]
    again = [*zip(crops, points, strict=True)]
    if recipes.ingest(old.bundle).key != recipes.ingest(new.bundle).key:
        again = _cut_again(run, sample, old.bundle, new)
    found = [i for i, face in enumerate(again) if face is not None]
    if not found:
        raise ContractError(
            "the new detector finds none of the faces",
            expected=f"{len(sample)} faces",
            todo="sdflow models rollback",
        )
    before = see(old, np.stack([crops[i] for i in found]), np.stack([points[i] for i in found]))
    chosen = [face for face in again if face is not None]
    after = see(new, np.stack([c for c, _ in chosen]), np.stack([p for _, p in chosen]))
    title = f"Old and new models: refresh {plan.refresh}"
    return compare(before, after, len(sample)), comparison_sheet(before, after, title)


def _sample(run: StepRun, old: Bundle, count: int) -> list[dict[str, Any]]:
    """The first faces by row key that a kept source shows: chosen by nobody, and the same each time."""
    allowed = {origin.face_id for origin in origins(run.store, run.job.dataset, recipes.ingest(old).key)}
    rows = Table(run.store, run.job.dataset, "faces").read(
        recipe=recipes.ingest(old).key,
        columns=["row_key", "face_id", "crop", "points", "quad"],
        statuses=["kept"],
    )
    kept = [row for row in rows.to_pylist() if row["face_id"] in allowed]
    if not kept:
        raise ContractError(
            "there are no faces to compare old and new models on",
            where=f"dataset {run.job.dataset}",
            todo=f"sdflow stale {run.job.dataset}",
        )
    return sorted(kept, key=lambda row: row["row_key"])[:count]


def _cut_again(
    run: StepRun, sample: list[dict[str, Any]], old: Bundle, new: Networks
) -> list[tuple[Pixels, Any] | None]:
    """The same people as the new detector and template cut them; None where no face is found any more."""
    from sdflow_core.faces.ingestion import judge_source

    origin_of: dict[str, Origin] = {}
    for origin in origins(run.store, run.job.dataset, recipes.ingest(old).key):
        origin_of.setdefault(origin.face_id, origin)
    config = recipes.ingest_config(new.bundle)
    several = old.faces == "all"  # the largest need not be the one that is compared
    if several:
        config = config.model_copy(update={"faces": "all"})

    def find(picture: Any) -> Any:
        new.calls["detector"] += 1
        return new.detector.find(picture)

    def cut(row: dict[str, Any]) -> tuple[Pixels, Any] | None:
        verdict = judge_source(partial(read_again, run.store, origin_of[row["face_id"]]), find, config)
        if not several:
            face = verdict.face
        else:
            face = _at_the_place(verdict.faces, np.reshape(row["quad"], (4, 2)))
        return None if face is None else (face.crop, np.asarray(face.points))

    return [cut(row) for row in sample]


def _at_the_place(faces: Any, quad: Any) -> Any:
    """Of the faces that fit, the one where the quad [4, 2] lies; None where none is within half its side."""
    side = float(np.linalg.norm(quad[1] - quad[0]))
    away = [
        (float(np.linalg.norm(face.aligned.quad.mean(0) - quad.mean(0))), face.number, face.aligned)
        for face in faces
        if face.aligned is not None
    ]
    near = min(away, default=None, key=lambda item: item[:2])
    return near[2] if near is not None and near[0] < side / 2 else None


# -- editors


def _editors_compared(run: StepRun, plan: RefreshPlan, editor: str, policy: RefreshPolicy) -> dict[str, Any]:
    """Old and new editor on the same people, judged by the same judge."""
    import torch

    from sdflow_core.faces.networks import Networks, to_uint8
    from sdflow_core.method.comparison import edit_figures
    from sdflow_core.weights.model_store import ModelStore

    store = run.store
    new, old = networks_of(store, plan.new), load_bundle(store, plan.old)
    points = _usual_points(run, new.bundle)
    rng = torch.Generator().manual_seed(HELD_SEED)
    codes = new.people(policy.editor_rows, rng, HELD_TRUNCATION)
    people = to_uint8(new.render(codes))
    where = np.repeat(points[None], len(people), axis=0)
    figures = {"old": None, "new": edit_figures(new, editor_of(store, editor), people, where)}
    if old.editor is not None:
        # the same judges for both: figures of two judges could not be compared
        judged = old.model_copy(update={"judge": new.bundle.judge, "identity": new.bundle.identity})
        before = Networks(ModelStore(store), judged, device=new.device, calls=new.calls)
        side = old.resolution
        figures["old"] = edit_figures(
            before,
            editor_of(store, old.editor),
            _resized(people, side),
            where * (side / new.bundle.resolution),
        )
    return {"editor": editor, "old_editor": old.editor, **figures}


def _usual_points(run: StepRun, bundle: Bundle) -> Any:
    """Where facial points lie in this dataset's crops: the template puts them nearly at one place."""
    rows = Table(run.store, run.job.dataset, "faces").read(
        recipe=recipes.ingest(bundle).key, columns=["points"], statuses=["kept"]
    )
    return np.median(np.array(rows["points"].to_pylist()), axis=0).reshape(5, 2)


def _resized(pictures: Any, side: int) -> Any:
    if pictures.shape[1] == side:
        return pictures
    import cv2

    return np.stack([cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in pictures])
