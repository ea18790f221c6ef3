"""What editors are trained on and judged on: codes, what they render to, scores; kept between runs.

With photographs the arrays describe real people: they stay in the work folder, outside the repository, and
are never shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.editors.options import Options, named
from benchmarks.judges.fetch import default_cache
from benchmarks.judges.photographs import Photographs, keep_arrays, load_photographs
from sdflow_core.faces.networks import Networks, to_uint8
from sdflow_core.faces.recognizer import CropRecognizer
from sdflow_core.records.objects import LocalStore
from sdflow_core.weights.embedded import install_embedded
from sdflow_core.weights.model_store import ModelStore

_TRAINING_SEED, _HELD_OUT_SEED, _UNSEEN_SEED = 1, 90210, 777
_TRUNCATION = 0.9
_MICRO_BATCH = 16
_CHUNK = 256
Pixels = NDArray[np.uint8]


def embedded_networks() -> Networks:
    """The models that ship, opened from a store of their own in the user's cache."""
    store = LocalStore(str(default_cache() / "models"))
    return Networks(ModelStore(store), install_embedded(store), micro_batch=_MICRO_BATCH)


@dataclass(frozen=True)
class Training:
    """Codes with what they show; row i is the same code in all."""

    codes: Tensor  # [N, L, D]
    images: Tensor  # uint8 [N, 3, H, W]
    scores: Tensor  # [N, K] of all that the labeller knows

    def of(self, index: list[int]) -> Tensor:
        """Scores of some attributes [N, len(index)]."""
        return self.scores[:, index]


@dataclass(frozen=True)
class HeldOut:
    """People whom no network and no editor has seen.

    Attributes:
        sources: uint8 [N, H, W, 3]: the photographs' crops; renderings of the codes where people are drawn.
        points: [N, 5, 2] px of facial points in them.
        codes: [N, L, D].
        real: Whether they are photographs.
    """

    sources: Pixels
    points: NDArray[np.float64]
    codes: Tensor
    real: bool


