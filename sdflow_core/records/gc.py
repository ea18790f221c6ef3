"""What nobody will ask for again: left by runs that were killed, or replaced by a compaction.

Removed is only what no record names, what is old enough, and nothing that a run which may be alive can still
want. Broken records stop everything: what they named is not known then.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .ahead import ahead
from .errors import ContractError, CorruptError, NotFoundError
from .index import Named, names, table_names
from .journal import Journal
from .leases import Lease, lease_of, leases
from .lineage import Lineage
from .lookup import datasets
from .objects import TEMPORARY, LocalStore, Store
from .shards import TODO
from .tables import Table
from .verification import witnessed_roots

__all__ = ["AGE_HOURS", "Collected", "Leftover", "collect"]

AGE_HOURS = 24.0
_PICTURES = {"private/crops/": "crops", "private/edits/": "edits", "private/pasted/": "pasted"}
_PLANS = "private/plans/"
_TRAINING = "private/training/"
_BATCH = (
    32  # removals side by side between two looks at the leases: a moment, in a folder as in an object store
)
_ROUGHLY = timedelta(minutes=1)  # object stores date in whole seconds, and a renewal may have been on its way


@dataclass(frozen=True)
class Leftover:
    """One object that nobody will ask for again.

    Attributes:
        kind: `shards`, `replaced shards`, `plans`, `crops`, `edits`, `pasted`, `checkpoints`, `temporary` or
            `leases`.
        key: Where it lies, relative to the store.
        size_bytes: Of the object.
    """

    kind: str
    key: str
    size_bytes: int


@dataclass
class Collected:
    """What was found, and what became of it.

    Attributes:
        found: Everything that may go.
        removed: How many of them were removed; 0 in a dry run.
        alive: Runs that may be alive.
        held_back: Kinds that were left alone because of them.
    """

    found: list[Leftover]
    alive: list[str]
    removed: int = 0
    held_back: list[str] = field(default_factory=list[str])

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Kind -> `{"count", "bytes"}`."""
        counts = Counter(item.kind for item in self.found)
        sizes: Counter[str] = Counter()
        for item in self.found:
            sizes[item.kind] += item.size_bytes
        return {kind: {"count": counts[kind], "bytes": sizes[kind]} for kind in sorted(counts)}


def collect(
    store: Store, *, delete: bool = False, older_than_hours: float = AGE_HOURS, now: datetime | None = None
) -> Collected:
    """Finds what is left over, and removes it when asked to.

    While any run may be alive, pictures are left alone: a run takes over a picture that an earlier one left
    behind, and names it only when it commits. Of all other kinds, what is younger than the oldest living run
    stays.

    Args:
        store: The store.
        delete: Remove; otherwise only say what would be removed.
        older_than_hours: Nothing younger is touched, and no replaced shard whose replacement is younger.
        now: The time that counts; default: now.

    Returns:
        What was found.

    Raises:
        CorruptError: A journal or a shard is not whole; nothing was removed.
        ContractError: The age is negative, or the store cannot be written.
    """
    if older_than_hours < 0:
        raise ContractError("an age is negative", expected="0 hours or more", found=older_than_hours)
    at = now or (_clock(store) if delete else datetime.now(UTC))  # a dry run writes nothing
    living = _living(store)
    cutoff = min([at - timedelta(hours=older_than_hours), *(_taken(store, item) for item in living)])
    named = _Named(store)
    alive = {item.run for item in living}
    candidates = [
        *_shards(store, named, cutoff),
        *_plans(store, alive),
        *_checkpoints(store, named),
        *(("temporary", key) for key in store.list("tmp/")),
        *_dead_leases(store, alive),
    ]
    if not alive:
        candidates += _pictures(store, named)
    found = list(_old(store, candidates, cutoff))
    if isinstance(store, LocalStore):
        found += _half_written(store, cutoff)
    held_back = sorted(set(_PICTURES.values())) if alive else []
    result = Collected(found, sorted(alive), held_back=held_back)
    if delete:
        _remove(store, result)
    return result


