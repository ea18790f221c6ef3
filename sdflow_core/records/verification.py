"""Are the records whole? Every journal and every shard of a store, read again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from .decisions import edit_runs
from .errors import ContractError, CorruptError, SDFlowError
from .index import table_names
from .journal import Journal, witness_key
from .objects import Store
from .tables import Table

__all__ = ["Finding", "journal_roots", "verify_journals", "verify_shards", "verify_store", "witnessed_roots"]

_ENTRY = re.compile(r"(?P<root>.+)/\d{10}\.json")
_DATASETS = "private/datasets/"


@dataclass(frozen=True)
class Finding:
    """One journal or table that was looked at.

    Attributes:
        name: Its root.
        kind: `journal` or `table`.
        count: Entries or shards that are as they were written; 0 when something is wrong.
        head: SHA-256 of a journal's last entry; keep it elsewhere to notice a store that was put back.
        wrong: What is wrong, in words; empty when nothing is.
        todo: What to do about it.
    """

    name: str
    kind: str
    count: int = 0
    head: str = ""
    wrong: str = ""
    todo: str = ""


def journal_roots(store: Store, prefix: str = "") -> list[str]:
    """Roots of all journals below a prefix, sorted."""
    return sorted({match["root"] for key in store.list(prefix) if (match := _ENTRY.fullmatch(key))})


def witnessed_roots(store: Store) -> list[str]:
    """Roots of all journals that somebody wrote to, also of those of which nothing else is left."""
    start, end = witness_key("\0").split("\0")
    return sorted(key.removeprefix(start).removesuffix(end) for key in store.list(start))


def verify_store(
    store: Store, dataset: str = "", *, heads: Mapping[str, Any] | None = None
) -> Iterator[Finding]:
    """Verifies all journals and all tables, or those of one dataset with the decisions about its edits.

    Args:
        store: The store.
        dataset: Of one dataset only.
        heads: Heads that were kept elsewhere: root -> `{"number", "sha256"}`, as `sdflow verify --json` says.

    Yields:
        A finding for each, wrong or not; nothing is raised for a broken record.
    """
    if dataset:
        mine = f"{_DATASETS}{dataset}/journal"
        decided = [f"decisions/{run.edit_run}" for run in edit_runs(store) if run.dataset == dataset]
        roots = [mine, *(root for root in decided if Journal(store, root).head() is not None)]
    else:
        roots = sorted({*journal_roots(store), *witnessed_roots(store)})
    kept = {root: said for root, said in (heads or {}).items() if not dataset or root in roots}
    yield from verify_journals(store, sorted({*roots, *kept}), kept)
    for root in roots:
        if root.startswith(_DATASETS) and root.endswith("/journal"):
            yield from verify_shards(store, root.removeprefix(_DATASETS).removesuffix("/journal"))


def verify_journals(
    store: Store, roots: list[str], heads: Mapping[str, Any] | None = None
) -> Iterator[Finding]:
    """Verifies these journals, each against its head that was kept elsewhere when there is one."""
    for root in roots:
        try:
            journal = Journal(store, root)
            count = journal.verify()
            _compare(journal, count, (heads or {}).get(root))
            head = journal.head()
            yield Finding(root, "journal", count, head.sha256 if head else "")
        except SDFlowError as error:
            yield _wrong(root, "journal", error)


def verify_shards(store: Store, dataset: str) -> Iterator[Finding]:
    """Reads every shard of a dataset's tables again and holds it against the journal."""
    try:
        found = table_names(Journal(store, f"{_DATASETS}{dataset}/journal").entries())
    except SDFlowError:
        return  # said about the journal already
    for name in found:
        table = Table(store, dataset, name)
        try:
            yield Finding(table.root, "table", table.verify(verify_journal=False))
        except SDFlowError as error:
            yield _wrong(table.root, "table", error)


def _compare(journal: Journal, count: int, kept: Any) -> None:
    if kept is None:
        return
    try:
        said = cast("dict[str, Any]", kept)
        number, sha256 = int(said["number"]), str(said["sha256"])
    except (TypeError, KeyError, ValueError) as error:
        raise ContractError(
            "a head that was kept cannot be read", expected='{"number": 1, "sha256": "..."}', found=kept
        ) from error
    where = journal.store.url(journal.root)
    todo = "this journal was put back or rewritten: restore it from a backup"
    if number > count:
        raise CorruptError(
            f"journal entry {count + 1} is missing",
            expected=f"{number} entries, as the head that was kept elsewhere says",
            found=count,
            where=where,
            todo=todo,
        )
    if number > 0 and next(journal.entries(start=number)).sha256 != sha256:
        raise CorruptError(f"journal entry {number} was changed", expected=sha256, where=where, todo=todo)


def _wrong(name: str, kind: str, error: SDFlowError) -> Finding:
    # Where and what was expected are part of the story: a finding names the very file.
    told = f"{error.what}" + (f" ({error.found})" if error.found is not None else "")
    return Finding(name, kind, wrong=told, todo=f"{error.where or ''}: {error.todo or ''}".strip(": "))
