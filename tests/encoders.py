"""Second encoders that really differ from the embedded one, made from people that do not exist."""

from __future__ import annotations

from functools import cache

from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.faces.pretraining.encoder_only import EncoderTraining, train_encoder
from sdflow_core.records.store import Store
from sdflow_core.weights.embedded import embedded_file
from sdflow_core.weights.model_store import Bundle, Bundles, ModelStore

# Learns codes alone: 15 s on one thread, and better on synthetic people than the encoder it starts from.
GOOD = EncoderTraining(steps=80, weight_pixel=0.0, weight_code=1.0)
# Begun anew and hardly trained.
BAD = EncoderTraining(start="random", steps=4, weight_pixel=0.0, weight_code=1.0)


@cache
def trained(config: EncoderTraining) -> tuple[bytes, dict[str, float]]:
    """The encoder's file and its figures."""
    kinds = ("generator", "prior", "encoder")
    networks = [load_model(embedded_file(f"{kind}.safetensors"), expect=kind) for kind in kinds]
    encoder, metrics = train_encoder(*networks, config)
    return save_model(encoder), metrics


def add_encoder(store: Store, config: EncoderTraining) -> str:
    """Put one into a store; gives its digest."""
    data, metrics = trained(config)
    return ModelStore(store).add("encoder", data, {"title": "second encoder", "metrics": metrics})


def promote_encoder(store: Store, config: EncoderTraining) -> Bundle:
    """As `sdflow models promote DIGEST` does: the editor stays behind."""
    current = Bundles(store).current()
    assert current is not None
    bundle = current.model_copy(update={"encoder": add_encoder(store, config), "editor": None})
    Bundles(store).promote(bundle, "test", "second encoder")
    return bundle
