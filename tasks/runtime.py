"""Where things run: settings from `SDFLOW_*`, and the objects that are opened once a process.

Nothing happens at import.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from sdflow_core.records.errors import ContractError, PolicyError
from sdflow_core.records.store import Store, open_store

if TYPE_CHECKING:
    from sdflow_core.faces.networks import Networks
    from sdflow_core.method.editor import Editor
    from sdflow_core.streaming import Pace
    from sdflow_core.weights.model_store import Bundle

CALLS: Counter[str] = Counter()  # network calls of this process, by network; the demo prints their sum


class Settings(BaseSettings):
    """Where to run; never part of a recipe.

    Attributes:
        store: Address of the store.
        device: Torch device.
        shard_rows: Rows a shard task takes.
        workers: Shard tasks at a time, in threads of the story's process.
        runner: Who runs the shard tasks: `threads` of the story's process, or the workers of a `ray` cluster.
        ray_address: Of the cluster: `host:port`, or `auto` for the one that this machine belongs to. Empty:
            what `RAY_ADDRESS` says, and without it a cluster of this machine alone, for this process.
        ray_tasks: Shard tasks handed to Ray at a time; 0: twice as many as the cluster can run at once.
        gpus_per_task: Of a node, for one shard task; not given: 1 on a CUDA device, else 0.
        cpus_per_task: Of a node, for one shard task.
        gpu_limit: Global concurrency limit of the Prefect server that guards the device; empty: none. The
            deployments set it.
        io_threads: Threads of a shard task that read from sources and the store, and as many that write.
        pixel_threads: Threads of a shard task that decode, align, encode and hash; 0: one a core.
    """

    model_config = SettingsConfigDict(env_prefix="SDFLOW_", frozen=True, extra="ignore")

    store: str = "./sdflow-store"
    device: str = "cpu"
    shard_rows: int = Field(default=1000, ge=1)
    workers: int = Field(default=1, ge=1)
    runner: Literal["threads", "ray"] = "threads"
    ray_address: str = ""
    ray_tasks: int = Field(default=0, ge=0)
    gpus_per_task: float | None = Field(default=None, ge=0)
    cpus_per_task: float = Field(default=1, ge=0)
    gpu_limit: str = ""
    io_threads: int = Field(default=16, ge=1)
    pixel_threads: int = Field(default=0, ge=0)

    @property
    def gpus(self) -> float:
        """GPUs that one shard task asks a cluster for."""
        return float(self.device.startswith("cuda")) if self.gpus_per_task is None else self.gpus_per_task


def settings() -> Settings:
    """The settings of this moment; read anew each time, so that tests and workers can differ.

    Raises:
        ContractError: A value is none that the setting can have.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        name = f"SDFLOW_{wrong['loc'][0]}".upper()
        raise ContractError(
            f"{name} cannot be used",
            expected=wrong["msg"],
            found=wrong["input"],
            todo=f"change or unset {name}",
        ) from None


@lru_cache(maxsize=8)
def store_at(uri: str) -> Store:
    """The store, opened once a process."""
    return open_store(uri)


@lru_cache(maxsize=4)
def _networks(store_uri: str, bundle_digest: str, device: str) -> Networks:
    from sdflow_core.faces.networks import Networks
    from sdflow_core.weights.model_store import ModelStore

    store = store_at(store_uri)
    return Networks(ModelStore(store), load_bundle(store, bundle_digest), device=device, calls=CALLS)


_stand_ins: list[Callable[[Bundle], Any]] = []


@contextmanager
def networks_from(make: Callable[[Bundle], Any]) -> Generator[None]:
    """Let `make(bundle)` stand in for the networks while the block runs: to measure all that is not them."""
    _stand_ins.append(make)
    try:
        yield
    finally:
        _stand_ins.remove(make)


def networks_of(store: Store, bundle_digest: str) -> Networks:
    """The networks of a pinned bundle, opened once a process.

    Raises:
        PolicyError: The licence of a model was not accepted in this store.
    """
    if _stand_ins:
        return _stand_ins[-1](load_bundle(store, bundle_digest))
    return _networks(store.uri, bundle_digest, settings().device)


