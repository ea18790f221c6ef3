"""One source file -> a verdict, and a crop if it is kept. A bad file is a row with a reason, no exception."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sdflow_core.faces import ffhq
from sdflow_core.faces.align import GRID_OFFSET, crop, points_in_crop, quad_from_points
from sdflow_core.faces.decode import Rejected, decode
from sdflow_core.faces.detect import Face
from sdflow_core.records.config import Config, Growing
from sdflow_core.records.errors import ContractError, SDFlowError
from sdflow_core.records.keys import sha256_hex
from sdflow_core.records.sources import UnfitError

Pixels = npt.NDArray[np.uint8]


class IngestConfig(Growing, Config):
    """What decides over a source.

    Attributes:
        max_pixels: Largest picture that is decoded.
        min_eye_distance_px: Faces with closer eyes are dropped.
        template_scale: Share of the FFHQ template's side that the crop takes; fixed by the bundle.
        resolution: Side of the crop in pixels; fixed by the bundle.
        faces: What becomes of a picture with several faces: `reject` drops it, `largest` takes the face with
            the largest box, `all` takes every face that fits.
        framing: `five_points`: the square of the detector's points, as the compact models learned it;
            `ffhq`: the corrected square, for encoders that were trained on FFHQ (`faces.ffhq`).
    """

    later = ("faces", "framing")

    max_pixels: int = 50_000_000
    min_eye_distance_px: float = 12.0
    template_scale: float = 1.0
    resolution: int = 1024
    faces: Literal["reject", "largest", "all"] = "reject"
    framing: Literal["five_points", "ffhq"] = "five_points"

    @property
    def grid_offset(self) -> float:
        """What crops are cut with; `paste_back` needs it again."""
        return ffhq.GRID_OFFSET if self.framing == "ffhq" else GRID_OFFSET


@dataclass(frozen=True)
class Aligned:
    """A kept face."""

    crop: Pixels  # [resolution, resolution, 3]
    quad: npt.NDArray[np.float64]  # [4, 2] px in the picture
    points: npt.NDArray[np.float64]  # [5, 2] px in the crop
    score: float  # of the detector


@dataclass(frozen=True)
class Judged:
    """One face of a picture.

    Attributes:
        number: By size: 0 is the largest that was found.
        reason: Why it cannot be used; empty where it can.
        score: Of the detector.
        aligned: The face, where it can be used.
    """

    number: int
    reason: str
    score: float
    aligned: Aligned | None = None


@dataclass(frozen=True)
class Verdict:
    """Outcome for one source: `status` kept, dropped (for good) or failed (tried again next time).

    `faces` are those of a kept source that the policy looks at, largest first: one, or with `all` every face
    that was found, those that do not fit with their reasons.
    """

    status: str
    reason: str
    image_id: str = ""
    faces: tuple[Judged, ...] = ()

    @property
    def face(self) -> Aligned | None:
        """The largest face that fits; None where nothing is kept."""
        return next((face.aligned for face in self.faces if face.aligned is not None), None)


def align_bytes(data: bytes, find: Callable[[Pixels], list[Face]], config: IngestConfig) -> Aligned:
    """Decode, detect and align the face of one picture: the only one, or with `largest` the largest.

    Raises:
        Rejected: With the reason in words.
        ContractError: The policy is `all`; see `align_faces`.
    """
    if config.faces == "all":
        raise ContractError(
            "one face is asked for", expected="faces: reject or largest", found="all", where="IngestConfig"
        )
    return align_faces(decode(data, max_pixels=config.max_pixels), find, config)[0]


def align_faces(
    picture: Pixels, find: Callable[[Pixels], list[Face]], config: IngestConfig
) -> tuple[Aligned, ...]:
    """Detect and align the faces of one upright picture, as the policy `config.faces` wants.

    Args:
        picture: [H, W, 3] uint8 RGB, as `decode` gives it; up to 50 megapixels.
        find: The detector; largest face first.
        config: See `IngestConfig`.

    Returns:
        At least one face, largest first; with `all` those that fit, the others are left out.

    Raises:
        Rejected: No face fits; says why (of several, why the largest does not).
    """
    judged = judge_faces(picture, find, config)
    return tuple(face.aligned for face in judged if face.aligned is not None)


def judge_faces(
    picture: Pixels, find: Callable[[Pixels], list[Face]], config: IngestConfig
) -> tuple[Judged, ...]:
    """`align_faces`, and with `all` also what was left out and why.

    Args:
        picture: [H, W, 3] uint8 RGB, upright.
        find: The detector; largest face first.
        config: See `IngestConfig`.

    Returns:
        One face, or with `all` every face that was found, largest first; at least one of them fits.

    Raises:
        Rejected: As `align_faces`.
    """
    faces = find(picture)
    if not faces:
        raise Rejected("no face found")
    if len(faces) > 1 and config.faces == "reject":
        raise Rejected(f"{len(faces)} faces found, expected one")
    if config.faces != "all":
        faces = faces[:1]
    reasons = [_why_unfit(face, picture, config) for face in faces]
    if all(reasons):
        raise Rejected(reasons[0])
    return tuple(
        Judged(number, reason, face.score, None if reason else _aligned(picture, face, config))
        for number, (face, reason) in enumerate(zip(faces, reasons, strict=True))
    )


def _why_unfit(face: Face, picture: Pixels, config: IngestConfig) -> str:
    """ "" or why this face cannot be used."""
    if face.turned:
        return "the face is upside down or lies on its side: turn the picture"
    height, width = picture.shape[:2]
    if (face.points < -0.5).any() or (face.points > (width - 0.5, height - 0.5)).any():
        return "the face is cut off by the border of the picture"
    distance, least = float(np.linalg.norm(face.points[1] - face.points[0])), config.min_eye_distance_px
    if distance < least:
        return f"face too small: eyes {distance:.0f} px apart, at least {least:.0f} needed"
    return ""


def _aligned(picture: Pixels, face: Face, config: IngestConfig) -> Aligned:
    if config.framing == "ffhq":
        quad = ffhq.ffhq_quad(face.points, config.template_scale)
    else:
        quad = quad_from_points(face.points, config.template_scale)
    size, offset = config.resolution, config.grid_offset
    cut = crop(picture, quad, size, offset)
    return Aligned(cut, quad, points_in_crop(face.points, quad, size, offset), face.score)


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
        picture = decode(data, max_pixels=config.max_pixels)
        return Verdict("kept", "", image_id, judge_faces(picture, find, config))
    except Rejected as reason:
        return Verdict("dropped", str(reason), image_id)
