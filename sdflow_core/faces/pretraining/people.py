"""Who is who: the split by person, and whether it leaves everybody enough."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from sdflow_core.records.errors import ContractError

__all__ = [
    "JUDGE_PART",
    "LABELLER_PART",
    "TEST_PART",
    "check_labels",
    "check_parts",
    "check_teachers",
    "part_of",
    "person_of",
    "together",
]

LABELLER_PART, JUDGE_PART, TEST_PART = 0, 1, 2
LEAST_LABELLED = 64  # a batch of the classifiers


def person_of(name: str) -> str:
    """The person a file shows: its folder, or the file itself where files lie flat."""
    return name.rsplit("/", 2)[-2] if name.count("/") >= 1 else name


def part_of(person: str) -> int:
    """55 % of people teach the labeller, 35 % the judge, 10 % are the test; by hash, so it never moves."""
    bucket = int(hashlib.sha256(person.encode()).hexdigest()[:8], 16) % 100
    return LABELLER_PART if bucket < 55 else JUDGE_PART if bucket < 90 else TEST_PART


def together(people: list[str], kin: npt.NDArray[np.int64]) -> list[str]:
    """People whose pictures may be one photograph get one name: the first of theirs in the alphabet."""
    leader: dict[str, str] = {}

    def of(name: str) -> str:
        while name in leader:
            name = leader[name]
        return name

    for a, b in kin:
        first, second = sorted((of(people[a]), of(people[b])))
        if first != second:
            leader[second] = first
    return [of(name) for name in people]


def check_teachers(count: int, minimum: int) -> None:
    """Enough pictures must be left to learn from when those of the test people are taken away.

    Raises:
        ContractError: There are fewer.
    """
    if count < minimum:
        raise ContractError(
            "too little to train on",
            expected=f"at least {minimum} pictures of people who are not kept for the test",
            found=count,
            todo="add pictures: one person of ten is kept for the test",
        )


def check_parts(part: npt.NDArray[np.int64], people: int) -> None:
    """Labeller, judge and test must each have people of their own.

    Raises:
        ContractError: One of them has none.
    """
    if len(np.unique(part)) < 3:
        raise ContractError(
            "the pictures cannot be split by person",
            expected="people for the labeller, for the judge and for the test",
            found=f"{people} people: a folder is a person, a file that lies flat one of its own",
            todo="name the folder that holds the people's folders, or lay the files flat",
        )


def check_labels(
    part: npt.NDArray[np.int64], calibrates: npt.NDArray[np.bool_], labelled: npt.NDArray[np.bool_]
) -> None:
    """Labeller, judge and test must each have enough labelled pictures: all [N], over pictures.

    Raises:
        ContractError: Naming what is short, and by how much.
    """
    wanted = (
        ("the labeller", (part == LABELLER_PART) & ~calibrates, LEAST_LABELLED),
        ("the judge", (part == JUDGE_PART) & ~calibrates, LEAST_LABELLED),
        ("the test", part == TEST_PART, 1),
    )
    found = {name: (int((rows & labelled).sum()), least) for name, rows, least in wanted}
    if any(count < least for count, least in found.values()):
        raise ContractError(
            "too few labels to train on",
            expected=", ".join(f"{least} labelled pictures for {name}" for name, (_, least) in found.items()),
            found=", ".join(f"{count} for {name}" for name, (count, _) in found.items()),
            todo="add labels: about half of the people teach the labeller, a third the judge, by a hash of"
            " their names",
        )
