"""What better inversion gains and costs: the encoder alone, w+ refined in few and many steps, a tuned copy.

Usage: `python benchmarks/bench_inversion.py [--people 32] [--tuned 4] [--data FOLDER] [--json]`

The people are drawn by the embedded prior at its full spread, shifted, tinted, given a camera's noise and
written as JPEG, so that no code gives exactly their pictures; nobody is real. `--data FOLDER` takes test
people of FOLDER/lfw.tar instead (private; kept in the user's cache). For each way: PSNR to the crop; SFace's
cosine to the crop; seconds a row (CPU, one thread, encoder included); how far the code moved, in its own
spread; and editability: 1.5 times the difference of the class means of `smiling` is added to every code or
taken from it, and counted is how many the labeller then reads flipped, beside the identity that is left.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.editors.material import embedded_networks  # noqa: E402
from sdflow_core.faces.networks import Networks, to_tensor, to_uint8  # noqa: E402
from sdflow_core.faces.qualities import QUALITIES, refine_config  # noqa: E402
from sdflow_core.faces.recognizer import CropRecognizer  # noqa: E402
from sdflow_core.faces.tuning import TuneConfig, tune  # noqa: E402

_SEED, _ATTRIBUTE, _STRENGTH = 4242, "smiling", 1.5
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Way:
    """Codes and pictures that one way gave, and what it took."""

    codes: Tensor  # [N, L, D]
    images: Tensor  # [N, 3, H, W]
    seconds: float  # CPU, of all rows
    draw: Any  # codes [N, L, D] -> images


def disturbed(images: Pixels, seed: int) -> Pixels:
    """Photographs that no code of the generator gives exactly: shifted, tinted, noisy, through JPEG."""
    rng = np.random.default_rng(seed)
    out: list[Pixels] = []
    for image in images:
        shift = np.float32([[1, 0, rng.uniform(-1.5, 1.5)], [0, 1, rng.uniform(-1.5, 1.5)]])
        moved = cv2.warpAffine(image, shift, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101)
        tinted = 255.0 * (moved / 255.0) ** rng.uniform(0.85, 1.2) * rng.uniform(0.94, 1.06, 3)
        noisy = np.clip(tinted + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=85)
        out.append(np.asarray(Image.open(file)))
    return np.stack(out)


def people_of(networks: Networks, options: argparse.Namespace) -> tuple[Pixels, NDArray[np.float64]]:
    """Crops [N, H, W, 3] and their points [N, 5, 2]."""
    bundle = networks.bundle
    if options.data is not None:
        from benchmarks.judges.photographs import load_photographs

        found = load_photographs(
            options.data / "lfw.tar",
            test=True,
            resolution=bundle.resolution,
            template_scale=bundle.template_scale,
            detector=networks.detector,
            cache=options.cache,
            rows=options.people,
        )
        return found.images, found.points
    codes = networks.prior.sample(options.people, torch.Generator().manual_seed(_SEED), truncation=1.0)
    images = disturbed(to_uint8(networks.render(codes)), _SEED)
    recognizer = CropRecognizer(networks.identity, bundle.template_scale)  # pyright: ignore[reportArgumentType]
    points = recognizer.points * bundle.resolution - 0.5
    return images, np.repeat(points[None], len(images), 0)


def direction_of(networks: Networks) -> Tensor:
    """Difference [L, D] of the mean codes with and without the attribute, of people of the prior."""
    drawn = networks.prior.sample(400, torch.Generator().manual_seed(99), truncation=1.0)
    present = networks.scores(networks.render(drawn))[:, networks.bundle.attributes.index(_ATTRIBUTE)] > 0.5
    return drawn[present].mean(0) - drawn[~present].mean(0)


def by_quality(networks: Networks, quality: str, images: Pixels) -> Way:
    """One level of `sdflow invert --quality`."""
    started = time.process_time()
    codes = torch.from_numpy(networks.encode(images))
    config = refine_config(quality, networks.bundle.resolution)
    if config is not None:
        codes = networks.refine(to_tensor(images), codes, config).w_plus
    spent = time.process_time() - started
    return Way(codes, networks.render(codes), spent, networks.render)


def tuned(networks: Networks, images: Pixels, way: Way) -> tuple[Way, dict[str, float]]:
    """A copy for each row around the codes of another way."""
    started = time.process_time()
    found = [
        tune(networks.generator, image, code, TuneConfig(), centre=networks.prior.mean)
        for image, code in zip(to_tensor(images), way.codes, strict=True)
    ]
    spent = time.process_time() - started + way.seconds * len(images) / len(way.codes)

    @torch.no_grad()
    def draw(codes: Tensor) -> Tensor:
        pairs = zip(found, codes, strict=True)
        return torch.cat([one.generator.synthesize(code[None]) for one, code in pairs]).clamp(-1, 1)

    drift = {
        name: float(np.mean([getattr(one, name) for one in found])) for name in ("drift_near", "drift_mean")
    }
    return Way(way.codes, draw(way.codes), spent, draw), drift


def figures(
    networks: Networks, way: Way, fast: Way, images: Pixels, points: NDArray[np.float64], direction: Tensor
) -> dict[str, float]:
    """What is printed of one way."""
    shown = to_uint8(way.images)
    error = ((shown.astype(np.float64) - images) ** 2).mean((1, 2, 3)).clip(1e-9)
    source = networks.embed(images, points)
    column = networks.bundle.attributes.index(_ATTRIBUTE)
    before = networks.scores(way.images)[:, column] > 0.5
    sign = torch.where(before, -1.0, 1.0)[:, None, None]
    edited = way.draw(way.codes + _STRENGTH * sign * direction)
    after = networks.scores(edited)[:, column] > 0.5
    spread = (fast.codes - networks.prior.mean).square().mean((1, 2)).sqrt()
    return {
        "psnr_db": float((10 * np.log10(255.0**2 / error)).mean()),
        "identity": float((source * networks.embed(shown, points)).sum(1).mean()),
        "seconds_a_row": way.seconds / len(images),
        "moved": float(((way.codes - fast.codes).square().mean((1, 2)).sqrt() / spread).mean()),
        "label_kept": float((before == (networks.scores(to_tensor(images))[:, column] > 0.5)).float().mean()),
        "edit_accuracy": float((after != before).float().mean()),
        "edit_identity": float((source * networks.embed(to_uint8(edited), points)).sum(1).mean()),
        "rows": float(len(images)),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--tuned", type=int, default=4, help="rows that a copy is tuned for (0: none)")
    parser.add_argument("--data", type=Path, help="folder with lfw.tar: real people instead of drawn ones")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/sdflow/benchmarks").expanduser())
    parser.add_argument("--qualities", nargs="+", choices=list(QUALITIES), default=list(QUALITIES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks = embedded_networks()
    images, points = people_of(networks, options)
    direction = direction_of(networks)
    ways = {quality: by_quality(networks, quality, images) for quality in options.qualities}
    fast = ways.get("fast") or by_quality(networks, "fast", images)
    found = {name: figures(networks, way, fast, images, points, direction) for name, way in ways.items()}
    count = min(options.tuned, len(images))
    if count:
        base = options.qualities[-1]
        way = ways[base]
        some, drift = tuned(networks, images[:count], Way(way.codes[:count], way.images[:count],
                            way.seconds * count / len(images), way.draw))  # fmt: skip
        first = Way(fast.codes[:count], fast.images[:count], 0.0, fast.draw)
        of = (images[:count], points[:count], direction)
        found[f"{base} + tuned"] = {**figures(networks, some, first, *of), **drift}
        part = Way(way.codes[:count], way.images[:count], way.seconds * count / len(images), way.draw)
        found[f"{base}, the tuned rows"] = figures(networks, part, first, *of)
    if options.json:
        print(json.dumps({"attribute": _ATTRIBUTE, "strength": _STRENGTH, "ways": found}, indent=2))
        return
    for name, row in found.items():
        print(f"{name:24}" + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
