"""Snapshots are a cache: they make reading quick, are not believed over entries, and remember a cut tail."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdflow_core.records import chain, journal, snapshots
from sdflow_core.records.errors import CorruptError
from sdflow_core.records.journal import Journal, witness_key
from sdflow_core.records.keys import canonical_json, sha256_hex
from sdflow_core.records.objects import LocalStore
from sdflow_core.records.store import Store, open_store

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 4


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four entries a snapshot: the laws do not depend on the number."""
    for module in (snapshots, chain, journal):
        monkeypatch.setattr(module, "ENTRIES", BLOCK)


def forget() -> None:
    """As if another process looked."""
    journal._known.clear()


def filled(store: Store, count: int) -> Journal:
    made = Journal(store, "j")
    for number in range(len(list(made.entries())), count):
        made.append("note", {"n": number, "text": 'a "prev_sha256":"' + "0" * 64 + '"\n'}, run="r")
    return made


def said(store: Store) -> list[int]:
    forget()
    return [entry.payload["n"] for entry in Journal(store, "j").entries()]


def sealed(store: Store) -> list[int]:
    return snapshots.listed(store, "j")


def entry_path(store: Store, number: int) -> Path:
    return Path(store.uri) / "j" / f"{number:010d}.json"


def snapshot_path(store: Store, last: int) -> Path:
    return Path(store.url(snapshots.snapshot_key("j", last)))


def forge(store: Store, number: int) -> None:
    """Changes an entry, and all that follow it so that the chain is whole again; HEAD and witness too."""
    previous = None
    while entry_path(store, number).exists():
        body = json.loads(entry_path(store, number).read_bytes())
        body.pop("checksum")
        if previous is None:
            body["payload"] = {"n": 99}
        else:
            body["prev_sha256"] = previous
        body["checksum"] = sha256_hex(canonical_json(body))
        entry_path(store, number).write_bytes(canonical_json(body))
        previous = sha256_hex(canonical_json(body))
        number += 1
    hint = canonical_json({"number": number - 1, "sha256": previous})
    (Path(store.uri) / "j" / "HEAD").write_bytes(hint)
    Path(store.url(witness_key("j"))).write_bytes(hint)


@pytest.mark.parametrize("count", range(14))
def test_snapshots_change_nothing(store: Store, count: int) -> None:
    made = filled(store, count)
    assert sealed(store) == list(range(BLOCK, count + 1, BLOCK))
    with_them = list(made.entries())
    forget()
    assert list(Journal(store, "j").entries()) == with_them
    for start in range(1, count + 2):
        forget()
        assert list(Journal(store, "j").entries(start)) == with_them[start - 1 :]
    for last in sealed(store):
        snapshot_path(store, last).unlink()
    forget()
    assert list(Journal(store, "j").entries()) == with_them
    assert Journal(store, "j").verify() == count


class Counting(LocalStore):
    reads = 0

    def read(self, key: str) -> bytes:
        self.reads += 1
        return super().read(key)


def test_opening_at_the_head_does_not_read_the_past(tmp_path: Path) -> None:
    store = Counting(str(tmp_path))
    filled(store, 42)
    for ask in (lambda: Journal(store, "j").head(), lambda: Journal(store, "j").append("note", {"n": 42})):
        forget()
        store.reads = 0
        assert ask() is not None
        assert store.reads <= 8
    store.reads = 0
    assert said(store) == list(range(43))
    assert store.reads <= 43 // BLOCK + 8


