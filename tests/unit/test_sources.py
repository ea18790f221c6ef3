"""Sources: everything that was handed over is listed, whatever its name; what cannot be read says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdflow_core.records.errors import ContractError, NotFoundError
from sdflow_core.records.store import Store, open_source, open_store


def test_lists_recursively_in_order_with_relative_names(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/z.png", "a.jpg", "ünï – 名.jpg", "x" * 250 + ".jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    source = open_source(str(tmp_path))
    items = list(source.list())
    assert [item.name for item in items] == ["a.jpg", "a/z.png", "b.jpg", "x" * 250 + ".jpg", "ünï – 名.jpg"]
    assert [source.read(item) for item in items] == [item.name.encode() for item in items]
    assert all(item.size_bytes == len(item.name.encode()) and item.mtime_ns for item in items)
    assert items[0].uri == str(tmp_path / "a.jpg")


def test_names_that_are_no_utf8_are_printable(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"bad-\xff.jpg")).write_bytes(b"1")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    source = open_source(str(tmp_path))
    (item,) = source.list()
    assert item.name == "bad-\\xff.jpg"
    item.uri.encode("utf-8")
    assert source.read(item) == b"1"


def test_files_inside_the_store_are_named_relative_to_it(store: Store) -> None:
    store.create("demo/faces/a.jpg", b"1")
    for uri in (f"{store.uri}/demo/faces", "store:demo/faces"):
        source = open_source(uri, store)
        (item,) = source.list()
        assert (item.name, item.uri) == ("a.jpg", "store:demo/faces/a.jpg")
        assert source.read(item) == b"1"


def test_a_store_inside_the_source_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    store = open_store(str(tmp_path / "sdflow-store"))
    store.create("x/y", b"1")
    assert [item.name for item in open_source(str(tmp_path), store).list()] == ["a.jpg"]


def test_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    assert [item.name for item in open_source(str(tmp_path / "a.jpg")).list()] == ["a.jpg"]


def test_remote_sources() -> None:
    store = open_store("memory://bucket/raw")
    store.create("faces/a.jpg", b"1")
    source = open_source("memory://bucket/raw/faces", store)
    (item,) = source.list()
    assert (item.name, item.uri, item.size_bytes) == ("a.jpg", "store:faces/a.jpg", 1)
    assert source.read(item) == b"1"
    with pytest.raises(NotFoundError):
        list(open_source("memory://bucket/nothing").list())


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone")
    source = open_source(str(tmp_path))
    dangling, pipe = source.list()
    with pytest.raises(NotFoundError, match="gone"):
        source.read(dangling)
    with pytest.raises(ContractError, match="not a regular file"):
        source.read(pipe)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_without_permission(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "a.jpg").chmod(0)
    (tmp_path / "closed").mkdir(mode=0)
    source = open_source(str(tmp_path))
    items = list(source.list())
    assert [item.name for item in items] == ["a.jpg", "closed/"]
    for item in items:
        with pytest.raises(ContractError):
            source.read(item)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        list(open_source(str(tmp_path / "nothing")).list())
    with pytest.raises(ContractError):
        open_source("store:a")
    with pytest.raises(ContractError):
        open_source("")
    assert list(open_source(str(tmp_path)).list()) == []
