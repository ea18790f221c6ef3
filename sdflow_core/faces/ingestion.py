"""One source file -> a verdict, and a crop if it is kept. A bad file is a row with a reason, no exception."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdflow_core.faces.align import crop, points_in_crop, quad_from_points
from sdflow_core.faces.decode import Rejected, decode
from sdflow_core.faces.detect import Face
from sdflow_core.records.config import Config
from sdflow_core.records.errors import SDFlowError
from sdflow_core.records.keys import sha256_hex
from sdflow_core.records.sources import UnfitError

Pixels = npt.NDArray[np.uint8]


class IngestConfig(Config):
    """What decides over a source.

    Attributes:
        max_pixels: Largest picture that is decoded.
        min_eye_distance_px: Faces with closer eyes are dropped.
        template_scale: Share of the FFHQ template's side that the crop takes; fixed by the bundle.
        resolution: Side of the crop in pixels; fixed by the bundle.
    """

    max_pixels: int = 50_000_000
    min_eye_distance_px: float = 12.0
    template_scale: float = 1.0
    resolution: int = 1024


@dataclass(frozen=True)
class Aligned:
    """A kept face."""

    crop: Pixels  # [resolution, resolution, 3]
    quad: npt.NDArray[np.float64]  # [4, 2] px in the picture
    points: npt.NDArray[np.float64]  # [5, 2] px in the crop
    score: float  # of the detector


@dataclass(frozen=True)
class Verdict:
    """Outcome for one source: `status` kept, dropped (for good) or failed (tried again next time)."""

    status: str
    reason: str
    image_id: str = ""
    face: Aligned | None = None


def align_bytes(data: bytes, find: Callable[[Pixels], list[Face]], config: IngestConfig) -> Aligned:
    """Decode, detect and align one picture that must show exactly one face.

    Raises:
        Rejected: With the reason in words.
    """
    picture = decode(data, max_pixels=config.max_pixels)
    faces = find(picture)
    if not faces:
        raise Rejected("no face found")
    if len(faces) > 1:
        raise Rejected(f"{len(faces)} faces found, expected one")
    face = faces[0]
    if face.turned:
        raise Rejected("the face is upside down or lies on its side: turn the picture")
    height, width = picture.shape[:2]
    if (face.points < -0.5).any() or (face.points > (width - 0.5, height - 0.5)).any():
        raise Rejected("the face is cut off by the border of the picture")
    distance = float(np.linalg.norm(face.points[1] - face.points[0]))
    if distance < config.min_eye_distance_px:
        raise Rejected(
            f"face too small: eyes {distance:.0f} px apart, at least {config.min_eye_distance_px:.0f} needed"
        )
    quad = quad_from_points(face.points, config.template_scale)
    size = config.resolution
    return Aligned(crop(picture, quad, size), quad, points_in_crop(face.points, quad, size), face.score)


def judge_source(
    read: Callable[[], bytes],
    find: Callable[[Pixels], list[Face]],
    config: IngestConfig,
    refused: str = "",
) -> Verdict:
    """Read one source and decide.

    Args:
        read: Gives the bytes; may raise the store's errors.
        find: The detector.
        config: See `IngestConfig`.
        refused: Why the source may not be used at all; its bytes are then hashed, so that the refused version
            is known, but never decoded.
    """
    try:
        data = read()
    except UnfitError as error:
        return Verdict("dropped", error.what)
    except SDFlowError as error:
        # permissions can be mended without the file changing: nothing of this is a verdict about the picture
        return Verdict("failed", error.what)
    image_id = sha256_hex(data)
    if refused:
        return Verdict("dropped", refused, image_id)
    try:
        return Verdict("kept", "", image_id, align_bytes(data, find, config))
    except Rejected as reason:
        return Verdict("dropped", str(reason), image_id)
