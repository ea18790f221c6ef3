"""Which edit is it: by a picture, a digest, or an id.

The pixels decide which edit a picture is; its metadata is only what it claims. A picture that claims an edit
and has other pixels was changed after it was made, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sdflow_core.faces.decode import Rejected, decode
from sdflow_core.faces.pixels import pixel_digest, read_text

from .errors import ApprovalError, ContractError, NotFoundError
from .keys import sha256_hex
from .lineage import Lineage
from .releases import EDIT_ID_KEYWORD, releases
from .store import Store, open_store
from .tables import Table

__all__ = ["Found", "Picture", "datasets", "edits_named", "find_edit", "lineage_facts"]

MIN_PREFIX = 8
_HEX = re.compile(r"[0-9a-f]+")
_DATASETS = "private/datasets/"
_TODO_ORIGINAL = "`sdflow why NAME` tells what became of a source; audit walks back from edited pictures"
_TODO_UNKNOWN = "check that --store names the store that it came from"


@dataclass(frozen=True)
class Picture:
    """A picture as it was handed in.

    `claim` is the edit id in its metadata, or empty; `pixel_sha256` is empty when it cannot be decoded.
    """

    where: str
    file_sha256: str
    pixel_sha256: str
    claim: str


@dataclass(frozen=True)
class Found:
    """An edit, and what of it was asked about: its "edit_id", its "file" or its "pixels"."""

    dataset: str
    row: dict[str, Any]
    matches: str


def find_edit(store: Store, query: str | bytes) -> tuple[Found, Picture | None]:
    """Finds an edit.

    Args:
        store: The store.
        query: See `audit.audit`.

    Returns:
        The edit, and the picture when one was handed in.

    Raises:
        NotFoundError: Not known here.
        ApprovalError: The picture claims an edit, but has other pixels.
        ContractError: The beginning of an id is too short or not unique, or the file is no picture.
    """
    if isinstance(query, bytes):
        picture = _picture(query, "the bytes given")
        return _by_picture(store, picture), picture
    query = query.strip()
    if _is_file(query):
        picture = _picture(Path(query).read_bytes(), query)
    elif query.startswith("store:") or "://" in query:
        picture = _picture(_fetch(store, query), query)
    else:
        return _by_name(store, query), None
    return _by_picture(store, picture), picture


def edits_named(store: Store, names: Sequence[str], dataset: str = "") -> tuple[str, list[str]]:
    """Edits by their ids, or by unique beginnings of at least 8 digits; all of one dataset.

    Args:
        store: The store.
        names: At least one; each edit once.
        dataset: Look in this dataset only; empty: in all.

    Returns:
        The dataset, and the ids in the order of their names.

    Raises:
        NotFoundError: There is no such edit.
        ContractError: No name, too few digits, several edits or datasets that fit, or one edit named twice.
    """
    wanted = [name.strip().lower() for name in names]
    short = [name for name in wanted if not _HEX.fullmatch(name) or not MIN_PREFIX <= len(name) <= 64]
    if short or not wanted:
        raise ContractError(
            "no id of an edit",
            expected=f"{MIN_PREFIX} to 64 hexadecimal digits",
            found=short[0] if short else "nothing",
            todo="the contact sheet and `sdflow decide` name edits by their ids",
        )
    fits: dict[str, list[list[str]]] = {}
    for name in [dataset] if dataset else datasets(store):
        table = Table(store, name, "edits")
        if not table.recipes():
            continue
        if all(len(one) == 64 for one in wanted):
            keys = table.read(columns=["row_key"], row_keys=wanted).column("row_key").to_pylist()
        else:
            keys = table.read(columns=["row_key"]).column("row_key").to_pylist()
        fits[name] = [[str(key) for key in keys if str(key).startswith(one)] for one in wanted]
    for number, name in enumerate(wanted):
        here = {key for found in fits.values() for key in found[number]}
        if not here:
            where = f"dataset {dataset}" if dataset else store.uri
            raise NotFoundError("there is no such edit", found=name, where=where, todo=_TODO_UNKNOWN)
        if len(here) > 1:
            raise ContractError(
                "several edits begin like this", found=", ".join(sorted(here)[:5]), todo="give more digits"
            )
    whole = [of for of, found in fits.items() if all(found)]
    if len(whole) != 1:
        raise ContractError(
            "these edits are in no one dataset" if not whole else "several datasets hold these edits",
            found=", ".join(whole or fits),
            todo="name edits of one dataset" if not whole else "pass --dataset",
        )
    ids = [found[0] for found in fits[whole[0]]]
    if len(set(ids)) < len(ids):
        twice = next(key for key in ids if ids.count(key) > 1)
        raise ContractError("an edit is named twice", found=twice, todo="name each edit once")
    return whole[0], ids


def _is_file(query: str) -> bool:
    try:
        return Path(query).is_file()
    except (OSError, ValueError):  # too long, or a zero byte: no path
        return False


def datasets(store: Store) -> list[str]:
    """Names of all datasets."""
    names = {
        key.removeprefix(_DATASETS).partition("/journal/")[0]
        for key in store.list(_DATASETS)
        if "/journal/" in key
    }
    return sorted(names)


def lineage_facts(store: Store, run: str | None) -> dict[str, Any]:
    """What lineage says about a run: recipe, config, code, job, time, parent; None where it is silent."""
    facts: dict[str, Any] = dict.fromkeys(("recipe", "config", "code", "job", "time", "parent"))
    if not run:
        return facts
    for event in Lineage(store).events(run):
        facets = cast("dict[str, Any]", event["run"]["facets"])
        ours = cast("dict[str, Any]", facets.get("sdflow", {}))
        said = {
            "recipe": ours.get("recipe"),
            "config": ours.get("config"),
            "code": ours.get("codeVersion"),
            "job": event["job"]["name"],
            "time": event["eventTime"],
            "parent": facets.get("parent", {}).get("run", {}).get("runId"),
        }
        facts.update({name: value for name, value in said.items() if value is not None})
    return facts


def _fetch(store: Store, address: str) -> bytes:
    if address.startswith("store:"):
        return store.read(address.removeprefix("store:").strip("/"))
    folder, _, name = address.rpartition("/")
    return open_store(folder).read(name)


def _picture(data: bytes, where: str) -> Picture:
    claim = read_text(data).get(EDIT_ID_KEYWORD, "")
    try:
        pixels = pixel_digest(decode(data))
    except Rejected as error:
        if not claim:
            raise ContractError("this file is no picture", found=error.reason, where=where) from error
        pixels = ""
    return Picture(where, sha256_hex(data), pixels, claim)


def _edits(store: Store) -> list[tuple[str, dict[str, Any]]]:
    """Dataset and the identifying columns of every edit."""
    result: list[tuple[str, dict[str, Any]]] = []
    for dataset in datasets(store):
        table = Table(store, dataset, "edits")
        if table.recipes():
            rows = table.read(columns=["row_key", "pixel_sha256", "file_sha256"]).to_pylist()
            result += [(dataset, row) for row in cast("list[dict[str, Any]]", rows)]
    return result


def _load(store: Store, dataset: str, edit_id: str, matches: str) -> Found:
    row = Table(store, dataset, "edits").find(edit_id)
    assert row is not None  # it was just listed
    return Found(dataset, row, matches)


def _by_picture(store: Store, picture: Picture) -> Found:
    edits = _edits(store)
    same = [
        (dataset, row["row_key"]) for dataset, row in edits if row["pixel_sha256"] == picture.pixel_sha256
    ]
    # Files of edits carry no metadata; a released file is known by the release that wrote it.
    files = {out.file_sha256: out.edit_id for item in releases(store) for out in item.outputs}
    if picture.claim:
        claimed = [(dataset, row) for dataset, row in edits if row["row_key"] == picture.claim]
        if not claimed:
            raise NotFoundError(
                f"this picture says that it is edit {picture.claim}, which is not known here",
                where=picture.where,
                todo=_TODO_UNKNOWN,
            )
        dataset, row = claimed[0]
        if row["pixel_sha256"] != picture.pixel_sha256:
            raise ApprovalError(
                f"this picture was changed: it says that it is edit {picture.claim}, but has other pixels",
                expected=f"pixels {row['pixel_sha256']}",
                found=f"pixels {picture.pixel_sha256 or 'that cannot be decoded'}",
                where=picture.where,
                todo="do not use this picture; take the released file",
            )
        intact = files.get(picture.file_sha256) == picture.claim
        return _load(store, dataset, picture.claim, "file" if intact else "pixels")
    if not same:
        original = _original(store, picture.file_sha256)
        if original:
            raise NotFoundError(original, where=picture.where, todo=_TODO_ORIGINAL)
        _refuse_photograph(store, "pixel_sha256", picture.pixel_sha256, picture.where)
        raise NotFoundError(
            "this picture is not known here",
            found=f"file sha256 {picture.file_sha256}",
            where=picture.where,
            todo=f"{_TODO_UNKNOWN}; re-encoded or resized copies have other pixels",
        )
    exact = {row["row_key"] for _, row in edits if row["file_sha256"] == picture.file_sha256}
    dataset, edit_id = _only(same, "these pixels belong to several edits")
    return _load(store, dataset, edit_id, "file" if edit_id in exact else "pixels")


def _by_name(store: Store, name: str) -> Found:
    given = name.lower()
    if not _HEX.fullmatch(given) or len(given) > 64:
        raise NotFoundError(
            "there is no such picture", found=name, todo="name a picture, a sha256 or an edit id"
        )
    if len(given) < MIN_PREFIX:
        raise ContractError(
            "the beginning of an id is too short", expected=f"at least {MIN_PREFIX} digits", found=name
        )
    edits = _edits(store)
    for column, matches in (("row_key", "edit_id"), ("pixel_sha256", "pixels"), ("file_sha256", "file")):
        hits = [(dataset, row["row_key"]) for dataset, row in edits if str(row[column]).startswith(given)]
        if hits:
            dataset, edit_id = _only(hits, "several edits fit")
            return _load(store, dataset, edit_id, matches)
    left = [
        out.edit_id for item in releases(store) for out in item.outputs if out.file_sha256.startswith(given)
    ]
    hits = [(dataset, row["row_key"]) for dataset, row in edits if row["row_key"] in left]
    if hits:
        dataset, edit_id = _only(hits, "several edits fit")
        return _load(store, dataset, edit_id, "file")
    original = _original(store, given)
    if original:
        raise NotFoundError(original, found=name, todo=_TODO_ORIGINAL)
    for column in ("row_key", "pixel_sha256", "file_sha256"):
        _refuse_photograph(store, column, given, name)
    raise NotFoundError(
        "no picture with this sha256 or edit id is known here", found=name, todo=_TODO_UNKNOWN
    )


def _only(hits: Sequence[tuple[str, str]], what: str) -> tuple[str, str]:
    unique = list(dict.fromkeys(hits))
    if len(unique) > 1:
        ids = [edit_id for _, edit_id in unique]
        raise ContractError(what, found=", ".join(ids[:5]), todo="ask for one of them by its edit id")
    return unique[0]


def _refuse_photograph(store: Store, column: str, begins: str, where: str) -> None:
    """Helps who asks about a photograph that edits were pasted into: the trail is that of each edit."""
    for dataset in datasets(store):
        table = Table(store, dataset, "pasted")
        rows = table.read(columns=[column, "inputs"]).to_pylist() if table.recipes() and begins else []
        for row in cast("list[dict[str, Any]]", rows):
            if str(row[column]).startswith(begins):
                raise NotFoundError(
                    f"this is a photograph of dataset {dataset} that edits were pasted into",
                    found=", ".join(row["inputs"]),
                    where=where,
                    todo=f"`sdflow audit {row['inputs'][0][:12]}` walks back from an edit; so for each",
                )


def _original(store: Store, sha256: str) -> str:
    """Helps who asks about a source instead of an output; empty when it is none."""
    for dataset in datasets(store):
        table = Table(store, dataset, "sources")
        if table.recipes():
            for value in table.read(columns=["image_id"]).column("image_id").to_pylist():
                if value and str(value).startswith(sha256):
                    return f"this is an original of dataset {dataset}, not an edited picture"
    return ""
