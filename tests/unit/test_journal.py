"""The journal: in order, never rewritten, and it names what was tampered with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdflow_core.records import journal as journal_module
from sdflow_core.records.errors import ContractError, CorruptError, TransientError
from sdflow_core.records.journal import Entry, Journal
from sdflow_core.records.keys import canonical_json, sha256_hex
from sdflow_core.records.objects import LocalStore
from sdflow_core.records.store import Store, open_store


def filled(store: Store, count: int = 5) -> Journal:
    journal = Journal(store, "j")
    for number in range(count):
        journal.append("note", {"n": number}, run="r")
    return journal


def forget() -> None:
    """As if another process looked."""
    journal_module._known.clear()


def path_of(store: Store, number: int) -> Path:
    return Path(store.uri) / "j" / f"{number:010d}.json"


def rewrite(path: Path, **changes: Any) -> None:
    """Changes an entry as a careful forger would, its checksum included."""
    body = json.loads(path.read_bytes())
    body.pop("checksum")
    body.update(changes)
    body["checksum"] = sha256_hex(canonical_json(body))
    path.write_bytes(canonical_json(body))


def test_entries_in_order(store: Store) -> None:
    filled(store)
    forget()
    journal = Journal(store, "j")
    assert [entry.payload["n"] for entry in journal.entries()] == [0, 1, 2, 3, 4]
    assert [entry.number for entry in journal.entries(start=4)] == [4, 5]
    forget()
    head = Journal(store, "j").head()
    assert head is not None and (head.number, head.kind, head.run) == (5, "note", "r")
    assert journal.verify() == 5


def test_an_empty_journal(store: Store) -> None:
    journal = Journal(store, "j")
    assert (journal.head(), list(journal.entries()), journal.verify()) == (None, [], 0)


def test_two_views_see_each_other(store: Store) -> None:
    one, two = filled(store, 1), Journal(store, "j")
    two.append("note", {"n": 1})
    assert len(list(one.entries())) == 2


def test_head_is_only_a_hint(store: Store) -> None:
    filled(store)
    hint = Path(store.uri) / "j" / "HEAD"
    for content in (
        None,
        b"",
        b"{",
        canonical_json({"number": 1, "sha256": sha256_hex(path_of(store, 1).read_bytes())}),
    ):
        hint.unlink(missing_ok=True) if content is None else hint.write_bytes(content)
        forget()
        head = Journal(store, "j").head()
        assert head is not None and head.number == 5
        assert Journal(store, "j").verify() == 5


@pytest.mark.parametrize("number", [1, 3, 5])
@pytest.mark.parametrize("damage", [b"", b"{}", b"not json", b"[1]", None])
def test_a_damaged_entry_is_named(store: Store, number: int, damage: bytes | None) -> None:
    journal = filled(store)
    path = path_of(store, number)
    path.write_bytes(path.read_bytes().replace(b'"n":', b'"m":') if damage is None else damage)
    with pytest.raises(CorruptError, match=f"journal entry {number} .*{number:010d}.json.*What to do"):
        journal.verify()
    forget()
    with pytest.raises(CorruptError, match=f"{number:010d}.json"):
        list(Journal(store, "j").entries())
    with pytest.raises(CorruptError):
        Journal(store, "j").append("note", {})


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_forged_entry_is_named(store: Store, number: int) -> None:
    filled(store)
    rewrite(path_of(store, number), payload={"n": 99})
    forget()
    with pytest.raises(CorruptError, match=f"journal entry {number} was changed"):
        Journal(store, "j").verify()


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_missing_entry_is_named(store: Store, number: int) -> None:
    journal = filled(store)
    path_of(store, number).unlink()
    with pytest.raises(CorruptError, match=f"journal entry {number} is missing"):
        journal.verify()
    forget()
    with pytest.raises(CorruptError, match=f"journal entry {number} is missing"):
        list(Journal(store, "j").entries())


def test_an_inserted_entry_is_named(store: Store) -> None:
    filled(store)
    for number in (5, 4, 3):
        path_of(store, number).rename(path_of(store, number + 1))
        rewrite(path_of(store, number + 1), number=number + 1)
    path_of(store, 3).write_bytes(path_of(store, 2).read_bytes())
    rewrite(path_of(store, 3), number=3, prev_sha256=sha256_hex(path_of(store, 2).read_bytes()))
    (Path(store.uri) / "j" / "HEAD").unlink()
    forget()
    with pytest.raises(CorruptError, match="journal entry 3 was changed or inserted"):
        Journal(store, "j").verify()


@pytest.mark.parametrize("name", ["0000000003b.json", "3.json", "note.txt", "0000000000.json"])
def test_a_strange_file_is_named(store: Store, name: str) -> None:
    journal = filled(store)
    (Path(store.uri) / "j" / name).write_bytes(b"{}")
    with pytest.raises(CorruptError, match=f"inserted into the journal.*{name}"):
        journal.verify()


def test_an_entry_far_away_is_not_overlooked(store: Store) -> None:
    journal = filled(store)
    path_of(store, 9).write_bytes(path_of(store, 5).read_bytes())
    with pytest.raises(CorruptError, match="journal entry 6 is missing"):
        journal.verify()


def test_another_format_is_refused(store: Store) -> None:
    filled(store, 1)
    rewrite(path_of(store, 1), format=99)
    forget()
    with pytest.raises(ContractError, match="another format"):
        list(Journal(store, "j").entries())


def test_a_store_made_anew_starts_afresh(store: Store) -> None:
    journal = filled(store)
    for path in (Path(store.uri) / "j").iterdir():
        path.unlink()
    assert list(journal.entries()) == []
    entry = journal.append("note", {})
    assert entry is not None and entry.number == 1


def test_rebase_sees_what_others_added(store: Store) -> None:
    mine, seen = filled(store, 2), []

    def rebase(new: list[Entry], payload: dict[str, Any]) -> dict[str, Any] | None:
        seen.extend(entry.number for entry in new)
        return {"n": payload["n"] + 100}

    entry = mine.append("note", {"n": 2}, rebase=rebase, after=1)
    assert seen == [2]
    assert entry is not None and entry.payload == {"n": 102}
    assert mine.append("note", {}, rebase=lambda new, payload: None, after=0) is None
    assert len(list(mine.entries())) == 3


class Unlucky(LocalStore):
    """Answers `lost` times that a write failed: after it happened, or instead of it."""

    lost = 0
    happens = True

    def create(self, key: str, data: bytes) -> bool:
        if self.lost and "/0" in key:
            self.lost -= 1
            if self.happens:
                super().create(key, data)
            raise TransientError("no answer")
        return super().create(key, data)


@pytest.mark.parametrize("happens", [True, False])
def test_a_lost_acknowledgement_is_recognised(tmp_path: Path, happens: bool) -> None:
    store = Unlucky(str(tmp_path))
    store.lost, store.happens = 1, happens
    journal = Journal(store, "j")
    entry = journal.append("note", {"n": 1})
    assert entry is not None and entry.number == 1
    assert journal.verify() == 1


def test_a_store_that_never_answers(tmp_path: Path) -> None:
    store = Unlucky(str(tmp_path))
    store.lost, store.happens = 99, False
    with pytest.raises(TransientError):
        Journal(store, "j").append("note", {})
    assert Journal(store, "j").verify() == 0


def test_payloads_must_be_json(store: Store) -> None:
    with pytest.raises(ContractError):
        Journal(store, "j").append("note", {"x": float("nan")})
    assert Journal(store, "j").verify() == 0


def test_canonical_digest_ignores_who_and_when(tmp_path: Path) -> None:
    one, two = (Journal(open_store(str(tmp_path / name)), "j") for name in "ab")
    one.append("note", {"n": 1}, run="x")
    two.append("note", {"n": 1}, run="y")
    assert one.canonical_digest() == two.canonical_digest()
    two.append("note", {"n": 2})
    assert one.canonical_digest() != two.canonical_digest()
