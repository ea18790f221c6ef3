"""Lineage: one immutable object an event, in OpenLineage's vocabulary, exportable as it lies.

Events name runs, jobs, datasets and digests. They hold no secrets, no personal data and no names of private
files.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from .ahead import ahead
from .errors import ContractError, CorruptError, NotFoundError
from .keys import canonical_json, sha256_hex
from .objects import Store

__all__ = ["EventType", "Lineage", "code_version", "environment", "load_recipe", "save_recipe"]

EventType = Literal["START", "COMPLETE", "FAIL", "ABORT", "REUSED"]
_TYPES = ("START", "COMPLETE", "FAIL", "ABORT", "REUSED")
_NAMESPACE = "sdflow"
_SLACK_SECONDS = 60.0  # between the name of an event and the time that it tells
_DISTRIBUTION = "sdflow-pipeline"
_PRODUCER = f"urn:{_DISTRIBUTION}"
# s3://key:secret@host/... : credentials in an address must not reach a record.
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


class Lineage:
    """Events under `lineage/<run>/` of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def emit(
        self,
        event_type: EventType,
        *,
        run: str,
        job: str,
        parent: str | None,
        inputs: list[dict[str, Any]],
        outputs: list[dict[str, Any]],
        recipe: str | None,
        bundle: str | None,
        config: dict[str, Any] | None,
        error: str | None = None,
        place: dict[str, Any] | None = None,
        figures: Mapping[str, float] | None = None,
    ) -> str:
        """Writes one event.

        Args:
            event_type: What happened; REUSED says that the records already held everything.
            run: Id of the run.
            job: Name of the step or flow.
            parent: Id of the run that started this one.
            inputs: Datasets read, e.g. `{"name": ..., "digest": ...}`.
            outputs: Datasets written.
            recipe: How it computes; see `keys.recipe`.
            bundle: Digest of the models' bundle.
            config: What was asked.
            error: For FAIL and ABORT, in words.
            place: Where in a cluster it runs; names no host.
            figures: How fast it went; plain numbers.

        Returns:
            The event's key.

        Raises:
            ContractError: An unknown type, an unusable run id, or values that are no JSON.
        """
        if event_type not in _TYPES:
            raise ContractError("unknown type of event", expected=_TYPES, found=event_type)
        if not run or "/" in run or run in (".", ".."):
            raise ContractError("a run id must be one part of a key", found=repr(run))
        run_facets: dict[str, Any] = {
            "sdflow": {
                "recipe": recipe,
                "bundle": bundle,
                "config": config,
                "codeVersion": code_version(),
                "environment": environment(),
            }
        }
        if place:
            run_facets["sdflow"]["place"] = place
        if figures:
            run_facets["sdflow"]["figures"] = dict(figures)
        if parent is not None:
            run_facets["parent"] = {
                "run": {"runId": parent},
                "job": {"namespace": _NAMESPACE, "name": "flow"},
            }
        if error is not None:
            run_facets["errorMessage"] = {"message": error, "programmingLanguage": "python"}
        event = {
            "eventType": event_type,
            "eventTime": datetime.now(UTC).isoformat(timespec="microseconds"),
            "run": {"runId": run, "facets": run_facets},
            "job": {"namespace": _NAMESPACE, "name": job},
            "inputs": [{"namespace": _NAMESPACE, **item} for item in inputs],
            "outputs": [{"namespace": _NAMESPACE, **item} for item in outputs],
            "producer": _PRODUCER,
        }
        # Nanoseconds, zero padded, sort as text in the order of time; the random part keeps two at once
        # apart.
        key = f"lineage/{run}/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}-{event_type}.json"
        self.store.create(key, canonical_json(_clean(event)))
        return key

    def abort_once(self, run: str, error: str) -> bool:
        """Writes the ABORT of a run that could not write it itself; of many who try at once, one does.

        It repeats what the START of the run said.

        Args:
            run: Id of the run.
            error: Why it counts as ended, in words.

        Returns:
            Whether this call wrote it; False also when the run never began.
        """
        for key in self.store.list(f"lineage/{run}/"):
            if not key.endswith("-START.json"):
                continue
            event = self._read(key)
            event["eventType"] = "ABORT"
            event["eventTime"] = datetime.now(UTC).isoformat(timespec="microseconds")
            event["run"]["facets"]["errorMessage"] = {"message": error, "programmingLanguage": "python"}
            # The same name for all who try, and sorted right behind the START: should the run live after
            # all, its own end comes later.
            stamp = key.removeprefix(f"lineage/{run}/").partition("-")[0]
            return self.store.create(
                f"lineage/{run}/{stamp}-reconciled-ABORT.json", canonical_json(_clean(event))
            )
        return False

    def ancestry(self, run: str) -> list[str]:
        """The run, the run that started it, and so on up to the outermost."""
        found = [run]
        while True:
            event = next(self.events(found[-1]), None)
            facets = cast("dict[str, Any]", event["run"]["facets"]) if event is not None else {}
            above = str(facets.get("parent", {}).get("run", {}).get("runId", ""))
            if not above or "/" in above or above in found:
                return found
            found.append(above)

    def events(
        self, run: str | None = None, types: Collection[str] = (), since: str = ""
    ) -> Iterator[dict[str, Any]]:
        """Events of one run in order of time; without a run all, run by run.

        Args:
            run: Of this run only.
            types: Of these types only; empty: of all. What is of no interest is not even read.
            since: ISO time; events written more than a minute before it are not read. Without one all are.
        """
        after = (datetime.fromisoformat(since).timestamp() - _SLACK_SECONDS) * 1e9 if since else 0.0
        keys = (
            key
            for key in self.store.list(f"lineage/{run}/" if run else "lineage/")
            if _may_be(key.rpartition("/")[2].removesuffix(".json").split("-"), types, after)
        )
        yield from ahead(self.store, self._read, keys)

    def _read(self, key: str) -> dict[str, Any]:
        try:
            return cast(dict[str, Any], json.loads(self.store.read(key)))
        except ValueError as error:
            where = self.store.url(key)
            raise CorruptError("a lineage event cannot be read", where=where, todo="restore it") from error