class Material:
    """Everything that rows share, prepared on first use and kept in the work folder.

    Args:
        options: See `Options`.
        say: Where progress is said.
    """

    def __init__(self, options: Options, say: Callable[[str], None] = print) -> None:
        self.options, self.say = options, say
        torch.set_num_threads(1)
        self.networks = embedded_networks()
        self.tracked: tuple[str, ...] = self.networks.bundle.attributes
        self.columns = [self.tracked.index(name) for name in options.attributes]

    def keep(self, kind: str, compute: Callable[[], dict[str, Any]], **parts: Any) -> dict[str, Any]:
        """Arrays under a name made of everything they depend on; computed when they are not there."""
        networks = {
            k: self.networks.digest(k) for k in ("generator", "encoder", "labeller", "judge", "prior")
        }
        path = self.options.work / f"{named(kind, networks=networks, **parts)}.npz"
        if not path.is_file():
            keep_arrays(path, compute())
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}

    # --- codes -------------------------------------------------------------------------------------------

    @cached_property
    def training(self) -> Training:
        """Codes of the training people's photographs, then people drawn from the prior."""
        budget = self.options.budget
        parts = [self._drawn(budget.samples, _TRAINING_SEED)]
        if self.options.data is not None and budget.real:
            parts.insert(0, self._photographed(budget.real))
        return _joined(parts)

    def unseen(self, count: int) -> Training:
        """People drawn from the prior whom no editor was trained on, nor any flow fitted to."""
        return _joined([self._drawn(count, _UNSEEN_SEED)])

    def _drawn(self, count: int, seed: int) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            rng = torch.Generator().manual_seed(seed)
            codes = self.networks.prior.sample(count, rng, truncation=_TRUNCATION)
            return self._rendered(codes, "drawing people")

        return self.keep("drawn", compute, count=count, seed=seed, truncation=_TRUNCATION)

    def _photographed(self, count: int) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            found = self._photographs(test=False, rows=count)
            codes = torch.from_numpy(self.networks.encode(found.images))
            return self._rendered(codes, "rendering training people")

        return self.keep("photographed", compute, count=count)

    def _rendered(self, codes: Tensor, what: str) -> dict[str, Any]:
        images: list[Pixels] = []
        scores: list[Tensor] = []
        for start in range(0, len(codes), _CHUNK):
            shown = self.networks.render(codes[start : start + _CHUNK])
            scores.append(self.networks.scores(shown))
            images.append(to_uint8(shown))
            self.say(f"{what}: {min(start + _CHUNK, len(codes)):,} of {len(codes):,}")
        return {"codes": codes.numpy(), "images": np.concatenate(images), "scores": torch.cat(scores).numpy()}

    def _photographs(self, *, test: bool, rows: int | None) -> Photographs:
        options, bundle = self.options, self.networks.bundle
        assert options.data is not None
        return load_photographs(
            options.data / "lfw.tar",
            test=test,
            resolution=bundle.resolution,
            template_scale=bundle.template_scale,
            detector=self.networks.detector,
            cache=options.cache,
            rows=rows,
            whole_chips=test,  # so that the cache of bench_embedded serves here too
        )

    @cached_property
    def test_photographs(self) -> Photographs:
        """All photographs of the test people."""
        return self._photographs(test=True, rows=None)

    @cached_property
    def held_out(self) -> HeldOut:
        """As many people as the budget asks for, one picture each; fewer where there are not so many."""
        count = self.options.budget.images
        recognizer = CropRecognizer(self.networks.identity, self.networks.bundle.template_scale)
        if self.options.data is None:
            rng = torch.Generator().manual_seed(_HELD_OUT_SEED)
            codes = self.networks.prior.sample(count, rng, truncation=_TRUNCATION)
            sources = to_uint8(self.networks.render(codes))
            points = np.broadcast_to(recognizer.points * sources.shape[1] - 0.5, (count, 5, 2))
            return HeldOut(sources, points, codes, False)
        found = self.test_photographs
        _, first = np.unique(found.people, return_index=True)
        # by a hash of the person, not by the alphabet
        order = sorted(first, key=lambda i: hashlib.sha256(str(found.people[i]).encode()).hexdigest())
        rows = np.array(order[:count])
        sources = found.images[rows]
        return HeldOut(sources, found.points[rows], torch.from_numpy(self.networks.encode(sources)), True)

    @cached_property
    def labels(self) -> dict[str, dict[str, float]]:
        """LFW's machine-made labels in the labeller's names: photograph -> attribute -> [0, 1]."""
        from benchmarks.judges.embedded import column_of, is_opposite
        from sdflow_core.faces.pretraining.data import read_labels

        assert self.options.data is not None
        data = (self.options.data / "lfw_attributes.csv").read_bytes()
        header = data.split(b"\n", 1)[0].decode("utf-8-sig").strip().lower().split(",")
        known = [name for name in self.tracked if column_of(name) in header]
        rows = read_labels(data, tuple(column_of(name) for name in known))
        return {
            path: {
                name: 1.0 - value if is_opposite(name) else value
                for name, value in zip(known, values, strict=True)
            }
            for path, values in rows.items()
        }

    def picked(self, count: int) -> dict[str, Tensor]:
        """Training codes with as many of each class as can be had, for each attribute: [count, L, D]."""
        out: dict[str, Tensor] = {}
        for name, column in zip(self.options.attributes, self.columns, strict=True):
            present = self.training.scores[:, column] > 0.5
            sides = [torch.nonzero(side)[:, 0] for side in (present, ~present)]
            # evenly over each class, so that photographs and drawn people are both among them
            rows = [side[torch.linspace(0, len(side) - 1, count // 2).long()] for side in sides if len(side)]
            out[name] = self.training.codes[torch.cat(rows)]
        return out

    def describe(self) -> str:
        """One line about what is compared on what."""
        kind = "photographs of people nobody learned from" if self.held_out.real else "people drawn anew"
        return json.dumps(
            {"held_out": len(self.held_out.codes), "of": kind, "trained_on": len(self.training.codes)}
        )


def _joined(parts: list[dict[str, Any]]) -> Training:
    return Training(
        torch.from_numpy(np.concatenate([part["codes"] for part in parts])),
        torch.from_numpy(np.concatenate([part["images"] for part in parts])).permute(0, 3, 1, 2),
        torch.from_numpy(np.concatenate([part["scores"] for part in parts])),
    )
