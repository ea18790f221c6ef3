"""Latents + labels (+ samples of the prior) -> an editor in the model store, and its promotion."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sdflow_core.records.config import Config, as_recipe
from sdflow_core.records.drift import histogram
from sdflow_core.records.errors import ContractError, NotFoundError
from sdflow_core.records.keys import dataset_digest, row_key
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table, wplus_numpy
from sdflow_core.weights.model_store import Bundles, ModelStore
from tasks import recipes
from tasks.consented import consented_faces
from tasks.runtime import load_bundle, networks_of, settings, tick
from tasks.step import StepRun, step


class EditorRef(Config):
    """A trained editor, by digest."""

    digest: str
    row_key: str


def training_config(config: Any) -> Any:
    """How an editor is trained, from plain values; the defaults when there are none."""
    from sdflow_core.method.training_set import EditorTraining

    return config if isinstance(config, EditorTraining) else EditorTraining.model_validate(config or {})


class _Checkpoint:
    """Training state in the store; replaced atomically, removed when the editor is committed."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key

    def save(self, data: bytes) -> None:
        """Replace the state."""
        self.store.put(self.key, data)

    def load(self) -> bytes | None:
        """The last state, if any."""
        try:
            return self.store.read(self.key)
        except NotFoundError:
            return None


def _material(store: Store, dataset: str, bundle: Any) -> tuple[pa.Table, pa.Table]:
    """Latents and labels of the faces under a consent that holds, each sorted by row key."""
    faces = sorted(consented_faces(store, dataset, recipes.ingest(bundle).key))
    compute: Any = pc  # its functions are made when it is imported

    def part(table: str, recipe: str, columns: list[str]) -> pa.Table:
        names = ["row_key", "face_id", *columns]
        rows = Table(store, dataset, table).read(recipe=recipe, columns=names, statuses=["kept"])
        if rows.num_rows == 0:
            return rows
        allowed = compute.is_in(rows["face_id"], value_set=pa.array(faces, pa.string()))
        return rows.filter(allowed).sort_by("row_key")

    latents = part("latents", recipes.invert(bundle).key, ["w_plus"])
    if latents.num_rows == 0:
        raise ContractError(
            "there are no latents to train on",
            expected="codes of faces whose consent holds, made by the promoted encoder",
            where=f"dataset {dataset}",
            todo=f"run `sdflow invert {dataset}` with the bundle that is promoted now",
        )
    return latents, part("labels", recipes.label(bundle).key, list(bundle.attributes))


def _histograms(labels: pa.Table, attributes: tuple[str, ...]) -> dict[str, list[int]]:
    """Counts of the dataset's labels in ten equal parts of [0, 1]: what later nights are compared with."""
    if labels.num_rows == 0:
        return {}
    return {name: histogram(labels[name].to_numpy()) for name in attributes}


@step("train")
def train_editor_step(run: StepRun, config: Any) -> EditorRef:
    """Train an editor, resuming where a killed run stopped."""
    import torch

    from sdflow_core.method.training import train_editor
    from sdflow_core.method.training_set import make_training_set
    from sdflow_core.method.witness import PictureWitness

    store, dataset = run.store, run.job.dataset
    networks = networks_of(store, run.job.bundle)
    bundle = networks.bundle
    config = config.known_to(bundle.attributes)
    recipe = run.using(recipes.train(bundle, as_recipe(config)))
    rows, labels = _material(store, dataset, bundle)
    inputs = [dataset_digest(part["row_key"].to_pylist()) for part in (rows, labels)]
    key = row_key(recipe, inputs)
    editors = Table(store, dataset, "editors")
    if key in editors.held(recipe):
        run.reused(editors.ref(recipe))
        row = editors.find(key)
        assert row is not None
        return EditorRef(digest=row["editor"], row_key=key)
    data = make_training_set(networks, torch.from_numpy(wplus_numpy(rows, "w_plus").copy()), config)
    checkpoint = _Checkpoint(store, f"private/training/{key}/checkpoint.bin")
    networks.calls["training"] += 1
    trained = train_editor(
        data.codes,
        data.images,
        data.scores,
        networks.generator,
        networks.labeller.only(config.attributes),
        config.training,
        checkpoint,
        lambda done, total, losses: tick("train", done, total),
        settings().device,
        PictureWitness(networks, data.images, [bundle.attributes.index(name) for name in config.attributes]),
    )
    editor = trained.editor(networks.digest("encoder"))
    metrics = trained.final_losses()
    card = {
        "title": f"SDFlow editor of dataset {dataset}",
        "attributes": list(config.attributes),
        "recipe": recipe,
        "inputs": inputs,
        "encoder": networks.digest("encoder"),
        "bundle": run.job.bundle,
        "training_rows": len(data.codes),
        "dataset_rows": rows.num_rows,
        "label_histograms": _histograms(labels, bundle.attributes),
        "final_losses": metrics,
    }
    digest = ModelStore(store).add("editor", editor.to_bytes(), card)
    row = {
        "row_key": key,
        "recipe": recipe,
        "status": "kept",
        "reason": "",
        "inputs": inputs,
        "editor": digest,
        "metrics": json.dumps(metrics, sort_keys=True),
    }
    editors.commit(pa.Table.from_pylist([row]), run=run.run)
    store.delete(checkpoint.key)
    return EditorRef(digest=digest, row_key=key)


@step("promote editor")
def promote_editor(run: StepRun, editor: EditorRef, by: str) -> str:
    """Make the editor part of the bundle in force, unless it is already; gives the digest of that bundle."""
    bundles = Bundles(run.store)
    current = bundles.current()
    if current is None:
        raise ContractError("no models are promoted in this store", where=run.store.uri)
    pinned = load_bundle(run.store, run.job.bundle)
    if current.without_editor.digest != pinned.without_editor.digest:
        raise ContractError(
            "other models were promoted while the editor was trained; it stays in the store, not in force",
            expected=f"bundle {run.job.bundle[:12]}",
            found=f"bundle {current.digest[:12]}",
            todo=f"run `sdflow refresh {run.job.dataset}`, or `sdflow models rollback` and train again",
        )
    if current.editor != editor.digest:
        bundles.promote(
            current.model_copy(update={"editor": editor.digest}), by, f"editor trained on {run.job.dataset}"
        )
    promoted = bundles.current()
    assert promoted is not None
    return promoted.digest
