"""A simulation of shards on lanes, event by event: what the formula leaves out.

Shards differ in time, some are stragglers, some fail and are tried again, workers die and come back, prefixes
take only so many requests a second, and the Prefect server starts one task after another. One run is one
possible course of a story; its seed decides which. It simulates shards and never rows, so that 10^8 pictures
are 10^5 events a step.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field

from pydantic import Field

from sdflow_core.capacity.workload import RETRY_DELAYS_SECONDS, Work
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

__all__ = ["Chances", "Interval", "Outcome", "simulate"]

_MOST_SHARDS = 20_000_000
_LIVES = 5.0  # a shard that takes so many mean lives of a worker is begun 150 times on average


class Chances(Config):
    """What may happen on the way.

    Attributes:
        failure_rate: Share of attempts that end with a transient error, somewhere on their way.
        spread: Sigma of the lognormal factor of a shard's time, whose mean is 1; 0: all alike.
        straggler_rate: Share of shards that take longer by a Pareto factor.
        straggler_shape: Of the Pareto tail, above 1; the smaller, the heavier.
        crash_seconds: Mean time in which a worker dies; infinite: never.
        restart_seconds: Until it is back.
        rerun_seconds: Until a person or a schedule starts a story again in which a shard failed three times.
        put_limit: Writes a second under the busiest prefix.
        get_limit: Reads a second.
        seed: Of every random draw.
    """

    failure_rate: float = Field(default=0.0, ge=0, le=0.9, allow_inf_nan=False)
    spread: float = Field(default=0.0, ge=0, le=3, allow_inf_nan=False)
    straggler_rate: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    straggler_shape: float = Field(default=1.5, gt=1, le=100, allow_inf_nan=False)
    crash_seconds: float = Field(default=math.inf, gt=0)
    restart_seconds: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    rerun_seconds: float = Field(default=600.0, ge=0, allow_inf_nan=False)
    put_limit: float = Field(default=math.inf, gt=0)
    get_limit: float = Field(default=math.inf, gt=0)
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """One attempt at one shard on one lane."""

    lane: int
    shard: int
    start: float
    end: float
    done: bool


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        seconds: From start to end.
        busy_seconds: Of lanes at work, lost attempts included, waiting not.
        useful_seconds: Of these, in attempts that committed.
        committed: Shards.
        attempts: Begun.
        failures: Attempts with a transient error.
        crashes: Of workers at work.
        given_up: Times that a shard failed for good and the story was started again.
        puts: Requests under the busiest prefix, lost attempts included.
        gets: Likewise.
        trace: Every attempt, where it was asked for.
        granted: (time, puts) of every shard, where a trace was asked for.
    """

    seconds: float = 0.0
    busy_seconds: float = 0.0
    useful_seconds: float = 0.0
    committed: int = 0
    attempts: int = 0
    failures: int = 0
    crashes: int = 0
    given_up: int = 0
    puts: float = 0.0
    gets: float = 0.0
    trace: list[Interval] = field(default_factory=list[Interval])
    granted: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])


class _Gate:
    """Something that serves so many a second, first come, first served."""

    def __init__(self, limit: float) -> None:
        self.limit, self.free = limit, 0.0

    def pass_(self, now: float, count: float) -> float:
        """When the last of `count` is served."""
        if math.isinf(self.limit):
            return now
        self.free = max(self.free, now) + count / self.limit
        return self.free


