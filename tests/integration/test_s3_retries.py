"""Faults of single requests, through both clients: what is tried again, how often, and whose write it was."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from sdflow_core.records import retrying, s3_bucket
from sdflow_core.records.errors import ContractError, NotFoundError, TransientError, UnavailableError
from sdflow_core.records.journal import Journal
from sdflow_core.records.store import Store, open_store
from tests.s3_answers import Answers, Fault, answering

pytestmark = pytest.mark.s3

LOST = Fault(done=True)
RESET = Fault()
SLOW = Fault(503, "SlowDown")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Answers]:
    with answering() as made:
        yield made


@pytest.fixture(scope="module", params=["obstore", "s3fs"])
def client(request: pytest.FixtureRequest, endpoint: Answers) -> Store:
    """A store whose clients are built once: that takes longer than any of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AWS_"):
                patch.delenv(name)
        for name, value in endpoint.environment().items():
            patch.setenv(name, value)
        patch.setenv("SDFLOW_S3_CLIENT", request.param)
        made = open_store("s3://store/r")
        made.check()
        assert (s3_bucket.bucket_of("store").fast is None) == (request.param == "s3fs")
        return made


@pytest.fixture
def answers(endpoint: Answers) -> Answers:
    """The endpoint, as new."""
    endpoint.faults, endpoint.for_ever = [], False
    endpoint.requests.clear()
    endpoint.objects.clear()
    return endpoint


@pytest.fixture
def store(client: Store, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> Store:
    # the pauses are drawn as ever, and not waited for
    monkeypatch.setattr(retrying.Policy, "pause", lambda self, attempt: 0.0)
    return client


@pytest.mark.parametrize("fault", [RESET, SLOW, Fault(500, "InternalError"), Fault(503), Fault(429)])
def test_a_bad_moment_is_tried_again(store: Store, answers: Answers, fault: Fault) -> None:
    for act in (
        lambda: store.put("a", b"1"),
        lambda: store.read("a") == b"1",
        lambda: store.stat("a").size_bytes == 1,
        lambda: store.create("b", b"1"),
        lambda: store.delete("b"),
    ):
        answers.faults = [fault, fault]
        assert act() is not False
        assert answers.faults == []


@pytest.mark.parametrize("act", ["read", "put", "create", "stat", "delete"])
def test_a_permanent_503_makes_six_requests(store: Store, answers: Answers, act: str) -> None:
    answers.faults, answers.for_ever = [SLOW], True
    with pytest.raises(UnavailableError, match="too busy"):
        getattr(store, act)(*(["a", b"1"] if act in ("put", "create") else ["a"]))
    assert len(answers.requests) == retrying.STEADY.attempts == 6


@pytest.mark.parametrize("code", ["AccessDenied", "SignatureDoesNotMatch", "ExpiredToken", "QuotaExceeded"])
def test_what_will_not_get_better_is_asked_once(store: Store, answers: Answers, code: str) -> None:
    answers.faults = [Fault(403, code)]
    with pytest.raises(ContractError):
        store.read("a")
    assert answers.requests == ["GET"]


def test_a_body_that_was_cut_is_noticed(store: Store, answers: Answers) -> None:
    store.put("a", bytes(range(256)) * 400)
    answers.faults = [Fault(cut=True), Fault(cut=True)]
    assert store.read("a") == bytes(range(256)) * 400
    answers.faults = [Fault(cut=True)]
    with store.open_input("a") as file:
        assert file.read() == bytes(range(256)) * 400
    answers.faults, answers.for_ever = [Fault(cut=True)], True
    with pytest.raises(TransientError):
        store.read("a")


@pytest.mark.parametrize("fault", [LOST, Fault(500, "InternalError", done=True), Fault(503, done=True)])
def test_a_create_whose_acknowledgement_was_lost_is_ours(
    store: Store, answers: Answers, fault: Fault
) -> None:
    answers.faults = [fault]
    assert store.create("a", b"mine")
    assert answers.objects["/store/r/a"] == b"mine"
    assert not store.create("a", b"mine")  # nothing was lost here: it was there before


def test_a_create_that_failed_and_came_too_late_is_not_ours(store: Store, answers: Answers) -> None:
    answers.objects["/store/r/a"] = b"theirs"
    answers.faults = [RESET]
    assert not store.create("a", b"mine")
    assert answers.objects["/store/r/a"] == b"theirs"


def test_a_conflict_of_writers_is_tried_again(store: Store, answers: Answers) -> None:
    answers.faults = [Fault(409, "ConditionalRequestConflict")] * 3
    assert store.create("a", b"mine")


def test_a_journal_whose_acknowledgements_are_lost_has_every_entry_once(
    store: Store, answers: Answers
) -> None:
    journal = Journal(store, "journal")
    for number in range(5):
        answers.faults = [LOST]
        assert journal.append("note", {"number": number}) is not None
    assert [entry.payload["number"] for entry in journal.entries()] == list(range(5))


def test_missing_is_no_fault(store: Store, answers: Answers) -> None:
    before = answers.listings
    with pytest.raises(NotFoundError):
        store.read("a")
    assert not store.exists("a")
    assert answers.listings == before  # the journal asks for what is not there all the time
    assert answers.requests == ["GET", "HEAD"]
