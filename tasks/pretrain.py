"""The pretraining story as one step: pictures and labels in, models and their cards in the model store."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import Any

from sdflow_core.records.config import as_recipe
from sdflow_core.records.errors import ContractError, NotFoundError, SDFlowError
from sdflow_core.records.keys import canonical_json, recipe_document, row_key, sha256_hex
from sdflow_core.records.store import Store
from sdflow_core.weights.embedded import install_observers
from sdflow_core.weights.model_store import Bundle, ModelStore
from sdflow_core.weights.sets import keep_set
from tasks.recipes import VERSIONS, Recipe
from tasks.runtime import settings, tick
from tasks.step import StepRun, step


class _States:
    """Checkpoints of one pretraining in the store, and the diary beside them."""

    def __init__(self, store: Store, root: str) -> None:
        self.store, self.root = store, root

    def put(self, name: str, data: bytes) -> None:
        """Replace a state."""
        self.keep(f"{name}.bin", data)

    def get(self, name: str) -> bytes | None:
        """The last state, if any."""
        return self.find(f"{name}.bin")

    def where(self, name: str) -> str:
        """The address of a state."""
        return self.store.url(f"{self.root}/{name}.bin")

    def keep(self, name: str, data: bytes) -> None:
        """Replace a file."""
        self.store.put(f"{self.root}/{name}", data)

    def find(self, name: str) -> bytes | None:
        """A file, if there is one."""
        try:
            return self.store.read(f"{self.root}/{name}")
        except NotFoundError:
            return None


def pretraining_config(config: dict[str, Any] | None) -> Any:
    """What to train, from plain values; the defaults when there are none."""
    from sdflow_core.faces.pretraining.configuration import read_config

    return read_config(config)


@step("pretrain")
def pretrain_models(run: StepRun, source: str, labels: str, config: Any, teacher: str = "") -> dict[str, Any]:
    """Read, align and train; gives digests and the figures on people who taught nothing."""
    from sdflow_core.faces.checkpoint import save_model
    from sdflow_core.faces.detect import default_detector
    from sdflow_core.faces.pretraining.data import load_faces
    from sdflow_core.faces.pretraining.diary import Diary
    from sdflow_core.faces.pretraining.material import open_material
    from sdflow_core.faces.pretraining.rehearsal import first_look
    from sdflow_core.faces.pretraining.run import pretrain

    store, detector = run.store, default_detector()
    identity = teacher_of(teacher, config)
    files, table = open_material(source, labels, store)
    look, known = first_look([name for name, _ in files], table, config)
    faces = load_faces(
        files,
        known,
        config.attributes,
        size=config.autoencoder.generator.resolution,
        detector=detector,
        config=config.data,
        workers=settings().pixel_threads or os.cpu_count() or 1,
        progress=lambda done, total: tick("read", done, total),
    )
    document = recipe_document(
        "pretrain", VERSIONS["pretrain"], as_recipe(config), {"detector": detector.digest}
    )
    recipe = run.using(Recipe(document))
    root = folder_of(recipe, faces, table)
    states = _States(store, root)
    diary = Diary(states)
    try:
        done = pretrain(faces, config, states, tick, diary, identity, settings().device)
    except SDFlowError:
        with suppress(SDFlowError):  # the curves up to where it diverged; the checkpoint before is good
            diary.close()
        raise
    about = {"dropped": faces.dropped, "remarks": list(faces.remarks)}
    data = {"faces": len(faces.images), "people": look.people, "overhang": float(faces.overhang.mean())}
    card = {
        "recipe": recipe,
        "dataset": run.job.dataset,
        "metrics": done.metrics,
        "template_scale": config.data.template_scale,
        "data": data,
        **about,
    }
    models = ModelStore(store)
    digests = {
        kind: models.add(kind, save_model(network), {"title": f"{kind} of {run.job.dataset}", **card})
        for kind, network in done.networks.items()
    }
    places: dict[str, Any] = {**digests, **install_observers(models)}
    bundle = Bundle(
        **places,
        template_scale=config.data.template_scale,
        resolution=config.autoencoder.generator.resolution,
        attributes=config.attributes,
    )
    return {
        "bundle": keep_set(store, bundle),
        "models": digests,
        "metrics": done.metrics,
        **about,
        "memory_bytes": faces.images.nbytes,
        "diary": store.url(root),
    }


def folder_of(recipe: str, faces: Any, table: bytes) -> str:
    """Where the states of a training lie: another place for all that would make another training.

    The split and the labels of each picture count too: files moved into folders are other people, and a state
    that learned from people of the new test must not go on.

    Args:
        recipe: Its key.
        faces: `FaceSet`.
        table: The label CSV.
    """
    from sdflow_core.faces.pretraining.run import what_is_learned

    # the array's own memory is hashed: a copy of it could be all there is left
    pixels = hashlib.sha256(faces.images.data.cast("B")).hexdigest()
    learned = sha256_hex(canonical_json([pixels, sha256_hex(table), what_is_learned(faces)]))
    return f"private/pretraining/{row_key(recipe, [learned])}"


def teacher_of(folder: str, config: Any) -> Any:
    """The network that tells people apart, if the configuration names one.

    Raises:
        ContractError: It is not there, or another one.
    """
    digest = config.teacher
    if not digest:
        return None
    from sdflow_core.faces.pretraining.faceres import IdentityTeacher, teacher_digest

    found = teacher_digest(folder) if folder else "no folder"
    if found != digest:
        raise ContractError(
            "the network that tells people apart",
            expected=f"sha256 {digest}",
            found=found,
            where=folder,
            todo="name its folder with --teacher, or take `teacher` out of the configuration",
        )
    return IdentityTeacher(folder, settings().device)
