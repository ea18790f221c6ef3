"""Laws of the records, on values that nobody would think of."""

from __future__ import annotations

import json
import tempfile
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sdflow_core.records import keys
from sdflow_core.records.journal import Journal
from sdflow_core.records.store import open_store
from sdflow_core.records.tables import STATUSES, Table

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
names = st.text("abcdefgh", min_size=1, max_size=2)


@given(values)
def test_canonical_json_is_json_and_stable(value: Any) -> None:
    data = keys.canonical_json(value)
    again = json.loads(data)
    assert again == value
    assert keys.canonical_json(again) == data


@given(st.dictionaries(texts, values, max_size=6))
def test_canonical_json_does_not_know_the_order_of_keys(value: dict[str, Any]) -> None:
    backwards = dict(reversed(value.items()))
    assert keys.canonical_json(value) == keys.canonical_json(backwards)


@given(st.lists(names, max_size=4), st.lists(names, max_size=4))
def test_row_keys_are_equal_only_for_equal_inputs(one: list[str], two: list[str]) -> None:
    assert (keys.row_key("r", one) == keys.row_key("r", two)) == (one == two)


@given(st.lists(names), st.randoms())
def test_dataset_digest_is_of_a_set(rows: list[str], random: Any) -> None:
    shuffled = rows + rows[:2]
    random.shuffle(shuffled)
    assert keys.dataset_digest(shuffled) == keys.dataset_digest(rows)


@given(st.lists(texts | st.text('a",\\\x7f', max_size=4), max_size=5))
def test_dataset_digest_is_the_hash_of_canonical_json(rows: list[str]) -> None:
    assert keys.dataset_digest(rows) == keys.sha256_hex(keys.canonical_json(sorted(set(rows))))


@given(st.lists(st.tuples(texts, st.dictionaries(texts, values, max_size=3)), max_size=6))
@settings(max_examples=25)
def test_a_journal_gives_back_what_it_was_given(said: list[tuple[str, dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(open_store(folder), "j")
        for kind, payload in said:
            journal.append(kind, payload)
        assert [(entry.kind, entry.payload) for entry in journal.entries()] == said
        assert journal.verify() == len(said)


batches = st.lists(
    st.tuples(st.sampled_from(["r1", "r2"]), st.dictionaries(names, st.sampled_from(STATUSES), max_size=6)),
    max_size=6,
)


@given(batches)
@settings(max_examples=40)
def test_a_table_is_a_mapping_in_which_failures_give_way(commits: list[tuple[str, dict[str, str]]]) -> None:
    """Against a plain dict: first non-failure stays, of failures the last one, until it is made good."""
    model: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        table = Table(open_store(folder), "d", "t")
        for recipe, rows in commits:
            full = {f"{recipe}-{name}": status for name, status in rows.items()}
            table.commit(
                pa.table(
                    {
                        "row_key": pa.array(list(full), pa.string()),
                        "recipe": pa.array([recipe] * len(full), pa.string()),
                        "status": pa.array(list(full.values()), pa.string()),
                    }
                ),
                run="run",
            )
            for key, status in full.items():
                if model.get(key, "failed") == "failed":
                    model[key] = status
        found = table.read().to_pydict()
        assert dict(zip(found["row_key"], found["status"], strict=True)) == model
        assert len(found["row_key"]) == len(model)
        held = {key for key, status in model.items() if status != "failed"}
        assert table.held() == held
        assert table.ref().digest == keys.dataset_digest(held)
        for recipe in ("r1", "r2"):
            assert table.held(recipe) == {key for key in held if key.startswith(recipe)}
        table.verify()
