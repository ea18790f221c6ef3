"""Train another encoder for the embedded generator, on people that do not exist, and put it into a store.

Usage: `python benchmarks/make_second_encoder.py STORE [--steps 40] [--seed 0] [--worse] [--json]`

Then `sdflow models promote DIGEST --by NAME` and `sdflow refresh DATASET` show what a change of the encoder
is. With --worse it is begun anew and hardly trained: a refresh has to refuse it.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.faces.pretraining.encoder_only import EncoderTraining, train_encoder
from sdflow_core.records.store import open_store
from sdflow_core.weights.embedded import LICENCE_ID, embedded_file
from sdflow_core.weights.model_store import ModelStore


def main() -> None:
    """Print the digest and the figures; with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worse", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = EncoderTraining(
        start="random" if options.worse else "given",
        steps=min(options.steps, 4) if options.worse else options.steps,
        weight_pixel=0.0,  # codes alone teach it nearly as well, in half the time
        weight_code=1.0,
        seed=options.seed,
    )
    kinds = ("generator", "prior", "encoder")
    networks = [load_model(embedded_file(f"{kind}.safetensors"), expect=kind) for kind in kinds]
    started = time.monotonic()
    encoder, metrics = train_encoder(*networks, config)
    seconds = round(time.monotonic() - started, 1)
    card = {
        "title": "second encoder (worse on purpose)" if options.worse else "second encoder",
        "licence_id": LICENCE_ID,  # it learned from the embedded models
        "training": config.model_dump(mode="json"),
        "metrics": metrics,
    }
    digest = ModelStore(open_store(options.store)).add("encoder", save_model(encoder), card)
    facts = {"encoder": digest, **metrics, "seconds": seconds}
    for name, value in facts.items():
        print(f"{name:16} {value}")
    if options.json:
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
