"""What the doctor finds out about a bucket: who may read it without credentials, and how its clock goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import cli.doctor as doctor
from sdflow_core.records.store import Store, open_store
from tests.s3_server import ANONYMOUS, Identity, S3Server, s3_server

pytestmark = pytest.mark.s3


@pytest.fixture
def public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server that lets everybody read one of its buckets."""
    anybody = Identity(ANONYMOUS, "", ("Read:faces",))
    with s3_server(tmp_path, identities=(anybody,)) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        clients: Any = fsspec.get_filesystem_class("s3")
        clients.clear_instance_cache()  # they remember the server of other tests
        yield server
        clients.clear_instance_cache()


def checks(store: Store) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor._far_away(store)}


def test_a_bucket_that_anybody_can_read_is_named(public: S3Server) -> None:
    found = checks(open_store("s3://faces/store"))["access"]
    assert not found.ok and "ANYBODY" in found.found and "public access" in found.todo
    assert checks(open_store("s3://store/store"))["access"].ok
    assert list(open_store("s3://faces").list()) == [], "the probe does not stay"


def test_a_clock_that_goes_wrong_is_named(public: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("s3://store/store")
    assert checks(store)["clock"].ok
    late = time.time() + 300
    monkeypatch.setattr(doctor.time, "time", lambda: late)
    found = checks(store)["clock"]
    assert not found.ok and "clocks" in found.todo


def test_a_folder_has_neither(store: Store) -> None:
    assert checks(store) == {}