@pytest.mark.parametrize("content", [None, b"", b"\n" * BLOCK, b"x", "other", "cut", "turned"])
@pytest.mark.parametrize("last", [4, 12])
def test_a_broken_snapshot_is_passed_over_and_mended(
    store: Store, last: int, content: bytes | str | None
) -> None:
    filled(store, 14)
    path = snapshot_path(store, last)
    good = path.read_bytes()
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "other":
        path.write_bytes(snapshot_path(store, 8).read_bytes())
    elif content == "cut":
        path.write_bytes(good[:-30])
    else:
        path.write_bytes(good.replace(b'"n":%d' % (last - 2), b'"n":%d' % (last + 50)))
    assert said(store) == list(range(14))
    assert Journal(store, "j").append("note", {"n": 14}) is not None
    assert path.read_bytes() == good
    if content is not None:
        path.write_bytes(b"broken once more")
    forget()
    made = Journal(store, "j")
    before = made.canonical_digest()
    assert made.compact() == (content is not None)
    assert made.compact() == 0
    assert path.read_bytes() == good
    assert made.canonical_digest() == before


def test_a_snapshot_of_another_history_is_not_believed_but_told(store: Store) -> None:
    filled(store, 10)
    forge(store, 7)
    assert said(store) == [0, 1, 2, 3, 4, 5, 99, 7, 8, 9]
    with pytest.raises(CorruptError, match=r"journal entry 7 was changed.*snapshot.*0000000007.json"):
        Journal(store, "j").verify()


def test_what_is_missing_below_a_snapshot_is_read_from_it_and_named_by_verify(store: Store) -> None:
    filled(store, 10)
    entry_path(store, 2).unlink()
    assert said(store) == list(range(10))
    with pytest.raises(CorruptError, match="journal entry 2 is missing"):
        Journal(store, "j").verify()


@pytest.mark.parametrize("count", [6, 8, 9])
@pytest.mark.parametrize("left", [0, 3, 5])
def test_a_cut_tail_is_named(store: Store, count: int, left: int) -> None:
    filled(store, count)
    for number in range(left + 1, count + 1):
        entry_path(store, number).unlink()
    (Path(store.uri) / "j" / "HEAD").unlink()
    witness = Path(store.url(witness_key("j")))
    kept = witness.read_bytes()
    for gone in (False, True):
        witness.write_bytes(kept)
        if gone:
            witness.unlink()
        forget()
        # Without the witness only a snapshot remembers, and only up to its last entry.
        if not gone or max(sealed(store)) > left:
            with pytest.raises(CorruptError, match=f"journal entry {left + 1} is missing"):
                Journal(store, "j").verify()
    if max(sealed(store)) > left:
        forget()
        with pytest.raises(CorruptError, match=f"journal entry {left + 1} is missing"):
            list(Journal(store, "j").entries())


@pytest.mark.parametrize(
    "name", ["0000000003.jsonl", "0000000004.json", "4.jsonl", "x", "deep/0000000004.jsonl"]
)
def test_a_strange_file_among_snapshots_is_named(store: Store, name: str) -> None:
    made = filled(store, 5)
    store.put(f"j/snapshots/{name}", b"{}")
    with pytest.raises(CorruptError, match=f"inserted into the journal.*{name}"):
        made.verify()


def test_a_store_of_before_opens_and_gets_its_snapshots_at_the_next_entry(store: Store) -> None:
    filled(store, 13)
    for key in [*store.list("j/snapshots/"), *store.list("heads/")]:
        store.delete(key)
    assert said(store) == list(range(13))
    assert Journal(store, "j").verify() == 13
    assert sealed(store) == []
    filled(store, 14)
    assert sealed(store) == [4, 8, 12]


class PlugPulled(BaseException):
    pass


class Dying(LocalStore):
    left = -1

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise PlugPulled

    def create(self, key: str, data: bytes) -> bool:
        done = super().create(key, data)
        self._count()
        return done

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        super().put(key, data, durable=durable)
        self._count()


@pytest.mark.parametrize("write", range(1, 20))
def test_killed_at_every_write(tmp_path: Path, write: int) -> None:
    store = Dying(str(tmp_path))
    store.left = write
    with pytest.raises(PlugPulled):
        filled(store, 9)
    forget()
    filled(store, 9)
    forget()
    assert Journal(store, "j").verify() == 9
    assert said(store) == list(range(9))
    assert sealed(store) == [4, 8]