def _living(store: Store) -> list[Lease]:
    # Kinder than `dead`: a process of this machine that was asleep, and has not renewed yet, is spared too.
    return [item for item in leases(store) if not item.dead() or item.process() == "here"]


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _clock(store: Store) -> datetime:
    """Now, by the clock that dates the objects: of an object store it is not this machine's."""
    if isinstance(store, LocalStore):
        return datetime.now(UTC)
    key = f"tmp/clock-{uuid.uuid4().hex}"
    store.create(key, b"")
    try:
        return _written(store, key) or datetime.now(UTC)
    finally:
        store.delete(key)


def _taken(store: Store, held: Lease) -> datetime:
    """When a lease was taken, by the clock that dates the objects of its run; rather a little earlier.

    Its last renewal is dated by both clocks: by that of the run's machine inside, by the store's outside.
    """
    taken, by_store = _time(held.taken), None
    if not isinstance(store, LocalStore):
        with suppress(NotFoundError):  # given back just now
            by_store = _written(store, f"leases/{held.run}.json")
    if by_store is None:
        return taken
    return taken + (by_store - _time(held.renewed)) - _ROUGHLY


def _written(store: Store, key: str) -> datetime | None:
    mtime_ns = store.stat(key).mtime_ns
    return None if mtime_ns is None else datetime.fromtimestamp(mtime_ns / 1e9, UTC)


class _Named:
    """What the journals of all datasets name. Reading it verifies every journal of a dataset."""

    def __init__(self, store: Store) -> None:
        self.current: list[Named] = []
        self.keys: set[str] = set()
        self.replaced: dict[str, datetime] = {}
        self.tables: list[tuple[str, str]] = []
        self.datasets = datasets(store)
        start, end = "private/datasets/", "/journal"
        gone = [
            root
            for root in witnessed_roots(store)
            if root.startswith(start)
            and root.endswith(end)
            and root.removeprefix(start).removesuffix(end) not in self.datasets
        ]
        for root in [*(f"{start}{name}{end}" for name in self.datasets), *gone]:
            Journal(store, root).verify()
        for dataset in self.datasets:
            entries = list(Journal(store, f"{start}{dataset}{end}").entries())
            for table in table_names(entries):
                self.tables.append((dataset, table))
                found = names(entries, table)
                self.current += found.current()
                self.keys |= set(found.named)
                for key, by in found.by.items():
                    self.replaced[key] = _time(found.named[by].time)


def _shards(store: Store, named: _Named, cutoff: datetime) -> Iterator[tuple[str, str]]:
    for dataset in named.datasets:
        # Only below datasets whose journal was read: without one, nobody knows what is an orphan.
        at = f"private/datasets/{dataset}/"
        for key in store.list(at):
            parts = key.removeprefix(at).split("/")
            if len(parts) != 3 or parts[1] != "shards" or not key.endswith(".parquet"):
                continue
            if key not in named.keys:
                yield "shards", key
            elif key in named.replaced and named.replaced[key] < cutoff:
                yield "replaced shards", key


def _plans(store: Store, alive: set[str]) -> Iterator[tuple[str, str]]:
    wanted: dict[str, bool] = {}
    for key in store.list(_PLANS):
        run = key.removeprefix(_PLANS).partition("/")[0]
        if run not in wanted:
            wanted[run] = bool(alive) and not alive.isdisjoint(Lineage(store).ancestry(run))
        if not wanted[run]:
            yield "plans", key


def _checkpoints(store: Store, named: _Named) -> Iterator[tuple[str, str]]:
    """States of trainings whose editor was committed; the others are how a killed training goes on."""
    keys = [key for key in store.list(_TRAINING) if key.endswith("/checkpoint.bin")]
    if not keys:
        return
    done: set[str] = set()
    for dataset, table in named.tables:
        if table == "editors":
            done |= Table(store, dataset, table).held()
    for key in keys:
        if key.removeprefix(_TRAINING).partition("/")[0] in done:
            yield "checkpoints", key


