"""Take the networks of a pretraining out of its store, as the package carries them.

Usage: `sdflow --store STORE pretrain ... --json | tail -1 > pretrained.json`, then
`python embedded_models/recipe/export_models.py --store STORE --pretrained pretrained.json [--to FOLDER]`.
Writes `<kind>.safetensors` (float16) and `bundle.json`; the cards are written by `write_cards.py` afterwards,
which needs the figures of these very files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.records.store import Store, open_store
from sdflow_core.weights.embedded import NETWORKS
from sdflow_core.weights.model_store import ModelStore


def export(store: Store, pretrained: dict[str, Any], to: Path) -> dict[str, Any]:
    """Write the files; gives what `bundle.json` says."""
    models = ModelStore(store)
    files: dict[str, bytes] = {}
    for kind in NETWORKS:
        files[f"{kind}.safetensors"] = save_model(
            load_model(models.weights(pretrained["models"][kind]), expect=kind), half=True
        )
    labeller, generator = (load_model(files[f"{kind}.safetensors"]) for kind in ("labeller", "generator"))
    manifest = {
        "attributes": list(labeller.attributes),
        "resolution": generator.config.resolution,
        "template_scale": models.card(pretrained["models"]["generator"])["template_scale"],
    }
    for name, data in files.items():  # all of them were read before the first is written
        (to / name).write_bytes(data)
    (to / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    return manifest


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--pretrained", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=Path(__file__).resolve().parents[1])
    options = parser.parse_args()
    pretrained = json.loads(options.pretrained.read_text())
    print(json.dumps(export(open_store(options.store), pretrained, options.to)))


if __name__ == "__main__":
    sys.exit(main())
