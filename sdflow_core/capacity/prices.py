"""The price table: TOML that a person edits. The shipped one holds examples and says so."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from sdflow_core.capacity.rates import told
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError

__all__ = ["SHIPPED_PRICES", "Limits", "Prices", "load_prices"]

SHIPPED_PRICES = Path(__file__).with_name("prices.toml")

_Price = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
_Rate = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
_TODO = "copy the shipped table and edit it: " + SHIPPED_PRICES.name + " in sdflow_core/capacity"


class Storage(Config):
    """Bytes at rest: a price per 10^9 bytes and month, and for how many months."""

    gb_month: _Price
    months: _Price


class Requests(Config):
    """Prices per 1,000."""

    put: _Price
    get: _Price
    head: _Price
    list: _Price
    delete: _Price


class Transfer(Config):
    """Prices per 10^9 bytes between bucket and workers."""

    up_gb: _Price
    down_gb: _Price


class People(Config):
    """What looking at an edit costs."""

    hour: _Price
    seconds_per_edit: _Price


class Limits(Config):
    """Requests a second that one key prefix takes."""

    put_per_second: _Rate
    get_per_second: _Rate


class Prices(Config):
    """The whole table."""

    as_of: str
    remark: str = ""
    currency: str
    storage: Storage
    requests: Requests
    transfer: Transfer
    device_hour: dict[str, _Price]
    people: People
    limits: Limits

    def hour(self, device: str) -> float:
        """Price of an hour of one device.

        Raises:
            ContractError: The table does not say.
        """
        if device not in self.device_hour:
            raise ContractError(
                "the price table has no price for this device",
                expected=f"device_hour.{device}",
                found=", ".join(sorted(self.device_hour)) or "an empty [device_hour]",
                todo="add it to a table of your own and pass --prices FILE",
            )
        return self.device_hour[device]


def load_prices(path: str | Path = "") -> Prices:
    """Reads a price table; without a path the shipped examples.

    Raises:
        ContractError: There is no such file, it is no TOML, or a price is missing, negative or no number.
    """
    at = Path(path) if path else SHIPPED_PRICES
    try:
        document = tomllib.loads(at.read_text("utf-8"))
    except OSError as error:
        raise ContractError(
            "the price table cannot be read", found=error.strerror, where=at, todo=_TODO
        ) from None
    except ValueError as error:  # bytes that are no UTF-8, and broken TOML
        raise ContractError("the price table is no TOML", found=error, where=at, todo=_TODO) from None
    try:
        return Prices.model_validate(document)
    except ValidationError as error:
        raise ContractError(
            "the price table makes no sense", found=told(error), where=at, todo=_TODO
        ) from None
