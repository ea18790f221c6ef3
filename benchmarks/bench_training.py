"""Throughput and memory of the default training's matching stage on synthetic codes in Parquet shards.

Rows a second in one process and in two gloo processes at equal global batch (taken in turn, A B A B), in fp32
and bf16, and the peak memory of a process at ten times the rows. Each run is a process of its own that reads
its codes from shards, so figures include reading them.

Usage: `python benchmarks/bench_training.py [--rows 8000] [--layers 18] [--dim 512] [--batch 256] [--steps 40]
       [--rounds 2] [--json]`
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
NAMES = ("a", "b", "c", "d")
_MEASURED = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module("sdflow_core.method.train_parallel", run_name="__main__")
finally:
    print("peak_mb", round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), file=sys.stderr)
"""


def write_codes(folder: Path, rows: int, layers: int, dim: int) -> None:
    """Correlated codes whose mean moves with the attributes, 2,048 rows a shard in groups of 256."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from sdflow_core.method.condition import attributes_of
    from sdflow_core.records.shards import wplus_column

    folder.mkdir(parents=True)
    rng = torch.Generator().manual_seed(0)
    mixing = torch.randn(64, layers * dim, generator=rng)
    slopes = torch.randn(len(NAMES), layers * dim, generator=rng)
    for number, start in enumerate(range(0, rows, 2048)):
        count = min(2048, rows - start)
        phi = torch.randn(count, len(NAMES), generator=rng).clamp(-1.9, 1.9)
        flat = torch.randn(count, 64, generator=rng) @ mixing + phi @ slopes
        flat += 0.3 * torch.randn(flat.shape, generator=rng)
        scores = attributes_of(phi)
        columns: dict[str, Any] = {"w_plus": wplus_column(flat.view(count, layers, dim).numpy())}
        columns |= {name: scores[:, i].numpy() for i, name in enumerate(NAMES)}
        writer: Any = pq
        writer.write_table(pa.table(columns), folder / f"{number:05d}.parquet", row_group_size=256)


def write_labeller(path: Path) -> None:
    """A small network: the matching stage never calls it."""
    from sdflow_core.faces.checkpoint import save_model
    from sdflow_core.faces.labeller import Labeller, LabellerConfig

    path.write_bytes(save_model(Labeller(LabellerConfig(attributes=NAMES, resolution=16, channels=(4, 4)))))


def train(folder: Path, processes: int, config: dict[str, Any]) -> dict[str, Any]:
    """One training in processes of its own: rows a second, and the peak memory of the largest."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        runner = folder.parent / "measured.py"
        runner.write_text(_MEASURED)
        command += [str(runner), "train_parallel"]
    else:
        command += ["-c", _MEASURED, "train_parallel"]
    command += [str(folder / "*.parquet"), "--scores", ",".join(NAMES), "--config", json.dumps(config)]
    command += ["--labeller", str(folder.parent / "labeller.safetensors")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    peaks = [int(line.split()[-1]) for line in done.stderr.splitlines() if line.startswith("peak_mb")]
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "peak_mb": max(peaks)}


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    base: dict[str, Any] = {"edit_map": None, "steps": options.steps, "batch": options.batch}
    kinds: dict[str, tuple[int, dict[str, Any]]] = {
        "one process, fp32": (1, base),
        "two processes, fp32": (2, base),
        "one process, bf16": (1, {**base, "precision": "bf16"}),
    }
    paces: dict[str, list[float]] = {name: [] for name in kinds}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        write_labeller(place / "labeller.safetensors")
        write_codes(place / "few", options.rows, options.layers, options.dim)
        for _ in range(options.rounds):
            for name, (processes, config) in kinds.items():
                found = train(place / "few", processes, config)
                paces[name].append(found["rows_per_second"])
                losses[name] = found["losses"]["matching"]
        few = train(place / "few", 1, base)
        write_codes(place / "many", 10 * options.rows, options.layers, options.dim)
        many = train(place / "many", 1, base)
    pace = {name: median(values) for name, values in paces.items()}
    result = {
        "rows": options.rows,
        "code": [options.layers, options.dim],
        "batch": options.batch,
        "rows_per_second": {name: round(value, 1) for name, value in pace.items()},
        "two_processes_ratio": round(
            median(paces["two processes, fp32"]) / median(paces["one process, fp32"]), 2
        ),
        "bf16_ratio": round(pace["one process, bf16"] / pace["one process, fp32"], 2),
        "loss": losses,
        "peak_mb": few["peak_mb"],
        "peak_mb_at_ten_times_the_rows": many["peak_mb"],
    }
    for name, value in pace.items():
        print(f"{name:22} {value:10.1f} rows/s   loss {losses[name]:.5f}")
    print(f"peak memory            {few['peak_mb']} MB, at ten times the rows {many['peak_mb']} MB")
    if options.json:
        print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
