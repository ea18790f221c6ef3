"""Rates: what one row, one shard, one request costs, and whether that was measured or is assumed.

`benchmarks/measure_rates.py` measures them and writes the file; a copy of it ships beside this module. Every
rate carries its source, so that no figure made from it can pretend to be more than it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, ValidationError, model_validator

from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

__all__ = [
    "SHIPPED_RATES",
    "Device",
    "Linear",
    "Measurement",
    "Rate",
    "Rates",
    "Source",
    "Stored",
    "load_rates",
    "told",
    "worst",
]

SHIPPED_RATES = Path(__file__).with_name("rates.json")

Source = Literal["measured", "extrapolated", "assumed"]
_WORST: tuple[Source, ...] = ("assumed", "extrapolated", "measured")
_TODO = "measure them again: python benchmarks/measure_rates.py"
_SHOWN = 3

# What the formula asks for; all in seconds of one core or one device.
SECONDS = (
    "ingest.host",
    "invert.device",
    "invert.host",
    "label.device",
    "label.host",
    "edit.device",
    "edit.host",
    "sheet.host",
    "decide.host",
    "publish.host",
    "plan.ingest",
    "plan.invert",
    "plan.label",
    "plan.edit",
    "shard.host",
    "held.ingest",
    "held.commit",
    "held.edit",
    "story.start",
    "prefect.task",
    "s3.request",
    "s3.megabyte",
    "decode.megapixel",
    "detect.large",
    "train.device",
)
COUNTED = ("ingest", "invert", "label", "edit", "decide", "publish", "night")


class Rate(Config):
    """One figure.

    Attributes:
        value: In `unit`.
        unit: What it is counted in.
        source: Whether it was measured, carried over from something that was, or only assumed.
        note: How, or why one may assume it.
    """

    value: float = Field(ge=0, allow_inf_nan=False)
    unit: str = "s"
    source: Source
    note: str = ""


class Linear(Config):
    """A count as a sum: so many a story, a new shard, a row, and a shard that lies there when it starts."""

    fixed: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    per_shard: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    per_row: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    per_held_shard: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def of(self, shards: float, rows: float, held_shards: float) -> float:
        """The count.

        Example:
            >>> Linear(fixed=1, per_shard=2, per_row=3, per_held_shard=4).of(10, 100, 5)
            341.0
        """
        return self.fixed + self.per_shard * shards + self.per_row * rows + self.per_held_shard * held_shards


class Stored(Config):
    """Objects and bytes at rest of one kind, of all stories of one dataset."""

    objects_fixed: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    objects_per_shard: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    objects_per_row: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    bytes_fixed: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    bytes_per_shard: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    bytes_per_row: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class Device(Config):
    """What runs the networks.

    Attributes:
        speedup: How many times as fast as the one core on which `*.device` was measured.
        source: Of the speedup.
        note: Where it comes from.
    """

    speedup: float = Field(gt=0, allow_inf_nan=False)
    source: Source
    note: str


class Measurement(Config):
    """When, where and how the rates were measured."""

    date: str
    command: str
    machine: str
    cpus: int = Field(gt=0)
    load_before: float
    load_after: float
    versions: dict[str, str]
    rows: int = Field(gt=0)
    image_px: int = Field(gt=0)
    image_bytes: int = Field(gt=0)
    remark: str = ""


class Rates(Config):
    """Everything that is known of costs.

    Attributes:
        format: Of the file.
        measured: Holds for every rate whose source says so.
        models: Which models the rates belong to.
        seconds: name -> seconds; see `SECONDS`.
        requests: story -> kind of object -> method -> how many. Kind `bytes` holds UP and DOWN.
        stored: kind -> objects and bytes at rest.
        memory: name -> bytes of memory.
        devices: name -> device.
        parts: Single networks and codecs, for people; the formula does not use them.
        check: Predicted and measured counts of stories that no coefficient was fitted to.
    """

    format: Literal[1]
    measured: Measurement
    models: str
    seconds: dict[str, Rate]
    requests: dict[str, dict[str, dict[str, Linear]]]
    stored: dict[str, Stored]
    memory: dict[str, Rate] = Field(default_factory=dict[str, Rate])
    devices: dict[str, Device] = Field(min_length=1)
    parts: dict[str, Rate] = Field(default_factory=dict[str, Rate])
    check: dict[str, Any] = Field(default_factory=dict[str, Any])

    @model_validator(mode="after")
    def _complete(self) -> Rates:
        missing = [f"seconds.{name}" for name in SECONDS if name not in self.seconds]
        missing += [f"requests.{name}" for name in COUNTED if name not in self.requests]
        if missing:
            raise ValueError(f"missing: {', '.join(missing)}")
        return self

    def device(self, name: str) -> Device:
        """A device by name.

        Raises:
            ContractError: It is not known; lists those that are.
        """
        if name not in self.devices:
            raise ContractError(
                "this device is not known",
                expected=f"one of {', '.join(sorted(self.devices))}",
                found=repr(name),
                todo="add it under `devices` of a rates file and pass --rates FILE",
            )
        return self.devices[name]

    def counted(self, story: str, shards: float, rows: float, held_shards: float) -> dict[str, float]:
        """Requests of one story by method; a journal that is opened reads at most 256 entries one by one."""
        found: dict[str, float] = {}
        for kind, methods in self.requests[story].items():
            if kind == "bytes":
                continue
            held = opened_entries(held_shards) if kind == "journal" else held_shards
            for method, linear in methods.items():
                found[method] = found.get(method, 0.0) + linear.of(shards, rows, held)
        return found


def opened_entries(entries: float) -> float:
    """Objects that opening a journal of so many entries reads: whole blocks of 256 lie in one snapshot.

    Example:
        >>> opened_entries(100), opened_entries(256 * 40 + 7)
        (100.0, 47.0)
    """
    return float(entries // 256 + entries % 256)


def worst(sources: list[Source]) -> Source:
    """What a figure made of several rates may call itself: the least of them.

    Example:
        >>> worst(["measured", "assumed", "extrapolated"])
        'assumed'
    """
    order: dict[Source, int] = {name: number for number, name in enumerate(_WORST)}
    least: Source = "measured"
    for name in sources:
        least = name if order[name] < order[least] else least
    return least


def told(error: ValidationError) -> str:
    """What pydantic found, in one line."""
    said: list[str] = []
    for one in error.errors()[:_SHOWN]:
        place = ".".join(map(str, one["loc"]))
        said.append(f"{place}: {one['msg']}" if place else str(one["msg"]))
    more = error.error_count() - len(said)
    return "; ".join(said) + (f"; and {more} more" if more > 0 else "")


def load_rates(path: str | Path = "") -> Rates:
    """Reads a file of rates; without a path the one that ships.

    Raises:
        ContractError: There is no such file, it is no JSON, or a figure is missing or makes no sense.
    """
    at = Path(path) if path else SHIPPED_RATES
    try:
        document = cast(object, json.loads(at.read_bytes()))
    except OSError as error:
        raise ContractError("the rates cannot be read", found=error.strerror, where=at, todo=_TODO) from None
    except ValueError as error:
        raise ContractError("the rates are no JSON", found=error, where=at, todo=_TODO) from None
    try:
        return Rates.model_validate(document)
    except ValidationError as error:
        raise ContractError("the rates make no sense", found=told(error), where=at, todo=_TODO) from None
