"""Planning edits as numbers gives what planning them as dicts gives, over any history of nights."""

from __future__ import annotations

import tempfile
from typing import Any

import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdflow_core.method.request import EditConfig, Variant
from sdflow_core.records.decisions import edit_runs
from sdflow_core.records.keys import canonical_json, row_key, sha256_hex
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table
from sdflow_core.weights.model_store import Bundle
from tasks import recipes
from tasks.consented import ended, kept_sources, today
from tasks.edit_plan import plan_edit, plan_queue
from tasks.plans import read_plan
from tasks.step import Job

BUNDLE = Bundle(**{kind: kind[0] * 64 for kind in ("generator", "encoder", "labeller", "detector", "editor")},
                template_scale=0.7, resolution=64, attributes=("smiling", "young"))  # fmt: skip
INGEST, INVERT = recipes.ingest(BUNDLE).key, recipes.invert(BUNDLE).key
EDIT = recipes.edit(BUNDLE, EditConfig()).key
VARIANTS = [Variant(targets={"smiling": 0.9}), Variant(targets={"young": "flip", "smiling": 0.1})]


def pin(store: Store) -> str:
    """What planning reads of the models: the pinned bundle and the card of its editor."""
    store.create(f"models/pinned/{BUNDLE.digest}.json", canonical_json(BUNDLE.model_dump(mode="json")))
    store.create(f"models/{BUNDLE.editor}/card.json", canonical_json({"kind": "editor"}))
    return BUNDLE.digest


