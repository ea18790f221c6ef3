"""The pretraining story as one step: pictures and labels in, models and their cards in the model store."""

from __future__ import annotations

from typing import Any

from sdflow_core.records.config import as_recipe
from sdflow_core.records.errors import ContractError, NotFoundError
from sdflow_core.records.keys import canonical_json, recipe_document, row_key, sha256_hex
from sdflow_core.records.store import Store, open_source
from sdflow_core.weights.model_store import ModelStore
from tasks.recipes import VERSIONS, Recipe
from tasks.runtime import tick
from tasks.step import StepRun, step

TEMPLATE_SCALE = 0.7  # of the FFHQ quad: at 64 px the whole template would leave some 36 px for the face


class _States:
    """Checkpoints of one pretraining in the store."""

    def __init__(self, store: Store, root: str) -> None:
        self.store, self.root = store, root

    def put(self, name: str, data: bytes) -> None:
        """Replace a state."""
        self.store.put(f"{self.root}/{name}.bin", data)

    def get(self, name: str) -> bytes | None:
        """The last state, if any."""
        try:
            return self.store.read(f"{self.root}/{name}.bin")
        except NotFoundError:
            return None


def pretraining_config(config: dict[str, Any] | None) -> Any:
    """What to train, from plain values; the defaults when there are none."""
    from sdflow_core.faces.pretraining.run import PretrainConfig

    return PretrainConfig.model_validate(config or {})


@step("pretrain")
def pretrain_models(run: StepRun, source: str, labels: str, config: Any) -> dict[str, Any]:
    """Read, align and train; gives digests and the figures on people who taught nothing."""
    from sdflow_core.faces.checkpoint import save_model
    from sdflow_core.faces.detect import default_detector
    from sdflow_core.faces.pretraining.data import load_faces, read_labels
    from sdflow_core.faces.pretraining.run import pretrain

    store = run.store
    unknown = [name for name in config.attributes if not name.isidentifier()]
    if unknown:
        raise ContractError("attribute names", expected="plain words", found=unknown)
    listed = list(open_source(labels, store).list())
    table = open_source(labels, store).read(listed[0])
    known = read_labels(table, config.attributes)
    folder = open_source(source, store)
    items = list(folder.list())

    def files() -> Any:
        for number, item in enumerate(items, start=1):
            tick("read", number, len(items))
            yield item.name, lambda item=item: folder.read(item)

    faces = load_faces(
        files(),
        known,
        config.attributes,
        size=config.autoencoder.generator.resolution,
        template_scale=TEMPLATE_SCALE,
        detector=default_detector(),
    )
    document = recipe_document(
        "pretrain", VERSIONS["pretrain"], as_recipe(config), {"detector": default_detector().digest}
    )
    recipe = run.using(Recipe(document))
    data_digest = sha256_hex(canonical_json([sha256_hex(faces.images.tobytes()), sha256_hex(table)]))
    root = f"private/pretraining/{row_key(recipe, [data_digest])}"
    done = pretrain(faces, config, _States(store, root), tick)
    card = {"recipe": recipe, "dataset": run.job.dataset, "metrics": done.metrics, "dropped": faces.dropped}
    models = ModelStore(store)
    digests = {
        kind: models.add(kind, save_model(network), {"title": f"{kind} of {run.job.dataset}", **card})
        for kind, network in done.networks.items()
    }
    return {"models": digests, "metrics": done.metrics, "dropped": faces.dropped}
