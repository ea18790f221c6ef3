"""Synthesis at 1024 px: our generator against a straightforward one that renders picture by picture.

Usage: `python benchmarks/bench_generator.py [--size 1024] [--batch 4] [--rounds 3] [--threads N] [--json]`

The other side is `tests/plain_generator.py`: weights scaled and demodulated for each sample, a transposed
convolution, the filter, in fp32. Same random weights, same codes, the fixed noise. The sides take turns
(A B A B); seconds are medians over the rounds, images/s and the ratio are of wall time, and the ratio of CPU
seconds stands beside it for machines that do other work too. On a GPU the half precisions are the product and
`--batch 8` is the bound's batch. `--forms` also measures every form of `faces/large_features.py`, once each,
and on a CPU the half precisions with `--halves` (they are slow there).

Peak memory is the process's own for a CPU (what a call adds to what was resident before it), the allocator's
for a GPU. Bounds: ratio at least 1.5 on a CPU, 3 on a GPU; fp32 difference at most 1e-3, half precision at
most 0.02 of the pictures' range.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from sdflow_core.faces.generator import Generator  # noqa: E402
from sdflow_core.weights import stylegan2_files  # noqa: E402
from tests import plain_generator, weight_makers  # noqa: E402

Call = Callable[[], Tensor]


def resident_mib() -> float:
    """Memory of this process that lies in RAM, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib(call: Call, device: str) -> float:
    """What a call takes at most beyond what was there before, in MiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before, seen, done = resident_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return max(seen) - before


def timed(call: Call, device: str) -> tuple[Tensor, float, float]:
    """Pictures, wall seconds, CPU seconds."""
    started, spent = time.perf_counter(), time.process_time()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - started, time.process_time() - spent


class Row:
    """One side: its seconds, its pictures of the last round, its memory."""

    def __init__(self, name: str, call: Call, device: str) -> None:
        self.name, self.call, self.device = name, call, device
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.peak = 0.0

    def run(self) -> None:
        """One round."""
        self.pictures, wall, cpu = timed(self.call, self.device)
        self.wall.append(wall)
        self.cpu.append(cpu)
        print(f"{self.name}: {wall:.2f} s, {cpu:.2f} s of CPU", file=sys.stderr, flush=True)

    def figures(self, batch: int, plain: Row) -> dict[str, Any]:
        """What is printed of it, beside the straightforward side."""
        wall, cpu = statistics.median(self.wall), statistics.median(self.cpu)
        spread = float(plain.pictures.max() - plain.pictures.min())
        difference = float((self.pictures.float() - plain.pictures).abs().max())
        return {
            "seconds": round(wall, 3),
            "cpu_seconds": round(cpu, 3),
            "images_per_second": round(batch / wall, 4),
            "ratio": round(statistics.median(plain.wall) / wall, 3),
            "cpu_ratio": round(statistics.median(plain.cpu) / cpu, 3) if cpu else None,
            "max_difference": float(f"{difference:.3g}"),
            "of_range": float(f"{difference / spread:.3g}"),
            "peak_mib": round(self.peak),
        }


def models(size: int, device: str) -> tuple[dict[str, Tensor], Generator]:
    """The full model of the family at one resolution, random weights, by rosinality's names and as ours."""
    state = weight_makers.draw(weight_makers.rosinality_shapes(size))
    mean = {"latent_avg": torch.zeros(512)}
    generator = stylegan2_files.load(state, mean)  # the conversion that users' files go through
    network: Any = generator.to(device)  # the stubs know no `to` with a layout alone
    return {name: value.to(device) for name, value in state.items()}, network.to(
        memory_format=torch.channels_last
    )


def sides(options: argparse.Namespace, device: str) -> tuple[Row, list[Row]]:
    """The straightforward side and ours."""
    state, ours = models(options.size, device)
    w = torch.randn(options.batch, ours.num_rows, 512, generator=torch.Generator().manual_seed(1)).to(device)

    def straightforward() -> Tensor:
        with torch.device(device):
            return torch.stack([plain_generator.rosinality(state, row) for row in w])

    rows = [Row("ours fp32", lambda: ours.synthesize(w), device)]
    if device == "cuda" or options.halves:
        rows.append(Row("ours fp16", lambda: ours.synthesize(w, precision="fp16"), device))
        rows.append(Row("ours bf16", lambda: ours.synthesize(w, precision="bf16"), device))
    if options.forms:
        for form in ("factorised", "grouped"):
            rows.append(Row(f"ours fp32 {form}", lambda form=form: ours.synthesize(w, form=form), device))
    if options.size > 256:
        rows.append(Row("preview at 256 px", lambda: ours.synthesize(w, up_to=256), device))
    return Row("straightforward", straightforward, device), rows


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--forms", action="store_true")
    parser.add_argument("--halves", action="store_true")
    parser.add_argument("--json", action="store_true", help="only the last line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = options.device
    figures: dict[str, dict[str, Any]] = {}
    with torch.no_grad():
        plain, rows = sides(options, device)
        first = [row for row in rows if row.name.startswith("preview") or len(row.name.split()) == 2]
        for row in (plain, *rows):
            row.peak = peak_mib(row.call, device)  # also warms up
        for _ in range(options.rounds):
            for row in (plain, *first):
                row.run()
        for row in rows:
            if row not in first:
                row.run()
        for row in (plain, *rows):
            if row.name.startswith("preview"):
                row.pictures = plain.pictures  # another size: not comparable
            figures[row.name] = row.figures(options.batch, plain)
    product = figures["ours fp16" if device == "cuda" else "ours fp32"]
    if not options.json:
        columns = list(product)
        print(f"{'':24}" + "".join(f"{name:>19}" for name in columns))
        for name, values in figures.items():
            print(f"{name:24}" + "".join(f"{values[column]!s:>19}" for column in columns))
    print(
        json.dumps(
            {
                "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                "size": options.size,
                "batch": options.batch,
                "threads": options.threads,
                "rounds": options.rounds,
                **product,
                "rows": figures,
            }
        )
    )


if __name__ == "__main__":
    main()
