"""Releases: approved edits leave, with their pixels checked once more and only metadata added.

All pictures are checked before the first is written; files are written create-only, then one entry of the
journal `releases` makes the release real. A killed release is finished by doing it again; twice is once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, cast

import sdflow_core
from sdflow_core.faces.pixels import pixel_digest, png_bytes, read_png, read_text

from .addresses import checked_address, plain_address
from .ahead import ahead
from .decisions import Decision, EditRun, decisions_of, edit_rows, load_edit_run, read_output
from .errors import ApprovalError, ContractError, CorruptError, NotFoundError, PolicyError
from .journal import Entry, Journal
from .keys import canonical_json, sha256_hex
from .store import LocalStore, Store, open_store
from .tables import Table
from .withholding import CONSENT_COLUMNS, Consents, refusal

__all__ = [
    "EDIT_ID_KEYWORD",
    "Release",
    "ReleasedOutput",
    "canonical_digest",
    "check_release",
    "locate",
    "release",
    "releases",
    "revoked",
    "withheld_by_consent",
]

EDIT_ID_KEYWORD = "sdflow:edit_id"
_SOURCE_TYPE_KEYWORD = "DigitalSourceType"
_SOURCE_TYPE = "compositeWithTrainedAlgorithmicMedia"
_SOURCE_TYPE_URI = f"http://cv.iptc.org/newscodes/digitalsourcetype/{_SOURCE_TYPE}"
_XMP_KEYWORD = "XML:com.adobe.xmp"
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{_SOURCE_TYPE_URI}"/></rdf:RDF></x:xmpmeta>'
)
_STORE = "store:"
_JOURNAL = "releases"
_DIGITS = 16
_FOR_RELEASES = ("released", "demo/released")


@dataclass(frozen=True)
class ReleasedOutput:
    """One picture that left. `decision` is the sha256 of the journal entry that approved it."""

    edit_id: str
    pixel_sha256: str
    file_sha256: str
    uri: str
    decision: str


@dataclass(frozen=True)
class Release:
    """One release.

    Attributes:
        release_id: The same approved set released to the same target has the same id.
        edit_run: What was released from.
        target: Where to; `store:<key>` inside the store itself.
        outputs: What left.
        time: When it was recorded.
        run: Which run did it.
        entry: SHA-256 of its journal entry.
        new: False when it had been made before and nothing was recorded.
        withheld: Edit id -> why it stayed, for approved edits and those that wait.
    """

    release_id: str
    edit_run: str
    target: str
    outputs: tuple[ReleasedOutput, ...]
    time: str
    run: str | None
    entry: str
    new: bool
    withheld: dict[str, str]


def release(store: Store, edit_run: str, target_uri: str, run: str, *, today: date | None = None) -> Release:
    """Releases what is approved.

    An edit leaves when its latest decision approves it, it waits (passed its gates), and the latest consent
    of its source holds today and allows what was edited.

    Args:
        store: The store.
        edit_run: Id of the edit run, or a unique beginning.
        target_uri: A path, `store:<prefix>` or any fsspec address.
        run: The run that releases.
        today: The day that counts for consents; default: today in UTC.

    Returns:
        The release; `new` says whether anything was recorded.

    Raises:
        ApprovalError: Nothing is approved, or a picture is not the one that was approved; names the edit.
        PolicyError: Edits are approved, but no consent allows them to leave.
        ContractError: The target cannot be used or holds another file under a name that is needed.
    """
    edits = load_edit_run(store, edit_run)
    target, shown = _target(store, target_uri)
    chosen, rows, withheld = _choose(store, edits, today or datetime.now(UTC).date())
    release_id = _release_id(edits.edit_run, shown, chosen)

    def picture(edit_id: str) -> Any:
        return read_output(store, rows[edit_id], chosen[edit_id].pixel_sha256)

    def leave(edit_id: str) -> ReleasedOutput:
        decision, name = chosen[edit_id], f"{edit_id}.png"
        data = png_bytes(picture(edit_id), _metadata(edit_id))
        file_sha256 = _write(target, name, data, edit_id, decision.pixel_sha256)
        uri = f"{shown.rstrip('/')}/{name}"
        return ReleasedOutput(edit_id, decision.pixel_sha256, file_sha256, uri, decision.entry)

    far = store if isinstance(target, LocalStore) else target
    deque(ahead(store, picture, chosen), maxlen=0)
    earlier = _find(store, release_id)
    outputs = list(ahead(far, leave, chosen))
    if earlier is not None:
        return _release(earlier, new=False, withheld=withheld)
    payload = {
        "release_id": release_id,
        "edit_run": edits.edit_run,
        "target": shown,
        "outputs": [vars(output) for output in outputs],
    }

    def rebase(new: list[Entry], payload: dict[str, Any]) -> dict[str, Any] | None:
        return None if any(entry.payload.get("release_id") == release_id for entry in new) else payload

    entry = Journal(store, _JOURNAL).append("release", payload, run=run, rebase=rebase, after=0)
    if entry is not None:
        return _release(entry, new=True, withheld=withheld)
    other = _find(store, release_id)
    assert other is not None  # rebase saw it
    return _release(other, new=False, withheld=withheld)


def check_release(store: Store, edit_run: str, target_uri: str, *, today: date | None = None) -> int:
    """How many edits `release` would release; raises what it would raise, and reads no picture."""
    edits = load_edit_run(store, edit_run)
    _target(store, target_uri)
    return len(_choose(store, edits, today or datetime.now(UTC).date())[0])


def withheld_by_consent(store: Store, dataset: str, day: date | None = None) -> dict[str, str]:
    """Edits of a dataset that no consent lets leave today, each with the reason."""
    table = Table(store, dataset, "edits")
    if not table.recipes():
        return {}
    rows = table.read(columns=["row_key", "source_id", "request"])
    return {key: reason for key, reason in Consents(store, dataset, day).why_not(rows) if reason}


def revoked(store: Store) -> list[tuple[Release, ReleasedOutput, Decision]]:
    """Released pictures whose latest decision is no approval of them any more."""
    latest: dict[str, dict[str, Decision]] = {}
    found: list[tuple[Release, ReleasedOutput, Decision]] = []
    for item in releases(store):
        if item.edit_run not in latest:
            latest[item.edit_run] = decisions_of(store, item.edit_run)
        for out in item.outputs:
            said = latest[item.edit_run].get(out.edit_id)
            if said is not None and not said.approved:
                found.append((item, out, said))
    return found


def releases(store: Store) -> Iterator[Release]:
    """All releases, oldest first."""
    for entry in Journal(store, _JOURNAL).entries():
        if entry.kind == "release":
            yield _release(entry, new=False, withheld={})


def canonical_digest(store: Store) -> str:
    """What two stores are compared by: what was released where, without the times that decisions carry."""
    said = sorted(
        [item.release_id, item.edit_run, [[out.edit_id, out.pixel_sha256, out.uri] for out in item.outputs]]
        for item in releases(store)
    )
    return sha256_hex(canonical_json(said))


def locate(store: Store, uri: str) -> str:
    """The address of a released picture as other programs know it."""
    return store.url(uri.removeprefix(_STORE)) if uri.startswith(_STORE) else uri


def _release(entry: Entry, *, new: bool, withheld: dict[str, str]) -> Release:
    said = entry.payload
    return Release(
        release_id=said["release_id"],
        edit_run=said["edit_run"],
        target=said["target"],
        outputs=tuple(ReleasedOutput(**output) for output in said["outputs"]),
        time=entry.time,
        run=entry.run,
        entry=entry.sha256,
        new=new,
        withheld=withheld,
    )


def _find(store: Store, release_id: str) -> Entry | None:
    entries = Journal(store, _JOURNAL).entries()
    return next((entry for entry in entries if entry.payload.get("release_id") == release_id), None)


def _release_id(edit_run: str, target: str, chosen: dict[str, Decision]) -> str:
    said = [edit_run, target, sorted([key, decision.pixel_sha256] for key, decision in chosen.items())]
    return sha256_hex(canonical_json(said))[:_DIGITS]


def _metadata(edit_id: str) -> dict[str, str]:
    return {
        EDIT_ID_KEYWORD: edit_id,
        _SOURCE_TYPE_KEYWORD: _SOURCE_TYPE,
        "Software": f"SDFlow Pipeline {sdflow_core.__version__}",
        _XMP_KEYWORD: _XMP,
    }


def _choose(
    store: Store, edits: EditRun, today: date
) -> tuple[dict[str, Decision], dict[str, dict[str, Any]], dict[str, str]]:
    """What may leave, all rows, and why the rest stays."""
    rows = edit_rows(store, edits)
    decisions = decisions_of(store, edits.edit_run)
    consents = _consents(store, edits.dataset)
    chosen: dict[str, Decision] = {}
    withheld: dict[str, str] = {}
    approved = 0
    for edit_id, row in rows.items():
        decision = decisions.get(edit_id)
        if row["status"] != "waiting":
            if decision is not None and decision.approved:
                withheld[edit_id] = f"{row['status']}: {row['reason']}"
            continue
        if decision is None:
            withheld[edit_id] = "not decided"
        elif not decision.approved:
            withheld[edit_id] = "rejected"
        else:
            approved += 1
            why = refusal(consents.get(str(row["source_id"])), row, today)
            if why:
                withheld[edit_id] = why
            else:
                chosen[edit_id] = decision
    if chosen:
        return chosen, rows, withheld
    if approved:
        raise PolicyError(
            "nothing may be released: no consent allows it",
            found="; ".join(sorted(set(withheld.values()))),
            where=f"edit run {edits.edit_run}",
            todo="ingest with a renewed consent list, then edit and decide again",
        )
    raise ApprovalError(
        "nothing is approved",
        found=f"{len(rows)} edits, {len(decisions)} decisions",
        where=f"edit run {edits.edit_run}",
        todo=f"look at the contact sheet, then `sdflow decide {edits.edit_run} --approve all --by NAME`",
    )


def _consents(store: Store, dataset: str) -> dict[str, dict[str, Any]]:
    """By source, the consent in force at its address; a version that was replaced there has none."""
    table = Table(store, dataset, "sources").read(columns=["source_id", *CONSENT_COLUMNS], latest_by="uri")
    return {str(row["source_id"]): row for row in cast("list[dict[str, Any]]", table.to_pylist())}


def _target(store: Store, uri: str) -> tuple[Store, str]:
    """The target as a store, and how records name it: inside the store relative to it, as stores move."""
    if not uri.strip():
        raise ContractError("the release has no target", todo="pass --to PATH, store:PREFIX or an address")
    checked_address(uri, "target")
    if uri.startswith(_STORE):
        prefix = uri.removeprefix(_STORE).strip("/")
        return _inside(store, prefix), f"{_STORE}{prefix}"
    opened = open_store(uri)
    if isinstance(opened, LocalStore):
        path = Path(opened.uri).resolve()
        if isinstance(store, LocalStore) and path.is_relative_to(store.root.resolve()):
            prefix = path.relative_to(store.root.resolve()).as_posix()
            return _inside(
                store, "" if prefix == "." else prefix
            ), f"{_STORE}{'' if prefix == '.' else prefix}"
        if path.exists() and not path.is_dir():
            raise ContractError("the target is a file", expected="a folder", where=path)
        return open_store(str(path)), str(path)
    address, own = plain_address(opened.uri), plain_address(store.uri)
    if f"{address}/".startswith(f"{own}/"):
        prefix = address.removeprefix(own).strip("/")
        return _inside(store, prefix), f"{_STORE}{prefix}"
    return open_store(address), address


def _inside(store: Store, prefix: str) -> Store:
    # The store's own folders must never receive pictures beside records, also those of versions to come.
    if not any(prefix == place or prefix.startswith(f"{place}/") for place in _FOR_RELEASES):
        raise ContractError(
            "inside the store releases have their own place",
            expected="store:released or a folder in it",
            found=f"store:{prefix}",
            todo="use --to store:released/NAME, or a place outside of the store",
        )
    return open_store(store.url(prefix))


def _write(target: Store, name: str, data: bytes, edit_id: str, pixel_sha256: str) -> str:
    """Writes one file and returns its sha256. What an earlier release wrote is kept if it is the same."""
    try:
        created = target.create(name, data)
    except ContractError as error:
        raise ContractError(
            "the target of the release cannot be written; nothing was recorded as released",
            found=error.found or error.what,
            where=target.url(name),
            todo="make room there or name another --to; files that this release wrote there before may stay: "
            "the same command takes them up again",
        ) from error
    if created:
        return sha256_hex(data)
    there = target.read(name)
    if there == data:
        return sha256_hex(there)
    try:
        same = (
            pixel_digest(read_png(there)) == pixel_sha256 and read_text(there).get(EDIT_ID_KEYWORD) == edit_id
        )
    except (CorruptError, NotFoundError):
        same = False
    if not same:
        raise ContractError(
            "the target holds another file under this name; it was not touched",
            expected=f"edit {edit_id}",
            where=target.url(name),
            todo="release to another place, or move that file away",
        )
    return sha256_hex(there)
