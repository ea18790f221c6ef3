"""A shard task as a stream: which threads do what, how far it is, and what its run will say about its pace.

Every shard task is a chain of the same stages: *fetch* (I/O threads), *decode* (pixel threads), *batch*,
*model* (one thread, the device's own), then what becomes of the pictures: *encode* (pixel threads) and *keep*
(I/O threads). Nothing here influences a result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sdflow_core.streaming import Pace, Stage, Through, streaming
from tasks.runtime import settings, tick
from tasks.step import StepRun

__all__ = ["fetching", "keeping", "looking", "modelling", "shard_stream"]


def _cores() -> int:
    # the cores that this process may use, where the system tells
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fetching(function: Callable[[Any], Any], ahead: int, **bound: Any) -> Stage:
    """Reading from afar: many at a time, so that their delays lie side by side.

    Args:
        function: Of one item.
        ahead: Items that may wait, beside one in the hands of each thread; a batch and no less.
        bound: `weigh` and `most`, for what is not known to be small.
    """
    return Stage("fetch", function, settings().io_threads, ahead, **bound)


def looking(name: str, function: Callable[[Any], Any], **bound: Any) -> Stage:
    """Work on pixels: as many at a time as there are cores. Codecs let go of the interpreter's lock.

    Args:
        name: Of the stage.
        function: Of one item.
        bound: `weigh` and `most`, for what is not known to be small.
    """
    threads = settings().pixel_threads or _cores()
    return Stage(name, function, threads, threads, **bound)


def modelling(function: Callable[[Any], Any]) -> Stage:
    """The networks: one thread, which does nothing else."""
    return Stage("model", function)


def keeping(function: Callable[[Any], Any]) -> Stage:
    """Writing to afar: many at a time; the last stage, so that what comes out is acknowledged."""
    return Stage("keep", function, settings().io_threads)


@contextmanager
def shard_stream(
    run: StepRun,
    what: str,
    source: Iterable[Any],
    stages: Sequence[Stage | Through],
    total: int,
    *,
    model: str = "model",
    before: int = 0,
) -> Generator[Iterator[Any]]:
    """Stream a shard's items through stages; progress is told, and COMPLETE will hold the pace as facts.

    Args:
        run: The step's run.
        what: Name of the work, for who watches.
        source: Items.
        stages: See `sdflow_core.streaming`.
        total: Rows of the shard.
        model: Name of the stage whose waiting costs most.
        before: Rows of the shard that were done without the stream.

    Yields:
        What the last stage gives, in the order of the items; members of a batch count one by one.
    """
    pace = Pace(total=total - before, model=model)

    def told(results: Iterator[Any]) -> Iterator[Any]:
        for result in results:
            yield result
            tick(what, before + pace.done, total, pace)

    with streaming(source, stages, pace) as results:
        yield told(results)
    run.facts["figures"] = pace.facts()
