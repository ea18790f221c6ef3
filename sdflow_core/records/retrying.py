"""Trying again: how often, how long, with which pauses. The one place: the clients' own retries are off."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

__all__ = ["FIRST", "STEADY", "Failed", "Fault", "Policy", "Retry", "retrying"]

T = TypeVar("T")
Retry = Literal["never", "busy", "unreachable"]


@dataclass(frozen=True)
class Policy:
    """How long to go on.

    Attributes:
        attempts: At most, where a server answers, but not as asked: one permanent 503 makes so many requests.
        unreachable_attempts: At most, where nobody answers: a server that is being started again.
        base_seconds: The longest first pause; it doubles with every attempt.
        cap_seconds: The longest pause.
        deadline_seconds: No attempt begins later than this after the first.
    """

    attempts: int
    unreachable_attempts: int
    base_seconds: float
    cap_seconds: float
    deadline_seconds: float

    def pause(self, attempt: int) -> float:
        """Seconds before the next attempt: anything up to a limit that doubles ("full jitter").

        Many clients that failed together must not come back together; a pause at random out of the whole
        interval spreads them best.
        """
        return random.uniform(0.0, min(self.cap_seconds, self.base_seconds * 2 ** (attempt - 1)))


# In the middle of work: outlives the restart of a server. Pauses on average 3 s where it answers, else 25 s.
STEADY = Policy(
    attempts=6, unreachable_attempts=10, base_seconds=0.2, cap_seconds=10.0, deadline_seconds=60.0
)
# Before a server has answered this process for the first time nothing was begun: whoever waits is told soon.
FIRST = Policy(attempts=3, unreachable_attempts=3, base_seconds=0.2, cap_seconds=1.0, deadline_seconds=4.0)


@dataclass(frozen=True)
class Fault:
    """What went wrong with one request; no words of the client or the server, which could hold a secret.

    Attributes:
        kind: A row of the table of errors.
        code: The server's word for it, such as `SlowDown`; empty where there was none.
        status: The HTTP status; 0 where there was no answer.
        retry: Whether another attempt may help.
        happened: Whether a write may have been done all the same: its acknowledgement was lost.
    """

    kind: str
    code: str = ""
    status: int = 0
    retry: Retry = "never"
    happened: bool = False


class Failed(Exception):
    """No attempt worked; carries the last fault and whether some attempt may have done its work."""

    def __init__(self, fault: Fault, happened: bool, attempts: int) -> None:
        super().__init__(fault.kind)
        self.fault = fault
        self.happened = happened
        self.attempts = attempts


def retrying(
    call: Callable[[], T],
    judge: Callable[[Exception], Fault | None],
    policy: Policy,
    *,
    pause: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Calls until it works.

    Args:
        call: One request.
        judge: What an exception means; None: not a matter of the store, it is raised as it is.
        policy: How often and how long.
        pause: Waits so many seconds.
        clock: Seconds.

    Raises:
        Failed: It did not work. Neither it nor its context holds the client's exception, whose words may
            quote headers and addresses.
    """
    began, attempt, happened = clock(), 0, False
    while True:
        attempt += 1
        try:
            return call()
        except Exception as error:
            found = judge(error)
            if found is None:
                raise
        happened = happened or found.happened
        most = policy.unreachable_attempts if found.retry == "unreachable" else policy.attempts
        wait = policy.pause(attempt)
        late = clock() - began + wait >= policy.deadline_seconds
        if found.retry == "never" or attempt >= most or late:
            raise Failed(found, happened, attempt)
        pause(wait)
