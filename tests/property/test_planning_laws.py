"""Planning as a stream: it gives what a planning that holds everything gives, and holds little."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from datetime import date
from fnmatch import fnmatchcase
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdflow_core.records import announced, row_keys
from sdflow_core.records import keys as keys_module
from sdflow_core.records.consent import ConsentList, Subjects
from sdflow_core.records.sources import SourceItem
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table
from tasks import verdicts
from tasks.ingest_plan import Granting, Planning
from tasks.plans import write_plans
from tasks.step import Job, StepRun
from tasks.verdicts import GONE, Verdicts

FOLDER = "/photos/"
DAY = date(2026, 6, 1)
RECIPE = "r" * 64
_stores = count()


# -- the consent list


def first_fitting(sources: list[str], name: str) -> int:
    """Number of the line of a name, looked for line by line; 0: none."""
    if name in sources:
        return sources.index(name) + 2
    fitting = (
        n for n, source in enumerate(sources) if set(source) & set("*?[") and fnmatchcase(name, source)
    )
    return next(fitting, -2) + 2


parts = st.text(alphabet="ab*?/[]1-", min_size=1, max_size=5).filter(lambda s: s == s.strip() and s[0] != "/")


@given(
    st.lists(parts, unique=True, max_size=8), st.lists(st.text(alphabet="ab/[]1-", max_size=5), max_size=8)
)
@example(["a*", "ab*", "*", "a[b]", "ab"], ["ab", "abc", "a[b]", "x", "a"])
@settings(max_examples=200)
def test_a_name_falls_under_the_line_that_a_search_line_by_line_finds(
    sources: list[str], names: list[str]
) -> None:
    rows = "".join(f'"{source}",ann,*,,form\n' for source in sources)
    consents = ConsentList.read("source,subject,attributes,expires,evidence\n" + rows)
    for name in [*names, *sources]:
        assert consents.grant(name, DAY).line == first_fitting(sources, name), name
    used = {first_fitting(sources, name) for name in names}
    assert consents.unused(names) == [n + 2 for n in range(len(sources)) if n + 2 not in used]


# -- the plan of ingest


def planned_at_once(
    consents: ConsentList, subjects: Subjects, current: dict[str, dict[str, Any]], items: list[SourceItem]
) -> tuple[list[dict[str, Any]], int, list[int]]:
    """What is planned, how many are wanted, and the unused lines: everything in dicts, item by item."""
    planned: list[dict[str, Any]] = []
    listed: dict[str, str] = {}

    def grant_of(name: str) -> dict[str, Any]:
        allowed = consents.for_source(name, DAY)
        return {
            "consent": allowed.digest if allowed else "",
            "why": consents.why_not(name, DAY),
            "subject": subjects.hmac(allowed.subject) if allowed else "",
            "attributes": list(allowed.attributes) if allowed else [],
            "expires": allowed.expires.isoformat() if allowed and allowed.expires else "",
        }

    def known(now: dict[str, Any]) -> dict[str, Any]:
        names = ("version", "image_id", "face_id", "status", "reason")
        return {**{name: now[name] for name in names}, "judged": bool(now["consent"])}

    for item in items:
        listed[item.uri] = item.name
        now = current.get(item.uri)
        version = item.etag or ""
        if (
            not version
            and now
            and (now["size_bytes"], now["mtime_ns"]) == (item.size_bytes, item.mtime_ns or 0)
        ):
            version = "" if now["version"] == GONE else now["version"]
        same = now is not None and now["status"] != "failed" and now["version"] == version
        grant = grant_of(item.name)
        if now is None or not same or now["consent"] != grant["consent"]:
            facts = {n: getattr(item, n) for n in ("name", "uri", "size_bytes", "mtime_ns", "path", "etag")}
            planned.append(
                {**facts, **grant, "source": "here", "known": known(now) if now and same else None}
            )
    uri, name = next(iter(listed.items()))
    alone = len(listed) == 1 and "/" not in name
    for uri, now in [] if alone else list(current.items()):
        if uri in listed or not uri.startswith(FOLDER) or now["status"] not in ("kept", "failed"):
            continue
        name = uri.removeprefix(FOLDER)
        grant, verdict = grant_of(name), known(now)
        if now["status"] == "failed":
            grant["why"], verdict["version"] = "it could not be read, and is not in its folder any more", GONE
        elif grant["consent"] == now["consent"]:
            continue
        facts = {"name": name, "uri": uri, "size_bytes": now["size_bytes"], "mtime_ns": now["mtime_ns"]}
        planned.append({**facts, **grant, "path": "", "etag": None, "source": "here", "known": verdict})
        listed[uri] = name
    return planned, len(listed), consents.unused(listed.values())


NAMES = ["a.jpg", "b.jpg", "c/a.jpg", "c/b.jpg", "d.jpg"]
LISTS = ["", "a.jpg,ann,*,,f\n", "*,all,smiling,,g\n", "c/*,cee,*,2026-05-01,h\n*.jpg,all,*,,i\nzzz,z,*,,f\n"]
consent_lists = st.sampled_from(LISTS).map(
    lambda rows: ConsentList.read("source,subject,attributes,expires,evidence\n" + rows)
)
digests = ["", *{c.digest for rows in LISTS for n in NAMES
                 if (c := ConsentList.read("source,subject,attributes,expires,evidence\n" + rows)
                     .for_source(n, DAY))}]  # fmt: skip
verdict = st.fixed_dictionaries(
    {
        "uri": st.sampled_from([*(FOLDER + name for name in NAMES), "/elsewhere/a.jpg"]),
        "version": st.sampled_from(["v1", "v2", GONE]),
        "size_bytes": st.integers(1, 2),
        "mtime_ns": st.integers(1, 2),
        "status": st.sampled_from(["kept", "dropped", "failed"]),
        "consent": st.sampled_from(digests),
    }
)
nights = st.lists(st.lists(verdict, max_size=4, unique_by=lambda row: row["uri"]), max_size=4)
files = st.dictionaries(
    st.sampled_from(NAMES),
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.sampled_from([None, "v1", "v2"])),
    min_size=1,
)


def commit(store: Store, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One shard of verdicts; gives them by address."""
    made = [
        {**row, "row_key": f"{next(_stores)}", "recipe": RECIPE, "image_id": "i" + row["uri"], "face_id": "f",
         "reason": row["status"], "inputs": [""]}
        for row in rows
    ]  # fmt: skip
    if made:
        Table(store, "d", "sources").commit(pa.Table.from_pylist(made), run="run")
    return {row["uri"]: row for row in made}


