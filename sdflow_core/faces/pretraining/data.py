"""Aligned faces and their labels in memory, split by person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import Field
from torch import Tensor

from sdflow_core.faces.align import crop, quad_from_points
from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.faces.decode import Rejected, decode
from sdflow_core.faces.detect import Detector, Face
from sdflow_core.faces.networks import to_tensor
from sdflow_core.faces.pretraining.duplicates import find_duplicates
from sdflow_core.faces.pretraining.labels import LabelTable, match_labels, read_label_table, read_labels
from sdflow_core.faces.pretraining.people import (
    JUDGE_PART,
    LABELLER_PART,
    TEST_PART,
    check_parts,
    check_teachers,
    part_of,
    person_of,
    together,
)
from sdflow_core.records.errors import AccessError, ContractError
from sdflow_core.streaming import Stage, streaming

__all__ = [
    "JUDGE_PART",
    "LABELLER_PART",
    "TEST_PART",
    "DataConfig",
    "FaceSet",
    "align_face",
    "bytes_in_memory",
    "check_teachers",
    "load_faces",
    "outside_share",
    "part_of",
    "person_of",
    "read_label_table",
    "read_labels",
]

_NEAR_DUPLICATE = "the same photograph as another file"
_RIVAL_SIZE, _RIVAL_DISTANCE = 0.5, 0.5  # of two faces about as central, none is the one that is meant
Pixels = npt.NDArray[np.uint8]
Quad = npt.NDArray[np.float64]


class DataConfig(NetworkConfig):
    """Which pictures teach, and how often each is drawn.

    Attributes:
        template_scale: Share of the FFHQ template's side that a crop takes; the bundle carries it, ingest
            uses it. 0.7 fills 64 px with the face; the whole template would leave some 36 px for it.
        groups: Category columns of the label CSV (any text, empty: unknown), to balance and for figures.
        balance: 0 draws every picture alike, 1 every combination of the groups.
        balance_cap: Largest weight of a picture, in units of the mean.
        min_eye_distance_px: Faces with closer eyes are dropped.
        max_overhang: Largest share of a crop that may lie outside its picture, where there is but reflection.
            Of UTKFace 90 % lie below .35 at a scale of 0.7 (below .12 at 0.5), of LFW all below 0.
        minimum: Fewest usable faces of people who are not kept for the test.
    """

    template_scale: float = Field(default=0.7, gt=0, le=2)
    groups: tuple[str, ...] = ()
    balance: float = Field(default=1.0, ge=0, le=1)
    balance_cap: float = Field(default=5.0, ge=1, allow_inf_nan=False)
    min_eye_distance_px: float = Field(default=12.0, ge=0, allow_inf_nan=False)
    max_overhang: float = Field(default=0.35, ge=0, le=1)
    minimum: int = Field(default=500, ge=1)


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
        overhang: float32 [N], share of the crop that lies outside its picture (filled by reflection).
        frames: float32 [N, 4, 2], corners of the crop in units of the picture's width and height; empty where
            all crops lie inside. `inside` makes masks of it.
        groups: Category column -> N values, "" where unknown.
        remarks: What is no error but should be known; names no file.
        people: N persons; those whose pictures may be one photograph are one. Private, as the names.
    """

    images: Pixels
    scores: npt.NDArray[np.float32]
    attributes: tuple[str, ...]
    part: npt.NDArray[np.int64]
    names: tuple[str, ...]
    dropped: dict[str, int]
    overhang: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    frames: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4, 2), np.float32))
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    remarks: tuple[str, ...] = ()
    people: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Faces that were not cut out of a picture overhang nowhere; without people, the names tell them."""
        if not len(self.overhang):
            object.__setattr__(self, "overhang", np.zeros(len(self.images), np.float32))
        if not self.people:
            object.__setattr__(self, "people", tuple(person_of(name) for name in self.names))

    def tensor(self, index: npt.NDArray[np.int64] | Tensor) -> Tensor:
        """Rows as float images [B, 3, H, W] in [-1, 1]."""
        return to_tensor(self.images[np.asarray(index)])

    def inside(self, index: npt.NDArray[np.int64] | Tensor) -> npt.NDArray[np.bool_]:
        """bool [B, H, W]: which pixels of the rows show the picture, and not its reflection."""
        rows = np.asarray(index)
        size = self.images.shape[1]
        if not len(self.frames):
            return np.ones((len(rows), size, size), bool)
        return _inside(self.frames[rows].astype(np.float64), size)


def bytes_in_memory(count: int, size: int) -> int:
    """Bytes that `count` faces of side `size` take, decoded.

    Example:
        >>> bytes_in_memory(12_000, 128)
        589824000
    """
    return count * size * size * 3


@dataclass(frozen=True)
class AlignedFace:
    """A usable face: `pixels` uint8 [size, size, 3]; `frame` and `overhang` as in `FaceSet`."""

    pixels: Pixels
    frame: Quad
    overhang: float


def align_face(
    data: bytes, find: Callable[[Pixels], list[Face]], config: DataConfig, size: int
) -> AlignedFace:
    """Decode, detect and align the face that a picture is about: the most central, for its size.

    Raises:
        Rejected: No usable face; says why.
    """
    picture = decode(data)
    height, width = picture.shape[:2]
    face = _central(find(picture), width, height)
    if face.turned:
        raise Rejected("the face is upside down or lies on its side")
    if (face.points < -0.5).any() or (face.points > (width - 0.5, height - 0.5)).any():
        raise Rejected("the face is cut off by the border of the picture")
    if np.linalg.norm(face.points[1] - face.points[0]) < config.min_eye_distance_px:
        raise Rejected(f"face too small: eyes less than {config.min_eye_distance_px:g} px apart")
    quad = quad_from_points(face.points, config.template_scale)
    frame = (quad + 0.5) / (width, height)
    overhang = outside_share(frame)
    if overhang > config.max_overhang:
        raise Rejected(f"more than {config.max_overhang:.0%} of the crop lies outside the picture")
    return AlignedFace(crop(picture, quad, size), frame, overhang)


def outside_share(frame: Quad, size: int = 64) -> float:
    """Share of a crop outside its picture, from its corners [4, 2] in units of the picture."""
    return 1.0 - float(_inside(frame[None], size).mean())


def load_faces(
    files: Iterable[tuple[str, Callable[[], bytes]]],
    labels: LabelTable | dict[str, list[float]],
    attributes: tuple[str, ...],
    *,
    size: int,
    detector: Detector,
    config: DataConfig | None = None,
    template_scale: float | None = None,
    minimum: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> FaceSet:
    """Decode, detect and align a folder of pictures of any sizes into one array.

    Rows come in the order of the files. The array is taken once for all files (`bytes_in_memory`); dropped
    ones leave their place unused.

    Args:
        files: (relative name, function that reads the bytes).
        labels: From `read_label_table` or `read_labels`; a leading folder may be missing on either side.
        attributes: Names in the order of the label lists.
        size: Side of the crops in pixels.
        detector: Face detector.
        config: What is usable.
        template_scale: Instead of the config's.
        minimum: Instead of the config's.
        workers: Threads that decode and align.
        progress: Called as (done, total).

    Raises:
        ContractError: Fewer than `minimum` usable faces, labels that name no file at all, or people that
            cannot be split into those who teach and those who test.
        AccessError, TransientError: The source cannot be read; of no single file.
    """
    changed = {"template_scale": template_scale, "minimum": minimum}
    config = config or DataConfig()
    config = config.model_copy(update={k: v for k, v in changed.items() if v is not None})
    items = list(files)
    table = labels if isinstance(labels, LabelTable) else _table(labels, attributes)
    matching = match_labels([name for name, _ in items], table)
    images = np.empty((len(items), size, size, 3), np.uint8)
    names: list[str] = []
    frames: list[Quad] = []
    overhang: list[float] = []
    dropped: Counter[str] = Counter()

    def aligned(item: tuple[str, Callable[[], bytes]]) -> AlignedFace | str:
        try:
            return align_face(item[1](), detector.find, config, size)
        except Rejected as reason:
            return str(reason)
        except AccessError:
            raise
        except ContractError as error:  # one file: no permission, a pipe, vanished
            return error.what

    with streaming(items, [Stage("align", aligned, workers)]) as results:
        for number, (item, found) in enumerate(zip(items, results, strict=True), start=1):
            if isinstance(found, str):
                dropped[found] += 1
            else:
                images[len(names)] = found.pixels
                names.append(item[0])
                frames.append(found.frame)
                overhang.append(found.overhang)
            if progress is not None:
                progress(number, len(items))
    twice = find_duplicates(images[: len(names)])
    if twice.again.any():
        dropped[_NEAR_DUPLICATE] = int(twice.again.sum())
    kept = np.flatnonzero(~twice.again)
    for place, row in enumerate(kept):  # moved up one by one: a copy of the whole would take twice the memory
        if place != row:
            images[place] = images[row]
    people = together([person_of(name) for name in names], twice.kin)
    labelled = [matching.label_of.get(names[row]) for row in kept]
    _check_count(len(kept), sum(x is not None for x in labelled), bool(table.scores), config.minimum, dropped)
    part = np.array([part_of(people[row]) for row in kept])
    check_parts(part, len({people[row] for row in kept}))
    check_teachers(int((part != TEST_PART).sum()), config.minimum)
    unknown = [float("nan")] * len(attributes)
    nothing = ("",) * len(table.groups)
    scores = [table.scores[path] if path is not None else unknown for path in labelled]
    values = [table.categories[path] if path is not None else nothing for path in labelled]
    return FaceSet(
        images[: len(kept)],
        np.array(scores, np.float32).reshape(len(kept), len(attributes)),
        attributes,
        part,
        tuple(names[row] for row in kept),
        dict(dropped),
        np.array([overhang[row] for row in kept], np.float32),
        np.array([frames[row] for row in kept], np.float32),
        {name: tuple(row[i] for row in values) for i, name in enumerate(table.groups)},
        (*matching.remarks(table), *table.remarks()),
        tuple(people[row] for row in kept),
    )


def _inside(frames: Quad, size: int) -> npt.NDArray[np.bool_]:
    """Corners [B, 4, 2] in units of the picture -> bool [B, size, size]."""
    steps = (np.arange(size) + 0.5) / size
    right, down = frames[:, 3] - frames[:, 0], frames[:, 1] - frames[:, 0]
    at = (
        frames[:, None, None, 0]
        + steps[None, None, :, None] * right[:, None, None]
        + steps[None, :, None, None] * down[:, None, None]
    )
    return np.asarray(((at >= 0) & (at <= 1)).all(axis=3))


def _central(faces: Sequence[Face], width: int, height: int) -> Face:
    if not faces:
        raise Rejected("no face found")
    middle = np.array([width / 2, height / 2])

    def off(face: Face) -> float:
        """Distance from the middle in units of the face's size."""
        return float(np.linalg.norm(face.points.mean(0) - middle)) / float(np.sqrt(_area(face)))

    best = min(faces, key=off)
    for other in faces:
        if (
            other is not best
            and _area(other) > _RIVAL_SIZE * _area(best)
            and off(other) - off(best) < _RIVAL_DISTANCE
        ):
            raise Rejected("several faces, none of them clearly the one that is meant")
    return best


def _area(face: Face) -> float:
    return float(face.box[2] * face.box[3])


def _table(labels: dict[str, list[float]], attributes: tuple[str, ...]) -> LabelTable:
    return LabelTable(
        attributes, (), labels, dict.fromkeys(labels, ()), {p: i for i, p in enumerate(labels, start=2)}
    )


def _check_count(faces: int, labelled: int, wanted: bool, minimum: int, dropped: Counter[str]) -> None:
    if faces >= minimum and (labelled or not wanted):
        return
    reasons = "; ".join(f"{count} {reason}" for reason, count in dropped.most_common(8))
    raise ContractError(
        "too little to train on",
        expected=f"at least {minimum} usable faces, some of them labelled",
        found=f"{faces} faces, {labelled} labelled; dropped: {reasons or 'none'}",
        todo="add pictures, or see whether the source is the right folder",
    )
