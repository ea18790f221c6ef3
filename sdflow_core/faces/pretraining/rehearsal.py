"""A pretraining rehearsed: everything that can be known to be wrong before hours are spent, and how many.

Labels and names are checked whole. Of the pictures an even sample is aligned; of the training a few steps of
every phase are run on that sample and timed. Nothing is written.
"""

from __future__ import annotations

import copy
import math
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdflow_core.faces.decode import Rejected
from sdflow_core.faces.detect import Detector
from sdflow_core.faces.pretraining.calibration import held_out
from sdflow_core.faces.pretraining.configuration import check_prior, unused
from sdflow_core.faces.pretraining.data import (
    TEST_PART,
    AlignedFace,
    align_face,
    bytes_in_memory,
    check_teachers,
    part_of,
    person_of,
)
from sdflow_core.faces.pretraining.duplicates import find_duplicates
from sdflow_core.faces.pretraining.labels import LabelTable, match_labels, read_label_table
from sdflow_core.faces.pretraining.material import File
from sdflow_core.faces.pretraining.people import check_labels, check_parts
from sdflow_core.records.errors import AccessError, ContractError
from sdflow_core.records.objects import LocalStore, Store
from sdflow_core.streaming import Stage, streaming

_MODELS_BYTES = 100 * 2**20  # networks, sheets and curves
_BESIDE_BYTES = 600 * 2**20  # activations of a step, and the libraries
_ENOUGH_ROWS = 640  # a batch of the classifiers, codes for a prior, and the 500 that training asks for
_SIGMAS = 3.0


@dataclass(frozen=True)
class FirstLook:
    """What labels and names alone tell.

    Attributes:
        files: In the source.
        labels: Rows of the label CSV.
        labelled: Files with a label.
        people: Folders, and files that lie flat.
        memory_bytes: That all pictures take, decoded.
        remarks: What is no error but should be known.
    """

    files: int
    labels: int
    labelled: int
    people: int
    memory_bytes: int
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Rehearsal:
    """What a dry run found.

    Attributes:
        look: Labels and names.
        sampled: Pictures that were aligned.
        usable: Of these.
        dropped: reason -> count, of these.
        overhang: Mean share of a usable crop outside its picture.
        checkpoint_bytes: Of one state of the training.
        free_bytes: Left on the store's disk; None where that cannot be known.
        seconds: stage -> how long it will take on this machine.
    """

    look: FirstLook
    sampled: int
    usable: int
    dropped: dict[str, int]
    overhang: float
    checkpoint_bytes: int
    free_bytes: int | None
    seconds: dict[str, float]

    @property
    def total_seconds(self) -> float:
        """All stages together."""
        return sum(self.seconds.values())

    def document(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "total_seconds": self.total_seconds, "estimate": in_words(self.total_seconds)}


def first_look(
    names: Sequence[str], labels: bytes, config: Any, *, show_names: bool = False
) -> tuple[FirstLook, LabelTable]:
    """Check the label CSV, and the names of the files against it.

    Args:
        names: Of the files, relative to the source.
        labels: The label CSV.
        config: `PretrainConfig`.
        show_names: Errors quote names of files.

    Raises:
        ContractError: See `read_label_table` and `match_labels`; too few files, people, or labels for
            labeller, judge or test; too little memory.
    """
    table = read_label_table(labels, config.attributes, config.data.groups)
    minimum = config.data.minimum
    if len(names) < minimum:
        raise ContractError(
            "too little to train on",
            expected=f"at least {minimum} pictures",
            found=f"{len(names)} file{'' if len(names) == 1 else 's'} in the source",
            todo="add pictures, or see whether the source is the right folder",
        )
    people = [person_of(name) for name in names]
    part = np.array([part_of(person) for person in people])
    check_parts(part, len(set(people)))  # before anything is counted: the one folder may be of a test person
    check_teachers(_teachers(names), minimum)
    check_prior(config, _teachers(names))
    matching = match_labels(names, table, show_names=show_names)
    labels_of = [table.scores.get(matching.label_of.get(name, ""), []) for name in names]
    labelled = np.array([any(not math.isnan(value) for value in row) for row in labels_of])
    check_labels(part, held_out(people), labelled)
    look = FirstLook(
        len(names),
        len(table.scores),
        len(matching.label_of),
        len(set(people)),
        bytes_in_memory(len(names), config.autoencoder.generator.resolution),
        (*matching.remarks(table, show_names=show_names), *table.remarks(), *unused(config)),
    )
    # the pictures, and once more as the generator renders them
    need, there = 2 * look.memory_bytes + _BESIDE_BYTES, available_memory_bytes()
    if there is not None and need > there:
        raise ContractError(
            "the pictures do not fit into memory",
            expected=f"{need / 2**30:.1f} GB free, for {len(names):,} pictures twice",
            found=f"{there / 2**30:.1f} GB",
            todo="train at a lower resolution, on fewer pictures or on a larger machine",
        )
    return look, table


