"""What is planned: so many pictures, on so many devices; and the work of one story, cut into shards."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, ValidationError

from sdflow_core.capacity.rates import told
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

__all__ = ["RETRY_DELAYS_SECONDS", "Work", "Workload", "checked", "makespan", "whole"]

RETRY_DELAYS_SECONDS = (1.0, 5.0)  # as tasks/step.py waits before the second and the third attempt
MOST_IMAGES = 10**10


class Workload(Config):
    """What is asked of the pipeline, and where it would run.

    Attributes:
        images: Pictures, all of which are taken as kept.
        edits: Edits of each, all of which are taken as good and approved: the most that can be.
        device: Name in the rates.
        devices: How many; one shard task a device.
        workers: Shard tasks at a time, each with a core of its own; 0: as many as devices.
        shard_rows: Rows a shard task takes.
        image_bytes: Mean size of a picture; 0: as the measured ones.
        image_px: Side of a square picture of as many pixels; 0: as the measured ones.
        failure_rate: Share of shard tasks that end with a transient error.
        speedup: Of the device over the measured core; None: as the rates say.
        pipeline: Whether reading, pixels, network and writing of one shard follow each other, or overlap.
        host_cores: Cores a shard task may use beside its device, where they overlap.
        connections: Requests under way at a time, where they overlap.
        processes: Whether every worker is a process (Ray), which opens models and tables for itself.
    """

    images: int = Field(ge=1, le=MOST_IMAGES)
    edits: int = Field(default=1, ge=1, le=1000)
    device: str = "cpu"
    devices: int = Field(default=1, ge=1, le=100_000)
    workers: int = Field(default=0, ge=0, le=100_000)
    shard_rows: int = Field(default=1000, ge=1, le=10_000_000)
    image_bytes: float = Field(default=0, ge=0, le=1e9, allow_inf_nan=False)
    image_px: int = Field(default=0, ge=0, le=7071)  # 50 million pixels are the most that is decoded
    failure_rate: float = Field(default=0.0, ge=0, le=0.9, allow_inf_nan=False)
    speedup: float | None = Field(default=None, gt=0, le=1e6, allow_inf_nan=False)
    pipeline: Literal["serial", "overlapped"] = "serial"
    host_cores: int = Field(default=1, ge=1, le=1024)
    connections: int = Field(default=32, ge=1, le=10_000)
    processes: bool = False

    @property
    def lanes(self) -> int:
        """Shard tasks at a time that use no device."""
        return self.workers or self.devices

    @property
    def device_lanes(self) -> int:
        """Shard tasks at a time that use one: never two on a device."""
        return min(self.lanes, self.devices)


class Work(Config):
    """One story as shards; the same for the formula and for the simulation.

    Attributes:
        shards: How many.
        last_share: Of a full shard's rows, that the last one holds.
        shard_seconds: Of a full shard, on an empty table.
        fixed_seconds: Of these, what a shard without rows takes too.
        held_seconds: What a shard takes more for every shard that was committed before it.
        lanes: Shards at a time.
        before_seconds: Planning, one core.
        after_seconds: Contact sheets and the like, one core.
        server_seconds: Of the Prefect server, a task run; it serves one after another.
        puts: Requests a full shard makes under its busiest prefix.
        gets: Likewise.
    """

    shards: int = Field(ge=0)
    last_share: float = Field(default=1.0, gt=0, le=1)
    shard_seconds: float = Field(ge=0, allow_inf_nan=False)
    fixed_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    held_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    lanes: int = Field(default=1, ge=1)
    before_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    after_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    server_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    puts: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    gets: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def seconds_of(self, number: int, held: float) -> float:
        """Of one shard, by its number from 0, when `held` shards were committed before it."""
        share = self.last_share if number == self.shards - 1 else 1.0
        rows = (self.shard_seconds - self.fixed_seconds) * share
        return self.fixed_seconds + rows + self.held_seconds * held


def checked(said: dict[str, object]) -> Workload:
    """A workload from plain values.

    Raises:
        ContractError: A value makes no sense; names it and the bound.
    """
    try:
        return Workload.model_validate(said)
    except ValidationError as error:
        raise ContractError(
            "this cannot be planned", found=told(error), todo="see `sdflow plan --help` for the options"
        ) from None


def whole(text: str, name: str) -> int:
    """A count as people write it: 20000, 1_000_000, 1e6.

    Raises:
        ContractError: No whole number of at least 1.

    Example:
        >>> whole("1e6", "--images"), whole("1_000", "--images")
        (1000000, 1000)
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 1 or number != int(number) or number > 1e15:
        raise ContractError(
            name, expected="a whole number of at least 1, such as 20000 or 1e6", found=repr(text)
        )
    return int(number)


def makespan(
    work: Work, failure_rate: float = 0.0, *, put_limit: float = math.inf, get_limit: float = math.inf
) -> tuple[float, str]:
    """Seconds from start to end, and what they are bound by.

    Shards go to lanes in waves; the mean shard is taken for every one of them, and a failed attempt costs
    half of its time and the wait before the next. Requests of the busiest prefix and the Prefect server are
    floors under the waves.

    Args:
        work: The story.
        failure_rate: Share of attempts that end with a transient error.
        put_limit: Writes a second that a prefix takes.
        get_limit: Reads a second.

    Returns:
        The seconds, and `lanes`, `puts`, `gets`, `server` or `serial`.

    Example:
        >>> makespan(Work(shards=5, shard_seconds=10, lanes=2))
        (30.0, 'lanes')
    """
    serial = work.before_seconds + work.after_seconds
    if not work.shards:
        return serial, "serial"
    floors = {
        "lanes": _waves(work, failure_rate),
        "puts": work.puts * work.shards / put_limit,
        "gets": work.gets * work.shards / get_limit,
        "server": work.server_seconds * work.shards,
    }
    bound = max(floors, key=lambda name: floors[name])
    return serial + floors[bound], "serial" if serial > floors[bound] else bound


def lost_seconds(seconds: float, failure_rate: float) -> float:
    """What transient errors cost one shard on average: half an attempt each, and the wait after it."""
    lost, chance = 0.0, 1.0
    for delay in RETRY_DELAYS_SECONDS:
        chance *= failure_rate
        lost += chance * (seconds / 2 + delay)
    return lost


def _waves(work: Work, failure_rate: float) -> float:
    lanes = min(work.lanes, work.shards)
    waves = math.ceil(work.shards / lanes)
    # All of one wave begin when the waves before it are committed.
    held = work.held_seconds * lanes * (waves - 1) / 2
    lost = lost_seconds(work.shard_seconds + held, failure_rate)
    last = work.seconds_of(work.shards - 1, 0) + held + lost
    full = work.shard_seconds + held + lost
    # The last, smaller shard ends the story only where nobody else is busy in the last wave.
    alone = work.shards - (waves - 1) * lanes == 1
    return (waves - 1) * full + (last if alone else full)
