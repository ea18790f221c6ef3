"""The recipe of every step under a bundle, in one place.

Planning, computing and asking what is stale must agree on them.

Raise a step's version here whenever the same input would give another result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdflow_core.faces.micro_batch import MICRO_BATCH, micro_batch_for
from sdflow_core.records.config import as_recipe
from sdflow_core.records.keys import canonical_json, recipe_document, sha256_hex

if TYPE_CHECKING:
    from sdflow_core.faces.ingestion import IngestConfig
    from sdflow_core.faces.paste_back import PasteConfig
    from sdflow_core.faces.qualities import RefineConfig
    from sdflow_core.method.rendering import EditConfig
    from sdflow_core.weights.model_store import Bundle

VERSIONS = {
    "ingest": 2,
    "invert": 1,
    "label": 1,
    "train": 2,
    "edit": 2,
    "publish": 1,
    "pretrain": 2,
    "paste": 1,
}
_EDIT_MODELS = ("editor", "generator", "encoder", "labeller", "identity", "judge")


@dataclass(frozen=True)
class Recipe:
    """A recipe's document and its digest."""

    document: dict[str, Any]

    @property
    def key(self) -> str:
        """The recipe as it stands in tables."""
        return sha256_hex(canonical_json(self.document))


def _recipe(step: str, config: dict[str, Any], **models: str | None) -> Recipe:
    return Recipe(recipe_document(step, VERSIONS[step], config, {k: v or "" for k, v in models.items()}))


def ingest_config(bundle: Bundle) -> IngestConfig:
    """What ingest does for a bundle: the crop must be the one its models were trained on."""
    from sdflow_core.faces.ingestion import IngestConfig

    return IngestConfig(
        template_scale=bundle.template_scale,
        resolution=bundle.resolution,
        framing=bundle.framing,
        faces=bundle.faces,
    )


def ingest(bundle: Bundle) -> Recipe:
    """Sources and faces."""
    return _recipe("ingest", as_recipe(ingest_config(bundle)), detector=bundle.detector)


def micro_batch(bundle: Bundle) -> int:
    """Rows a network call under a bundle: fewer where pictures are large."""
    return min(MICRO_BATCH, micro_batch_for(bundle.resolution))


def refinement(bundle: Bundle, quality: str) -> RefineConfig | None:
    """How codes of a quality are refined under a bundle; None: `fast`, as the encoder gives them.

    Raises:
        ContractError: There is no such quality.
    """
    from sdflow_core.faces.qualities import refine_config

    return refine_config(quality, bundle.resolution)


def invert(bundle: Bundle, quality: str = "fast") -> Recipe:
    """W+ codes of a quality."""
    config: dict[str, Any] = {"micro_batch": micro_batch(bundle), "precision": "fp32", "refinement_steps": 0}
    models = {"encoder": bundle.encoder, "generator": bundle.generator}
    refined = refinement(bundle, quality)
    if refined is not None:
        config |= {"refinement_steps": refined.steps, "refinement": as_recipe(refined)}
        models["prior"] = bundle.prior  # its mean is what spreads are counted from
    return _recipe("invert", config, **models)


def label(bundle: Bundle) -> Recipe:
    """Attribute scores."""
    config = {"micro_batch": micro_batch(bundle), "precision": "fp32"}
    return _recipe("label", config, labeller=bundle.labeller)


def train(bundle: Bundle, config: dict[str, Any]) -> Recipe:
    """An editor."""
    models = {
        "generator": bundle.generator,
        "encoder": bundle.encoder,
        "labeller": bundle.labeller,
        "prior": bundle.prior,
        "identity": bundle.identity,  # the edit map is held to who it says a picture shows
    }
    return _recipe("train", config, **models)


def edit(bundle: Bundle, config: EditConfig) -> Recipe:
    """Edited pictures."""
    return _recipe("edit", as_recipe(config), **{kind: getattr(bundle, kind) for kind in _EDIT_MODELS})


def paste(config: PasteConfig) -> Recipe:
    """Edits in their photographs: no model, the edit's row names those."""
    return _recipe("paste", as_recipe(config))


def publish() -> Recipe:
    """Released files: no model, only metadata added."""
    return _recipe("publish", {"metadata": "edit id, digital source type"})


def wanted(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Documents of all steps under a bundle, for `records.stale`.

    How editors are trained and edits carried out or pasted is asked for anew each time: their config is left
    open.
    """
    editors = train(bundle, {}).document
    edits = _recipe("edit", {}, **{kind: getattr(bundle, kind) for kind in _EDIT_MODELS}).document
    return {
        "ingest": ingest(bundle).document,
        "invert": invert(bundle).document,
        "label": label(bundle).document,
        "train": {**editors, "config": None},
        "edit": {**edits, "config": None},
        "paste": {**_recipe("paste", {}).document, "config": None},
        # codes that an edit may start from beside those of `invert`
        **{f"invert {quality}": invert(bundle, quality).document for quality in ("good", "best")},
    }
