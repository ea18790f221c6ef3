"""Which rows of a dataset are stale under a bundle, why, and what computing them anew would cost.

Rows are compared by recipe and by the rows they were made from; no row key is computed and no shard beyond
four plain columns is read, so that 100,000 rows take a moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, cast

from .changes import RecipeDocument, changes, digest_of, document_of, since
from .costs import TABLE_OF, seconds_a_row
from .releases import releases
from .shown_faces import faces_of_images
from .store import Store
from .tables import Table

if TYPE_CHECKING:
    from sdflow_core.weights.model_store import Bundle

__all__ = ["Reason", "StaleStep", "Staleness", "stale"]

_SHOWN = 12
_Source = tuple[str, list[str], str, str]  # address, faces that it shows, status, end of the consent


@dataclass(frozen=True)
class Reason:
    """Why some rows are stale.

    Attributes:
        rows: How many.
        recipe: What made them.
        changes: What is different now, in words.
        since: Digest of the promoted bundle that brought it; empty when no promotion did.
    """

    rows: int
    recipe: str
    changes: tuple[str, ...]
    since: str = ""


@dataclass(frozen=True)
class StaleStep:
    """One step.

    Attributes:
        step: Its name.
        table: What it writes.
        wanted: Rows that shall be there.
        held: Of these, rows that are there, computed as wanted.
        stale: Of the others, rows that are there as an older recipe made them.
        new: Rows that were never computed.
        reasons: Of the stale ones.
        seconds: What stale and new rows will take, by what earlier runs took; None: not measured yet.
    """

    step: str
    table: str
    wanted: int
    held: int
    stale: int
    new: int
    reasons: tuple[Reason, ...] = ()
    seconds: float | None = None

    @property
    def todo(self) -> int:
        """Rows that a run of this step would compute."""
        return self.stale + self.new


@dataclass(frozen=True)
class Staleness:
    """The answer. `text` says all of it in words.

    Attributes:
        dataset: Its name.
        bundle: Digest of the bundle that rows are compared with.
        steps: ingest, invert, label, train, edit.
        edit_runs: Edit run -> edits in it that older models made.
        releases: Release id -> released pictures that older models made.
        seconds: Of ingest, invert, label and train together; None when one of them is not measured.
    """

    dataset: str
    bundle: str
    steps: tuple[StaleStep, ...]
    edit_runs: dict[str, int]
    releases: dict[str, int]
    seconds: float | None
    text: str

    def step(self, name: str) -> StaleStep:
        """One step by its name."""
        return next(step for step in self.steps if step.step == name)

    @property
    def due(self) -> bool:
        """Whether models, versions or configs changed under the data. Rows that are only new do not count."""
        return any(step.stale for step in self.steps if step.step != "edit")

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "due": self.due}


def stale(
    store: Store,
    dataset: str,
    wanted: Mapping[str, RecipeDocument],
    bundle: Bundle,
    *,
    today: date | None = None,
) -> Staleness:
    """Compares what a dataset holds with what a bundle would compute.

    Faces count when a source that shows them is kept and its consent holds today.

    Args:
        store: The store.
        dataset: Name.
        wanted: Step -> document of its recipe under the bundle; a config of None: as it was asked for then.
        bundle: In force, or another one hypothetically.
        today: The day that counts for consents; default: today in UTC.

    Raises:
        CorruptError: A journal or shard is broken.
    """
    speeds = seconds_a_row(store, dataset)
    ingest, faces, shown = _ingest(store, dataset, wanted, today or datetime.now(UTC).date())
    upstream = ingest.reasons[0].changes if ingest.reasons else ("their faces were detected anew",)
    invert, codes = _of_faces(store, dataset, "invert", wanted, faces, upstream)
    # refined codes stand beside the encoder's: edits of theirs are not the work of older models
    for name, document in wanted.items():
        if name.startswith("invert "):
            codes |= _current(Table(store, dataset, "latents"), digest_of(document), faces)
    label, _ = _of_faces(store, dataset, "label", wanted, faces, upstream)
    train = _train(store, dataset, wanted["train"], bundle.editor)
    edit, older, edit_runs = _edit(store, dataset, wanted["edit"], codes, shown, invert)
    steps = tuple(_timed(step, speeds) for step in (ingest, invert, label, train, edit))
    left = {
        item.release_id: count
        for item in releases(store)
        if (count := sum(output.edit_id in older for output in item.outputs))
    }
    costs = [step.seconds for step in steps if step.step != "edit"]
    seconds = None if any(cost is None for cost in costs) else round(sum(cast("list[float]", costs)), 1)
    text = _text(dataset, bundle.digest, steps, edit_runs, left, seconds)
    return Staleness(dataset, bundle.digest, steps, edit_runs, left, seconds, text)


# -- the steps


def _column(table: Any, name: str) -> list[Any]:
    return cast("list[Any]", table.column(name).to_pylist())


def _first_inputs(table: Any) -> list[Any]:
    """First input of each row; None where there is none."""
    found: list[Any] = []
    for chunk in table.column("inputs").chunks:
        flat = cast("list[Any]", chunk.flatten().to_pylist())
        lists = len(chunk)
        length = len(flat) // max(lists, 1)
        ends = chunk.offsets.to_pylist() if lists and chunk.null_count == 0 else []
        if ends and ends == list(range(ends[0], ends[0] + lists * length + 1, max(length, 1))):
            found += flat[::length]  # rows of one recipe have as many inputs each, nearly always
        else:
            found += [(value or [None])[0] for value in chunk.to_pylist()]
    return found


def _ingest(
    store: Store, dataset: str, wanted: Mapping[str, RecipeDocument], today: date
) -> tuple[StaleStep, dict[str, str], set[str]]:
    """The step; face_id -> its row under the wanted recipe ("" when not there yet); kept source ids."""
    document = wanted["ingest"]
    recipe = digest_of(document)
    table = Table(store, dataset, "sources")
    columns = ["source_id", "uri", "image_id", "face_id", "status", "consent_expires"]

    def told(name: str) -> Iterable[tuple[str, _Source]]:
        rows, shown = table.read(recipe=name, columns=columns), faces_of_images(store, dataset, name)
        for source, uri, image, face, status, expires in zip(
            *(_column(rows, column) for column in columns), strict=True
        ):
            yield source, (uri, shown.get(image, [face]), status, expires)

    recipes = table.recipes()
    there = dict(told(recipe)) if recipe in recipes else {}
    seen = {uri for uri, *_ in there.values()}
    # a file that was looked at as wanted is not stale, whatever was there before
    older: dict[str, tuple[str, str, _Source]] = {}
    for name in recipes:
        if name != recipe:
            older.update((found[0], (name, source, found)) for source, found in told(name))
    older = {uri: value for uri, value in older.items() if uri not in seen}
    by_recipe = Counter(name for name, _, _ in older.values())
    failed = sum(status == "failed" for _, _, status, _ in there.values())
    latest = {**there, **{source: found for _, source, found in older.values()}}
    day = today.isoformat()
    kept = {
        source: shown
        for source, (_, shown, status, expires) in latest.items()
        if status == "kept" and (not expires or day <= expires)
    }
    faces = dict.fromkeys((face for shown in kept.values() for face in shown), "")
    if recipe in Table(store, dataset, "faces").recipes():
        rows = Table(store, dataset, "faces").read(
            recipe=recipe, columns=["face_id", "row_key", "status"], statuses=["kept"]
        )
        pairs = zip(_column(rows, "face_id"), _column(rows, "row_key"), strict=True)
        faces.update((face, key) for face, key in pairs if face in faces)
    step = StaleStep("ingest", "sources", len(latest), len(there) - failed, len(older), failed)
    return _explained(store, step, document, by_recipe), faces, set(kept)


def _of_faces(
    store: Store,
    dataset: str,
    name: str,
    wanted: Mapping[str, RecipeDocument],
    faces: Mapping[str, str],
    upstream: tuple[str, ...],
) -> tuple[StaleStep, set[str]]:
    """A step with a row a face; and the keys of the rows that are as wanted."""
    document = wanted[name]
    recipe = digest_of(document)
    table = Table(store, dataset, TABLE_OF[name])
    recipes = table.recipes()
    current: set[str] = set()
    done: set[str] = set()
    if recipe in recipes:
        rows = table.read(recipe=recipe, columns=["row_key", "inputs", "status"])
        fresh = set(faces.values()) - {""}
        for key, face, status in zip(
            _column(rows, "row_key"), _first_inputs(rows), _column(rows, "status"), strict=True
        ):
            if face in fresh and status != "failed":
                done.add(face)
                current.add(key)
    missing = {face for face, key in faces.items() if key not in done}
    left, by_recipe = set(missing), Counter[str]()
    for older in reversed(recipes):
        if not left:
            break
        rows = table.read(recipe=older, columns=["face_id", "status"], statuses=["kept", "dropped"])
        found = left.intersection(_column(rows, "face_id"))
        if found:
            by_recipe[older] = len(found)
            left -= found
    held, count = len(faces) - len(missing), len(missing) - len(left)
    step = StaleStep(name, TABLE_OF[name], len(faces), held, count, len(left))
    return _explained(store, step, document, by_recipe, upstream), current


def _current(table: Table, recipe: str, faces: Mapping[str, str]) -> set[str]:
    """Keys of the rows of a recipe that were made from these faces as they are now."""
    if recipe not in table.recipes():
        return set()
    rows = table.read(recipe=recipe, columns=["row_key", "inputs"])
    fresh = set(faces.values()) - {""}
    return {k for k, face in zip(_column(rows, "row_key"), _first_inputs(rows), strict=True) if face in fresh}


def _train(store: Store, dataset: str, document: RecipeDocument, editor: str | None) -> StaleStep:
    """The editor of this dataset: the one in the bundle, or the latest when the bundle has none."""
    table = Table(store, dataset, "editors")
    rows = table.read(columns=["row_key", "recipe", "editor"]).to_pylist() if table.recipes() else []
    mine = [row for row in rows if row["editor"] == editor] if editor else rows
    if not mine:
        return StaleStep("train", "editors", 0, 0, 0, 0)
    row = mine[-1]
    made = document_of(store, row["recipe"])
    found = changes(made, document)
    if editor and not found:
        return StaleStep("train", "editors", 1, 1, 0, 0)
    found = found or ("the bundle has no editor",)
    reason = Reason(1, row["recipe"], found, since(store, document, made))
    return StaleStep("train", "editors", 1, 0, 1, 0, (reason,))


def _edit(
    store: Store,
    dataset: str,
    document: RecipeDocument,
    codes: set[str],
    sources: set[str],
    invert: StaleStep,
) -> tuple[StaleStep, set[str], dict[str, int]]:
    """The step over (source, face, request); ids of edits of older models; edit run -> how many of them."""
    table = Table(store, dataset, "edits")
    pairs: dict[tuple[str, str, str], str] = {}  # recipe of the last edit; "" when current
    older: set[str] = set()
    runs: Counter[str] = Counter()
    names = ("row_key", "source_id", "face_id", "request", "edit_run")
    for recipe in table.recipes():
        same = not changes(document_of(store, recipe), document)
        rows = table.read(recipe=recipe, columns=["inputs", *names])
        values = zip(_first_inputs(rows), *(_column(rows, name) for name in names), strict=True)
        for code, key, source, face, request, run in values:
            current = same and code in codes
            # a current model's edit of a face that has dropped out is not the work of older models
            if not current and (not same or source in sources):
                older.add(key)
                runs[run] += 1
            if source in sources and pairs.get((source, face, request)) != "":
                pairs[source, face, request] = "" if current else recipe
    by_recipe = Counter(recipe for recipe in pairs.values() if recipe)
    count = sum(by_recipe.values())
    step = StaleStep("edit", "edits", len(pairs), len(pairs) - count, count, 0)
    upstream = tuple(change for reason in invert.reasons for change in reason.changes)
    upstream = upstream or ("their latents were computed anew",)
    return _explained(store, step, document, by_recipe, upstream), older, dict(runs)


def _explained(
    store: Store,
    step: StaleStep,
    document: RecipeDocument,
    by_recipe: Mapping[str, int],
    upstream: tuple[str, ...] = (),
) -> StaleStep:
    reasons: list[Reason] = []
    for recipe, count in by_recipe.items():
        made = document_of(store, recipe)
        found = changes(made, document)
        reasons.append(Reason(count, recipe, found or upstream, since(store, document, made)))
    return replace(step, reasons=tuple(reasons))


def _timed(step: StaleStep, speeds: Mapping[str, float]) -> StaleStep:
    if not step.todo:
        return replace(step, seconds=0.0)
    speed = speeds.get(step.step)
    return step if speed is None else replace(step, seconds=round(speed * step.todo, 2))


# -- words


def _text(
    dataset: str,
    bundle: str,
    steps: Iterable[StaleStep],
    edit_runs: Mapping[str, int],
    left: Mapping[str, int],
    seconds: float | None,
) -> str:
    lines = [f"Dataset {dataset} under bundle {bundle[:_SHOWN]}."]
    lines += [_step_words(step) for step in steps]
    if edit_runs:
        named = ", ".join(f"{run} ({count})" for run, count in edit_runs.items())
        lines.append(f"Edits made by older models, by edit run: {named}. They stay readable and auditable.")
    if left:
        named = ", ".join(f"{name} ({count})" for name, count in left.items())
        lines.append(f"Released pictures made by older models, by release: {named}.")
    todo = sum(step.todo for step in steps if step.step != "edit")
    if todo:
        cost = "not measured yet" if seconds is None else f"about {seconds:g} s"
        lines.append(f"In all {todo} row{'s' if todo != 1 else ''} to compute; time: {cost}.")
    if any(step.stale for step in steps if step.step != "edit"):
        lines.append(f"What to do: sdflow refresh {dataset}")
    elif not todo:
        lines.append("Nothing is stale.")
    return "\n".join(lines)


def _step_words(step: StaleStep) -> str:
    if not step.wanted:
        return f"{step.step}: nothing to do."
    said = f"{step.step}: {step.held} of {step.wanted} rows are current"
    if step.new:
        said += f"; {step.new} not computed yet"
    for reason in step.reasons:
        brought = f" (since bundle {reason.since[:_SHOWN]})" if reason.since else ""
        said += f"; {reason.rows} stale: {', '.join(reason.changes)}{brought}"
    if step.step == "edit" and step.stale:
        said += "; edits are rendered anew only when they are asked for again"
    if step.todo:
        said += "; " + ("time not measured yet" if step.seconds is None else f"about {step.seconds:g} s")
    return said + "."
