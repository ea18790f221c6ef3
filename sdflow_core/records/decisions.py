"""What a person decided about edits, bound to the very pixels that were looked at.

One journal an edit run, `decisions/<edit_run>`; an entry carries a batch, and the latest entry about an edit
wins. An approval re-reads each picture: one that is not what was rendered cannot be decided about.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, cast

from sdflow_core.faces.pixels import pixel_digest, read_png

from .ahead import ahead
from .errors import ApprovalError, ContractError, CorruptError, NotFoundError, QualityGateError
from .journal import Entry, Journal
from .store import Store
from .tables import Table

__all__ = [
    "POLICY_VERSION",
    "Decision",
    "EditRun",
    "Verdict",
    "decide",
    "decisions_of",
    "edit_rows",
    "edit_runs",
    "load_edit_run",
    "read_output",
]

POLICY_VERSION = 1
Verdict = Literal["approve", "reject"]
_RUNS = "private/edit_runs/"
_MIN_PREFIX = 4
_READERS = 8


@dataclass(frozen=True)
class EditRun:
    """One edit run, as the edit story wrote it.

    Attributes:
        edit_run: Its id, 12 hexadecimal digits.
        dataset: Whose images.
        edit_ids: The edits that the run is about, computed by it or reused.
        document: All that was written.
    """

    edit_run: str
    dataset: str
    edit_ids: tuple[str, ...]
    document: dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """The latest word about one edit. `entry` is its entry's sha256; `identity` says how `who` is known."""

    edit_id: str
    edit_run: str
    pixel_sha256: str
    verdict: Verdict
    who: str
    identity: str
    role: str
    note: str
    time: str
    policy_version: int
    entry: str

    @property
    def approved(self) -> bool:
        """Whether the edit may leave."""
        return self.verdict == "approve"


def load_edit_run(store: Store, edit_run: str) -> EditRun:
    """Finds an edit run by its id, or by the beginning of it if that is unique.

    Raises:
        NotFoundError: There is no such run.
        ContractError: Several runs begin like this.
        CorruptError: The record cannot be read.
    """
    known = _run_ids(store)
    found = [name for name in known if name == edit_run]
    if not found and len(edit_run) >= _MIN_PREFIX:
        found = [name for name in known if name.startswith(edit_run)]
    if not found:
        raise NotFoundError(
            "there is no such edit run",
            expected=", ".join(known[-5:]) or "none has been made yet",
            found=edit_run,
            todo="run `sdflow edit` first; it prints the id of its edit run",
        )
    if len(found) > 1:
        raise ContractError(
            "several edit runs begin like this", found=", ".join(found), todo="give more digits"
        )
    return _edit_run(store, f"{_RUNS}{found[0]}.json")


def edit_runs(store: Store) -> list[EditRun]:
    """All edit runs, sorted by id."""
    return list(ahead(store, lambda name: _edit_run(store, f"{_RUNS}{name}.json"), _run_ids(store)))


def _run_ids(store: Store) -> list[str]:
    # Contact sheets and the like lie in a folder beside each record.
    names = (key.removeprefix(_RUNS) for key in store.list(_RUNS))
    return [name.removesuffix(".json") for name in names if name.endswith(".json") and "/" not in name]


def _edit_run(store: Store, key: str) -> EditRun:
    try:
        document = cast("dict[str, Any]", json.loads(store.read(key)))
        return EditRun(
            str(document["edit_run"]),
            str(document["dataset"]),
            tuple(map(str, document["edit_ids"])),
            document,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            "an edit run's record cannot be read", where=store.url(key), todo="restore it"
        ) from error


