"""How far the FFHQ square of five points lies from that of 68 points, and what is left when it is corrected.

Usage: `python benchmarks/bench_quad.py --lfw lfw.tar [--rows 800] [--judges FOLDER] [--json]`

Photographs of LFW (real people, research only: nothing of them is kept or shown, figures alone are printed),
one a person. YuNet gives the five points, face-api's 68-point network (package @vladmandic/face-api, MIT) the
others, on the square round YuNet's box; FFHQ itself was aligned by dlib's network, which is not for
commercial use. Half of the people give the constants, the other half the figures. `spread` is what the
68-point network itself disagrees with when its square is moved and grown by 8 %: no correction can be better.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks.judges.faceapi import EXPRESSION_PX, ExpressionJudge  # noqa: E402
from benchmarks.judges.fetch import FACE_API, default_cache, weight_files  # noqa: E402
from sdflow_core.faces.align import quad_from_points  # noqa: E402
from sdflow_core.faces.decode import decode  # noqa: E402
from sdflow_core.faces.detect import default_detector  # noqa: E402
from sdflow_core.faces.ffhq import EYE_SHIFT, MOUTH_SHIFT, ffhq_quad, ffhq_quad_of_68  # noqa: E402

_MANIFEST = "face_landmark_68_model-weights_manifest.json"
_FILES = (f"package/model/{_MANIFEST}", "package/model/face_landmark_68_model.bin")
_WORSE = ((0.08, 0.0, 1.0), (-0.08, 0.0, 1.0), (0.0, 0.08, 1.0), (0.0, -0.08, 1.0), (0.0, 0.0, 1.08))


class Landmarks(ExpressionJudge):
    """face-api's 68 points."""

    def find(self, picture: NDArray[np.uint8], centre: NDArray[np.float64], side: float) -> Any:
        """[68, 2] px of the picture, looked at in a square."""
        size = EXPRESSION_PX
        to_picture = np.array(
            [[side / size, 0, centre[0] - side / 2], [0, side / size, centre[1] - side / 2]], np.float64
        )
        small = cv2.warpAffine(picture, to_picture, (size, size), flags=cv2.INTER_AREA | cv2.WARP_INVERSE_MAP)
        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(small)).permute(2, 0, 1)[None].float()
            found = self.logits(pixels)
        return found.reshape(68, 2).double().numpy() * side + centre - side / 2


def landmarks(judges: Path | None) -> Landmarks:
    """The network, out of the package that the judges come from."""
    weight_files(FACE_API, judges)
    packed = (judges or default_cache() / "judges") / FACE_API.tarball
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(packed) as archive:
        for name in _FILES:
            stream = archive.extractfile(name)
            (Path(scratch) / Path(name).name).write_bytes(stream.read() if stream else b"")
        return Landmarks(Path(scratch), _MANIFEST)


def measured(lfw: Path, rows: int, network: Landmarks) -> list[dict[str, Any]]:
    """Points of the first photograph of each person that shows one upright face."""
    detector, out, seen = default_detector(), [], set[str]()
    with tarfile.open(lfw) as archive:
        for member in archive:
            person = Path(member.name).parent.name
            stream = archive.extractfile(member) if member.isreg() and person not in seen else None
            if stream is None:
                continue
            seen.add(person)
            picture = decode(stream.read())
            faces = detector.find(picture)
            if len(faces) != 1 or faces[0].turned:
                continue
            box = faces[0].box
            centre, side = box[:2] + box[2:] / 2, float(box[2:].max())
            looks = [network.find(picture, centre, side)]
            looks += [network.find(picture, centre + side * np.array(w[:2]), side * w[2]) for w in _WORSE]
            out.append({"five": faces[0].points, "looks": looks})
            if len(out) == rows:
                break
    return out


def in_frame(quad: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the other square lies, seen from the first: right, down (of its side), log size, turn (rad)."""
    x, y, side = quad[3] - quad[0], quad[1] - quad[0], float(np.hypot(*(quad[3] - quad[0])))
    move, z = other.mean(0) - quad.mean(0), other[3] - other[0]
    turn = float(np.arctan2(x[0] * z[1] - x[1] * z[0], x @ z))
    return np.array([move @ x / side**2, move @ y / side**2, np.log(np.hypot(*z) / side), turn])


def shifts(people: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Mean way of eyes and mouth corners from 5 to 68 points: inward, down, of the eye-mouth distance."""
    ways: dict[str, list[NDArray[np.float64]]] = {"eye": [], "mouth": []}
    for person in people:
        five, many = person["five"], person["looks"][0]
        targets = {0: many[36:42].mean(0), 1: many[42:48].mean(0), 3: many[48], 4: many[54]}
        down = (five[3] + five[4] - five[0] - five[1]) / 2
        right = np.array([down[1], -down[0]])
        for k, target in targets.items():
            way = (target - five[k]) / (down @ down)
            ways["eye" if k < 2 else "mouth"].append(
                np.array([way @ right * (1 if k in (0, 3) else -1), way @ down])
            )
    return {name: np.mean(values, axis=0).tolist() for name, values in ways.items()}


def corner_distance(quad: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Mean distance of the corners, of the second square's side."""
    return float(np.hypot(*(quad - other).T).mean() / np.hypot(*(other[3] - other[0])))


def main() -> None:
    """Print the bias, its correction and what is left."""
    parser = argparse.ArgumentParser(description="The five-point square against that of 68 points.")
    parser.add_argument("--lfw", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--judges", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    people = measured(options.lfw, options.rows, landmarks(options.judges))
    five = [quad_from_points(person["five"]) for person in people]
    truth = [ffhq_quad_of_68(person["looks"][0]) for person in people]
    frames = np.stack([in_frame(a, b) for a, b in zip(five, truth, strict=True)])
    second = slice(1, None, 2)
    fitted = shifts(people[::2])
    corrected = [ffhq_quad(person["five"]) for person in people]
    distances = {
        "five points": [corner_distance(a, b) for a, b in zip(five, truth, strict=True)],
        "corrected": [corner_distance(a, b) for a, b in zip(corrected, truth, strict=True)],
        "spread": [
            float(np.median([corner_distance(ffhq_quad_of_68(look), quad) for look in person["looks"][1:]]))
            for person, quad in zip(people, truth, strict=True)
        ],
    }
    names = ("right", "down", "log_size", "turn_rad")
    figures = {
        "people": len(people),
        "bias": dict(zip(names, np.median(frames, axis=0).tolist(), strict=True)),
        "quartiles": dict(zip(names, np.quantile(frames, (0.25, 0.75), axis=0).T.tolist(), strict=True)),
        "constants": {"eye": EYE_SHIFT, "mouth": MOUTH_SHIFT},
        "of_first_half": fitted,
        "of_second_half": shifts(people[1::2]),
        "median_corner_distance_of_second_half": {
            name: float(np.median(values[second])) for name, values in distances.items()
        },
        "90_percent_of_second_half": {
            name: float(np.quantile(values[second], 0.9)) for name, values in distances.items()
        },
    }
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:40} {value}")


if __name__ == "__main__":
    main()
