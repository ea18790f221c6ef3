"""Stages with bounded, ordered hand-overs: each in threads of its own, none further ahead than it may be.

A chain pulls from a source and hands results to its caller in the order of the source, whatever the number of
workers. What a stage has begun and the next has not taken yet never exceeds the stage's `workers + ahead`: a
slow consumer stops everything before it, and memory is bounded by the stages, not by the source.

Threads suffice for pixels: Pillow, OpenCV, zlib, hashlib and torch let go of the interpreter's lock.
"""

from __future__ import annotations

import contextvars
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sdflow_core.records.errors import ContractError

from .pace import Pace

__all__ = ["Stage", "Through", "batched", "flattened", "streaming"]

_NAME = "sdflow-stream"
# Who waits without end would not see an exception that another thread sends to it (Prefect cancels so).
_LOOK_UP_SECONDS = 0.5


@dataclass(frozen=True)
class Stage:
    """A function of one item, run by `workers` threads; results keep the order of the items.

    Attributes:
        name: In counters and names of threads.
        function: Item -> result. Called by several threads at once when there are several workers.
        workers: Threads.
        ahead: Results that may wait for the next stage, beside one in the hands of each worker.
        weigh: What an item weighs, e.g. its size in bytes.
        most: Weight that may be begun and not yet taken; a heavier item goes alone. None: no such limit.
    """

    name: str
    function: Callable[[Any], Any]
    workers: int = 1
    ahead: int = 0
    weigh: Callable[[Any], int] | None = None
    most: int | None = None


@dataclass(frozen=True)
class Through:
    """A function of the whole stream, in one thread: `function(items) -> results`, lazily.

    For what is not one for one, such as batches. It must not hold more than it needs for its next result.

    Attributes:
        name: In counters and names of threads.
        function: Iterator -> iterator.
        ahead: Results that may wait for the next stage.
    """

    name: str
    function: Callable[[Iterator[Any]], Iterable[Any]]
    ahead: int = 0


def batched(size: int, ahead: int = 1, name: str = "batch") -> Through:
    """Lists of `size` neighbours, the last one shorter.

    Args:
        size: Items of a batch.
        ahead: Full batches that may wait, so that the next stage finds one when it is done with the last.
        name: Of the stage.
    """

    def gather(items: Iterator[Any]) -> Iterator[list[Any]]:
        while batch := list(itertools.islice(items, size)):
            yield batch
            del batch  # while the next is gathered this one belongs to the next stage alone

    return Through(name, gather, ahead)


def flattened(ahead: int = 0, name: str = "rows") -> Through:
    """The members of each item, one after another."""

    def spread(items: Iterator[Iterable[Any]]) -> Iterator[Any]:
        for members in items:
            yield from members
            del members

    return Through(name, spread, ahead)


class _StoppedError(BaseException):
    """The chain ends: unwinds whoever waits inside it. Never seen from outside."""


class _Link:
    """Results of one stage on their way to the next: in order, and never more than there is room for."""

    def __init__(self, chain: _Chain, room: int, most: int | None) -> None:
        self._chain, self._room, self._most = chain, room, most
        self._space, self._ready = threading.Condition(chain.lock), threading.Condition(chain.lock)
        self._begun = self._taken = self._weight = 0
        self._finished: dict[int, tuple[Any]] = {}
        self._weights: dict[int, int] = {}
        self._closed = False

    def _wait(self, condition: threading.Condition, until: Callable[[], bool]) -> None:
        while not self._chain.stopped and not until():
            condition.wait(_LOOK_UP_SECONDS)
        if self._chain.stopped:
            raise _StoppedError

    def wait_for_room(self) -> bool:
        """Until one more may be begun; False when there will be no more."""
        with self._chain.lock:
            self._wait(self._space, lambda: self._closed or self._begun - self._taken < self._room)
            return not self._closed

    def begin(self, weight: int) -> int:
        """The number of the next result. Only who has waited for room may ask, one at a time."""
        with self._chain.lock:
            most = self._most
            if most is not None:
                # Numbers are given in order, so that all who are waited for come before this one.
                self._wait(self._space, lambda: self._begun == self._taken or self._weight + weight <= most)
                self._weight += weight
                self._weights[self._begun] = weight
            self._begun += 1
            return self._begun - 1

    def finish(self, number: int, result: Any) -> None:
        """Hand a result over."""
        with self._chain.lock:
            self._finished[number] = (result,)
            if number == self._taken:
                self._ready.notify_all()

    def close(self) -> None:
        """No more will be begun."""
        with self._chain.lock:
            self._closed = True
            self._ready.notify_all()
            self._space.notify_all()

    def take(self) -> Any:
        """The next result in order; one taker at a time.

        Raises:
            StopIteration: There are no more.
        """
        with self._chain.lock:
            self._wait(
                self._ready,
                lambda: self._taken in self._finished or (self._closed and self._taken == self._begun),
            )
            if self._taken not in self._finished:
                raise StopIteration
            (result,) = self._finished.pop(self._taken)
            self._weight -= self._weights.pop(self._taken, 0)
            self._taken += 1
            self._space.notify_all()
            if self._taken in self._finished:
                self._ready.notify_all()
            return result

    def wake(self) -> None:
        """Let all who wait look up; the caller holds the lock."""
        self._space.notify_all()
        self._ready.notify_all()


