"""Only what was approved leaves, with the very pixels that were approved, and only once."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from sdflow_core.faces.pixels import pixel_digest, png_bytes, read_png, read_text
from sdflow_core.records.audit import audit
from sdflow_core.records.decisions import decide
from sdflow_core.records.errors import ApprovalError, ContractError, PolicyError
from sdflow_core.records.journal import Journal
from sdflow_core.records.keys import sha256_hex
from sdflow_core.records.releases import (
    canonical_digest,
    check_release,
    locate,
    release,
    releases,
    revoked,
)
from sdflow_core.records.store import Store
from tests.edited import consent_again, make_edits, picture, replace_source


def test_a_release_holds_the_approved_pixels_and_only_new_metadata(store: Store, tmp_path: Path) -> None:
    made = make_edits(store)
    latest = decide(store, made.edit_run, approve="all", reject=[made.edit_ids[1]], who="ann")
    done = release(store, made.edit_run, str(tmp_path / "out"), "run-publish")
    assert [out.edit_id for out in done.outputs] == [made.edit_ids[0]]
    data = Path(done.outputs[0].uri).read_bytes()
    assert (read_png(data) == picture(0)).all()
    assert sha256_hex(data) == done.outputs[0].file_sha256
    text = read_text(data)
    assert text["sdflow:edit_id"] == made.edit_ids[0]
    assert text["DigitalSourceType"] == "compositeWithTrainedAlgorithmicMedia"
    assert text["Software"].startswith("SDFlow")
    assert done.outputs[0].decision == latest[made.edit_ids[0]].entry
    assert done.withheld == {made.edit_ids[1]: "rejected"}
    assert "ann" not in str(data)


def test_releasing_twice_is_releasing_once(store: Store, tmp_path: Path) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", who="ann")
    first = release(store, made.edit_run, str(tmp_path / "out"), "a")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    decide(store, made.edit_run, approve="all", who="bob")
    second = release(store, made.edit_run, str(tmp_path / "out"), "b")
    assert (first.new, second.new, second.release_id, second.run) == (True, False, first.release_id, "a")
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert Journal(store, "releases").verify() == 1
    assert release(store, made.edit_run, str(tmp_path / "other"), "c").release_id != first.release_id


def test_a_killed_release_is_finished_by_the_next(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", who="ann")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))  # pyright: ignore
        with pytest.raises(KeyboardInterrupt):
            release(store, made.edit_run, str(tmp_path / "out"), "a")
    assert not list(releases(store))
    done = release(store, made.edit_run, str(tmp_path / "out"), "b")
    assert done.new and len(done.outputs) == 2
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_picture_changed_after_the_decision_stops_the_release(store: Store, tmp_path: Path) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", who="ann")
    store.put("private/edits/1.png", png_bytes(picture(9)))
    with pytest.raises(ApprovalError, match=made.edit_ids[1]):
        release(store, made.edit_run, str(tmp_path / "out"), "a")
    assert not (tmp_path / "out").exists()
    assert not list(releases(store))


def test_nothing_leaves_without_a_person(store: Store, tmp_path: Path) -> None:
    made = make_edits(store)
    with pytest.raises(ApprovalError, match="nothing is approved"):
        release(store, made.edit_run, str(tmp_path / "out"), "a")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("expires", "attributes", "words"),
    [("2026-01-31", "*", "ended on 2026-01-31"), ("", "young", "does not allow to edit smiling")],
)
def test_the_latest_consent_counts(
    store: Store, tmp_path: Path, expires: str, attributes: str, words: str
) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", who="ann")
    consent_again(store, made, 0, expires=expires, attributes=attributes)
    done = release(store, made.edit_run, str(tmp_path / "out"), "a", today=date(2026, 2, 1))
    assert words in done.withheld[made.edit_ids[0]]
    assert [out.edit_id for out in done.outputs] == [made.edit_ids[1]]
    consent_again(store, made, 1, expires=expires, attributes=attributes)
    with pytest.raises(PolicyError, match=words):
        release(store, made.edit_run, str(tmp_path / "again"), "a", today=date(2026, 2, 1))


def test_the_last_day_of_a_consent_counts(store: Store, tmp_path: Path) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", who="ann")
    consent_again(store, made, 0, expires="2026-02-01")
    assert len(release(store, made.edit_run, str(tmp_path / "out"), "a", today=date(2026, 2, 1)).outputs) == 2


def test_files_of_others_are_never_touched(store: Store, tmp_path: Path) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", who="ann")
    (tmp_path / "out").mkdir()
    theirs = tmp_path / "out" / f"{made.edit_ids[0]}.png"
    theirs.write_bytes(b"theirs")
    with pytest.raises(ContractError, match="another file"):
        release(store, made.edit_run, str(tmp_path / "out"), "a")
    assert theirs.read_bytes() == b"theirs"


def test_targets_inside_the_store_move_with_it(store: Store) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", who="ann")
    done = release(store, made.edit_run, "store:released/a/", "a")
    assert done.target == "store:released/a"
    assert (
        pixel_digest(read_png(Path(locate(store, done.outputs[0].uri)).read_bytes()))
        == done.outputs[0].pixel_sha256
    )
    assert release(store, made.edit_run, f"{store.uri}/released/a", "b").release_id == done.release_id
    assert len(canonical_digest(store)) == 64


@pytest.mark.parametrize(
    "target",
    [
        "",
        "store:",
        "store:private/x",
        "store:releases",
        "store:logs",
        "store:state/x",
        "store:tmp",
        "store:releasedx",
        "store:demo/photos",
        "s3://key:secret@bucket/x",
    ],
)
def test_unusable_targets_are_refused(store: Store, target: str) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", who="ann")
    with pytest.raises(ContractError) as caught:
        release(store, made.edit_run, target, "a")
    assert "secret" not in str(caught.value)
    with pytest.raises(ContractError):
        check_release(store, made.edit_run, target)


def test_what_is_asked_before_a_release_is_what_the_release_does(store: Store, tmp_path: Path) -> None:
    made = make_edits(store)
    with pytest.raises(ApprovalError, match="nothing is approved"):
        check_release(store, made.edit_run, str(tmp_path / "out"))
    decide(store, made.edit_run, approve=made.waiting[:1], who="ann")
    assert check_release(store, made.edit_run, str(tmp_path / "out")) == 1
    assert not (tmp_path / "out").exists()


def test_a_target_that_cannot_be_written_is_named_as_such(store: Store) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", who="ann")
    with pytest.raises(ContractError, match="target of the release") as caught:
        release(store, made.edit_run, "/proc/sdflow-released", "a")
    assert "--to" in str(caught.value) and "--store" not in str(caught.value)
    assert not list(releases(store))


def test_a_picture_rejected_after_its_release_is_named(store: Store, tmp_path: Path) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", who="ann")
    done = release(store, made.edit_run, str(tmp_path / "out"), "a")
    assert revoked(store) == []
    assert not (audit(store, done.outputs[0].uri)["release"] or {})["revoked"]
    decide(store, made.edit_run, reject=[done.outputs[0].edit_id], who="bob")
    assert [(out.edit_id, said.who) for _, out, said in revoked(store)] == [(done.outputs[0].edit_id, "bob")]
    assert (audit(store, done.outputs[0].uri)["release"] or {})["revoked"]


def test_a_source_that_was_replaced_takes_its_edits_with_it(store: Store, tmp_path: Path) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", who="ann")
    replace_source(store, made, 0)
    done = release(store, made.edit_run, str(tmp_path / "out"), "a")
    assert "replaced" in done.withheld[made.edit_ids[0]]


def test_other_file_systems(store: Store) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", who="ann")
    done = release(store, made.edit_run, "memory://bucket/out", "a")
    assert not release(store, made.edit_run, "memory://bucket/out", "a").new
    assert done.outputs[0].uri.startswith("memory://bucket/out/")
