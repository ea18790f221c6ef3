"""The night's report: figures that add up, commands to go on with, a page that stands alone."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from sdflow_core.records.decisions import decide
from sdflow_core.records.drift import drift, histogram, psi
from sdflow_core.records.errors import ContractError
from sdflow_core.records.night_page import document, page
from sdflow_core.records.night_report import ClosedRun, DatasetNight, Edits, NightReport, Sources, next_steps
from sdflow_core.records.releases import release
from sdflow_core.records.store import Store
from sdflow_core.records.waiting import WaitingRun, waiting_runs
from tests.edited import EDIT_RUN, consent_again, make_edits

NASTY = "<script>alert('x')</script>&"
VOID = {"meta", "img", "br", "link"}


class Checker(HTMLParser):
    """Every element closed in order, nothing loaded from elsewhere, text and ids collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.images: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        for name in ("src", "href", "srcset", "data", "action"):
            value = found.get(name)
            assert value is None or value.startswith("data:image/png;base64,"), value
        assert not any(name.startswith("on") for name in found)
        if tag == "img":
            self.images.append(found["src"] or "")
            assert found.get("alt")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("rect", "polyline")  # only drawings may close themselves in HTML
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def a_report(**changes: Any) -> NightReport:
    scores = np.random.default_rng(0).random(500)
    done = DatasetNight(
        dataset=NASTY,
        state="done",
        sources=Sources(total=9, kept=6, dropped=2, failed=1, tried=4, reasons={NASTY: 2, "gone": 1}),
        new_latents=3,
        new_labels=3,
        edits=Edits(
            wanted=6, new=4, rendered=3, waiting=2, gated=1, refused_by_consent=1, reasons={"identity": 1}
        ),
        edit_runs=("a" * 12, "b" * 12),
        drift=(drift("smiling", scores**4, histogram(scores)), drift("young", scores, None)),
        drift_new=(
            drift("smiling", scores, histogram(scores)),
            drift("young", scores[:3], histogram(scores)),
        ),
        model_calls={"detector": 4, "encoder": 1},
        seconds={"ingest": 1.0, "edit": 130.0},
    )
    waiting = [
        WaitingRun(edit_run=run * 12, dataset="d", time=f"2030-01-{day}T00:00:00+00:00", **counts)
        for run, day, counts in (
            ("a", "01", {"undecided": 2, "unpublished": 0, "missing": 0}),
            ("b", "09", {"undecided": 0, "unpublished": 3, "missing": 0}),
            ("c", "10", {"undecided": 1, "unpublished": 0, "missing": 4}),
        )
    ]
    facts: dict[str, Any] = {
        "run": "0" * 32,
        "time": "2030-01-10T03:04:05+00:00",
        "bundle": "1" * 64,
        "bundle_now": "1" * 64,
        "policy": "2" * 64,
        "remind_after_days": 3.0,
        "datasets": (
            done,
            DatasetNight(dataset="two", state="broken", stopped_in="ingest", error="E, x", todo="Mend it."),
            DatasetNight(dataset="three", state="off"),
        ),
        "waiting": tuple(waiting),
        "orphans": (ClosedRun(run="f" * 32, job="edit", dataset=NASTY),),
        "seconds": 200.0,
    }
    return NightReport(**{**facts, **changes})


def test_the_page_stands_alone_and_escapes_what_others_wrote() -> None:
    html = page(a_report(), {"a" * 12: b"\x89PNG"})
    found = parsed(html)
    text = "".join(found.text)
    assert not {"script", "link", "iframe", "object"} & found.tags
    assert "http" not in html and "@import" not in html and "url(" not in html
    assert text.count(NASTY) >= 4  # dataset, reason, command, orphan
    assert found.images == ["data:image/png;base64,iVBORw=="]
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    assert "broke in ingest" in text and "switched off" in text and "1 of 2 broke" in text
    assert "2 min 10 s" in text


