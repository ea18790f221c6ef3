"""Train an editor from Parquet shards, in one process or several.

    torchrun --nproc-per-node 2 -m sdflow_core.method.train_parallel \\
        'codes/*.parquet' --scores smiling,young --labeller labeller.safetensors \\
        --config '{"steps": 5000}' --checkpoint state.bin --out editor.safetensors

The batch of the configuration is that of all processes together; each computes its share. The result is that
of one process up to the order of sums. Without torchrun it is one process. Prints one JSON object at the end:
steps, rows a second of the matching, and the last losses. A killed training goes on at its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from glob import glob
from pathlib import Path
from typing import Any

from sdflow_core.faces.checkpoint import load_model
from sdflow_core.method.parallel import Group, joined
from sdflow_core.method.parquet_source import ParquetSource
from sdflow_core.method.training import TrainingConfig, train_on_source


class FileCheckpoint:
    """Training state in a file, replaced atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, data: bytes) -> None:
        """Replace the state."""
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        beside.write_bytes(data)
        beside.replace(self.path)

    def load(self) -> bytes | None:
        """The last state, if any."""
        return self.path.read_bytes() if self.path.exists() else None


class Throughput:
    """Rows a second of the matching; the first step, which pays for what is set up once, is left out."""

    def __init__(self, batch: int) -> None:
        self.batch, self.steps, self.seconds = batch, 0, 0.0
        self._last: float | None = None

    def __call__(self, step: int, total: int, losses: dict[str, float]) -> None:
        """One step was done."""
        now = time.perf_counter()
        if "matching" in losses:
            if self._last is not None:
                self.steps, self.seconds = self.steps + 1, self.seconds + now - self._last
            self._last = now

    @property
    def rows_per_second(self) -> float:
        """0 before the second step."""
        return self.steps * self.batch / self.seconds if self.seconds else 0.0


def run(options: argparse.Namespace, group: Group) -> dict[str, Any]:
    """Train as asked; what the first process found."""
    names = tuple(options.scores.split(","))
    config = TrainingConfig.model_validate_json(options.config)
    files = sorted(found for pattern in options.shards for found in glob(pattern))
    source = ParquetSource(files, options.codes, names)
    labeller: Any = load_model(Path(options.labeller).read_bytes(), expect="labeller")
    checkpoint = FileCheckpoint(Path(options.checkpoint)) if options.checkpoint else None
    pace = Throughput(config.batch_of(source.rows))
    trained = train_on_source(
        source, labeller.only(names), config, checkpoint, pace, options.device, group=group
    )
    if group.leads and options.out:
        Path(options.out).write_bytes(trained.editor(options.encoder).to_bytes())
    return {
        "rows": source.rows,
        "processes": group.size,
        "steps": len(trained.history),
        "rows_per_second": round(pace.rows_per_second, 1),
        "losses": trained.final_losses(),
        **({"history": trained.history} if options.history else {}),
    }


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("shards", nargs="+", help="Parquet files or patterns")
    parser.add_argument("--codes", default="w_plus", help="column of W+ codes")
    parser.add_argument("--scores", required=True, help="columns of scores, joined by commas")
    parser.add_argument("--labeller", required=True, help="its file: becomes the semantic encoder")
    parser.add_argument("--encoder", default="", help="digest of the encoder that made the codes")
    parser.add_argument("--config", default="{}", help="TrainingConfig as JSON")
    parser.add_argument("--checkpoint", help="file of the training state")
    parser.add_argument("--out", help="file of the editor")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--history", action="store_true", help="print the losses of every step, too")
    options = parser.parse_args()
    with joined() as group:
        found = run(options, group)
    if group.leads:
        print(json.dumps(found, sort_keys=True))


if __name__ == "__main__":
    main()