def _may_be(name: list[str], types: Collection[str], after: float) -> bool:
    """Whether a file may hold what is asked for, by its name `<nanoseconds>-<id>-<type>`."""
    if types and name[-1] in _TYPES and name[-1] not in types:
        return False
    return not (name[0].isdigit() and int(name[0]) < after)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _USERINFO.sub("", value)
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {key: _clean(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in cast("list[Any]", value)]
    return value


@cache
def code_version() -> str:
    """Version of the package, in a clone with the git commit: `0.1.0+g1a2b3c4d5e6f`.

    `.changed` at its end says that files of the clone differ from that commit.
    """
    try:
        version = importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        from sdflow_core import __version__ as version
    commit = _commit()
    return f"{version}+g{commit}" if commit else version


def _commit() -> str | None:
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None  # installed from a wheel: an outer repository is not ours
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}.changed" if changed else commit


def _git(folder: Path, *words: str) -> str:
    """What git says; empty where it cannot say anything."""
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def _environment() -> tuple[tuple[str, str], ...]:
    found = {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "cpus": str(os.cpu_count() or 0),
    }
    for name in ("torch", "numpy", "pyarrow", "pillow", "prefect"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found.items())


def environment() -> dict[str, str]:
    """Versions that results may depend on; nothing is imported to find them, no host name is told."""
    return dict(_environment())


def save_recipe(store: Store, document: dict[str, Any]) -> str:
    """Keeps what a recipe is the hash of, under `recipes/<recipe>.json`.

    Returns:
        The recipe.
    """
    data = canonical_json(document)
    recipe = sha256_hex(data)
    if not store.exists(f"recipes/{recipe}.json"):
        store.create(f"recipes/{recipe}.json", data)
    return recipe


def load_recipe(store: Store, recipe: str) -> dict[str, Any]:
    """What was saved by `save_recipe`.

    Raises:
        NotFoundError: No such recipe.
        CorruptError: It is not what was saved.
    """
    key = f"recipes/{recipe}.json"
    try:
        data = store.read(key)
    except NotFoundError as error:
        raise NotFoundError("this recipe is not known here", found=recipe, where=store.url(key)) from error
    if sha256_hex(data) != recipe:
        raise CorruptError(
            "a recipe was changed", where=store.url(key), todo="restore this file from a backup"
        )
    return cast(dict[str, Any], json.loads(data))
