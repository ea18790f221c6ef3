"""`sdflow doctor`: is everything in place, and are the records whole?"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.output import progress, result, state, table

if TYPE_CHECKING:
    from sdflow_core.records.store import Store

__all__ = ["register"]

CLOCKS_SECONDS = 30.0  # a lease is given up after 120
FREE_BYTES = 2 * 10**9  # a demo needs about a tenth of it
_PREFECT_SECONDS = 120


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    todo: str = ""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("doctor")(doctor)


def doctor(
    context: typer.Context,
    deep: Annotated[bool, typer.Option("--deep", help="Also read every shard of every table.")] = False,
) -> None:
    """Check versions, store, disk, models, licences, journals and Prefect; exit code 2 if any is wrong."""
    now = state(context)
    store = now.store()
    looks: list[Callable[[Store], Iterator[Check]]] = [
        _versions,
        _writable,
        _disk,
        _far_away,
        _models,
        _licences,
        _journals,
        _released,
        _prefect,
    ]
    if deep:
        looks.append(_shards)
    checks: list[Check] = []
    with progress(now, "checking", len(looks), unit="checks") as bar:
        for look in looks:
            checks += _safely(look, store)
            bar.advance()
    good = all(check.ok for check in checks)

    def text() -> None:
        rows = [("ok" if c.ok else "WRONG", c.name, c.found, c.todo) for c in checks]
        table(f"Store {store.uri}", ("", "what", "found", "what to do"), rows)
        print("All is well." if good else "Something is wrong: see above.")

    result(now, {"store": store.uri, "ok": good, "checks": [asdict(check) for check in checks]}, text)
    if not good:
        raise typer.Exit(2)


def _safely(look: Callable[[Store], Iterator[Check]], store: Store) -> list[Check]:
    """The checks of one look; a look that cannot be finished is a finding, and the others go on."""
    from sdflow_core.records.errors import SDFlowError

    found: list[Check] = []
    name = look.__name__.strip("_")
    try:
        found.extend(look(store))
    except SDFlowError as error:
        found.append(Check(name, False, error.what, f"{error.where or ''} {error.todo or ''}".strip()))
    except Exception as error:  # a doctor does not faint
        found.append(Check(name, False, f"{type(error).__name__}: {error}"))
    return found


def _versions(store: Store) -> Iterator[Check]:
    from sdflow_core.records.lineage import code_version, environment

    found = {"sdflow": code_version(), **environment()}
    ok = sys.version_info >= (3, 11)
    yield Check("versions", ok, ", ".join(f"{name} {version}" for name, version in found.items()))


def _writable(store: Store) -> Iterator[Check]:
    store.check_writable()
    yield Check("store", True, f"can be written: {store.uri}")


def _disk(store: Store) -> Iterator[Check]:
    import shutil
    from pathlib import Path

    from cli.server import state_folder
    from sdflow_core.records.addresses import is_remote

    folder = at = state_folder(store.uri) if is_remote(store.uri) else Path(store.uri)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    enough = free >= FREE_BYTES
    of = f" in {at}, where server and logs are; the store is elsewhere" if is_remote(store.uri) else ""
    yield Check("disk", enough, f"{free / 1e9:.1f} GB free{of}", "" if enough else "free 2 GB")


def _far_away(store: Store) -> Iterator[Check]:
    """What a folder cannot have wrong: a clock of its own, and strangers who may read."""
    from sdflow_core.records.addresses import is_remote

    if not is_remote(store.uri):
        return
    key = f"tmp/probe-{uuid.uuid4().hex}"
    store.create(key, b"probe")
    try:
        now, there = time.time(), store.stat(key).mtime_ns
        yield from _strangers(store, key)
    finally:
        store.delete(key)
    if there is not None:
        apart = abs(now - there / 1e9)
        good = apart < CLOCKS_SECONDS
        todo = "" if good else "set the clocks (NTP): leases of other machines and ages are read by them"
        yield Check("clock", good, f"{apart:.0f} s apart from the store's", todo)


def _strangers(store: Store, key: str) -> Iterator[Check]:
    """Whether somebody without credentials can read what lies under `private/`."""
    import fsspec

    scheme = store.uri.partition("://")[0]
    if scheme not in ("s3", "s3a"):
        return
    fs: Any = fsspec.filesystem(scheme, anon=True, use_listings_cache=False, skip_instance_cache=True)
    try:
        fs.cat_file(store.url(key))
    except OSError:  # refused, as it should be; or not answered, which other checks notice
        yield Check("access", True, "refused to who has no credentials")
        return
    todo = "block public access to this bucket (policy and ACL): everything under private/ is personal data"
    yield Check("access", False, "ANYBODY can read this bucket", todo)


def _models(store: Store) -> Iterator[Check]:
    from sdflow_core.weights.model_store import NO_MODELS, Bundles, ModelStore

    models = ModelStore(store)
    cards = models.list()
    for card in cards:
        models.weights(str(card["digest"]))
    yield Check("models", True, f"{len(cards)} model files, all as their digests say")
    current = Bundles(store).current()
    if current is None:
        yield Check("bundle", True, "none in force", "`sdflow models promote embedded --by NAME`")
        return
    digests = {card["digest"] for card in cards}
    fields = current.model_dump(mode="json")
    named = {k: v for k, v in fields.items() if k not in NO_MODELS and v is not None}
    missing = [kind for kind, digest in named.items() if digest not in digests]
    todo = "add these models again, or `sdflow models rollback`" if missing else ""
    found = f"{current.digest[:12]}, missing: {', '.join(missing) or 'nothing'}"
    yield Check("bundle", not missing, found, todo)
    if current.editor is None:
        # A state, not a fault: everything up to the labels works without one.
        yield Check("editor", True, "none in the bundle yet", "`sdflow train DATASET` makes one")


def _released(store: Store) -> Iterator[Check]:
    from sdflow_core.records.releases import locate, releases, revoked

    count = sum(len(item.outputs) for item in releases(store))
    back = revoked(store)
    shown = ", ".join(locate(store, out.uri) for _, out, _ in back[:5])
    todo = f"take them back where they went: {shown}{' ...' if len(back) > 5 else ''}" if back else ""
    yield Check("releases", not back, f"{count} pictures left, {len(back)} rejected since", todo)


def _licences(store: Store) -> Iterator[Check]:
    from sdflow_core.weights.model_store import Licences, ModelStore

    licences = Licences(store).all()
    needed = sorted({str(card["licence_id"]) for card in ModelStore(store).list() if card.get("licence_id")})
    for licence in needed:
        accepted = licence in licences
        # Not accepted is a state, not a fault: the models are refused when they are used.
        todo = "" if accepted else f"`sdflow models accept-licence {licence} --by NAME`"
        yield Check("licence", True, f"{licence}: {'accepted' if accepted else 'NOT accepted'}", todo)


def _journals(store: Store) -> Iterator[Check]:
    from sdflow_core.records.verification import journal_roots, verify_journals, witnessed_roots

    roots = sorted({*journal_roots(store), *witnessed_roots(store)})
    found = list(verify_journals(store, roots))
    broken = [item for item in found if item.wrong]
    for item in broken:
        yield Check(f"journal {item.name}", False, item.wrong, item.todo)
    entries = sum(item.count for item in found)
    yield Check(
        "journals", not broken, f"{len(roots)} journals, {entries} entries verified, {len(broken)} broken"
    )


def _shards(store: Store) -> Iterator[Check]:
    from sdflow_core.records.lookup import datasets
    from sdflow_core.records.verification import verify_shards

    found = [item for dataset in datasets(store) for item in verify_shards(store, dataset)]
    broken = [item for item in found if item.wrong]
    for item in broken:
        yield Check(f"table {item.name}", False, item.wrong, item.todo)
    count = sum(item.count for item in found)
    yield Check(
        "shards", not broken, f"{count} shards as their journal entries say, {len(broken)} tables broken"
    )


def _prefect(store: Store) -> Iterator[Check]:
    import subprocess

    # In a process of its own: Prefect reads settings and configures logging when it is imported.
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import prefect, prefect.server; print(prefect.__version__)"],
            capture_output=True,
            text=True,
            timeout=_PREFECT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Check(
            "prefect", False, f"no answer in {_PREFECT_SECONDS} s", "try again when the machine is idle"
        )
        return
    if done.returncode == 0:
        yield Check("prefect", True, f"{done.stdout.strip()} with its server")
        return
    last = (done.stderr.strip().splitlines() or ["it cannot be imported"])[-1]
    yield Check("prefect", False, last, "pip install -c constraints.txt sdflow-pipeline")
