"""Trying again: how often, how long, and what is told in the end."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest

from sdflow_core.records.retrying import FIRST, STEADY, Failed, Fault, Policy, retrying

BUSY = Fault("busy", "SlowDown", 503, "busy", happened=True)
DOWN = Fault("unreachable", retry="unreachable")
WRONG = Fault("secret", "SignatureDoesNotMatch", 403)


class Clock:
    """Time that only pauses take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class Call:
    """Fails so many times, then works."""

    def __init__(self, failures: int, clock: Clock | None = None, takes: float = 0.0) -> None:
        self.failures, self.clock, self.takes = failures, clock, takes
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self.clock is not None:
            self.clock.now += self.takes
        if self.count <= self.failures:
            raise OSError("with secret words")
        return "done"


def always(fault: Fault) -> Callable[[Exception], Fault]:
    return lambda error: fault


@pytest.mark.parametrize(("fault", "most"), [(BUSY, 6), (DOWN, 10), (WRONG, 1)])
def test_as_often_as_the_policy_says(fault: Fault, most: int) -> None:
    policy = Policy(6, 10, 0.001, 0.002, 1e6)
    call, clock = Call(most - 1), Clock()
    assert retrying(call, always(fault), policy, pause=clock.pause, clock=clock) == "done"
    call = Call(99)
    with pytest.raises(Failed) as caught:
        retrying(call, always(fault), policy, pause=clock.pause, clock=clock)
    assert call.count == caught.value.attempts == most
    assert caught.value.fault == fault and caught.value.happened == fault.happened
    told = "".join(traceback.format_exception(caught.value))
    assert "secret words" not in told and caught.value.__context__ is None


def test_pauses_are_drawn_from_a_range_that_doubles_up_to_a_cap() -> None:
    policy = Policy(20, 20, 0.5, 4.0, 1e6)
    for attempt, most in ((1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (9, 4.0)):
        drawn = [policy.pause(attempt) for _ in range(300)]
        assert 0 <= min(drawn) < 0.2 * most and 0.8 * most < max(drawn) <= most


def test_no_attempt_begins_after_the_deadline() -> None:
    clock = Clock()
    call = Call(99, clock, takes=7.0)
    with pytest.raises(Failed):
        retrying(call, always(DOWN), Policy(50, 50, 0.1, 0.1, 20.0), pause=clock.pause, clock=clock)
    assert call.count == 3  # begun at 0, 7 and 14 seconds
    call = Call(99, clock, takes=5.0)
    with pytest.raises(Failed):
        retrying(call, always(DOWN), FIRST, pause=clock.pause, clock=clock)
    assert call.count == 1  # a first question that took so long is not asked again


def test_what_is_no_matter_of_the_store_is_raised_as_it_is() -> None:
    with pytest.raises(OSError, match="words"):
        retrying(Call(1), lambda error: None, STEADY)


def test_a_write_may_have_happened_in_any_attempt() -> None:
    faults = iter(
        [Fault("cut", retry="unreachable", happened=True), Fault("taken", "PreconditionFailed", 412)]
    )
    clock = Clock()
    with pytest.raises(Failed) as caught:
        retrying(Call(9), lambda error: next(faults), STEADY, pause=clock.pause, clock=clock)
    assert caught.value.fault.kind == "taken" and caught.value.happened
