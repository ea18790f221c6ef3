"""Laws of the simulation: no work is lost or done twice at once, limits hold, a seed decides everything."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdflow_core.capacity.simulation import Chances, Outcome, simulate
from sdflow_core.capacity.workload import Work, makespan
from sdflow_core.records.errors import ContractError

WORKS = st.builds(
    Work,
    shards=st.integers(1, 60),
    last_share=st.floats(0.01, 1.0),
    shard_seconds=st.floats(1.0, 400.0),
    fixed_seconds=st.floats(0.0, 1.0),
    held_seconds=st.sampled_from([0.0, 0.1]),
    lanes=st.integers(1, 12),
    before_seconds=st.floats(0.0, 50.0),
    after_seconds=st.floats(0.0, 50.0),
    server_seconds=st.sampled_from([0.0, 0.01]),
    puts=st.sampled_from([0.0, 10.0, 1000.0]),
    gets=st.sampled_from([0.0, 500.0]),
)
CHANCES = st.builds(
    Chances,
    failure_rate=st.sampled_from([0.0, 0.05, 0.5]),
    spread=st.sampled_from([0.0, 0.3]),
    straggler_rate=st.sampled_from([0.0, 0.1]),
    crash_seconds=st.sampled_from([math.inf, 300.0, 2000.0]),
    put_limit=st.sampled_from([math.inf, 100.0]),
    get_limit=st.sampled_from([math.inf, 50.0]),
    seed=st.integers(0, 10**6),
)


@settings(max_examples=40, deadline=None)
@given(WORKS, CHANCES)
def test_what_goes_in_comes_out_once(work: Work, chances: Chances) -> None:
    out = simulate(work, chances, trace=True)
    done = sorted(one.shard for one in out.trace if one.done)
    assert done == list(range(work.shards))
    assert out.committed == work.shards
    assert out.attempts == len(out.trace) == out.committed + out.failures + out.crashes
    assert out.busy_seconds == pytest.approx(sum(one.end - one.start for one in out.trace))
    assert out.useful_seconds <= out.busy_seconds + 1e-9
    assert out.seconds == pytest.approx(max(one.end for one in out.trace) + work.after_seconds)


@settings(max_examples=40, deadline=None)
@given(WORKS, CHANCES)
def test_no_worker_does_two_shards_at_once_and_nothing_begins_before_the_plan(
    work: Work, chances: Chances
) -> None:
    out = simulate(work, chances, trace=True)
    lanes = {one.lane for one in out.trace}
    assert len(lanes) <= min(work.lanes, work.shards)
    for lane in lanes:
        own = sorted((one.start, one.end) for one in out.trace if one.lane == lane)
        assert own[0][0] >= work.before_seconds
        assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(own))
    shards = {one.shard for one in out.trace}
    for shard in shards:
        tries = sorted((one.start, one.end, one.done) for one in out.trace if one.shard == shard)
        assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(tries))
        assert [one[2] for one in tries] == [False] * (len(tries) - 1) + [True]


@settings(max_examples=40, deadline=None)
@given(WORKS, CHANCES)
def test_limits_are_never_exceeded(work: Work, chances: Chances) -> None:
    out = simulate(work, chances, trace=True)
    # what was served by any instant fits into the time since the first shard began
    for limit, total in ((chances.put_limit, out.puts), (chances.get_limit, out.gets)):
        if math.isfinite(limit):
            assert total <= limit * (out.seconds - work.before_seconds - work.after_seconds) + 1e-6
    if math.isfinite(chances.put_limit):
        served = 0.0
        for when, puts in sorted(out.granted):
            served += puts
            if work.gets == 0:
                assert served <= chances.put_limit * (when - work.before_seconds) + 1e-6
    if work.server_seconds:
        begun = sorted(one.start for one in out.trace)
        assert all(after - before >= work.server_seconds - 1e-9 for before, after in pairwise(begun))


@settings(max_examples=40, deadline=None)
@given(WORKS, CHANCES)
def test_the_same_seed_gives_the_same_course(work: Work, chances: Chances) -> None:
    assert simulate(work, chances, trace=True) == simulate(work, chances, trace=True)


@settings(max_examples=40, deadline=None)
@given(WORKS.filter(lambda work: work.server_seconds == 0 and work.held_seconds == 0))
def test_without_chance_it_is_the_formula(work: Work) -> None:
    wave = work.shard_seconds
    found, told = simulate(work).seconds, makespan(work)[0]
    # the formula takes a last, smaller shard for a full one unless it is alone in the last wave
    assert found <= told * (1 + 1e-9) and told - found <= wave + 1e-6
    full = work.model_copy(update={"last_share": 1.0})
    assert simulate(full).seconds == pytest.approx(makespan(full)[0])


@settings(max_examples=40, deadline=None)
@given(WORKS.filter(lambda work: work.server_seconds == 0))
def test_growing_tables_agree_with_the_formula_on_one_lane(work: Work) -> None:
    one = work.model_copy(update={"lanes": 1})
    assert simulate(one).seconds == pytest.approx(makespan(one)[0])


@settings(max_examples=40, deadline=None)
@given(WORKS)
def test_another_device_never_takes_longer_when_nothing_is_left_to_chance(work: Work) -> None:
    # with equal shards; unequal ones may, by an old paradox of schedules, and tables that grow are unequal
    even = work.model_copy(update={"last_share": 1.0, "held_seconds": 0.0})
    more = even.model_copy(update={"lanes": even.lanes + 1})
    assert simulate(more).seconds <= simulate(even).seconds + 1e-6


def _mean_seconds(work: Work, **chances: float) -> float:
    outs: list[Outcome] = [simulate(work, Chances(seed=seed, **chances)) for seed in range(30)]  # type: ignore[arg-type]
    return sum(out.seconds for out in outs) / len(outs)


def test_more_failures_stragglers_and_crashes_take_longer() -> None:
    work = Work(shards=200, shard_seconds=100, lanes=8)
    for name, values in (
        ("failure_rate", (0.0, 0.05, 0.3)),
        ("straggler_rate", (0.0, 0.05, 0.3)),
        ("spread", (0.0, 0.5, 1.5)),
    ):
        seconds = [_mean_seconds(work, **{name: value}) for value in values]
        assert seconds == sorted(seconds) and seconds[0] < seconds[-1], name
    crashes = [_mean_seconds(work, crash_seconds=value) for value in (math.inf, 5000.0, 500.0)]
    assert crashes == sorted(crashes) and crashes[0] < crashes[-1]


def test_the_formula_of_lost_attempts_is_their_mean() -> None:
    work = Work(shards=2000, shard_seconds=100, lanes=4)
    found = _mean_seconds(work, failure_rate=0.05, rerun_seconds=0.0)
    assert found == pytest.approx(makespan(work, 0.05)[0], rel=0.01)


def test_a_hundred_million_pictures_are_a_hundred_thousand_shards() -> None:
    out = simulate(Work(shards=100_000, shard_seconds=100, lanes=64), Chances(failure_rate=0.01, spread=0.2))
    assert out.committed == 100_000


def test_shards_that_no_worker_lives_to_end_are_refused() -> None:
    with pytest.raises(ContractError, match="longer than a worker lives"):
        simulate(Work(shards=3, shard_seconds=1000), Chances(crash_seconds=10))


def test_too_many_shards_are_refused() -> None:
    with pytest.raises(ContractError, match="too many shards"):
        simulate(Work(shards=10**9, shard_seconds=1))