@lru_cache(maxsize=4)
def _editor(store_uri: str, digest: str, device: str) -> Editor:
    from sdflow_core.method.editing import load_editor
    from sdflow_core.weights.model_store import ModelStore

    return load_editor(ModelStore(store_at(store_uri)).weights(digest), device=device)


def editor_of(store: Store, digest: str) -> Editor:
    """An editor by digest, opened once a process."""
    return _editor(store.uri, digest, settings().device)


def pin_bundle(store: Store) -> Bundle:
    """The bundle in force now; a run calls this once, at its start.

    Raises:
        ContractError: Nothing was promoted.
        PolicyError: A licence was not accepted.
    """
    from sdflow_core.records.keys import canonical_json
    from sdflow_core.weights.model_store import Bundles

    bundle = Bundles(store).current()
    if bundle is None:
        raise ContractError(
            "no models are promoted in this store",
            where=store.uri,
            todo="sdflow models accept-licence, then sdflow models promote embedded; or import your own",
        )
    check_licences(store, bundle)
    key = f"models/pinned/{bundle.digest}.json"
    if not store.exists(key):
        store.create(key, canonical_json(bundle.model_dump(mode="json")))
    return bundle


def load_bundle(store: Store, digest: str) -> Bundle:
    """A bundle that some run pinned; read once a process, as its digest says what it is."""
    return _pinned(store.uri, digest)


@lru_cache(maxsize=32)
def _pinned(store_uri: str, digest: str) -> Bundle:
    from sdflow_core.weights.model_store import Bundle

    return Bundle.model_validate_json(store_at(store_uri).read(f"models/pinned/{digest}.json"))


@lru_cache(maxsize=256)
def _licence(store_uri: str, digest: str) -> str:
    """Which licence a model's card names; a card is written once and never replaced."""
    from sdflow_core.weights.model_store import ModelStore

    return str(ModelStore(store_at(store_uri)).card(digest).get("licence_id") or "")


def check_licences(store: Store, bundle: Bundle) -> None:
    """Refuse models whose licence nobody accepted in this store.

    Raises:
        PolicyError: Naming the licence and the command.
    """
    from sdflow_core.weights.model_store import NO_MODELS, Licences

    accepted = Licences(store).all()
    for kind, digest in bundle.model_dump(mode="json").items():
        if kind in NO_MODELS or not digest:
            continue
        licence = _licence(store.uri, digest)
        if licence and licence not in accepted:
            raise PolicyError(
                f"the licence of the {kind} was not accepted in this store",
                found=licence,
                where=store.uri,
                todo=f"read it with `sdflow models show {digest[:12]}`, "
                f"then `sdflow models accept-licence {licence} --by NAME`",
            )


_place: dict[str, Any] = {}


def place() -> dict[str, Any]:
    """Where in a cluster this process computes now, for the lineage; empty outside of one."""
    return dict(_place)


@contextmanager
def running_at(where: dict[str, Any]) -> Generator[None]:
    """Let the lineage say that the steps of this process run there, while the block runs."""
    _place.update(where)
    try:
        yield
    finally:
        _place.clear()


def forget_models() -> None:
    """Give the memory of opened networks and editors back; the next use opens them anew."""
    _networks.cache_clear()
    _editor.cache_clear()


_listeners: list[Callable[[str, int, int], None]] = []
_paces: dict[str, Pace] = {}


def tick(what: str, done: int, total: int, pace: Pace | None = None) -> None:
    """Tell whoever listens (the command line's progress bar) how far a step is, and at what pace."""
    if pace is not None:
        _paces[what] = pace
    for listener in _listeners:
        listener(what, done, total)


def pace_of(what: str) -> Pace | None:
    """The pace at which a step of this process went when it last ticked; None where it has told none."""
    return _paces.get(what)


@contextmanager
def listening(listener: Callable[[str, int, int], None]) -> Generator[None]:
    """Receive ticks of all steps of this process while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
