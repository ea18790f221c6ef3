"""Are the records what was written, and is there room for the next night?"""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import Field

from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError, CorruptError
from sdflow_core.records.lookup import datasets
from sdflow_core.records.verification import (
    journal_roots,
    verify_journals,
    verify_shards,
    witnessed_roots,
)
from tasks.runtime import store_at
from tasks.step import Job, StepRun, step

_NAMED = 5  # findings that are told in full; more are counted


class VerifyPolicy(Config):
    """What to look at.

    Attributes:
        shards: Also read every shard of every table; without it the journals alone.
        min_free_gb: Least room on the disk of a local store; 0: do not ask.
    """

    shards: bool = Field(default=True, description="Also read every shard of every table.")
    min_free_gb: float = Field(
        default=2.0, ge=0, le=100_000, description="Least room on the disk of a local store; 0: do not ask."
    )


class Verified(Config):
    """What was looked at, and what is wrong with it.

    Attributes:
        journals: Journals read.
        entries: Entries of them.
        shards: Shards read.
        problems: How many findings.
        findings: The first of them.
    """

    journals: int = 0
    entries: int = 0
    shards: int = 0
    problems: int = 0
    findings: tuple[str, ...] = ()

    def with_findings(self, found: list[str]) -> Verified:
        """The same with what was found wrong."""
        return self.model_copy(update={"problems": len(found), "findings": tuple(found[:_NAMED])})


def datasets_of(job: Job) -> list[str]:
    """Names of the store's datasets."""
    return datasets(store_at(job.store))


@step("verify journals")
def verify_all_journals(run: StepRun) -> Verified:
    """Read every entry of every journal of the store again, and check the chains and their witnesses."""
    roots = sorted({*journal_roots(run.store), *witnessed_roots(run.store)})
    found = list(verify_journals(run.store, roots))
    told = [f"{one.wrong} in {one.name}: {one.todo}" for one in found if one.wrong]
    return Verified(journals=len(found), entries=sum(one.count for one in found)).with_findings(told)


@step("verify tables")
def verify_tables(run: StepRun) -> Verified:
    """Read every shard of the dataset's tables again, and compare it with its journal entry."""
    found = list(verify_shards(run.store, run.job.dataset))
    told = [f"{one.wrong} in {one.name}: {one.todo}" for one in found if one.wrong]
    return Verified(shards=sum(one.count for one in found)).with_findings(told)


@step("verify room")
def verify_room(run: StepRun, policy: VerifyPolicy) -> None:
    """Fail when the disk of a local store has no room for the next night.

    Raises:
        ContractError: How much is free.
    """
    if "://" in run.store.uri or not policy.min_free_gb:
        return
    free = shutil.disk_usage(Path(run.store.uri)).free / 1e9
    if free < policy.min_free_gb:
        raise ContractError(
            "the disk is nearly full",
            expected=f"{policy.min_free_gb:g} GB free",
            found=f"{free:.1f} GB",
            where=run.store.uri,
            todo="`sdflow gc --delete` frees what no journal names; else make room, or move the store",
        )


def summed(parts: list[Verified]) -> Verified:
    """All parts as one."""
    found = [text for part in parts for text in part.findings]
    return Verified(
        journals=sum(part.journals for part in parts),
        entries=sum(part.entries for part in parts),
        shards=sum(part.shards for part in parts),
        problems=sum(part.problems for part in parts),
        findings=tuple(found[:_NAMED]),
    )


def refuse(found: Verified, job: Job) -> None:
    """Fail loudly when anything is wrong.

    Raises:
        CorruptError: Names the first of it.
    """
    if found.problems:
        raise CorruptError(
            f"records are not what was written: {found.problems} of them",
            found="; ".join(found.findings),
            where=job.store,
            todo="restore these files from a backup; until then publish nothing",
        )