# Snapshots after every second entry: a killed writer is often killed at one.
WRITER = """
import sys
from sdflow_core.records import chain, journal, snapshots
for module in (snapshots, chain, journal):
    module.ENTRIES = 2
from sdflow_core.records.store import open_store
made = journal.Journal(open_store(sys.argv[1]), "j")
for number in range(sum(1 for _ in made.entries()), 100000):
    made.append("note", {"n": number})
    print(number, flush=True)
"""


@pytest.mark.slow
def test_sigkill_while_snapshots_are_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (snapshots, chain, journal):
        monkeypatch.setattr(module, "ENTRIES", 2)
    chance, told = random.Random(3), -1
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, store.uri], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= told + 12:
                break
        time.sleep(chance.random() * 0.01)
        os.kill(process.pid, signal.SIGKILL)
        told = max([told, *(int(line) for line in process.stdout if line.strip().isdigit())])
        process.wait(timeout=30)
        process.stdout.close()
        numbers = said(store)
        assert numbers == list(range(len(numbers))) and len(numbers) > told
        assert Journal(store, "j").verify() == len(numbers)
        for last in sealed(store):
            assert snapshots.read_snapshot(store, "j", last) is not None


def test_many_writers_make_the_snapshots_once(store: Store) -> None:
    # Views of their own, as processes have: each writer forgets what it knew before every entry.
    for number in range(12):
        forget()
        Journal(store, "j").append("note", {"n": number})
    files = [entry_path(store, number).read_bytes() for number in range(1, 13)]
    assert b"".join(snapshot_path(store, last).read_bytes() for last in sealed(store)) == b"".join(
        data + b"\n" for data in files
    )


def test_a_store_that_takes_no_snapshot_still_takes_entries(tmp_path: Path) -> None:
    class Full(LocalStore):
        full = True

        def create(self, key: str, data: bytes) -> bool:
            if self.full and "/snapshots/" in key:
                raise CorruptError("the disk is full")
            return super().create(key, data)

    store = Full(str(tmp_path))
    filled(store, 5)
    assert sealed(store) == []
    store.full = False
    filled(store, 6)
    assert sealed(store) == [4]


@given(st.lists(st.sampled_from(["append", "forget", "delete", "break", "read", "compact"]), max_size=40))
def test_whatever_happens_to_snapshots_the_entries_are_the_same(steps: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store, model = open_store(folder), 0
        for step in steps:
            made = Journal(store, "j")
            there: list[Any] = sealed(store)
            if step == "append":
                for _ in range(3):
                    made.append("note", {"n": model})
                    model += 1
            elif step == "forget":
                forget()
            elif step == "delete" and there:
                snapshot_path(store, there[-1]).unlink()
            elif step == "break" and there:
                snapshot_path(store, there[0]).write_bytes(b"no")
            elif step == "compact":
                made.compact()
            assert [entry.payload["n"] for entry in made.entries()] == list(range(model))
        forget()
        assert Journal(store, "j").verify() == model


def test_two_hundred_and_fifty_six(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (snapshots, chain, journal):
        monkeypatch.setattr(module, "ENTRIES", 256)
    filled(store, 258)
    assert sealed(store) == [256]
    assert said(store) == list(range(258))


def test_snapshots_are_no_journals_of_their_own(store: Store) -> None:
    from sdflow_core.records.digests import canonical_digests
    from sdflow_core.records.verification import journal_roots

    for number in range(9):
        Journal(store, "decisions/one").append("decision", {"items": [], "n": number})
    before = canonical_digests(store, "d")
    assert [root for root in before if root.startswith("decisions")] == ["decisions/one"]
    for key in list(store.list("decisions/one/snapshots/")):
        store.delete(key)
    assert canonical_digests(store, "d") == before
    assert journal_roots(store) == ["decisions/one"]
