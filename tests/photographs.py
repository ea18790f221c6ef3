"""Photographs of people who do not exist: the embedded prior's faces, set into a large picture with grain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from sdflow_core.faces.align import crop, points_in_crop, quad_from_points
from sdflow_core.faces.checkpoint import load_model
from sdflow_core.faces.detect import Detector
from sdflow_core.faces.networks import to_tensor, to_uint8
from sdflow_core.faces.paste_back import EditedFace
from sdflow_core.weights.embedded import embedded_file, embedded_manifest

PLACES = ((0.2, 0.42, 0.0, 1.0), (0.5, 0.55, -14.0, 0.8), (0.8, 0.40, 9.0, 1.1))  # x, y, degrees, size


class People:
    """The embedded generator, encoder, labeller and prior.

    Args:
        seed: Other seeds are other people.
    """

    def __init__(self, seed: int = 5) -> None:
        self.manifest = embedded_manifest()
        self.size, self.scale = int(self.manifest["resolution"]), float(self.manifest["template_scale"])
        self.generator, self.encoder, self.labeller, self.prior = (
            load_model(embedded_file(f"{kind}.safetensors"), expect=kind)
            for kind in ("generator", "encoder", "labeller", "prior")
        )
        self.seed = seed

    @torch.no_grad()
    def faces(self, count: int) -> NDArray[np.uint8]:
        """[count, 64, 64, 3]."""
        codes = self.prior.sample(count, torch.Generator().manual_seed(self.seed), truncation=0.7)
        return to_uint8(self.generator.synthesize(codes))

    @torch.no_grad()
    def edits(self, crops: NDArray[np.uint8], attribute: str, strength: float) -> tuple[Any, Any]:
        """Reconstructions and edits [N, 3, 64, 64] by the difference of an attribute's class means in w+."""
        drawn = self.prior.sample(400, torch.Generator().manual_seed(99), truncation=1.0)
        found = [self.labeller(self.generator.synthesize(part)) for part in drawn.split(50)]
        present = torch.cat(found)[:, self.manifest["attributes"].index(attribute)] > 0.5
        direction = drawn[present].mean(0) - drawn[~present].mean(0)
        codes = self.encoder.encode(to_tensor(crops))
        edited = self.generator.synthesize(codes + strength * direction)
        return self.generator.synthesize(codes), edited


@dataclass(frozen=True)
class Found:
    """One face of a photograph: quad in it, crop, points in px of the crop."""

    quad: NDArray[np.float64]
    crop: NDArray[np.uint8]
    points: NDArray[np.float64]


def background(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """A wall in soft light with grain."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(90, 190, (6, 9, 3)).astype(np.float32)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return with_grain(np.clip(picture, 0, 255).astype(np.uint8), rng)


def with_grain(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture with the noise of a camera."""
    grain = rng.integers(-7, 8, (1 << 20,), dtype=np.int8).astype(np.int16)
    out = np.empty_like(picture)
    for row in range(len(picture)):
        start = int(rng.integers(0, 1 << 19))
        line = picture[row].astype(np.int16)
        line += np.resize(grain[start : start + line.shape[0]], line.shape[0])[:, None]
        out[row] = np.clip(line, 0, 255)
    return out


def photograph(people: NDArray[np.uint8], width: int = 6000, height: int = 4000) -> NDArray[np.uint8]:
    """The people beside each other, tilted and of several sizes, [height, width, 3]."""
    picture = background(width, height)
    rng = np.random.default_rng(1)
    for face, (x, y, degrees, size) in zip(people, PLACES, strict=False):
        side = 0.3 * size * height  # of the crop; around it the picture is continued and fades into the wall
        reach = int(side * 0.85)
        enlarged = cv2.resize(face, (512, 512), interpolation=cv2.INTER_CUBIC)
        turn = cv2.getRotationMatrix2D((255.5, 255.5), degrees, side / 512)
        turn[:, 2] += reach - 255.5
        span = 2 * reach + 1
        tile = cv2.warpAffine(
            enlarged, turn, (span, span), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        ys, xs = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        far = np.hypot(xs / (0.62 * side), ys / (0.72 * side))
        weight = np.clip((1.15 - far) / 0.2, 0, 1)[:, :, None].astype(np.float32)
        left, top = int(x * width) - reach, int(y * height) - reach
        part = picture[top : top + span, left : left + span]
        mixed = part + weight * (tile.astype(np.float32) - part)
        part[:] = with_grain(np.clip(mixed, 0, 255).astype(np.uint8), rng)
    return picture


def find_faces(picture: NDArray[np.uint8], detector: Detector, size: int, scale: float) -> list[Found]:
    """All faces, as ingest would crop them."""
    found: list[Found] = []
    for face in detector.find(picture):
        quad = quad_from_points(face.points, scale)
        found.append(Found(quad, crop(picture, quad, size), points_in_crop(face.points, quad, size)))
    return found


def edited_faces(found: list[Found], before: Any, after: Any) -> list[EditedFace]:
    """What `paste_back` takes."""
    rows = zip(found, before, after, strict=True)
    return [EditedFace(face.quad, edit, start, face.points) for face, start, edit in rows]
