"""What a night may do: datasets, each with its sources, its consent list, its requests and its limits.

A policy is checked as a whole before anything runs: a request outside the limits is an error of the policy,
never a row. Needs neither models nor torch, so that a form can be made of it and a bad value refused at once.
"""

from __future__ import annotations

import os
import posixpath
import tomllib
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, ValidationError, field_validator, model_validator

from sdflow_core.method.request import EditConfig, Target, change_of

from .addresses import checked_address, is_remote
from .config import Config
from .errors import ContractError, NotFoundError
from .keys import canonical_json, sha256_hex
from .objects import open_store

__all__ = ["DatasetPolicy", "EditGates", "Limit", "NightlyPolicy", "load_policy", "read_policy_text"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]


Request = dict[str, Target]
_SOME: Any = {"minItems": 1}  # for the form; an item that is wrong itself must not count as missing too


class Limit(Config):
    """How far one attribute may be edited.

    Attributes:
        low: Least score that may be asked for.
        high: Greatest score that may be asked for.
    """

    low: Share = 0.0
    high: Share = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Limit:
        if self.low > self.high:
            raise ValueError(f"low must not be above high, found low {self.low:g} and high {self.high:g}")
        return self


class EditGates(Config):
    """How requests are carried out and what holds an edit back; a value left out keeps the default.

    Attributes:
        furthest: Greatest |phi(s')| that is asked of the editor.
        accepted_error: A score so near to the wanted value passes.
        flip_to: Score that a flip aims at on the present side; 1 - flip_to on the absent side.
        min_identity: Least cosine between edit and what it starts from.
        max_other_change: Greatest mean change of the scores of attributes that were to be held.
        min_reconstruction_db: Least PSNR of the reconstruction against the crop, in dB.
        hold: Correct the other attributes of the editor while the labeller sees them drift.
        carry_residual: Add what the reconstruction missed of the crop where the edit changed little.
    """

    furthest: float | None = Field(default=None, gt=0.0, le=50.0)
    accepted_error: Share | None = None
    flip_to: float | None = Field(default=None, gt=0.5, lt=1.0)
    min_identity: float | None = Field(default=None, ge=-1.0, le=1.0)
    max_other_change: Share | None = None
    min_reconstruction_db: float | None = Field(default=None, ge=0.0, le=100.0)
    hold: bool | None = None
    carry_residual: bool | None = None

    def overrides(self) -> dict[str, Any]:
        """Only what was given, for `EditConfig`."""
        return self.model_dump(exclude_none=True)


class DatasetPolicy(Config):
    """One dataset's part of the night.

    Attributes:
        dataset: Its name.
        source: Folder or prefix of its pictures; a relative path is relative to the policy file.
        consent: Its consent list; a path like `source`.
        requests: Each is one edit of every source: attribute -> score in [0, 1], or `flip`, or a change of
            the score in quotes, such as "+0.3".
        allowed: Attributes that may be edited, and how far; what is not named may not be edited.
        gates: How requests are carried out, where it is not the default.
        enabled: False leaves the dataset out, without forgetting its policy.
    """

    dataset: str = Field(min_length=1, max_length=200)
    source: str = Field(min_length=1)
    consent: str = Field(min_length=1)
    requests: tuple[Request, ...] = Field(json_schema_extra=_SOME)
    allowed: dict[str, Limit]
    gates: EditGates = EditGates()
    enabled: bool = True

    @field_validator("dataset")
    @classmethod
    def _name(cls, value: str) -> str:
        if any(part in ("", ".", "..") for part in value.split("/")) or "\\" in value or "\0" in value:
            raise ValueError(f"a name such as `team` or `team/faces`, found {value!r}")
        return value

    @field_validator("source", "consent")
    @classmethod
    def _holds_no_secret(cls, value: str) -> str:
        try:
            return checked_address(value, "source or the consent list")
        except ContractError as error:
            raise ValueError(error.what) from None

    @field_validator("requests")
    @classmethod
    def _asks_for_something(cls, value: tuple[Request, ...]) -> tuple[Request, ...]:
        if not value or not all(value):
            raise ValueError("expected at least one request, and at least one attribute in each")
        told = [canonical_json(request) for request in value]
        if len(set(told)) != len(told):
            raise ValueError("a request is given twice")
        return value

    @model_validator(mode="after")
    def _within_limits(self) -> DatasetPolicy:
        wrong = [reason for request in self.requests for reason in self._outside(request)]
        if wrong:
            raise ValueError("; ".join(dict.fromkeys(wrong)))
        return self

    def _outside(self, request: Request) -> list[str]:
        flip_to = EditConfig.model_validate(self.gates.overrides()).flip_to
        reasons: list[str] = []
        for name, target in sorted(request.items()):
            at = f"dataset {self.dataset}: request {name}={target}"
            limit = self.allowed.get(name)
            if limit is None:
                reasons.append(f"{at} is not allowed, only {', '.join(sorted(self.allowed)) or 'nothing'} is")
                continue
            asked = _ends(target, flip_to)
            if min(asked) < limit.low - 1e-9:
                reasons.append(f"{at} asks for {min(asked):.4g}, low is {limit.low:g}")
            if max(asked) > limit.high + 1e-9:
                reasons.append(f"{at} asks for {max(asked):.4g}, high is {limit.high:g}")
        return reasons


