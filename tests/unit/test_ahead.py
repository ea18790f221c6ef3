"""Many small requests side by side: in order, no more than asked for; journals stay what they are."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from sdflow_core.records.ahead import AT_ONCE, ahead
from sdflow_core.records.errors import CorruptError, NotFoundError
from sdflow_core.records.journal import Journal
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.store import Store, open_store


@pytest.fixture
def far() -> Store:
    """A store that is no folder."""
    return open_store(f"memory://{uuid.uuid4().hex}/store")


def test_answers_come_in_order_and_side_by_side(far: Store, store: Store) -> None:
    together: list[int] = []
    running, lock = [0], threading.Lock()

    def ask(number: int) -> int:
        with lock:
            running[0] += 1
            together.append(running[0])
        time.sleep(0.002 * (number % 3))
        with lock:
            running[0] -= 1
        return number * number

    wanted = [number * number for number in range(100)]
    assert list(ahead(far, ask, range(100))) == wanted
    assert 1 < max(together) <= AT_ONCE
    together.clear()
    assert list(ahead(store, ask, range(20))) == wanted[:20]
    assert max(together) == 1, "a folder answers at once: no threads"
    assert list(ahead(far, ask, [])) == [] and list(ahead(far, ask, [3])) == [9]


def test_what_is_raised_is_raised_in_its_turn_and_ends_it(far: Store) -> None:
    asked: list[int] = []

    def ask(number: int) -> int:
        asked.append(number)
        if number >= 5:
            raise NotFoundError("there is no such object", found=number)
        return number

    taken: list[int] = []
    with pytest.raises(NotFoundError, match="Found: 5"):
        for answer in ahead(far, ask, range(10_000)):
            taken.append(answer)
    assert taken == [0, 1, 2, 3, 4] and len(asked) <= 5 + 2 * AT_ONCE + 1


def test_endless_items_are_taken_only_as_room_is_made(far: Store) -> None:
    given: list[int] = []

    def items() -> Iterator[int]:
        while True:
            given.append(len(given))
            yield given[-1]

    answers = ahead(far, lambda number: number, items())
    assert [next(answers) for _ in range(3)] == [0, 1, 2]
    assert len(given) <= 3 + 2 * AT_ONCE
    answers.close()  # type: ignore[attr-defined]


def reopened(store: Store, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """As another process sees it."""
    import sdflow_core.records.journal as module

    monkeypatch.setattr(module, "_known", {})
    return Journal(store, "journal")


def test_a_far_journal_is_read_whole_whatever_its_hint_says(
    far: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(far, "journal")
    for number in range(40):
        journal.append("note", {"n": number})
    hint = far.read("journal/HEAD")
    for said in (hint, hint.replace(b'"number":40', b'"number":7'), b"nonsense", None):
        if said is None:
            far.delete("journal/HEAD")
        else:
            far.put("journal/HEAD", said)
        if said is not None and b":7" in said:
            # such a hint names another entry than number 7: it lies, and is found out
            with pytest.raises(CorruptError):
                list(reopened(far, monkeypatch).entries())
            continue
        found = [entry.payload["n"] for entry in reopened(far, monkeypatch).entries()]
        assert found == list(range(40))
    far.put("journal/HEAD", hint)
    assert reopened(far, monkeypatch).verify() == 40


def test_a_hole_in_a_far_journal_is_named(far: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(far, "journal")
    for number in range(12):
        journal.append("note", {"n": number})
    far.delete("journal/0000000005.json")
    with pytest.raises(CorruptError, match="entry 5 is missing"):
        list(reopened(far, monkeypatch).entries())
    with pytest.raises(CorruptError, match="entry 5 is missing"):
        reopened(far, monkeypatch).verify()


def test_events_of_no_interest_are_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lineage = Lineage(store)
    for number in range(4):
        for kind in ("START", "COMPLETE"):
            lineage.emit(
                kind,
                run=f"run{number}",
                job="x",
                parent=None,
                inputs=[],
                outputs=[],
                recipe=None,
                bundle=None,
                config=None,
            )
    read: list[str] = []
    plain = type(store).read
    monkeypatch.setattr(type(store), "read", lambda self, key: (read.append(key), plain(self, key))[1])
    assert len(list(lineage.events())) == 8
    read.clear()
    found = list(lineage.events(types=("COMPLETE", "REUSED")))
    assert [event["eventType"] for event in found] == ["COMPLETE"] * 4 and len(read) == 4
    read.clear()
    assert list(lineage.events(since="2999-01-01T00:00:00+00:00")) == [] and read == []
    assert len(list(lineage.events(since=found[-1]["eventTime"]))) == 8, "a minute may lie between two clocks"


@pytest.mark.parametrize("kind", ["far", "store"])
def test_what_another_process_appends_is_seen_by_who_has_read_before(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: Store = request.getfixturevalue(kind)
    mine = Journal(at, "journal")
    mine.append("note", {"n": 0})
    assert len(list(mine.entries())) == 1
    other = reopened(at, monkeypatch)
    for number in (1, 2, 3):
        other.append("note", {"n": number})
        assert [entry.payload["n"] for entry in mine.entries()] == list(range(number + 1))
    other.append("note", {"n": 4})
    other.append("note", {"n": 5})
    mine.append("note", {"n": 6})
    assert [entry.payload["n"] for entry in other.entries()] == list(range(7))
    for key in list(at.list("journal/")):
        at.delete(key)  # the store was removed under a running process
    assert list(mine.entries()) == []
