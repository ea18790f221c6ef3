"""Who looks at the edits: the labeller, judges that had no part in any training, the product's own gate.

Judges only: the embedded judge (of other people than the labeller's), face-api's expression net for smiles,
dlib's ResNet for identity. SFace is the product's gate, and taught the edit map: it is reported beside the
judge, never instead of it. The detector says whether there is still one face.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.editors.material import Material
from benchmarks.judges import faceapi
from benchmarks.judges.chips import chips
from benchmarks.judges.fetch import FACE_API, weight_files
from benchmarks.judges.photographs import enlarged
from sdflow_core.faces.networks import to_uint8
from sdflow_core.method.sweeping import Observer

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
_FACE_PX, _MARGIN_PX = 192, 48  # the detector is asked about faces of a usual size, in a picture


class Observers:
    """All observers of one set of people.

    Args:
        material: Networks, and where the judges' weights lie.
        points: Facial points [N, 5, 2] px of the pictures.
    """

    def __init__(self, material: Material, points: NDArray[np.float64]) -> None:
        self.material, self.points = material, points
        cv2.setNumThreads(1)  # one observer at a time is measured, on one core

    @cached_property
    def _folder(self) -> Path:
        return weight_files(FACE_API, self.material.options.judges)

    @cached_property
    def _dlib(self) -> faceapi.IdentityJudge:
        return faceapi.IdentityJudge(self._folder)

    @cached_property
    def _expression(self) -> faceapi.ExpressionJudge:
        return faceapi.ExpressionJudge(self._folder)

    def dlib(self, pixels: Pixels, rows: NDArray[np.int64]) -> Floats:
        """Descriptors [n, 128]; Euclidean distances count."""
        return self._dlib.describe(chips(pixels, self.points[rows]), batch=16)

    def sface(self, pixels: Pixels, rows: NDArray[np.int64]) -> Floats:
        """Unit vectors [n, 128]."""
        return self.material.networks.identity.embed(pixels, self.points[rows])

    def expression(self, pixels: Pixels) -> Floats:
        """Probability of a happy face [n, 1]."""
        return self._expression.smiling(enlarged(pixels, faceapi.EXPRESSION_PX), batch=16)[:, None]

    def faces(self, pixels: Pixels) -> Floats:
        """1 where exactly one face is found [n, 1]."""
        border = cv2.BORDER_REFLECT_101
        m = _MARGIN_PX
        found = [
            len(self.material.networks.detector.find(cv2.copyMakeBorder(p, m, m, m, m, border))) == 1
            for p in enlarged(pixels, _FACE_PX)
        ]
        return np.array(found, np.float32)[:, None]

    def all(self, offset: int = 0) -> dict[str, Observer]:
        """By name; row i of a sweep is row `offset + i` of these people."""
        networks, options = self.material.networks, self.material.options

        def of(pictures: Tensor) -> Pixels:
            return to_uint8(pictures)

        out = {
            "labeller": Observer(lambda x, rows: networks.scores(x).numpy()),
            "judge": Observer(lambda x, rows: networks.judged(x).numpy()),
            "dlib": Observer(lambda x, rows: self.dlib(of(x), rows + offset)),
            "expression": Observer(lambda x, rows: self.expression(of(x)), ("smiling",)),
        }
        if options.identity:
            out["sface"] = Observer(lambda x, rows: self.sface(of(x), rows + offset))
        if options.detector:
            out["faces"] = Observer(lambda x, rows: self.faces(of(x)))
        return out
