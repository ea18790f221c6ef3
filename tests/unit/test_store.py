"""The store: create once, replace atomically, list in order, refuse with a clear word."""

from __future__ import annotations

import os
import pickle
import uuid
from pathlib import Path

import pytest

from sdflow_core.records.errors import ContractError, NotFoundError
from sdflow_core.records.store import LocalStore, RemoteStore, Store, open_store


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    if request.param == "s3":
        request.getfixturevalue("s3")
        return open_store(f"s3://store/{uuid.uuid4().hex}/store")
    return open_store(f"memory://{uuid.uuid4().hex}/store")


def test_create_writes_once(any_store: Store) -> None:
    assert any_store.create("a/b.txt", b"one")
    assert not any_store.create("a/b.txt", b"two")
    assert any_store.read("a/b.txt") == b"one"
    assert any_store.exists("a/b.txt")
    assert any_store.stat("a/b.txt").size_bytes == 3


def test_put_replaces_and_changes_the_etag(any_store: Store) -> None:
    any_store.put("cache", b"one")
    before = any_store.stat("cache").etag
    any_store.put("cache", b"three")
    assert any_store.read("cache") == b"three"
    assert any_store.stat("cache").etag != before


def test_missing_objects(any_store: Store) -> None:
    for ask in (any_store.read, any_store.stat, any_store.open_input):
        with pytest.raises(NotFoundError):
            ask("nothing/here")
    assert not any_store.exists("nothing/here")
    any_store.delete("nothing/here")
    assert list(any_store.list("nothing/")) == []


def test_list_is_sorted_by_whole_keys_and_takes_any_prefix(any_store: Store) -> None:
    keys = ["a.b", "a/b", "a/c/d", "a0", "b/x", "é/y"]
    for key in reversed(keys):
        any_store.create(key, b"")
    assert list(any_store.list()) == sorted(keys)
    assert list(any_store.list("a/")) == ["a/b", "a/c/d"]
    assert list(any_store.list("a/c")) == ["a/c/d"]
    assert list(any_store.list("a")) == ["a.b", "a/b", "a/c/d", "a0"]


def test_delete(any_store: Store) -> None:
    any_store.create("a/b", b"1")
    any_store.delete("a/b")
    assert not any_store.exists("a/b")


def test_open_input_is_seekable(any_store: Store) -> None:
    any_store.create("a", b"0123456789")
    with any_store.open_input("a") as file:
        file.seek(4)
        assert file.read(3) == b"456"


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a/../b", "a//b", "./a", "a/", "a\0b", "a/.tmp-1"])
def test_keys_stay_inside(any_store: Store, key: str) -> None:
    with pytest.raises(ContractError):
        any_store.create(key, b"")


def test_stores_can_be_sent_to_other_processes(any_store: Store) -> None:
    any_store.create("a", b"1")
    again = pickle.loads(pickle.dumps(any_store))
    assert again.uri == any_store.uri
    assert again.read("a") == b"1"


def test_addresses() -> None:
    assert isinstance(open_store("file:///x/y"), LocalStore)
    assert open_store("file:///x/y").url("a/b") == "/x/y/a/b"
    assert isinstance(open_store("memory://x"), RemoteStore)
    with pytest.raises(ContractError, match="no address"):
        open_store("")
    with pytest.raises(ContractError, match="not available"):
        open_store("nosuchscheme://x").read("a")


def test_opening_makes_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "new"))
    assert not store.exists("a")
    assert list(store.list()) == []
    assert not (tmp_path / "new").exists()


def test_unwritable_store_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "file"))
    for write in (store.check_writable, lambda: store.create("a/b", b""), lambda: store.put("a/b", b"")):
        with pytest.raises(ContractError, match="cannot be written.*What to do"):
            write()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ContractError, match="cannot be written"):
        open_store(str(tmp_path)).check_writable()


def test_a_failed_write_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(ContractError, match="free some space"):
        store.create("a/b", b"x" * 1000)
    monkeypatch.undo()
    assert [path for path in Path(store.uri).rglob("*") if path.is_file()] == []


def test_leftovers_of_killed_writers_are_not_listed(store: Store) -> None:
    store.create("a/b", b"1")
    (Path(store.uri) / "a" / ".tmp-123").write_bytes(b"half")
    assert list(store.list()) == ["a/b"]


def test_key_files_are_for_their_owner(store: Store) -> None:
    store.create("private/secret.key", b"1")
    assert (Path(store.uri) / "private/secret.key").stat().st_mode & 0o077 == 0