def rehearse(
    files: Sequence[File],
    labels: bytes,
    config: Any,
    detector: Detector,
    *,
    free: int | None = None,
    sample: int = 96,
    patience_seconds: float = 6.0,
    workers: int = 1,
    show_names: bool = False,
    identity: Any = None,
    device: str = "cpu",
) -> Rehearsal:
    """Check everything, and measure how long it will take.

    Args:
        files: (name, function that reads the bytes).
        labels: The label CSV.
        config: `PretrainConfig`.
        detector: Face detector.
        free: Bytes left where checkpoints go; None: not known.
        sample: Pictures that are aligned, evenly spread over the source.
        patience_seconds: After which no further step of a phase is timed.
        workers: Threads that decode and align, as in the training itself.
        show_names: Errors quote names of files.
        identity: The network that tells people apart, as in the training; it takes most of a step.
        device: Where the training will compute, and where `identity` lies.

    Raises:
        ContractError: With the one thing that is wrong.
    """
    look, _ = first_look([name for name, _ in files], labels, config, show_names=show_names)
    chosen = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, sample).round().astype(int))]
    started = time.perf_counter()
    crops, overhang, dropped = _align(chosen, config, detector, workers)
    per_picture = (time.perf_counter() - started) / len(chosen)
    learn = _teachers([name for name, _ in files])
    _check_usable(len(crops), len(chosen), learn, config.data.minimum, dropped)
    seconds = {"reading": per_picture * len(files)}
    images = np.resize(crops, (_ENOUGH_ROWS, *crops.shape[1:]))
    rows = round(len(files) * len(crops) / len(chosen))
    checkpoint_bytes, timed = _time_training(images, config, patience_seconds, rows, free, identity, device)
    seconds |= timed
    return Rehearsal(
        look, len(chosen), len(crops), dropped, float(np.mean(overhang)), checkpoint_bytes, free, seconds
    )


