"""What of a source folder is new, changed, gone, or under another consent: the items of the shard tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from sdflow_core.records.consent import ConsentList, Subjects
from sdflow_core.records.errors import ContractError
from sdflow_core.records.sources import SourceItem
from sdflow_core.records.store import open_source
from sdflow_core.records.tables import Table
from tasks import recipes
from tasks.consented import today
from tasks.plans import Shards, windows, write_plans
from tasks.runtime import load_bundle, settings
from tasks.step import StepRun, step
from tasks.verdicts import GONE, Verdicts

_NOW = ("uri", "name", "row_key", "source_id", "version", "size_bytes", "mtime_ns", "image_id", "face_id")
_AT_A_TIME = 1000  # listed files that are compared with the records together


@step("plan ingest")
def plan_ingest(run: StepRun, source: str, consent: str) -> Shards:
    """List the source and plan what the table does not hold; the list of today is the one in force.

    The listing is read as it comes and items are written as they fill a shard; of the records, a few columns
    of what is known are held.
    """
    store = run.store
    bundle = load_bundle(store, run.job.bundle)
    recipe = run.using(recipes.ingest(bundle))
    granting = Granting(ConsentList.load(consent, store), Subjects(store), today())
    table = Table(store, run.job.dataset, "sources")
    planning = Planning(source, granting, Verdicts(table, recipe))
    listing = open_source(source, store).list()
    shards = write_plans(run, planning.items(listing), settings().shard_rows)
    if not planning.missing:
        run.reused(table.ref(recipe))
    return Shards(
        shards=shards,
        wanted=planning.wanted,
        held=planning.wanted - planning.missing,
        recipe=recipe,
        remarks=_remarks(granting.consents, granting.used, bundle.attributes),
    )


@dataclass
class Granting:
    """The consent list of today; remembers which of its lines were needed."""

    consents: ConsentList
    subjects: Subjects
    day: date
    used: set[int] = field(default_factory=set[int])

    def __call__(self, name: str) -> tuple[dict[str, Any], int]:
        """What the list says about one name, as the plan and the row keep it; and the line that says so."""
        found = self.consents.grant(name, self.day)
        allowed = found.consent
        said = {
            "consent": allowed.digest if allowed else "",
            "why": found.why,
            "subject": self.subjects.hmac(allowed.subject) if allowed else "",
            "attributes": list(allowed.attributes) if allowed else [],
            "expires": allowed.expires.isoformat() if allowed and allowed.expires else "",
        }
        return said, found.line


@dataclass
class Planning:
    """One pass over a listing, and then over what it lacks; counts as it goes."""

    source: str
    granting: Granting
    verdicts: Verdicts
    wanted: int = 0
    missing: int = 0

    def items(self, listing: Iterable[SourceItem]) -> Iterator[dict[str, Any]]:
        """The items to plan: what is new or changed in the order of the listing, then what is gone.

        Raises:
            ContractError: Nothing is listed.
        """
        first: SourceItem | None = None
        for part in windows(listing, _AT_A_TIME):
            first = first or part[0]
            yield from self._listed(part)
        if first is None:
            raise ContractError(
                "nothing to ingest",
                expected="at least one file",
                found="an empty folder",
                where=self.source,
                todo="check the address of the source",
            )
        yield from self._gone(_folder(first, self.wanted))

    def _listed(self, part: Sequence[SourceItem]) -> Iterator[dict[str, Any]]:
        now = self.verdicts.of([item.uri for item in part])
        missing: list[tuple[dict[str, Any], int | None]] = []
        for number, item in enumerate(part):
            grant, line = self.granting(item.name)
            self.granting.used.add(line)
            same = now.same(number, item)
            if same and now.consent[number] == grant["consent"]:
                continue
            facts = {
                name: getattr(item, name)
                for name in ("name", "uri", "size_bytes", "mtime_ns", "path", "etag")
            }
            place = now.place[number] if same else None
            missing.append(({**facts, **grant, "source": self.source}, place))
        self.wanted += len(part)
        self.missing += len(missing)
        known = self.verdicts.whole([place for _, place in missing if place is not None])
        for item, place in missing:
            yield {**item, "known": None if place is None else _verdict_of(known[place])}

    def _gone(self, folder: str) -> Iterator[dict[str, Any]]:
        """Sources of this folder that are not in it any more, named as this folder's list would name them.

        The records still hold the faces of the kept ones, so that a consent that was withdrawn must reach
        them too; and those that could not be read need not be tried again.
        """
        for part in windows(self.verdicts.unlisted(folder) if folder else (), _AT_A_TIME):
            rows = self.verdicts.whole(part)
            for now in (rows[place] for place in part):
                name = now["uri"].removeprefix(folder)
                grant, line = self.granting(name)
                known = _verdict_of(now)
                if now["status"] == "failed":
                    grant["why"], known["version"] = (
                        "it could not be read, and is not in its folder any more",
                        GONE,
                    )
                elif grant["consent"] == now["consent"]:
                    continue
                self.granting.used.add(line)
                self.wanted += 1
                self.missing += 1
                facts = {key: now[key] for key in ("uri", "size_bytes", "mtime_ns")}
                yield {
                    **facts,
                    **grant,
                    "name": name,
                    "path": "",
                    "etag": None,
                    "source": self.source,
                    "known": known,
                }


def _folder(first: SourceItem, count: int) -> str:
    """What the addresses of a listing begin with; empty where nothing says that others were neighbours."""
    folder = first.uri.removesuffix(first.name)
    if folder == first.uri or (count == 1 and "/" not in first.name):
        return ""  # one file was named, or one is left
    return folder


def _verdict_of(now: dict[str, Any]) -> dict[str, Any]:
    """What is known of these very bytes. Without a consent they were never decoded: only their hash is."""
    judged = bool(now["consent"])
    names = ("version", "image_id", "face_id", "status", "reason")
    return {**{name: now[name] for name in names}, "judged": judged}


def _remarks(consents: ConsentList, used: set[int], attributes: tuple[str, ...]) -> tuple[str, ...]:
    said: list[str] = []
    unused = consents.unused_lines(used)
    if unused:
        shown = ", ".join(map(str, unused[:10])) + (
            f" and {len(unused) - 10} more" if len(unused) > 10 else ""
        )
        said.append(f"lines of the consent list that fit no file: {shown}")
    unknown = consents.unknown_attributes(attributes)
    if unknown:
        said.append(
            f"the consent list allows what these models cannot edit: {', '.join(unknown[:10])}"
            f" (they know {', '.join(attributes)})"
        )
    if len(consents) == 0:
        said.append("the consent list has no line: every source is dropped")
    return tuple(said)


def current_verdicts(
    table: Table, recipe: str, uris: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """The verdict in force of every address: the row committed last; of these addresses alone when given."""
    if recipe not in table.recipes():
        return {}
    columns = [*_NOW, "consent", "status", "reason"]
    rows = table.read(recipe=recipe, latest_by="uri", columns=columns, values=uris)
    return {row["uri"]: row for row in rows.to_pylist()}