def test_a_quiet_night_says_so() -> None:
    quiet = a_report(datasets=(DatasetNight(dataset="d", state="done"),), waiting=(), orphans=())
    text = "".join(parsed(page(quiet, {})).text)
    assert "complete" in text and "Nothing waits." in text and "no earlier run had died" in text
    assert next_steps(quiet) == []


def test_what_to_do_next_names_exact_commands() -> None:
    report = a_report(bundle_now="9" * 64)
    steps = next_steps(report)
    commands = [step.command for step in steps]
    assert f'sdflow decide {"a" * 12} --approve all --by "YOUR NAME"' in commands
    assert f"sdflow publish {'b' * 12} --to TARGET" in commands
    assert not any("c" * 12 in command for command in commands)  # nothing in it can be decided yet
    assert f"sdflow train {NASTY}" in commands
    assert steps[0].text == "two broke in ingest: E, x. Mend it."
    assert any("the next one uses the new ones" in step.text for step in steps)


def test_the_json_twin_adds_up() -> None:
    said = document(a_report())
    assert said["status"] == "broken" and said["overdue"] == ["a" * 12]
    assert said["totals"] == {
        "in": 9, "kept": 6, "dropped": 2, "failed": 1, "new": 4, "edited": 3, "gated": 1, "waiting": 2,
        "refused_by_consent": 1, "undecided": 3, "unpublished": 3, "model_calls": 5,
    }  # fmt: skip
    assert said["datasets"][0]["sources"]["in"] == 9 and said["datasets"][1]["sources"] is None


def test_drift_of_equal_shifted_few_and_unrecorded_scores() -> None:
    chance = np.random.default_rng(1)
    learned = histogram(chance.beta(2, 5, 4000))
    assert drift("a", chance.beta(2, 5, 2000), learned).verdict == "stable"
    moved = drift("a", chance.beta(5, 2, 2000), learned)
    assert moved.verdict == "shifted" and moved.psi is not None and moved.psi > 0.25
    assert drift("a", chance.beta(5, 2, 40), learned).verdict == "too few rows"
    unknown = drift("a", [0.5], None)
    assert (unknown.verdict, unknown.psi, unknown.training) == ("not recorded", None, ())
    assert psi(learned, learned) == 0.0 and psi([1, 9], [9, 1]) == pytest.approx(psi([9, 1], [1, 9]))
    with pytest.raises(ContractError, match="cannot be compared"):
        psi([1], [1, 2])


def test_noise_is_what_two_samples_of_one_distribution_show() -> None:
    chance = np.random.default_rng(2)
    found = [drift("a", chance.random(300), histogram(chance.random(500))) for _ in range(200)]
    noise = found[0].noise
    assert noise is not None
    assert np.mean([one.psi for one in found]) == pytest.approx(noise, rel=0.15)


def test_what_waits_from_planned_to_published(store: Store) -> None:
    made = make_edits(store, 4)
    (one,) = waiting_runs(store, ["people"])
    assert (one.edit_run, one.undecided, one.unpublished, one.missing) == (EDIT_RUN, 3, 0, 0)
    decide(store, EDIT_RUN, approve=made.edit_ids[:2], who="ann")
    (one,) = waiting_runs(store, ["people"])
    assert (one.undecided, one.unpublished) == (1, 2)
    release(store, EDIT_RUN, "store:released", "run")
    decide(store, EDIT_RUN, reject=[made.edit_ids[2]], who="ann")
    assert waiting_runs(store, ["people"]) == []
    assert waiting_runs(store, ["others"]) == []


def test_nobody_is_asked_about_what_no_consent_lets_leave(store: Store) -> None:
    made = make_edits(store, 4)
    consent_again(store, made, 0, expires="2020-01-01")
    (one,) = waiting_runs(store, ["people"])
    assert (one.undecided, one.unpublished) == (2, 0)
    decide(store, EDIT_RUN, approve="all", who="ann")
    (one,) = waiting_runs(store, ["people"])
    assert (one.undecided, one.unpublished) == (0, 2)
    release(store, EDIT_RUN, "store:released", "run")
    assert waiting_runs(store, ["people"]) == []