class _Run:
    def __init__(self, work: Work, chances: Chances, trace: bool) -> None:
        self.work, self.chances, self.trace = work, chances, trace
        self.random = random.Random(chances.seed)
        self.out = Outcome()
        self.puts, self.gets = _Gate(chances.put_limit), _Gate(chances.get_limit)
        self.server = _Gate(1 / work.server_seconds if work.server_seconds else math.inf)
        # (time, order, lane, shard, attempt, its time is over); the order keeps equal times deterministic
        self.events: list[tuple[float, int, int, int, int, float, bool]] = []
        self.order = 0
        self.factor: dict[int, float] = {}

    def start(self, now: float, lane: int, shard: int, attempt: int) -> None:
        """Begins an attempt, and decides already how and when it ends."""
        work, chances, out = self.work, self.chances, self.out
        begun = self.server.pass_(now, 1.0) - work.server_seconds if work.server_seconds else now
        begun = max(begun, now)
        seconds = work.seconds_of(shard, out.committed) * self._factor(shard)
        share, done = 1.0, True
        if chances.failure_rate and self.random.random() < chances.failure_rate:
            share, done = self.random.random(), False
        crash = math.inf
        if math.isfinite(chances.crash_seconds):
            crash = self.random.expovariate(1 / chances.crash_seconds)
        if crash < seconds * share:
            share, done = crash / seconds, False
        else:
            crash = math.inf
        puts, gets = work.puts * share, work.gets * share
        served = max(self.puts.pass_(begun, puts), self.gets.pass_(begun, gets))
        end = max(begun + seconds * share, served)
        out.attempts += 1
        out.puts += puts
        out.gets += gets
        out.busy_seconds += end - begun
        if done:
            out.useful_seconds += end - begun
        if self.trace:
            out.trace.append(Interval(lane, shard, begun, end, done))
            out.granted.append((served if math.isfinite(chances.put_limit) else end, puts))
        self.order += 1
        heapq.heappush(self.events, (end, self.order, lane, shard, attempt, crash, done))

    def _factor(self, shard: int) -> float:
        """How much longer than the mean this shard takes; the same in every attempt of one worker."""
        chances = self.chances
        if not chances.spread and not chances.straggler_rate:
            return 1.0
        if shard not in self.factor:
            factor = 1.0
            if chances.spread:
                factor = self.random.lognormvariate(-(chances.spread**2) / 2, chances.spread)
            if chances.straggler_rate and self.random.random() < chances.straggler_rate:
                factor *= self.random.paretovariate(chances.straggler_shape)
            self.factor[shard] = factor
        return self.factor[shard]

    def run(self) -> Outcome:
        work, out, chances = self.work, self.out, self.chances
        lanes = min(work.lanes, work.shards)
        now = work.before_seconds
        left = deque(range(work.shards))
        for lane in range(lanes):
            self.start(now, lane, left.popleft(), 0)
        idle: list[tuple[float, int]] = []  # lanes without work, and since when
        while self.events:
            now, _, lane, shard, attempt, crash, done = heapq.heappop(self.events)
            free = now
            if done:
                out.committed += 1
                self.factor.pop(shard, None)
            elif math.isfinite(crash):
                # The worker is gone: its shard goes to whoever is free first, it comes back later.
                out.crashes += 1
                left.appendleft(shard)
                self.factor.pop(shard, None)  # another worker, another luck
                free = now + chances.restart_seconds
            elif attempt < len(RETRY_DELAYS_SECONDS):
                out.failures += 1
                self.start(now + RETRY_DELAYS_SECONDS[attempt], lane, shard, attempt + 1)
                continue
            else:
                out.failures += 1
                out.given_up += 1
                self.start(now + chances.rerun_seconds, lane, shard, 0)
                continue
            heapq.heappush(idle, (free, lane))
            while left and idle:
                since, taken = heapq.heappop(idle)
                self.start(max(since, now), taken, left.popleft(), 0)
        out.seconds = now + work.after_seconds
        return out


def simulate(work: Work, chances: Chances | None = None, *, trace: bool = False) -> Outcome:
    """Runs one story once.

    Args:
        work: Its shards; as the formula sees them.
        chances: What may happen; nothing by default.
        trace: Keep every attempt, for small stories.

    Raises:
        ContractError: More shards than can be simulated in reasonable time, or none that could end.

    Example:
        >>> simulate(Work(shards=5, shard_seconds=10, lanes=2)).seconds
        30.0
    """
    if work.shards > _MOST_SHARDS:
        raise ContractError(
            "too many shards to simulate",
            expected=f"at most {_MOST_SHARDS}",
            found=work.shards,
            todo="plan with larger shards, or several datasets",
        )
    chances = chances or Chances()
    longest = work.shard_seconds + work.held_seconds * work.shards
    if longest > _LIVES * chances.crash_seconds:
        raise ContractError(
            "a shard takes longer than a worker lives: the story would never end",
            expected=f"shards of at most {_LIVES:g} times {chances.crash_seconds:.0f} s",
            found=f"{longest:.0f} s",
            todo="plan with smaller shards",
        )
    return _Run(work, chances, trace).run()
