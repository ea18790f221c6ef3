"""`sdflow fetch`: contact sheets and reports of a store that is no folder, brought here to be looked at."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.output import progress, result, state

if TYPE_CHECKING:
    from sdflow_core.records.store import Store

__all__ = ["hint", "register", "written_beside"]

_SHOWN = 20
_RUN = re.compile(r"[0-9a-f]{4,12}")
_SHEETS = "private/edit_runs/"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("fetch")(fetch)


def hint(address: str, what: str = "") -> str:
    """What to type to look at something in a store that is no folder; empty where the path will do.

    Args:
        address: Where it lies.
        what: A shorter name for it, such as the id of an edit run.
    """
    from sdflow_core.records.addresses import is_remote

    return f"To look at it here: sdflow fetch {what or address}" if is_remote(address) else ""


def fetch(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="EDIT_RUN|ADDRESS", help="Contact sheets of a run; or any address or key in the store."
        ),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to.")] = Path("."),
    replace: Annotated[bool, typer.Option("--replace", help="Replace files that differ.")] = False,
) -> None:
    """Copy contact sheets, a report or anything else from the store to this machine. They show faces."""
    from sdflow_core.records.ahead import ahead

    now = state(context)
    store = now.store()
    at, keys = _keys(store, what)

    def bring(key: str) -> Path:
        # read first: a key that would lead out of the folder is refused there
        data = store.read(key)
        return _written(to / key.removeprefix(at), data, replace)

    files: list[str] = []
    with progress(now, "fetching", len(keys), unit="files") as bar:
        for path in ahead(store, bring, keys):
            files.append(str(path.absolute()))
            bar.advance()
    document: dict[str, Any] = {"files": files, "to": str(to.absolute())}
    more = [f"and {len(files) - _SHOWN} more"] if len(files) > _SHOWN else []
    result(now, document, "\n".join([*files[:_SHOWN], *more]))


@contextmanager
def written_beside(path: Path, data: bytes) -> Generator[Path]:
    """A whole file for its owner alone, beside the place where it is to be moved or linked to.

    Whatever happens, nothing is left of it under its own name. Missing folders are made.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


# -- inside


def _keys(store: Store, what: str) -> tuple[str, list[str]]:
    """The objects that are meant, and the beginning of their keys that is left out here."""
    from sdflow_core.records.decisions import load_edit_run
    from sdflow_core.records.errors import ContractError, NotFoundError

    key = _key(store, what)
    if _RUN.fullmatch(key):
        key = f"{_SHEETS}{load_edit_run(store, key).edit_run}"
    if key.endswith(".key"):
        raise ContractError("keys stay in the store", found=key)
    at = key.rpartition("/")[0] + "/" if "/" in key else ""
    if store.exists(key):
        return at, [key]
    found = [one for one in store.list(f"{key}/") if not one.endswith(".key")]
    if not found:
        raise NotFoundError(
            "there is nothing of this name in the store",
            expected="the id of an edit run, or an address that a command has printed",
            found=what,
            where=store.uri,
        )
    return at, found


def _key(store: Store, what: str) -> str:
    from sdflow_core.records.addresses import is_remote, plain_address
    from sdflow_core.records.errors import ContractError

    given = what.strip()
    if given.startswith("store:"):
        return given.removeprefix("store:").strip("/")
    if is_remote(given):
        given = plain_address(given)
        own = plain_address(store.uri)
        if not given.startswith(f"{own}/"):
            raise ContractError("this address does not lie in the store", found=given, where=store.uri)
    else:
        given, own = given.removeprefix("file://"), store.uri
    return given.removeprefix(f"{own}/").rstrip("/")


def _written(path: Path, data: bytes, replace: bool) -> Path:
    from sdflow_core.records.errors import ContractError

    try:
        if path.exists() and not replace and path.read_bytes() != data:
            raise ContractError(
                "another file has this name; it was not touched",
                where=path,
                todo="fetch --to another folder, or --replace it",
            )
        with written_beside(path, data) as temporary:
            temporary.replace(path)
    except OSError as error:
        raise ContractError("a file cannot be written here", found=error.strerror, where=path) from error
    return path