def _dead_leases(store: Store, alive: set[str]) -> Iterator[tuple[str, str]]:
    for key in store.list("leases/"):
        if key.removeprefix("leases/").removesuffix(".json") not in alive:
            yield "leases", key


def _pictures(store: Store, named: _Named) -> list[tuple[str, str]]:
    """Pictures that no row of any table names, in whatever column."""
    there = [(kind, key) for prefix, kind in _PICTURES.items() for key in store.list(prefix)]
    if not there:
        return []
    wanted: set[str] = set()
    for item in named.current:
        wanted |= _texts(store, item)
    return [(kind, key) for kind, key in there if key not in wanted]


def _texts(store: Store, named: Named) -> set[str]:
    """All keys of private objects in the text columns of a shard."""
    key = named.shard.key
    found: set[str] = set()
    compute: Any = pc
    try:
        with store.open_input(key) as file:
            reader: Any = pq.ParquetFile(file, page_checksum_verification=True)
            schema = cast(pa.Schema, reader.schema_arrow)
            columns = [
                item.name
                for item in schema
                if pa.types.is_string(item.type) or pa.types.is_large_string(item.type)
            ]
            part = reader.read(columns=columns, use_threads=False)
    except NotFoundError as error:
        raise CorruptError("a shard is missing", where=store.url(key), todo=TODO) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptError("a shard cannot be read", found=error, where=store.url(key), todo=TODO) from error
    for name in columns:
        column = part.column(name)
        mine = compute.starts_with(column, pattern="private/")
        found |= set(cast("list[str]", column.filter(mine).to_pylist()))
    return found


def _old(store: Store, keys: Iterable[tuple[str, str]], cutoff: datetime) -> Iterator[Leftover]:
    def look(item: tuple[str, str]) -> Leftover | None:
        kind, key = item
        try:
            stat = store.stat(key)
        except NotFoundError:
            return None  # somebody else removed it
        # A store that does not tell how old an object is keeps it.
        old = stat.mtime_ns is not None and stat.mtime_ns / 1e9 < cutoff.timestamp()
        return Leftover(kind, key, stat.size_bytes) if old else None

    yield from (item for item in ahead(store, look, keys) if item is not None)


def _half_written(store: LocalStore, cutoff: datetime) -> Iterator[Leftover]:
    for folder, _, files in os.walk(store.root):
        for name in files:
            if not name.startswith(TEMPORARY):
                continue
            path = Path(folder) / name
            try:
                stat = path.stat()
            except OSError:
                continue
            if stat.st_mtime < cutoff.timestamp():
                yield Leftover("temporary", path.relative_to(store.root).as_posix(), stat.st_size)


def _remove(store: Store, result: Collected) -> None:
    pictures = set(_PICTURES.values())
    for number in range(0, len(result.found), _BATCH):
        came = {lease.run for lease in _living(store)} - set(result.alive)
        result.alive = sorted({*result.alive, *came})
        batch = result.found[number : number + _BATCH]
        # A run that began meanwhile may take over what an earlier one left.
        held = {item.kind for item in batch if item.kind in pictures} if result.alive else set[str]()
        result.held_back = sorted({*result.held_back, *held})
        going = [item for item in batch if item.kind not in held]
        result.removed += sum(ahead(store, lambda item: _remove_one(store, item), going))


def _remove_one(store: Store, item: Leftover) -> bool:
    if item.kind == "leases" and _renewed(store, item):
        return False
    if isinstance(store, LocalStore):
        path = store.root / item.key
        _unlink(path)
        if item.kind == "plans":
            with suppress(OSError):  # each run has its own folder; other folders may get new files now
                path.parent.rmdir()
    else:
        store.delete(item.key)
    return True


def _renewed(store: Store, item: Leftover) -> bool:
    held = lease_of(store, item.key.removeprefix("leases/").removesuffix(".json"))
    return held is not None and not held.dead()


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ContractError(
            "a leftover cannot be removed", found=error.strerror, where=path, todo="check its permissions"
        ) from error
