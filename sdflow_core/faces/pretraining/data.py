"""Aligned faces and their labels in memory, split by person."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sdflow_core.faces.align import crop, quad_from_points
from sdflow_core.faces.decode import Rejected, decode
from sdflow_core.faces.detect import Detector
from sdflow_core.faces.networks import to_tensor
from sdflow_core.records.errors import ContractError

LABELLER_PART, JUDGE_PART, TEST_PART = 0, 1, 2


@dataclass(frozen=True)
class FaceSet:
    """Aligned faces in memory.

    Attributes:
        images: uint8 [N, H, W, 3] RGB.
        scores: float32 [N, A] in [0, 1], NaN where a label is missing.
        attributes: A names.
        part: int64 [N]: 0 people the labeller learns from, 1 people the judge learns from, 2 test people.
        names: N relative names (private: never logged).
        dropped: reason -> count.
    """

    images: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32]
    attributes: tuple[str, ...]
    part: npt.NDArray[np.int64]
    names: tuple[str, ...]
    dropped: dict[str, int]

    def tensor(self, index: npt.NDArray[np.int64] | Tensor) -> Tensor:
        """Rows as float images [B, 3, H, W] in [-1, 1]."""
        return to_tensor(self.images[np.asarray(index)])


def person_of(name: str) -> str:
    """The person a file shows: its folder, or the file itself where files lie flat."""
    return name.rsplit("/", 2)[-2] if name.count("/") >= 1 else name


def part_of(person: str) -> int:
    """55 % of people teach the labeller, 35 % the judge, 10 % are the test; by hash, so it never moves."""
    bucket = int(hashlib.sha256(person.encode()).hexdigest()[:8], 16) % 100
    return LABELLER_PART if bucket < 55 else JUDGE_PART if bucket < 90 else TEST_PART


def read_labels(data: bytes, attributes: tuple[str, ...]) -> dict[str, list[float]]:
    """Read a label CSV: a `path` column and one column in [0, 1] per attribute.

    Raises:
        ContractError: A missing column, a value that is no number in [0, 1], or a path listed twice; names
            line and column.
    """
    reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
    columns = {c.lower(): c for c in reader.fieldnames or []}
    missing = [a for a in ("path", *attributes) if a.lower() not in columns]
    if missing:
        raise ContractError(
            "label CSV", expected=f"columns path, {', '.join(attributes)}", found=f"no column {missing}"
        )
    out: dict[str, list[float]] = {}
    for line, row in enumerate(reader, start=2):
        name = row[columns["path"]]
        if name in out:
            raise ContractError("label CSV: a path is listed twice", found=name, where=f"line {line}")
        values: list[float] = []
        for a in attributes:
            raw = row[columns[a.lower()]]
            try:
                value = float(raw)
            except (TypeError, ValueError):
                value = float("nan")
            if not 0.0 <= value <= 1.0:
                raise ContractError(
                    "label CSV", expected="a number in [0, 1]", found=raw, where=f"line {line}, column {a}"
                )
            values.append(value)
        out[name] = values
    return out


def load_faces(
    files: Iterable[tuple[str, Callable[[], bytes]]],
    labels: dict[str, list[float]],
    attributes: tuple[str, ...],
    *,
    size: int,
    template_scale: float,
    detector: Detector,
    minimum: int = 500,
) -> FaceSet:
    """Decode, detect and align a folder of pictures.

    Args:
        files: (relative name, function that reads the bytes).
        labels: From `read_labels`; keyed by relative name (a leading folder may be missing on either side).
        attributes: Names in the order of the label lists.
        size: Side of the crops in pixels.
        template_scale: Share of the FFHQ template's side.
        detector: Face detector; the face nearest to the centre, weighted by size, is taken.
        minimum: Fewest usable faces.

    Raises:
        ContractError: Fewer than `minimum` usable faces, or labels that name no file at all.
    """
    images: list[npt.NDArray[np.uint8]] = []
    scores: list[list[float]] = []
    names: list[str] = []
    dropped: dict[str, int] = {}
    by_tail = {"/".join(k.split("/")[-2:]): v for k, v in labels.items()}
    unlabelled = [float("nan")] * len(attributes)
    matched = 0
    for name, read in files:
        try:
            picture = decode(read())
            faces = detector.find(picture)
            if not faces:
                raise Rejected("no face found")
        except Rejected as reason:
            dropped[str(reason)] = dropped.get(str(reason), 0) + 1
            continue
        middle = np.array([picture.shape[1] / 2, picture.shape[0] / 2])
        face = min(
            faces,
            key=lambda f: (
                float(np.linalg.norm(f.points.mean(0) - middle)) / float(np.sqrt(f.box[2] * f.box[3]))
            ),
        )
        images.append(crop(picture, quad_from_points(face.points, template_scale), size))
        row = by_tail.get("/".join(name.split("/")[-2:]))
        matched += row is not None
        scores.append(row or unlabelled)
        names.append(name)
    if len(images) < minimum or (labels and not matched):
        raise ContractError(
            "too little to train on",
            expected=f"at least {minimum} usable faces, some of them labelled",
            found=f"{len(images)} faces, {matched} labelled; dropped: {dropped}",
        )
    part = np.array([part_of(person_of(n)) for n in names])
    return FaceSet(np.stack(images), np.array(scores, np.float32), attributes, part, tuple(names), dropped)
