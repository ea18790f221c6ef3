"""A photograph of 24 megapixels with three faces: what reading, pasting and writing it cost.

Usage: `python benchmarks/bench_paste_back.py [--width 6000] [--height 4000] [--repeat 3] [--json]`

The people are drawn by the embedded models' prior and edited by a linear direction; nobody is real. Printed
for each step, beside the models' time: wall seconds (median), CPU seconds, and, for both ways to paste, peak
memory above what the photograph itself takes. The bound: decode, detect, align, paste and write at most 2 s.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from sdflow_core.faces.decode import decode  # noqa: E402
from sdflow_core.faces.detect import default_detector  # noqa: E402
from sdflow_core.faces.large_png import photograph_png  # noqa: E402
from sdflow_core.faces.paste_back import PasteConfig, paste_back  # noqa: E402
from sdflow_core.faces.pixels import read_png  # noqa: E402
from tests.photographs import People, edited_faces, find_faces, photograph  # noqa: E402

BOUND_SECONDS = 2.0


def measured(call: Callable[[], Any], repeat: int) -> tuple[Any, dict[str, float]]:
    """The result, and medians over some calls."""
    wall: list[float] = []
    cpu: list[float] = []
    result: Any = None
    for _ in range(repeat):
        started, spent = time.perf_counter(), time.process_time()
        result = call()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - spent)
    return result, {"seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu)}


def peak_mb(call: Callable[[], Any]) -> float:
    """Peak of the memory that NumPy and OpenCV take during a call, in MB."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Pasting edited faces back into a large photograph.")
    parser.add_argument("--width", type=int, default=6000)
    parser.add_argument("--height", type=int, default=4000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)

    people = People()
    out = io.BytesIO()
    Image.fromarray(photograph(people.faces(3), options.width, options.height)).save(out, "JPEG", quality=92)
    data, detector = out.getvalue(), default_detector()
    detector.find(np.zeros((64, 64, 3), np.uint8))
    steps: dict[str, dict[str, float]] = {}
    picture, steps["decode (JPEG)"] = measured(lambda: decode(data), options.repeat)
    found, steps["detect and align"] = measured(
        lambda: find_faces(picture, detector, people.size, people.scale), options.repeat
    )
    before, after = people.edits(np.stack([face.crop for face in found]), "smiling", 1.0)
    faces = edited_faces(found, before, after)
    ways = {"change": PasteConfig(), "replace": PasteConfig(blend="replace")}
    for name, config in ways.items():
        run = lambda config=config: paste_back(picture, faces, config)  # noqa: E731
        pasted, steps[f"paste ({name})"] = measured(run, options.repeat)
        twin = picture.copy()
        steps[f"paste ({name})"]["peak_mb"] = peak_mb(
            lambda config=config, twin=twin: paste_back(twin, faces, config, in_place=True)
        )
    file, steps["write (PNG)"] = measured(lambda: photograph_png(pasted.pixels), options.repeat)
    assert np.array_equal(read_png(file), pasted.pixels)
    path = ("decode (JPEG)", "detect and align", "paste (change)", "write (PNG)")
    total = {key: sum(steps[name][key] for name in path) for key in ("seconds", "cpu_seconds")}
    figures = {
        "megapixels": options.width * options.height / 1e6,
        "faces": len(faces),
        "face_sides_px": [round(float(np.hypot(*(face.quad[1] - face.quad[0])))) for face in found],
        "file_mb": len(file) / 1e6,
        "steps": steps,
        "photograph": total,
        "bound_seconds": BOUND_SECONDS,
        "met": total["seconds"] <= BOUND_SECONDS,
    }
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{figures['megapixels']:.0f} megapixels, {len(faces)} faces of {figures['face_sides_px']} px")
    for name, row in {**steps, "photograph": total}.items():
        peak = f"{row['peak_mb']:8.0f} MB" if "peak_mb" in row else ""
        print(f"{name:18} {row['seconds']:6.2f} s  {row['cpu_seconds']:6.2f} s CPU {peak}")
    print(f"at most {BOUND_SECONDS} s: {'met' if figures['met'] else 'MISSED'}")


if __name__ == "__main__":
    main()
