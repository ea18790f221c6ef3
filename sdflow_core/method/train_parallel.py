"""Train an editor from Parquet shards, in one process or several.

    torchrun --nproc-per-node 2 -m sdflow_core.method.train_parallel \\
        'codes/*.parquet' --scores smiling,young --labeller labeller.safetensors \\
        --config '{"steps": 5000}' --checkpoint state.bin --out editor.safetensors

The batch of the configuration is that of all processes together; each computes its share. The result is that
of one process up to the order of sums. Without torchrun it is one process. Prints one JSON object at the end:
steps, rows a second of the matching, and the last losses. A killed training goes on at its checkpoint.
Input that is wrong is said in one line, by the first process; the exit code is 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from glob import glob
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from sdflow_core.faces.checkpoint import load_model
from sdflow_core.method.parallel import Group, joined
from sdflow_core.method.parquet_source import ParquetSource
from sdflow_core.method.training import TrainingConfig, train_on_source
from sdflow_core.records.errors import ContractError, SDFlowError


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


def configured(text: str) -> TrainingConfig:
    """`--config`, a training with a principal flow.

    Raises:
        ContractError: No JSON, or no such training: each field and the reason.
    """
    try:
        config = TrainingConfig.model_validate_json(text)
    except ValidationError as error:
        found = "; ".join(
            ": ".join(part for part in (".".join(map(str, e["loc"])), " ".join(e["msg"].split())) if part)
            for e in error.errors(include_url=False)
        )
        raise ContractError("the training's configuration", found=found, where="--config") from None
    if not config.principal:
        raise ContractError(
            "the training's configuration",
            expected="a principal flow, the only one that is trained from shards",
            found=f"flow of kind {config.flow.kind}",
            where="--config",
        )
    return config


def opened(options: argparse.Namespace) -> tuple[TrainingConfig, ParquetSource, Any]:
    """Configuration, codes and labeller, after all that can be wrong with them was looked at.

    Raises:
        ContractError: Names the option, what was expected and what was found.
        CorruptError: A shard that cannot be read.
    """
    names = tuple(name.strip() for name in options.scores.split(","))
    config = configured(options.config)
    files = sorted(found for pattern in options.shards for found in glob(pattern))
    if not files:
        raise ContractError(
            "shards of codes",
            expected="at least one Parquet file",
            found=f"nothing at {', '.join(options.shards)}",
            todo="check the paths; quote patterns, so that the shell leaves them alone",
        )
    for option in ("checkpoint", "out"):
        path = getattr(options, option)
        if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
            raise ContractError(
                "a file to write",
                expected="a file in a folder that is there",
                found=path,
                where=f"--{option}",
            )
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:  # torch says in several ways that there is no such device
        raise ContractError(
            "the device to train on", found=f"{options.device}: {_line(error)}", where="--device"
        ) from None
    try:
        data = Path(options.labeller).read_bytes()
    except OSError as error:
        raise ContractError(
            "the labeller's file cannot be read", found=error.strerror, where=options.labeller
        ) from None
    try:
        labeller: Any = load_model(data, expect="labeller").only(names)
    except ContractError as error:
        raise ContractError(
            error.what, expected=error.expected, found=error.found, where=options.labeller, todo=error.todo
        ) from None
    return config, ParquetSource(files, options.codes, names), labeller


def run(options: argparse.Namespace, group: Group) -> dict[str, Any]:
    """Train as asked; what the first process found."""
    config, source, labeller = opened(options)
    checkpoint = FileCheckpoint(Path(options.checkpoint)) if options.checkpoint else None
    group.check(config.batch_of(source.rows))
    pace = Throughput(config.batch_of(source.rows))
    trained = train_on_source(source, labeller, config, checkpoint, pace, options.device, group=group)
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


def main() -> int:
    """Command line; see the module. The exit code."""
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
    first = os.environ.get("RANK", "0") == "0"
    try:
        with joined() as group:
            found = run(options, group)
    except SDFlowError as error:
        if first:  # the others see the same
            print(f"train_parallel: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    except RuntimeError as error:
        if first:
            raise
        # the first one stopped, said why, and left this one alone in the middle of an exchange
        print(f"train_parallel: process {os.environ.get('RANK')} stops: {_line(error)}", file=sys.stderr)
        return 1
    if group.leads:
        print(json.dumps(found, sort_keys=True))
    return 0


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    sys.exit(main())
