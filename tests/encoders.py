"""Second encoders that really differ from the embedded one, made from people that do not exist."""

from __future__ import annotations

from functools import cache
from unittest.mock import patch

from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.faces.pretraining import encoder_only
from sdflow_core.faces.pretraining.encoder_only import EncoderTraining
from sdflow_core.records.store import Store
from sdflow_core.weights.embedded import embedded_file
from sdflow_core.weights.model_store import Bundle, Bundles, ModelStore

# Learns codes alone. What refreshing needs is another encoder that is about as good: a little noise on its
# weights and two small steps. `test_encoder_only.py` has one that really learned, a minute on one thread.
GOOD = EncoderTraining(shake=0.02, steps=2, batch=4, learning_rate=1e-5, weight_pixel=0.0, weight_code=1.0)
# Begun anew and hardly trained.
BAD = EncoderTraining(start="random", steps=1, batch=2, weight_pixel=0.0, weight_code=1.0)


@cache
def trained(config: EncoderTraining) -> tuple[bytes, dict[str, float]]:
    """The encoder's file and its figures, measured on few people."""
    kinds = ("generator", "prior", "encoder")
    networks = [load_model(embedded_file(f"{kind}.safetensors"), expect=kind) for kind in kinds]
    with patch.object(encoder_only, "_MEASURED", 8):
        encoder, metrics = encoder_only.train_encoder(*networks, config)
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