def commit(store: Store, table: str, recipe: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        made = [{"recipe": recipe, "status": "kept", **row} for row in rows]
        Table(store, "d", table).commit(pa.Table.from_pylist(made), run="run")


def add_source(
    store: Store, number: int, version: int, attributes: list[str], expires: str, kept: bool
) -> None:
    face = f"{sha256_hex(f'image {number}'.encode())}#0"
    source = sha256_hex(f"{number} {version}".encode())
    consent = sha256_hex(canonical_json([attributes, expires]))
    said = {
        "source_id": source,
        "uri": f"{number}",
        "image_id": face[:64],
        "face_id": face,
        "consent": consent,
        "consent_attributes": attributes,
        "consent_expires": expires,
        "status": "kept" if kept else "dropped",
    }
    commit(store, "sources", INGEST, [{**said, "row_key": row_key(INGEST, [source, consent])}])
    points = {"face_id": face, "points": [float(number)] * 10}
    commit(store, "faces", INGEST, [{**points, "row_key": row_key(INGEST, [face])}])


def add_latent(store: Store, number: int) -> None:
    face = f"{sha256_hex(f'image {number}'.encode())}#0"
    commit(
        store, "latents", INVERT, [{"face_id": face, "row_key": row_key(INVERT, [row_key(INGEST, [face])])}]
    )


def wanted(store: Store, variants: list[Variant]) -> list[dict[str, Any]]:
    """Every item, as a dict, in the order of the keys."""
    latents = Table(store, "d", "latents").read(recipe=INVERT, statuses=["kept"]).to_pylist()
    faces = Table(store, "d", "faces").read(recipe=INGEST, statuses=["kept"]).to_pylist()
    code_of = {row["face_id"]: row["row_key"] for row in latents}
    points_of = {row["face_id"]: row["points"] for row in faces}
    items: list[dict[str, Any]] = []
    for source in kept_sources(store, "d", INGEST):
        code = code_of.get(source["face_id"], "")
        for variant in variants:
            allowed = source["consent_attributes"]
            barred = [n for n in sorted(variant.targets) if "*" not in allowed and n not in allowed]
            refused = ended(source, today())
            if not refused and barred:
                refused = f"consent does not cover {', '.join(barred)}"
            if not refused and not code:
                refused = "its face has no latent: `sdflow invert` has not seen it, or could not encode it"
            inputs = [code, source["source_id"], source["consent"], variant.text()]
            items.append({
                "row_key": row_key(EDIT, inputs), "inputs": inputs, "source_id": source["source_id"],
                "image_id": source["image_id"], "face_id": source["face_id"],
                "points": points_of.get(source["face_id"], []), "request": variant.text(),
                "targets": variant.model_dump(mode="json")["targets"], "refused": refused,
            })  # fmt: skip
    return sorted(items, key=lambda item: item["row_key"])


def run_of(ids: list[str]) -> str:
    return sha256_hex(canonical_json(["d", EDIT, ids]))[:12]


def queue(store: Store, variants: list[Variant]) -> tuple[set[str], list[dict[str, Any]]]:
    """Edit runs to finish, and the items that are missing, each with its run."""
    items = wanted(store, variants)
    keys = {item["row_key"] for item in items}
    held = Table(store, "d", "edits").held(EDIT)
    announced: dict[str, str] = {}
    bare: set[str] = set()
    for earlier in sorted(edit_runs(store), key=lambda one: (one.document["time"], one.edit_run)):
        if all(key in held or key in keys for key in earlier.edit_ids):
            for key in earlier.edit_ids:
                announced.setdefault(key, earlier.edit_run)
            if not store.exists(earlier.document["sheet"]):
                bare.add(earlier.edit_run)
    new = sorted(keys - announced.keys())
    missing = [
        {**item, "edit_run": announced.get(item["row_key"], run_of(new))}
        for item in items
        if item["row_key"] not in held
    ]
    return bare | {item["edit_run"] for item in missing} | ({run_of(new)} if new else set()), missing


def items_of(store: Store, shards: Any) -> list[dict[str, Any]]:
    found = [item for plan in shards.shards for item in read_plan(store, plan)]
    return sorted(found, key=lambda item: item["row_key"])


sources = st.tuples(
    st.just("source"),
    st.integers(0, 3),
    st.integers(0, 1),
    st.sampled_from([["*"], ["smiling"], ["smiling", "young"]]),
    st.sampled_from(["", "2001-01-01", "2999-01-01"]),
    st.sampled_from([True, True, True, False]),
)
night = st.tuples(
    st.just("night"),
    st.sampled_from([VARIANTS[:1], VARIANTS[1:], VARIANTS]),
    st.sampled_from([0, 1, 100]),
    st.booleans(),
    st.booleans(),
)
LAST = [("night", VARIANTS, 1, False, True), ("night", VARIANTS, 100, True, True)]
latents = st.tuples(st.just("latent"), st.integers(0, 3))


@example([("night", VARIANTS[:1], 0, False, False), ("night", VARIANTS, 0, False, False)])
@given(st.lists(st.one_of(sources, latents, night), max_size=10))
@settings(max_examples=60)
def test_a_night_plans_what_dicts_would_plan(history: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        job = Job(store=folder, dataset="d", bundle=pin(store), parent="test")
        add_source(store, 0, 0, ["*"], "", True)
        add_latent(store, 0)
        for kind, *said in [*history, *LAST]:
            if kind == "source":
                add_source(store, *said)
                continue
            if kind == "latent":
                add_latent(store, *said)
                continue
            variants, rendered, sheet, queued = said
            items = wanted(store, variants)
            runs, missing = queue(store, variants)
            plan: Any
            if queued:
                plan = plan_queue.fn(job, tuple(variants), EditConfig())
                assert set(plan.edit_runs) == runs
            else:
                dry = plan_edit.fn(job, tuple(variants), EditConfig(), dry_run=True)
                plan = plan_edit.fn(job, tuple(variants), EditConfig())
                run = run_of([item["row_key"] for item in items])
                missing = [{**item, "edit_run": run} for item in missing]
                assert (plan.edit_run, dry.edit_run, dry.refused) == (run, run, plan.refused)
                assert (dry.shards.wanted, dry.shards.held) == (plan.shards.wanted, plan.shards.held)
                runs = {run}
            assert items_of(store, plan.shards) == missing
            assert plan.refused == sum(bool(item["refused"]) for item in missing)
            assert (plan.shards.wanted, plan.shards.held) == (len(items), len(items) - len(missing))
            done = [{"row_key": item["row_key"], "status": "waiting"} for item in missing[:rendered]]
            commit(store, "edits", EDIT, done)
            for name in runs if sheet else ():
                store.put(f"private/edit_runs/{name}/sheet.png", b"x")


def test_shards_of_edits_lie_where_their_codes_lie(store: Store) -> None:
    """A shard needs the codes of neighbours, not of rows all over the table."""
    job = Job(store=store.uri, dataset="d", bundle=pin(store), parent="test")
    for number in range(12):
        add_source(store, number, 0, ["*"], "", True)
        add_latent(store, number)
    plan: Any = plan_edit.fn(job, tuple(VARIANTS), EditConfig())
    codes = [item["inputs"][0] for part in plan.shards.shards for item in read_plan(store, part)]
    in_order = Table(store, "d", "latents").read(columns=["row_key"])["row_key"].to_pylist()
    assert codes == [code for code in in_order for _ in VARIANTS]