def edit_rows(store: Store, run: EditRun) -> dict[str, dict[str, Any]]:
    """The rows of a run's edits, in the run's order.

    Raises:
        ContractError: The run is not finished: some of its edits are not held yet.
    """
    table = Table(store, run.dataset, "edits")
    wanted = set(run.edit_ids)
    rows = cast("list[dict[str, Any]]", table.read(row_keys=run.edit_ids).to_pylist())
    by_id = {str(row["row_key"]): row for row in rows}
    missing = [edit_id for edit_id in run.edit_ids if edit_id not in by_id]
    if missing:
        raise ContractError(
            f"edit run {run.edit_run} is not finished",
            expected=f"{len(run.edit_ids)} edits",
            found=f"{len(wanted) - len(missing)}; the first that is missing is {missing[0]}",
            where=store.url(table.root),
            todo="run the same `sdflow edit` again: it goes on where it stopped",
        )
    return {edit_id: by_id[edit_id] for edit_id in run.edit_ids}


def decisions_of(store: Store, edit_run: str) -> dict[str, Decision]:
    """The latest decision of each edit that was decided, by edit id."""
    return _latest(Journal(store, f"decisions/{edit_run}").entries())


def _latest(entries: Iterable[Entry]) -> dict[str, Decision]:
    latest: dict[str, Decision] = {}
    for entry in entries:
        if entry.kind != "decision":
            continue
        said = entry.payload
        for item in said["items"]:
            latest[item["edit_id"]] = Decision(
                edit_id=item["edit_id"],
                edit_run=said["edit_run"],
                pixel_sha256=item["pixel_sha256"],
                verdict=item["verdict"],
                who=said["who"],
                identity=said["identity"],
                role=said["role"],
                note=said["note"],
                time=entry.time,
                policy_version=said["policy_version"],
                entry=entry.sha256,
            )
    return latest


def read_output(store: Store, row: dict[str, Any], pixel_sha256: str) -> Any:
    """Reads the picture of an edit and makes sure that it is the one that is meant.

    Args:
        store: Where it lies.
        row: A row of `edits`.
        pixel_sha256: The digest that its pixels must have.

    Returns:
        [H, W, 3] uint8 RGB.

    Raises:
        ApprovalError: The picture is missing, damaged or another one; names the edit.
    """
    key = str(row["output"])
    try:
        image = read_png(store.read(key))
        found = pixel_digest(image)
    except (NotFoundError, CorruptError) as error:
        raise ApprovalError(
            f"the picture of edit {row['row_key']} cannot be read",
            found=error.what,
            where=store.url(key),
            todo="restore the file, or reject this edit",
        ) from error
    if found != pixel_sha256:
        raise ApprovalError(
            f"the picture of edit {row['row_key']} is not the one that was rendered and looked at",
            expected=f"pixels {pixel_sha256}",
            found=f"pixels {found}",
            where=store.url(key),
            todo="restore the file, or reject this edit",
        )
    return image