class _Taking:
    """A link as an iterator."""

    def __init__(self, link: _Link) -> None:
        self._link = link

    def __iter__(self) -> _Taking:
        return self

    def __next__(self) -> Any:
        return self._link.take()


class _Chain:
    """The threads of one stream."""

    def __init__(self, pace: Pace) -> None:
        self.lock = threading.Lock()
        self.stopped = False
        self.pace = pace
        self.error: BaseException | None = None
        self.links: list[_Link] = []
        self.threads: list[threading.Thread] = []

    def stop(self, error: BaseException | None = None) -> None:
        """Wake everybody up and let them go; the first error is the one that counts."""
        with self.lock:
            if not self.stopped:
                self.stopped, self.error = True, error
            for link in self.links:
                link.wake()

    def link(self, room: int, most: int | None = None) -> _Link:
        link = _Link(self, room, most)
        self.links.append(link)
        return link

    def thread(self, name: str, work: Callable[[], None]) -> None:
        context = contextvars.copy_context()  # logging of the caller's run goes on in its threads

        def run() -> None:
            try:
                context.run(work)
            except _StoppedError:
                pass
            except BaseException as error:
                self.stop(error)

        # daemon: should a read hang for ever, a second Ctrl-C still ends the process
        self.threads.append(threading.Thread(target=run, name=f"{_NAME}-{name}", daemon=True))

    def add(self, stage: Stage, items: Iterator[Any]) -> _Link:
        out = self.link(stage.workers + stage.ahead, stage.most)
        turn = threading.Lock()

        def work() -> None:
            while True:
                with turn:
                    # Room first: an item is only pulled when it can be worked on.
                    if not out.wait_for_room():
                        return
                    try:
                        item = next(items)
                    except StopIteration:
                        out.close()
                        return
                    number = out.begin(stage.weigh(item) if stage.weigh is not None else 0)
                started = time.perf_counter()
                result = stage.function(item)
                self.pace.worked(stage.name, time.perf_counter() - started)
                out.finish(number, result)
                del item, result  # nobody holds a picture while waiting for the next

        for number in range(stage.workers):
            self.thread(f"{stage.name}-{number}", work)
        return out

    def add_through(self, stage: Through, items: Iterator[Any]) -> _Link:
        out = self.link(1 + stage.ahead)

        def work() -> None:
            results = iter(stage.function(items))
            while out.wait_for_room():
                try:
                    result = next(results)
                except StopIteration:
                    out.close()
                    return
                out.finish(out.begin(0), result)
                del result

        self.thread(stage.name, work)
        return out


@contextmanager
def streaming(
    source: Iterable[Any], stages: Sequence[Stage | Through], pace: Pace | None = None
) -> Generator[Iterator[Any]]:
    """Run a source through stages, each in its own threads, while the block takes the results.

    Nothing is lost or doubled, and results come in the order of the source. The first exception anywhere (a
    stage, the source, the block, Ctrl-C) ends all stages: calls that have begun are waited for, nothing new
    begins, all threads are joined, and that exception is raised once, with its traceback.

    Args:
        source: Pulled by one thread at a time, never further than there is room for.
        stages: At least one, in order.
        pace: Counters to fill.

    Yields:
        An iterator over the results of the last stage, for the calling thread alone. Leaving the block early
        stops the chain.

    Raises:
        ContractError: No stage, two of one name, or a stage without workers.

    Example:
        >>> with streaming(range(5), [Stage("square", lambda n: n * n, workers=2)]) as squares:
        ...     list(squares)
        [0, 1, 4, 9, 16]
    """
    names = [stage.name for stage in stages]
    wrong = [s.name for s in stages if s.ahead < 0 or (isinstance(s, Stage) and s.workers < 1)]
    if not stages or len(set(names)) < len(names) or wrong:
        raise ContractError(
            "the stages of a stream",
            expected="at least one, each with a name of its own, a worker and no negative room",
            found=wrong or names,
        )
    pace = pace if pace is not None else Pace()
    chain = _Chain(pace)
    items: Iterator[Any] = iter(source)
    for stage in stages:
        link = chain.add(stage, items) if isinstance(stage, Stage) else chain.add_through(stage, items)
        items = _Taking(link)
    pace.begin({s.name: s.workers for s in stages if isinstance(s, Stage)})

    def results() -> Generator[Any]:
        try:
            for result in items:
                pace.done += 1
                yield result
                del result
        except _StoppedError:
            if chain.error is None:
                raise ContractError("a stream that has ended was asked for more") from None
            raise chain.error from None

    try:
        for thread in chain.threads:
            thread.start()
        yield results()
    finally:
        chain.stop()
        for thread in chain.threads:
            if thread.ident is not None:
                thread.join()
        pace.end()
