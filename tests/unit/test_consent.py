"""Consent: no line, no edit; and a bad line is named."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from sdflow_core.records.consent import ConsentList, subject_hmac
from sdflow_core.records.errors import ContractError, NotFoundError
from sdflow_core.records.store import Store, open_store

TODAY = date(2026, 6, 1)
LIST = """source,subject,attributes,expires,evidence
ann.jpg,ann,smiling;young,2026-06-01,form-17
old.jpg,bob,*,2026-05-31,form-18

team/*,team,*,,contract-4
team/x*.jpg,nobody,*,,never reached
a[1].jpg,carl,*,,form-19
"""


def test_exact_names_patterns_and_ends() -> None:
    consents = ConsentList.read(LIST)
    ann = consents.for_source("ann.jpg", TODAY)
    assert ann is not None and (ann.subject, ann.expires, ann.evidence) == ("ann", TODAY, "form-17")
    assert ann.allows("smiling") and not ann.allows("eyeglasses")
    assert consents.for_source("ann.jpg", date(2026, 6, 2)) is None
    assert consents.for_source("old.jpg", TODAY) is None
    team = consents.for_source("team/a/xb.jpg", TODAY)
    assert team is not None and team.subject == "team" and team.allows("anything")
    assert consents.for_source("stranger.jpg", TODAY) is None
    for name in ("a[1].jpg", "a1.jpg"):
        carl = consents.for_source(name, TODAY)
        assert carl is not None and carl.subject == "carl"
    assert len(consents) == 5


def test_why_not() -> None:
    consents = ConsentList.read(LIST.encode("utf-8-sig"))
    assert consents.why_not("ann.jpg", TODAY) == ""
    assert consents.why_not("old.jpg", TODAY) == "consent ended on 2026-05-31"
    assert consents.why_not("stranger.jpg", TODAY) == "no consent for this source"


def test_an_exact_line_that_ended_does_not_fall_back_to_a_pattern() -> None:
    text = "source,subject,attributes,expires,evidence\n*,all,*,,x\nann.jpg,ann,*,2020-01-01,y\n"
    assert ConsentList.read(text).for_source("ann.jpg", TODAY) is None


def test_names_are_compared_as_people_see_them() -> None:
    consents = ConsentList.read("source,subject,attributes,expires,evidence\nu\u0308.jpg,u,*,,x\n")
    assert consents.for_source("\u00fc.jpg", TODAY) is not None


def test_names_may_begin_or_end_with_a_space() -> None:
    text = 'source,subject,attributes,expires,evidence\n" ann.jpg ",ann,*,,x\nbob.jpg , bob,*,,y\n'
    consents = ConsentList.read(text)
    assert consents.for_source(" ann.jpg ", TODAY) is not None
    assert (
        consents.for_source("ann.jpg", TODAY) is not None
    )  # spaces beside a comma are mostly no part of a name
    assert consents.for_source("bob.jpg", TODAY) is not None
    assert consents.for_source(" bob.jpg", TODAY) is None


def test_digest_is_of_what_was_allowed() -> None:
    text = "source,subject,attributes,expires,evidence\na,s,x,,e\nb,s,x,,e\nc,s,y,,e\n"
    a, b, c = (ConsentList.read(text).for_source(name, TODAY) for name in "abc")
    assert a is not None and b is not None and c is not None
    assert a.digest == b.digest != c.digest


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("source,subject\n", "header.*line 1"),
        ("source,subject,attributes,expires,evidence\na,b,c\n", "number of cells.*line 2"),
        ("source,subject,attributes,expires,evidence\na,b,*,tomorrow,e\n", "date.*tomorrow.*line 2"),
        ("source,subject,attributes,expires,evidence\n\na,,*,,e\n", "empty subject.*line 3"),
        ("source,subject,attributes,expires,evidence\na,b,,,e\n", "empty attributes.*line 2"),
        ("source,subject,attributes,expires,evidence\na,b,*,,e\na,c,*,,e\n", "twice.*lines 2 and 3"),
        ('source,subject,attributes,expires,evidence\n"a"x,b,*,,e\n', "no CSV.*line 2"),
        (b"source,subject,attributes,expires,evidence\n\xff,b,*,,e\n", "UTF-8.*line 2"),
    ],
)
def test_a_bad_list_names_the_line(text: str | bytes, word: str) -> None:
    with pytest.raises(ContractError, match=f"(?s){word}"):
        ConsentList.read(text)


def test_subjects_are_named_by_a_secret_of_the_store(
    store: Store, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = open_store(str(tmp_path_factory.mktemp("other")))
    name = subject_hmac(store, "ann")
    assert name == subject_hmac(store, "ann") and len(name) == 64
    assert name != subject_hmac(store, "bob") and name != subject_hmac(other, "ann")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("a.jpg,ann,;,,x", "attributes"),
        ("/photos/a.jpg,ann,*,,x", "relative"),
        ("s3://bucket/a.jpg,ann,*,,x", "relative"),
        ("C:\\photos\\a.jpg,ann,*,,x", "relative"),
        ("a.jpg,ann,*,20271231,x", "date"),
        ("a.jpg,ann,*,2027-W52-5,x", "date"),
    ],
)
def test_what_cannot_be_meant_is_refused(line: str, word: str) -> None:
    with pytest.raises(ContractError, match=word) as caught:
        ConsentList.read(f"source,subject,attributes,expires,evidence\n{line}\n")
    assert caught.value.where == "line 2"


def test_lines_that_do_nothing_are_named() -> None:
    consents = ConsentList.read(LIST)
    assert consents.unused(["ann.jpg", "old.jpg", "team/xa.jpg"]) == [6, 7]
    assert consents.unused([]) == [2, 3, 5, 6, 7]
    assert consents.unknown_attributes(["smiling"]) == ["young"]


def test_a_list_that_is_not_there_is_named_as_the_list(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="the consent list does not exist"):
        ConsentList.load(str(tmp_path / "none.csv"))
    (tmp_path / "two").mkdir()
    with pytest.raises(ContractError, match="one CSV file"):
        ConsentList.load(str(tmp_path / "two"))
