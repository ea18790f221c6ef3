"""Many shards, a few at a time: what is handed out is bounded, and the first failure ends the batch.

Which runner computes them, threads of this process or a cluster, is chosen at the call (`SDFLOW_RUNNER`).
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from itertools import islice
from typing import Any, Protocol

from tasks.runtime import settings

__all__ = ["Batch", "Threads", "at_a_time", "check_runner", "in_order"]


class Batch(Protocol):
    """How the shards of one step are run. What `start` gives is only ever handed back to it."""

    def window(self) -> int:
        """How many may be handed out now."""
        ...

    def start(self, shard: Any) -> Any:
        """Hand one shard out."""
        ...

    def ended(self, begun: Sequence[Any]) -> Sequence[Any]:
        """Those that have ended; waits until at least one has."""
        ...

    def result(self, one: Any) -> Any:
        """What an ended one gave; raises what it raised."""
        ...

    def stop(self, begun: Sequence[Any]) -> None:
        """Nobody waits for these any more; returns when none of them computes."""
        ...


def in_order(batch: Batch, shards: Sequence[Any]) -> list[Any]:
    """Run all shards through a batch, never more at a time than its window.

    Args:
        batch: Who computes them.
        shards: What is to be computed.

    Returns:
        The results, in the order of the shards.

    Raises:
        Exception: That of the first shard seen to fail; of the others none is begun any more.
    """
    results: list[Any] = [None] * len(shards)
    numbers: dict[Any, int] = {}
    left = iter(enumerate(shards))
    try:
        while True:
            for number, shard in islice(left, max(0, batch.window() - len(numbers))):
                numbers[batch.start(shard)] = number
            if not numbers:
                return results
            for one in batch.ended(list(numbers)):
                number = numbers.pop(one)
                results[number] = batch.result(one)
    except BaseException:
        batch.stop(list(numbers))
        raise


class Threads:
    """Shards as tasks of the flow's own task runner: threads of this process."""

    def __init__(self, run_step: Any, job: Any, rest: Sequence[Any], workers: int) -> None:
        self._step, self._job, self._rest, self._workers = run_step, job, rest, workers

    def window(self) -> int:
        """As many as `SDFLOW_WORKERS` says."""
        return max(1, self._workers)

    def start(self, shard: Any) -> Any:
        """Hand one shard to a thread."""
        return self._step.submit(self._job, shard, *self._rest)

    def ended(self, begun: Sequence[Any]) -> Sequence[Any]:
        """Those whose thread has ended."""
        inner = {future.wrapped_future: future for future in begun}
        done, _ = concurrent.futures.wait(inner, return_when=concurrent.futures.FIRST_COMPLETED)
        return [inner[future] for future in done]

    def result(self, one: Any) -> Any:
        """What the step gave."""
        return one.result()

    def stop(self, begun: Sequence[Any]) -> None:
        """A thread cannot be stopped; what it computes is kept, so that it is waited for."""
        concurrent.futures.wait([future.wrapped_future for future in begun])


def at_a_time() -> int:
    """How many shards the chosen runner computes at the same time."""
    if settings().runner == "ray":
        from tasks.cluster import slots

        return slots()
    return max(1, settings().workers)


def check_runner() -> None:
    """See that the chosen runner can run anything at all; threads always can.

    Raises:
        ContractError: Ray is not installed, or no node offers what a shard task asks for.
        TransientError: The cluster does not answer.
    """
    if settings().runner == "ray":
        from tasks.cluster import slots

        slots()