def _ends(target: float | str, flip_to: float) -> tuple[float, ...]:
    """The least and the greatest score that a request may ask for; a picture decides which.

    All of them must be allowed: what a request may do is known before anything runs, and hangs on no row.
    """
    if target == "flip":
        return 1.0 - flip_to, flip_to
    change = change_of(target)
    if change is None:
        return (float(target),)
    return (change, 1.0) if change > 0 else (0.0, 1.0 + change)


class NightlyPolicy(Config):
    """What one night does.

    Attributes:
        datasets: In this order; each with limits of its own.
        remind_after_days: Edits that wait longer for a decision are listed in the night's report.

    Example:
        >>> NightlyPolicy.model_validate({"datasets": [{"dataset": "team", "source": "photos",
        ...     "consent": "consent.csv", "requests": [{"smiling": 0.8}],
        ...     "allowed": {"smiling": {"high": 0.9}}}]}).datasets[0].allowed["smiling"].high
        0.9
    """

    datasets: tuple[DatasetPolicy, ...] = Field(json_schema_extra=_SOME)
    remind_after_days: float = Field(default=3.0, ge=0.0, le=3650.0)

    @model_validator(mode="after")
    def _each_once(self) -> NightlyPolicy:
        if not self.datasets:
            raise ValueError("datasets: expected at least one")
        names = [part.dataset for part in self.datasets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"each dataset once, found twice: {', '.join(twice)}")
        return self

    @property
    def digest(self) -> str:
        """What a report names the policy by."""
        return sha256_hex(canonical_json(self.model_dump(mode="json")))


def read_policy_text(path: str | Path) -> tuple[str, str]:
    """What a policy's file says, and where it lies.

    Args:
        path: A file of this machine, or any fsspec address such as `s3://bucket/policy.toml`.

    Raises:
        NotFoundError: There is no such file.
        ContractError: It cannot be read, or is no text.
    """
    given = str(path).removeprefix("file://")
    where = checked_address(given, "policy")
    try:
        if is_remote(where):
            folder, _, name = where.rpartition("/")
            return open_store(folder).read(name).decode("utf-8"), where
        where = os.path.abspath(Path(given).expanduser())
        return Path(where).read_text("utf-8"), where
    except (FileNotFoundError, NotFoundError):
        raise NotFoundError("there is no such policy file", where=where, todo="check the path") from None
    except OSError as error:
        raise ContractError("the policy file cannot be read", found=error.strerror, where=where) from None
    except UnicodeDecodeError as error:
        raise ContractError("the policy file is no text", found=error, where=where) from None


def load_policy(path: str | Path) -> NightlyPolicy:
    """Reads a policy file (TOML).

    Args:
        path: See `read_policy_text`. Relative paths in it are relative to its folder.

    Raises:
        NotFoundError: There is no such file.
        ContractError: It is no TOML, or no policy: names each field, the reason and the bound.
    """
    text, file = read_policy_text(path)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ContractError("the policy file is no TOML", found=error, where=file) from None
    try:
        policy = NightlyPolicy.model_validate(document)
    except ValidationError as error:
        raise ContractError(
            "the policy is not valid; nothing was run",
            found="; ".join(_in_words(dict(item)) for item in error.errors(include_url=False)),
            where=file,
            todo="correct these fields and run it again",
        ) from None
    return policy.model_copy(
        update={"datasets": tuple(_anchored(part, os.path.dirname(file)) for part in policy.datasets)}
    )


def _in_words(error: dict[str, Any]) -> str:
    parts = cast("tuple[str | int, ...]", error["loc"])
    place = ".".join(map(str, parts))
    found = error.get("input")
    secret = isinstance(found, str) and is_remote(found) and "@" in found
    shown = f", found {found!r}" if isinstance(found, str | int | float | bool) and not secret else ""
    reason = str(error["msg"]).removeprefix("Value error, ")
    return f"{place}: {reason}{shown}" if place else f"{reason}{shown}"


def _anchored(part: DatasetPolicy, folder: str) -> DatasetPolicy:
    return part.model_copy(
        update={"source": _from(part.source, folder), "consent": _from(part.consent, folder)}
    )


def _from(address: str, folder: str) -> str:
    if "://" in address or address.startswith(("store:", "~", "/")):
        return address
    scheme, there, rest = folder.partition("://")
    # `..` of an object store is nothing that a server would know; of a machine it may lead through a link
    return f"{scheme}://{posixpath.normpath(f'{rest}/{address}')}" if there else str(Path(folder, address))
