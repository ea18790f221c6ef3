"""Photographs of a labelled set as the models and the judges see them, prepared once and kept in a cache.

The arrays show real people: they stay in the cache folder, outside the repository, and are never shown.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.judges.chips import chip
from sdflow_core.faces.align import crop, points_in_crop, quad_from_points
from sdflow_core.faces.decode import Rejected, decode
from sdflow_core.faces.detect import Detector, Face
from sdflow_core.faces.pretraining.data import TEST_PART, part_of, person_of
from sdflow_core.records.errors import ContractError

_FORMAT = 1  # counts up when what is kept below is computed otherwise
_ENDINGS = (".jpg", ".jpeg", ".png")
_LARGEST_FILE_BYTES = 50_000_000


@dataclass(frozen=True)
class Photographs:
    """Aligned faces of one side of the split.

    Attributes:
        images: uint8 [N, R, R, 3], as ingest crops them for the models.
        points: float64 [N, 5, 2] px in `images`.
        chips: uint8 [N, 150, 150, 3], cut for the identity judge from the whole photograph; empty [0, ...]
            where nobody asked for them.
        names: N relative names (private).
        dropped: Photographs without a face, or that could not be read.
    """

    images: NDArray[np.uint8]
    points: NDArray[np.float64]
    chips: NDArray[np.uint8]
    names: tuple[str, ...]
    dropped: int

    @property
    def people(self) -> NDArray[np.str_]:
        """The person of each row."""
        return np.array([person_of(name) for name in self.names])


def load_photographs(
    archive: Path,
    *,
    test: bool,
    resolution: int,
    template_scale: float,
    detector: Detector,
    cache: Path,
    rows: int | None = None,
    whole_chips: bool = False,
) -> Photographs:
    """Decode, detect and align one side of the split of a tar of pictures, through the project's own ingest.

    Where several faces are found, the one nearest to the centre, weighted by size, is taken: the sets show
    their person there.

    Args:
        archive: Tar of `<set>/<person>/<file>`; where files lie flat, each is a person of its own.
        test: The test people, or all the others.
        resolution: Side of the crops in px.
        template_scale: Share of the FFHQ template's side.
        detector: YuNet.
        cache: Folder for the prepared arrays.
        rows: Only so many photographs, of as few people as possible.
        whole_chips: Also cut chips from the photographs at full resolution.

    Raises:
        ContractError: No such file, or not a single face in it.
    """
    if not archive.is_file():
        raise ContractError(
            "the labelled photographs are missing", expected=archive.name, where=archive.parent
        )
    size, asked = archive.stat().st_size, f"{test} {resolution} {template_scale} {rows} {whole_chips}"
    key = f"{_FORMAT} {archive.name} {size} {_head_digest(archive)} {asked} {detector.digest}"
    kept = cache / f"photographs-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if not kept.is_file():
        arrays = _prepare(archive, test, resolution, template_scale, detector, rows, whole_chips)
        keep_arrays(kept, arrays)
    with np.load(kept, allow_pickle=False) as held:
        return Photographs(
            held["images"], held["points"], held["chips"], tuple(held["names"].tolist()), int(held["dropped"])
        )


def central_face(faces: list[Face], picture: NDArray[np.uint8]) -> Face:
    """The face nearest to the middle, distances counted in sizes of the face."""
    middle = np.array([picture.shape[1] / 2, picture.shape[0] / 2])
    return min(
        faces,
        key=lambda f: float(np.linalg.norm(f.points.mean(0) - middle)) / float(np.sqrt(f.box[2] * f.box[3])),
    )


def read_groups(data: bytes) -> dict[str, dict[str, str]]:
    """Groups of each photograph by the columns of DeepFace: gender, age band and race label.

    Args:
        data: Label CSV with columns `path`, `df_gender`, `df_age`, `df_race`; empty cells give no group.

    Returns:
        path -> {"gender": ..., "age": "30-39", "race": ...}. Machine-made guesses about how a face looks,
        used to compare figures between groups and for nothing else.
    """
    out: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(io.StringIO(data.decode("utf-8-sig"))):
        groups = {"gender": row.get("df_gender") or "", "race": row.get("df_race") or ""}
        try:
            decade = int(float(row.get("df_age") or "")) // 10 * 10
            groups["age"] = f"{decade}-{decade + 9}"
        except ValueError:
            groups["age"] = ""
        out[row["path"]] = {name: value for name, value in groups.items() if value}
    return out


def _head_digest(archive: Path) -> str:
    with archive.open("rb") as stream:
        return hashlib.sha256(stream.read(1 << 20)).hexdigest()


def _prepare(
    archive: Path,
    test: bool,
    resolution: int,
    template_scale: float,
    detector: Detector,
    rows: int | None,
    whole_chips: bool,
) -> dict[str, NDArray[np.generic]]:
    wanted = _chosen(archive, test, rows)
    found: dict[str, tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.uint8] | None]] = {}
    for name, data in _members(archive, set(wanted)):
        try:
            picture = decode(data)
            faces = detector.find(picture)
        except Rejected:
            continue
        if not faces:
            continue
        points = central_face(faces, picture).points
        quad = quad_from_points(points, template_scale)
        found[name] = (
            crop(picture, quad, resolution),
            points_in_crop(points, quad, resolution),
            chip(picture, points) if whole_chips else None,
        )
    if not found:
        raise ContractError("no face in the photographs", found=f"{len(wanted)} files", where=archive)
    names = [name for name in wanted if name in found]
    return {
        "images": np.stack([found[name][0] for name in names]),
        "points": np.stack([found[name][1] for name in names]),
        "chips": np.array([found[name][2] for name in names] if whole_chips else [], np.uint8),
        "names": np.array(names),
        "dropped": np.array(len(wanted) - len(names)),
    }


def _chosen(archive: Path, test: bool, rows: int | None) -> list[str]:
    """Names of one side of the split, in order of a hash of the person: a part of it is of few people."""
    with tarfile.open(archive) as tar:
        names = [m.name for m in tar if m.isreg() and m.name.lower().endswith(_ENDINGS)]
    mine = [name for name in names if (part_of(person_of(name)) == TEST_PART) == test]
    mine.sort(key=lambda name: (hashlib.sha256(person_of(name).encode()).hexdigest(), name))
    return mine[:rows]


def _members(archive: Path, wanted: set[str]) -> Generator[tuple[str, bytes]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name in wanted and member.size <= _LARGEST_FILE_BYTES:
                stream = tar.extractfile(member)
                if stream is not None:
                    yield member.name, stream.read()


def keep_arrays(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """Write beside, then rename: a killed benchmark leaves no half cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def remembered(cache: Path, key: str, compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    """An array kept under a name made of everything it depends on.

    Args:
        cache: Folder.
        key: Digests of inputs and network.
        compute: Called when it is not there yet.
    """
    path = cache / f"described-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if not path.is_file():
        keep_arrays(path, {"rows": compute()})
    with np.load(path, allow_pickle=False) as held:
        return held["rows"]


def enlarged(images: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """Square images [N, H, H, 3] at another size (averaged when smaller, bilinear when larger)."""
    if images.shape[1] == side_px:
        return images
    kind = cv2.INTER_AREA if side_px < images.shape[1] else cv2.INTER_LINEAR
    rows = [np.asarray(cv2.resize(i, (side_px, side_px), interpolation=kind), np.uint8) for i in images]
    return np.stack(rows)
