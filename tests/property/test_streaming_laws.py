"""Laws of the streaming engine: order, nothing lost or doubled, bounded, one error, no thread left."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdflow_core.records.errors import ContractError, TransientError
from sdflow_core.streaming import Pace, Stage, Through, batched, flattened, streaming

workers = st.integers(1, 6)
ahead = st.integers(0, 5)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sdflow-stream")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


def uneven(number: int) -> int:
    """Takes longer for some than for others, so that results are ready out of order."""
    time.sleep((number * 7919 % 5) / 5000)
    return number * number


class Gauge:
    """How many are between `enter` and `leave`, and how many were at most."""

    def __init__(self) -> None:
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def enter(self, item: Any) -> Any:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        return item

    def leave(self, item: Any) -> Any:
        with self.lock:
            self.now -= 1
        return item


@given(st.integers(0, 60), workers, ahead, workers, ahead, st.integers(1, 9))
def test_the_results_are_those_of_a_plain_loop(
    count: int, w1: int, a1: int, w2: int, a2: int, size: int
) -> None:
    seen: Counter[int] = Counter()
    lock = threading.Lock()

    def once(number: int) -> int:
        with lock:
            seen[number] += 1
        return uneven(number)

    stages = [
        Stage("one", once, w1, a1),
        batched(size, a2),
        Stage("two", lambda batch: [value + 1 for value in batch], w2, a1),
        flattened(a1),
        Stage("three", str, w1, a2),
    ]
    with streaming(iter(range(count)), stages) as results:
        found = list(results)
    assert found == [str(number * number + 1) for number in range(count)]
    assert seen == Counter(range(count))


@given(st.integers(0, 40), st.integers(1, 9))
def test_batches_are_full_but_the_last(count: int, size: int) -> None:
    with streaming(range(count), [batched(size)]) as results:
        found = list(results)
    assert [len(batch) for batch in found[:-1]] == [size] * max(0, len(found) - 1)
    assert list(itertools.chain(*found)) == list(range(count)) and [] not in found


@given(workers, ahead, workers, ahead)
@settings(max_examples=25)
def test_no_more_are_in_flight_than_there_is_room_for(w1: int, a1: int, w2: int, a2: int) -> None:
    first, both = Gauge(), Gauge()
    stages = [
        Stage("one", lambda n: (first.enter(both.enter(n)), time.sleep(0.0005))[0], w1, a1),
        Stage("two", lambda n: (first.leave(n), time.sleep(0.001))[0], w2, a2),
    ]
    with streaming(range(60), stages) as results:
        for result in results:
            both.leave(result)
    # a worker of the next stage may have taken an item that it has not begun to look at
    assert first.most <= w1 + a1 + w2
    assert both.most <= w1 + a1 + w2 + a2 + 1
    assert both.now == 0


@given(workers, ahead, st.integers(0, 10))
@settings(max_examples=25)
def test_a_slow_consumer_stops_the_source(count: int, room: int, taken: int) -> None:
    pulled = Gauge()
    source = (pulled.enter(number) for number in itertools.count())
    with streaming(source, [Stage("one", lambda n: n, count, room)]) as results:
        assert [next(results) for _ in range(taken)] == list(range(taken))
        time.sleep(0.02)
        assert pulled.now <= taken + count + room
    before = pulled.now
    assert next(source) == before, "what was not pulled is still there"


@pytest.mark.parametrize("where", ["source", "first", "batch", "second", "block"])
@pytest.mark.parametrize("kind", [TransientError, ValueError, KeyboardInterrupt])
def test_the_first_exception_ends_everything_and_is_raised_once(
    where: str, kind: type[BaseException]
) -> None:
    done: list[int] = []

    def breaks(name: str) -> Callable[[Any], Any]:
        def call(item: Any) -> Any:
            done.append(1)
            if name == where and (item if isinstance(item, int) else item[0]) >= 20:
                raise kind("broken on purpose")
            return item

        return call

    def source() -> Iterator[int]:
        for number in itertools.count():
            yield breaks("source")(number)

    def gather(items: Iterator[int]) -> Iterator[list[int]]:
        for item in items:
            yield [breaks("batch")(item)]

    stages = [Stage("a", breaks("first"), 4, 4), Through("b", gather, 2), Stage("c", breaks("second"), 3, 2)]
    with pytest.raises(kind, match="broken on purpose") as raised, streaming(source(), stages) as results:
        for result in results:
            breaks("block")(result)
    assert "call" in [entry.name for entry in raised.traceback], "its traceback shows where"
    assert threads() == []
    calls = len(done)
    time.sleep(0.02)
    assert len(done) == calls, "nothing runs on"


def test_of_many_exceptions_the_first_counts() -> None:
    def late(number: int) -> int:
        if number == 0:
            time.sleep(0.05)
            raise ValueError("the second")
        raise TransientError("the first")

    with (
        pytest.raises(TransientError, match="the first"),
        streaming(range(9), [Stage("a", late, 4)]) as found,
    ):
        time.sleep(0.15)  # both have happened when this block asks
        list(found)


def test_a_consumer_that_leaves_early_stops_the_chain() -> None:
    with streaming(itertools.count(), [Stage("a", uneven, 4, 4), batched(3), flattened(2)]) as results:
        assert next(results) == 0
    assert threads() == []
    with pytest.raises(ContractError, match="ended"):
        list(results)


def test_ctrl_c_reaches_a_caller_that_waits() -> None:
    def hang(number: int) -> int:
        time.sleep(0.01 if number < 3 else 0.5)
        return number

    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    # a shell lets its background jobs ignore SIGINT, and Python leaves that as it finds it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt), streaming(itertools.count(), [Stage("a", hang, 2)]) as results:
            list(results)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert threads() == []


def test_nothing_is_held_by_workers_that_wait() -> None:
    class Picture:
        pass

    alive: weakref.WeakSet[Picture] = weakref.WeakSet()

    def make(number: int) -> Picture:
        picture = Picture()
        alive.add(picture)
        return picture

    release = threading.Event()

    def source() -> Iterator[int]:
        yield from range(12)
        release.wait(60)

    stages = [Stage("make", make, 3, 2), batched(4), Stage("use", lambda batch: len(batch), 2, 2)]
    with streaming(source(), stages) as results:
        assert [next(results) for _ in range(3)] == [4, 4, 4]
        for _ in range(200):  # the last worker lets go a moment after it has handed over
            gc.collect()
            if not alive:
                break
            time.sleep(0.01)
        left = len(alive)
        release.set()
    assert left == 0, "threads that wait for the next picture hold the last one"


@given(st.lists(st.integers(0, 30), max_size=40), workers, st.integers(0, 40))
def test_what_is_in_flight_weighs_no_more_than_allowed(weights: list[int], count: int, most: int) -> None:
    lock, held, peak = threading.Lock(), [0, 0], [0]

    def begin(weight: int) -> int:
        with lock:
            held[0] += weight
            held[1] += 1
            peak[0] = max(peak[0], held[0] if held[1] > 1 else 0)
        time.sleep(0.0003)
        with lock:
            held[0] -= weight
            held[1] -= 1
        return weight

    stage = Stage("weighed", begin, count, 3, weigh=lambda weight: weight, most=most)
    with streaming(weights, [stage]) as results:
        assert list(results) == weights
    assert peak[0] <= most


def test_stages_run_side_by_side() -> None:
    """The first stage at item n + 1 has to meet the second at item n: one after the other would never end."""
    meet = threading.Barrier(2, timeout=30)

    def wait(number: int, first: int) -> int:
        if first <= number < first + 4:
            meet.wait()
        return number

    stages = [Stage("a", lambda n: wait(n, 1)), Stage("b", lambda n: wait(n, 0))]
    with streaming(range(8), stages) as results:
        assert list(results) == list(range(8))


def test_the_pace_counts_what_was_done() -> None:
    pace = Pace(total=30)
    stages = [Stage("read", lambda n: n, 3, 3), Stage("model", lambda n: (time.sleep(0.002), n)[1])]
    with streaming(range(30), stages, pace) as results:
        for number, _ in enumerate(results, start=1):
            assert pace.done == number
    assert pace.done == 30 and pace.seconds_left == 0.0
    assert pace.seconds >= pace.busy_seconds("model") >= 30 * 0.002
    assert 0.0 < pace.busy_share("read") < pace.busy_share() <= 1.0
    assert set(pace.facts()) == {"images_per_second", "busy_share", "busy_read", "busy_model"}
    assert Pace().seconds_left is None and Pace().busy_share() == 0.0 and Pace().per_second == 0.0


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [Stage("a", str, 0)],
        [Stage("a", str), Stage("a", str)],
        [Stage("a", str, 1, -1)],
        [batched(2, -1)],
    ],
)
def test_stages_that_cannot_work_are_refused(stages: list[Any]) -> None:
    with pytest.raises(ContractError), streaming([], stages):
        pass