def free_bytes(store: Store) -> int | None:
    """Bytes left on the disk of a store; None where it is no folder of this machine."""
    if not isinstance(store, LocalStore):
        return None
    place = Path(store.root)
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def available_memory_bytes() -> int | None:
    """Memory that can still be taken, by the machine and by the limit of a container; None: not known."""
    found: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found += [int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        most = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
        if most != "max":
            found.append(int(most) - int(Path("/sys/fs/cgroup/memory.current").read_text("ascii")))
    except (OSError, ValueError):
        pass
    return min(found) if found else None


def in_words(seconds: float) -> str:
    """A duration as one would say it.

    Example:
        >>> in_words(40), in_words(1500), in_words(11_500), in_words(400_000)
        ('about 40 s', 'about 25 min', 'about 3.2 h', 'about 4.6 days')
    """
    for limit, unit, name, digits in ((90, 1, "s", 0), (5400, 60, "min", 0), (172_800, 3600, "h", 1)):
        if seconds < limit:
            return f"about {seconds / unit:.{digits}f} {name}"
    return f"about {seconds / 86_400:.1f} days"


def _teachers(names: Sequence[str]) -> int:
    return sum(part_of(person_of(name)) != TEST_PART for name in names)


def _align(
    chosen: Sequence[File], config: Any, detector: Detector, workers: int
) -> tuple[npt.NDArray[np.uint8], list[float], dict[str, int]]:
    size = config.autoencoder.generator.resolution

    def aligned(file: File) -> AlignedFace | str:
        try:
            return align_face(file[1](), detector.find, config.data, size)
        except Rejected as reason:
            return str(reason)
        except AccessError:
            raise
        except ContractError as error:
            return error.what

    with streaming(chosen, [Stage("align", aligned, workers)]) as results:
        found = list(results)
    good = [x for x in found if not isinstance(x, str)]
    dropped = Counter(x for x in found if isinstance(x, str))
    crops = np.array([face.pixels for face in good], np.uint8).reshape(len(good), size, size, 3)
    again = find_duplicates(crops).again
    if again.any():
        dropped["the same photograph as another file"] = int(again.sum())
    kept = np.flatnonzero(~again)
    return crops[kept], [good[row].overhang for row in kept], dict(dropped)


def _check_usable(usable: int, sampled: int, files: int, minimum: int, dropped: dict[str, int]) -> None:
    """The sample must leave it possible that enough of all files are usable."""
    share = usable / sampled
    hoped = files * min(1.0, share + _SIGMAS * math.sqrt(share * (1 - share) / sampled))
    if usable and hoped >= minimum:
        return
    reasons = "; ".join(f"{n} {why}" for why, n in sorted(dropped.items(), key=lambda x: -x[1])[:5])
    raise ContractError(
        "too little to train on",
        expected=f"at least {minimum} usable faces of people who are not kept for the test",
        found=f"{usable} of {sampled} sampled pictures usable, so some {files * share:.0f} of {files:,};"
        f" dropped: {reasons}",
        todo="see whether the source is the right folder",
    )


def _time_training(
    images: npt.NDArray[np.uint8],
    config: Any,
    patience: float,
    rows: int,
    free: int | None,
    identity: Any,
    device: str,
) -> tuple[int, dict[str, float]]:
    """The size of a checkpoint, and the seconds of each stage."""
    import torch

    from sdflow_core.faces.labeller import JudgeNetwork, Labeller, LabellerConfig
    from sdflow_core.faces.pretraining.autoencoder import AutoencoderTraining, channels_last
    from sdflow_core.faces.pretraining.classifiers import train_classifier

    with torch.random.fork_rng(devices=[]):
        reader = LabellerConfig(
            attributes=config.attributes, resolution=config.autoencoder.generator.resolution
        )
        labeller, judge = channels_last(Labeller(reader)), channels_last(JudgeNetwork(reader))
        try:
            features = copy.deepcopy(labeller).eval().requires_grad_(False)  # it moves to the device
            training = AutoencoderTraining(
                images, features, config.autoencoder, identity=identity, device=device
            )
            training.step()  # from now on the optimisers have their states
        except (RuntimeError, ValueError, AssertionError) as error:  # torch's words for sizes and devices
            raise ContractError(
                "the training cannot take its first step",
                found=(str(error).splitlines() or [type(error).__name__])[0][:200],
                todo="see whether the sizes of generator and encoder in the configuration fit each other, and"
                " SDFLOW_DEVICE this machine",
            ) from error
        checkpoint_bytes = len(training.state())
        _check_room(checkpoint_bytes, free)
        scores = np.full((len(images), len(config.attributes)), 0.5, np.float32)

        def per_step(network: Any) -> float:
            def steps(count: int) -> float:
                started = time.perf_counter()
                train_classifier(network, images, scores, steps=count)
                return time.perf_counter() - started

            steps(1)  # the first step of a network also prepares it
            return steps(2) / 2

        total = config.autoencoder.steps
        joins = [config.autoencoder.adversarial_from]  # from there on a step takes longer
        if identity is not None:
            joins.append(config.autoencoder.identity_from)
        marks = sorted({0, total, *(min(step, total) for step in joins)})
        autoencoder = sum((end - start) * _pace(training, start, patience) for start, end in pairwise(marks))
        started = time.perf_counter()
        training.codes(np.arange(200))
        figures = 3 * (time.perf_counter() - started) / 200 * rows
        learner, other = per_step(labeller), per_step(judge)
        return checkpoint_bytes, {
            "features": config.feature_steps * learner,
            "autoencoder": autoencoder,
            "labeller": config.labeller_steps * learner,
            "judge": config.judge_steps * other,
            "figures": figures,
        }


def _check_room(checkpoint_bytes: int, free: int | None) -> None:
    need = 2 * checkpoint_bytes + _MODELS_BYTES  # a state is replaced by writing the new one beside it
    if free is not None and free < need:
        raise ContractError(
            "the store has too little room for the training",
            expected=f"{need / 2**20:,.0f} MB free, for checkpoints and models",
            found=f"{free / 2**20:,.0f} MB",
            todo="free some space, or choose another store",
        )


def _pace(training: Any, start: int, patience: float) -> float:
    """Seconds a step takes from step `start` on; the first, which prepares more than others, is left out.

    The median of a few: one step that waited for another program says nothing about thousands.
    """
    training.done = start
    training.step()
    taken: list[float] = []
    while len(taken) < 8 and (len(taken) < 3 or sum(taken) < patience):
        started = time.perf_counter()
        training.step()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