def decide(
    store: Store,
    edit_run: str,
    *,
    approve: Literal["all"] | Sequence[str] = (),
    reject: Sequence[str] = (),
    who: str,
    note: str = "",
    role: str = "reviewer",
) -> dict[str, Decision]:
    """Records what a person decided. Saying the same again adds nothing.

    Args:
        store: The store.
        edit_run: Id of the run, or a unique beginning.
        approve: Edit ids (or unique beginnings), or "all": every waiting edit that is not rejected, here or
            before. An earlier rejection is taken back only by naming the edit.
        reject: Edit ids, or unique beginnings.
        who: Name of the person. It is asserted, not proven, and recorded as such.
        note: Why.
        role: In which role.

    Returns:
        The latest decisions of the whole run, by edit id.

    Raises:
        ContractError: Nobody is named, nothing is decided, or an id is unknown, ambiguous or on both lists.
        QualityGateError: An approved edit did not pass its gates or was never rendered.
        ApprovalError: A picture is not the one that was rendered, or somebody decided otherwise meanwhile.
    """
    if not who.strip():
        raise ContractError("a decision needs a name", expected="who decides", todo="pass --by NAME")
    run = load_edit_run(store, edit_run)
    rows = edit_rows(store, run)
    rejected = _resolve(run, reject)
    journal = Journal(store, f"decisions/{run.edit_run}")
    seen = list(journal.entries())
    before = _latest(seen)
    if approve == "all":
        no = {*rejected, *(key for key, said in before.items() if not said.approved)}
        approved = [key for key, row in rows.items() if row["status"] == "waiting" and key not in no]
    else:
        approved = _resolve(run, approve)
    _check(run, rows, approved, rejected, named=approve != "all")

    def picture(edit_id: str) -> None:
        read_output(store, rows[edit_id], str(rows[edit_id]["pixel_sha256"]))

    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(picture, approved))

    def news(edit_id: str, verdict: Verdict) -> bool:
        said = before.get(edit_id)
        mine = (verdict, str(rows[edit_id]["pixel_sha256"]), who.strip(), role, note)
        return said is None or (said.verdict, said.pixel_sha256, said.who, said.role, said.note) != mine

    verdicts: dict[str, Verdict] = dict.fromkeys(approved, "approve")
    verdicts.update((key, "reject") for key in rejected)
    items = [
        {"edit_id": key, "pixel_sha256": str(rows[key]["pixel_sha256"]), "verdict": verdicts[key]}
        for key in run.edit_ids
        if key in verdicts and news(key, verdicts[key])
    ]
    if items:
        payload: dict[str, Any] = {
            "edit_run": run.edit_run,
            "items": items,
            "who": who.strip(),
            "identity": "asserted",
            "role": role,
            "note": note,
            "policy_version": POLICY_VERSION,
        }
        journal.append("decision", payload, rebase=_rebase(verdicts), after=len(seen))
    return decisions_of(store, run.edit_run)


def _rebase(verdicts: dict[str, Verdict]) -> Any:
    """A decision that came in between and says otherwise must be seen by a person, never overwritten."""

    def rebase(new: list[Entry], payload: dict[str, Any]) -> dict[str, Any] | None:
        for edit_id, other in _latest(new).items():
            if edit_id in verdicts and other.verdict != verdicts[edit_id]:
                raise ApprovalError(
                    f"somebody decided otherwise about edit {edit_id} at the same time",
                    expected=verdicts[edit_id],
                    found=f"{other.verdict} by {other.who}",
                    todo="agree, and decide again",
                )
        return payload

    return rebase


def _resolve(run: EditRun, names: Sequence[str]) -> list[str]:
    """Full ids for ids or unique beginnings, in the order given, each once."""
    result: dict[str, None] = {}
    for name in names:
        found = [edit_id for edit_id in run.edit_ids if edit_id == name]
        if not found and len(name) >= _MIN_PREFIX:
            found = [edit_id for edit_id in run.edit_ids if edit_id.startswith(name)]
        if not found:
            raise NotFoundError(
                f"edit run {run.edit_run} has no such edit",
                expected=f"one of its {len(run.edit_ids)} edit ids, or at least {_MIN_PREFIX} digits of one",
                found=name,
            )
        if len(found) > 1:
            raise ContractError("several edits begin like this", found=name, todo="give more digits")
        result[found[0]] = None
    return list(result)


def _check(
    run: EditRun, rows: dict[str, dict[str, Any]], approved: list[str], rejected: list[str], *, named: bool
) -> None:
    both = sorted(set(approved) & set(rejected))
    if both:
        raise ContractError("an edit is approved and rejected at once", found=", ".join(both))
    if not approved and not rejected:
        raise ContractError(
            "there is nothing to decide",
            found=f"{sum(row['status'] == 'waiting' for row in rows.values())} of {len(rows)} edits wait",
            where=f"edit run {run.edit_run}",
            todo="pass --approve all, --approve ID or --reject ID",
        )
    for edit_id in approved if named else ():
        row = rows[edit_id]
        if row["status"] != "waiting":
            raise QualityGateError(
                f"edit {edit_id} cannot be approved",
                expected="status waiting",
                found=f"{row['status']}: {row['reason']}",
                todo="edit again with other settings, or leave it out",
            )
