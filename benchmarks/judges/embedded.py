"""What `bench_embedded.py` measures: one method a part, every figure under a flat key."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.judges import faceapi
from benchmarks.judges.chips import chips
from benchmarks.judges.fetch import FACE_API, weight_files
from benchmarks.judges.figures import (
    frechet_distance,
    is_crossed,
    members,
    nearest_distances,
    pair_distances,
    paired_distances,
    psnr_db,
    worst_group,
)
from benchmarks.judges.photographs import (
    Photographs,
    central_face,
    enlarged,
    load_photographs,
    read_groups,
    remembered,
)
from sdflow_core.faces.checkpoint import load_model
from sdflow_core.faces.detect import default_detector
from sdflow_core.faces.networks import to_tensor, to_uint8
from sdflow_core.faces.pretraining.classifiers import auc, calibration_error, predict
from sdflow_core.faces.pretraining.data import read_labels
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.embedded import embedded_file

PARTS = ("readers", "reconstruction", "identity", "samples", "speed")
KINDS = ("generator", "encoder", "prior", "labeller", "judge")
_LEAST_OF_A_CLASS = 5  # an AUC of fewer positives or negatives says nothing about a group
# attributes that LFW's table has under another name, and those that it states the other way round
_COLUMNS = {"beard": "no_beard", "mouth_open": "mouth_slightly_open"}
_OPPOSITE = frozenset({"beard"})
_BATCH = 50
_FRAME_PX, _FACE_PX = 288, 192  # of the demo's photographs

Pixels = NDArray[np.uint8]
Rows = NDArray[np.bool_]


@dataclass(frozen=True)
class Options:
    """Where things lie, and how much is measured.

    Attributes:
        data: Folder with `lfw.tar`, `lfw_attributes.csv` and the archives of `learned`.
        models: "embedded", or a folder laid out like `embedded_models`.
        judges: Folder of the judges' packages; None is the user's cache directory.
        cache: Folder of prepared arrays.
        rows: Test photographs (all when None), and four times as many training photographs.
        samples: People drawn from the prior.
        truncation: Of the draw; None as the demo draws.
        learned: Archives the models learned from; their people (not the test people) are who may have been
            memorised. The first one is also the data that distributions are compared on.
    """

    data: Path
    models: str
    judges: Path | None
    cache: Path
    rows: int | None
    samples: int
    truncation: float | None = None
    learned: tuple[str, ...] = ("lfw.tar",)


class Bench:
    """Everything the parts share, prepared on first use."""

    def __init__(self, options: Options) -> None:
        self.options = options
        torch.set_num_threads(1)
        self.manifest = json.loads(self._file("bundle.json"))
        self.resolution, self.scale = int(self.manifest["resolution"]), float(self.manifest["template_scale"])
        self.detector = default_detector()

    def measure(self, parts: tuple[str, ...]) -> dict[str, Any]:
        """Figures of the given parts, in the order of the table."""
        figures: dict[str, Any] = {"resolution": self.resolution}
        for part in PARTS:
            if part in parts:
                figures |= {key: _rounded(value) for key, value in getattr(self, part)().items()}
        if {"readers", "reconstruction", "identity"} & set(parts):
            figures |= {"n_test": len(self.test.names), "n_test_people": len(set(self.test.people))}
            figures |= {"n_test_dropped": self.test.dropped, "groups": self._by_group}
        return figures

    def _file(self, name: str) -> bytes:
        if self.options.models == "embedded":
            return embedded_file(name)
        path = Path(self.options.models) / name
        if not path.is_file():
            raise ContractError("a model file is missing", expected=name, where=path.parent)
        return path.read_bytes()

    def network(self, kind: str) -> Any:
        """One network, in the memory layout the pipeline runs it in."""
        if kind not in self._networks:
            network = load_model(self._file(f"{kind}.safetensors"), expect=kind)
            self._networks[kind] = network.to(memory_format=torch.channels_last)
        return self._networks[kind]

    @cached_property
    def _networks(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _by_group(self) -> dict[str, dict[str, Any]]:
        return {name: {"n": int(rows.sum())} for name, rows in self.groups.items()}

    # --- photographs -----------------------------------------------------------------------------------

    def _photographs(self, archive: str, *, test: bool, rows: int | None, whole: bool = False) -> Photographs:
        return load_photographs(
            self.options.data / archive,
            test=test,
            resolution=self.resolution,
            template_scale=self.scale,
            detector=self.detector,
            cache=self.options.cache,
            rows=rows,
            whole_chips=whole,
        )

    @cached_property
    def test(self) -> Photographs:
        """Photographs of the test people."""
        return self._photographs("lfw.tar", test=True, rows=self.options.rows, whole=True)

    @cached_property
    def learned(self) -> list[Photographs]:
        """Photographs of everybody else, of each set the models learned from."""
        rows = None if self.options.rows is None else 4 * self.options.rows
        return [self._photographs(name, test=False, rows=rows) for name in self.options.learned]

    @cached_property
    def _csv(self) -> bytes:
        path = self.options.data / "lfw_attributes.csv"
        if not path.is_file():
            raise ContractError("the labels are missing", expected=path.name, where=path.parent)
        return path.read_bytes()

    @cached_property
    def groups(self) -> dict[str, Rows]:
        """Groups of the test photographs that are large enough, as masks."""
        known = read_groups(self._csv)
        return members([known.get(name, {}) for name in self.test.names])

    @cached_property
    def rebuilt(self) -> Pixels:
        """Reconstructions of the test photographs."""
        encoder, images = self.network("encoder"), self.test.images
        parts = (to_tensor(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH))
        with torch.inference_mode():
            return np.concatenate([self.render(encoder.encode(part)) for part in parts])

    def render(self, codes: Tensor) -> Pixels:
        """w+ [N, L, D] -> pictures as a file would hold them."""
        generator = self.network("generator")
        with torch.inference_mode():
            return np.concatenate([to_uint8(generator.synthesize(part)) for part in codes.split(_BATCH)])

    # --- judges ----------------------------------------------------------------------------------------

    @cached_property
    def _judge_folder(self) -> Path:
        return weight_files(FACE_API, self.options.judges)

    @cached_property
    def _identity(self) -> faceapi.IdentityJudge:
        return faceapi.IdentityJudge(self._judge_folder)

    def describe(self, cut: Pixels) -> NDArray[np.float32]:
        """Descriptors of chips, kept in the cache: photographs are judged once for all models."""
        key = f"{FACE_API.sha256} {cut.shape} {hashlib.sha256(cut.tobytes()).hexdigest()}"
        return remembered(self.options.cache, key, lambda: self._identity.describe(cut))

    def smiling(self, images: Pixels) -> Rows:
        """Whether the expression net takes each aligned face for happy, at more than one half."""
        judge = faceapi.ExpressionJudge(self._judge_folder)
        return judge.smiling(enlarged(images, faceapi.EXPRESSION_PX)) > 0.5

    def _worst(self, key: str, figure: Callable[[Rows], float]) -> dict[str, Any]:
        """Worst single and worst crossed group; every group's figure goes into the table of groups."""
        out: dict[str, Any] = {}
        for name, rows in self.groups.items():
            value = figure(rows)
            if not np.isnan(value):
                self._by_group[name][key] = _rounded(value)
        for prefix, crossed in (("worst", False), ("worst_crossed", True)):
            groups = {name: rows for name, rows in self.groups.items() if is_crossed(name) == crossed}
            name, value = worst_group(groups, figure)
            if name:
                out |= {f"{prefix}_{key}": value, f"{prefix}_{key}_group": name}
        return out

    # --- parts -----------------------------------------------------------------------------------------

    def readers(self) -> dict[str, Any]:
        """Labeller and second classifier against machine labels, the labeller's smile against the net's."""
        out: dict[str, Any] = {}
        header = self._csv.split(b"\n", 1)[0].decode("utf-8-sig").strip().lower().split(",")
        for kind, suffix in (("labeller", ""), ("judge", "_second")):
            network = self.network(kind)
            known = tuple(name for name in network.attributes if column_of(name) in header)
            labels = read_labels(self._csv, tuple(column_of(name) for name in known))
            labelled = np.array([name in labels for name in self.test.names])
            nothing = [float("nan")] * len(known)
            truth = np.array([labels.get(name, nothing) for name in self.test.names])
            opposite = [is_opposite(name) for name in known]
            truth[:, opposite] = 1.0 - truth[:, opposite]
            scores = predict(network, self.test.images)
            for i, name in enumerate(known):
                score, yes = scores[:, network.attributes.index(name)], truth[:, i] > 0.5
                rows = labelled & ~np.isnan(truth[:, i])
                out[f"auc_{name}{suffix}"] = auc(score[rows], yes[rows])
                out[f"ece_{name}{suffix}"] = calibration_error(score[rows], yes[rows])
                if suffix:
                    continue
                out |= self._worst(f"auc_{name}", _auc_of(score, yes, rows))
                if name == "smiling":
                    net = self.smiling(self.test.images)
                    out["expression_agreement"] = float(((score > 0.5) == net).mean())
                    # how far the net agrees with the labels themselves: more than that proves nothing
                    out["expression_agreement_of_labels"] = float((yes[rows] == net[rows]).mean())
            if rows_missing := int((~labelled).sum()):
                out["n_test_unlabelled"] = rows_missing
        return out

    def reconstruction(self) -> dict[str, Any]:
        """Pixels, and what the reconstruction keeps for labeller, second classifier and expression net."""
        psnr = psnr_db(self.test.images, self.rebuilt)
        out: dict[str, Any] = {"psnr_db": float(psnr.mean())}
        out |= self._worst("psnr_db", lambda rows: float(psnr[rows].mean()))
        for kind, suffix in (("labeller", ""), ("judge", "_second")):
            network = self.network(kind)
            same = (predict(network, self.test.images) > 0.5) == (predict(network, self.rebuilt) > 0.5)
            out |= {f"agree_{n}{suffix}": float(same[:, i].mean()) for i, n in enumerate(network.attributes)}
        kept = self.smiling(self.test.images) == self.smiling(self.rebuilt)
        out["agree_smiling_judge"] = float(kept.mean())
        return out

    def identity(self) -> dict[str, Any]:
        """Original against reconstruction, beside pairs of photographs of one person and of two."""
        test, limit = self.test, faceapi.SAME_PERSON_DISTANCE
        original, whole = self.describe(chips(test.images, test.points)), self.describe(test.chips)
        rebuilt = self.describe(chips(self.rebuilt, test.points))
        kept = paired_distances(original, rebuilt)
        out: dict[str, Any] = {
            "same_person_share": float((kept < limit).mean()),
            "same_person_distance": float(kept.mean()),
        }
        out |= self._worst("same_person_share", lambda rows: float((kept[rows] < limit).mean()))
        kept = paired_distances(whole, rebuilt)
        out["same_person_share_full"] = float((kept < limit).mean())
        out["same_person_distance_full"] = float(kept.mean())
        strangers = np.linalg.norm(original.astype(np.float64)[:, None] - rebuilt[None], axis=2)
        strangers = strangers[test.people[:, None] != test.people[None]]
        out["other_people_share"] = float((strangers < limit).mean())
        out["other_people_distance"] = float(strangers.mean())
        for suffix, rows in (("", original), ("_full", whole)):
            within, weights, between = pair_distances(rows, test.people)
            if len(within):
                out[f"photo_pair_share{suffix}"] = float(np.average(within < limit, weights=weights))
                out[f"photo_pair_distance{suffix}"] = float(np.average(within, weights=weights))
            out[f"photo_other_people_share{suffix}"] = float((between < limit).mean())
        return out

    def samples(self) -> dict[str, Any]:
        """People drawn as the demo draws them: faces, distribution, likeness to those learned from."""
        from tasks import demo  # here: the other parts need no Prefect; its own settings, so that both agree

        count, limit = self.options.samples, faceapi.SAME_PERSON_DISTANCE
        rng = torch.Generator().manual_seed(demo._SEED)
        truncation = self.options.truncation
        truncation = demo._TRUNCATION if truncation is None else truncation
        codes = self.network("prior").sample(count, rng, truncation=truncation)
        drawn = self.render(codes)
        usual = np.mean([s.points.mean(0) for s in self.learned], axis=0)
        points, found = [], []
        for image in drawn:
            picture = demo.photograph(image)
            faces = self.detector.find(picture)
            found.append(len(faces) == 1 and not faces[0].turned)
            at = central_face(faces, picture).points if faces else None
            points.append(usual if at is None else _in_face(at, self.resolution))
        out: dict[str, Any] = {"one_face_share": float(np.mean(found)), "n_samples": count}
        out["sample_truncation"] = truncation
        samples = self.describe(chips(drawn, np.stack(points)))
        gallery = [self.describe(chips(s.images, s.points)) for s in self.learned]
        test = self.describe(chips(self.test.images, self.test.points))
        rebuilt = self.describe(chips(self.rebuilt, self.test.points))
        size = min(len(samples), len(test), len(gallery[0]))
        pick = np.random.default_rng(0)
        a = np.sort(pick.permutation(len(test))[:size])
        b = np.sort(pick.permutation(len(gallery[0]))[:size])
        out |= {
            "feature_distance": frechet_distance(samples[:size], test[a]),
            "feature_distance_split": frechet_distance(gallery[0][b], test[a]),
            "feature_distance_reconstruction": frechet_distance(gallery[0][b], rebuilt[a]),
            "n_feature_distance": size,
        }
        people = np.concatenate(gallery)
        near, chance = nearest_distances(samples, people), nearest_distances(test[a], people)
        out |= {
            "memorised_share": float((near < limit).mean()),
            "memorised_share_chance": float((chance < limit).mean()),
            "memorised_share_beyond_chance": float((near < np.quantile(chance, 0.01)).mean()),
            "memorised_distance": float(np.median(near)),
            "memorised_distance_chance": float(np.median(chance)),
            "n_learned_from": len(people),
        }
        return out

    def speed(self) -> dict[str, Any]:
        """One image on one thread, medians of calls in turn; and what all files weigh."""
        encoder, generator = self.network("encoder"), self.network("generator")
        image = to_tensor(np.zeros((1, self.resolution, self.resolution, 3), np.uint8))
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            code = encoder.encode(image)
            calls = {
                "render_ms": lambda: generator.synthesize(code),
                "invert_ms": lambda: encoder.encode(image),
            }
            times: dict[str, list[float]] = {name: [] for name in calls}
            for turn in range(55):
                for name, call in calls.items():
                    started = time.perf_counter()
                    call()
                    if turn >= 5:
                        times[name].append((time.perf_counter() - started) * 1000)
        out = {name: statistics.median(values) for name, values in times.items()}
        files = {kind: len(self._file(f"{kind}.safetensors")) for kind in KINDS}
        return {**out, "load_of_machine": os.getloadavg()[0], "weights_mb": sum(files.values()) / 1e6}


def _auc_of(score: NDArray[np.float32], yes: Rows, known: Rows) -> Callable[[Rows], float]:
    def figure(rows: Rows) -> float:
        rows = rows & known
        if min(int(yes[rows].sum()), int((~yes[rows]).sum())) < _LEAST_OF_A_CLASS:
            return float("nan")
        return auc(score[rows], yes[rows])

    return figure


def _in_face(points: NDArray[np.float64], resolution: int) -> NDArray[np.float64]:
    """Points in a photograph of the demo -> in the face that was put into it (pixel centres)."""
    return (points - (_FRAME_PX - _FACE_PX) / 2 + 0.5) * (resolution / _FACE_PX) - 0.5


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


def column_of(attribute: str) -> str:
    """An attribute's column of LFW's table, in small letters."""
    return _COLUMNS.get(attribute, attribute.lower())


def is_opposite(attribute: str) -> bool:
    """Whether LFW's table states the attribute the other way round."""
    return attribute in _OPPOSITE