@given(nights, files, consent_lists)
@settings(max_examples=150)
def test_a_streamed_plan_is_the_plan_made_at_once(
    history: list[list[dict[str, Any]]], found: dict[str, tuple[int, int, str | None]], consents: ConsentList
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        current: dict[str, dict[str, Any]] = {}
        for night in history:
            for uri, row in commit(store, night).items():
                current.pop(uri, None)  # rows stand in the order of their commits
                current[uri] = row
        items = [SourceItem(n, FOLDER + n, *facts, n) for n, facts in sorted(found.items())]
        subjects = Subjects(store)
        granting = Granting(consents, subjects, DAY)
        planning = Planning("here", granting, Verdicts(Table(store, "d", "sources"), RECIPE))
        planned = list(planning.items(iter(items)))
        wanted, total, unused = planned_at_once(consents, subjects, current, items)
        assert planned == wanted
        assert (planning.wanted, planning.missing) == (total, len(wanted))
        assert consents.unused_lines(granting.used) == unused


def test_addresses_with_one_hash_are_told_apart(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "hash", len, raising=False)
    known = [
        {"uri": uri, "version": uri, "size_bytes": 1, "mtime_ns": 1, "status": "kept", "consent": ""}
        for uri in ("aa", "ab", "ac", "b")
    ]
    commit(store, known)
    found = Verdicts(Table(store, "d", "sources"), RECIPE)
    now = found.of(["ac", "ad", "ab", "bbb", "b"])
    told = zip(now.place, now.version, strict=True)
    assert [place is not None and version for place, version in told] == ["ac", False, "ab", False, "b"]
    assert [found.whole([place])[place]["uri"] for place in found.unlisted("")] == ["aa"]


class Item(dict[str, Any]):
    """An item that can be counted while it lives."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def test_a_listing_is_read_as_it_comes_and_items_are_written_as_they_fill_a_shard(store: Store) -> None:
    consents = ConsentList.read("source,subject,attributes,expires,evidence\n*,all,*,,f\n")
    alive: weakref.WeakSet[Item] = weakref.WeakSet()
    seen = {"listed": 0, "planned": 0, "most alive": 0, "most ahead": 0}

    def listing(total: int) -> Iterator[SourceItem]:
        for number in range(total):
            seen["listed"] += 1
            yield SourceItem(f"{number}.jpg", f"{FOLDER}{number}.jpg", 1, 1, None, "")

    def counted(items: Iterator[dict[str, Any]]) -> Iterator[Item]:
        for item in items:
            made = Item(item)
            alive.add(made)
            seen["planned"] += 1
            seen["most alive"] = max(seen["most alive"], len(alive))
            seen["most ahead"] = max(seen["most ahead"], seen["listed"] - seen["planned"])
            yield made

    planning = Planning(
        "here", Granting(consents, Subjects(store), DAY), Verdicts(Table(store, "d", "s"), RECIPE)
    )
    run = StepRun(Job(store=store.uri, dataset="d", parent="p"), "run", "plan ingest")
    refs = write_plans(run, counted(planning.items(listing(4250))), 500)
    assert [ref.rows for ref in refs] == [500] * 8 + [250]
    assert seen["listed"] == seen["planned"] == 4250
    assert seen["most alive"] <= 501
    assert seen["most ahead"] < 1000


# -- row keys as numbers


digits = st.binary(min_size=32, max_size=32).map(bytes.hex)
texts = st.lists(st.one_of(digits, st.sampled_from(["a", "A" * 64, "é", "f" * 64, "0" * 64])), max_size=30)


@given(texts)
def test_keys_are_the_texts_in_their_order_and_have_their_digest(given_keys: list[str]) -> None:
    distinct = sorted(set(given_keys))
    encoded, odd = row_keys.encode(given_keys)
    assert row_keys.texts(encoded, odd) == given_keys
    encoded, odd = row_keys.encode(distinct)
    ordered = encoded.take(row_keys.sorted_order(encoded))
    assert sorted(row_keys.texts(ordered, odd)) == distinct
    assert row_keys.digest_of(ordered, odd) == keys_module.dataset_digest(distinct)


@given(st.lists(st.integers(0, 3), max_size=12, unique=True), st.lists(st.integers(0, 3), max_size=12))
def test_keys_that_begin_alike_are_told_apart(there: list[int], asked: list[int]) -> None:
    """The first 16 digits are equal in all of them."""
    text = [f"{'ab' * 8}{number:048x}" for number in range(4)]
    known, _ = row_keys.encode([text[number] for number in there])
    order = row_keys.sorted_order(known)
    run = row_keys.Run(known.take(order), order.astype(np.uint32), np.zeros(len(order), np.bool_))
    place = run.find(row_keys.encode([text[number] for number in asked])[0])
    assert [None if at < 0 else there[int(run.at[at])] for at in place] == [
        number if number in there else None for number in asked
    ]


@given(st.lists(digits, unique=True, max_size=5), st.sampled_from(["plain", "odd"]))
def test_the_document_of_an_edit_run_is_spelled_and_read_as_json(ids: list[str], kind: str) -> None:
    document = {"edit_run": "e", "dataset": 'd "edit_ids":["x"]', "time": "2026", "zebra": [1, 2]}
    ids = sorted(ids)
    encoded, _ = row_keys.encode(ids)
    data = announced.spell_document(document, announced.spell_list(encoded))
    assert data == keys_module.canonical_json({**document, "edit_ids": ids})
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        if kind == "odd":
            ids = [*ids, "short"]
            data = keys_module.canonical_json({**document, "edit_ids": ids}).replace(b":", b": ")
            data = data.replace(b'd \\"edit_ids\\": ', b'd \\"edit_ids\\":')
        store.create("private/edit_runs/e.json", data)
        (found,) = announced.announced_runs(store)
        assert found.document == {**document, "edit_ids": []}
        assert row_keys.texts(found.keys, row_keys.encode(ids)[1]) == ids


@given(st.lists(st.text(max_size=8), max_size=4))
def test_a_row_key_is_the_hash_of_canonical_json(inputs: list[str]) -> None:
    said = keys_module.canonical_json({"recipe": 'r"', "inputs": inputs})
    assert keys_module.row_key('r"', inputs) == keys_module.sha256_hex(said)
