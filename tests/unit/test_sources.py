"""Sources: everything that was handed over is listed, whatever its name; what cannot be read says so."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sdflow_core.records import sources
from sdflow_core.records.errors import ContractError, NotFoundError, TransientError
from sdflow_core.records.sources import UnfitError
from sdflow_core.records.store import Store, open_source, open_store
from tests.hostile import bound_by_permissions


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
    with pytest.raises(NotFoundError, match="leads to no file"):
        source.read(dangling)
    with pytest.raises(UnfitError, match="a pipe, not a file"):
        source.read(pipe)


def test_without_permission(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "a.jpg").chmod(0)
    (tmp_path / "closed").mkdir(mode=0)
    source = open_source(str(tmp_path))
    with bound_by_permissions() as bound:
        if not bound:
            pytest.skip("this process may read everything, and cannot give that up")
        items = list(source.list())
        assert [item.name for item in items] == ["a.jpg", "closed/"]
        for item, what in zip(items, ("read the file", "open the folder"), strict=True):
            with pytest.raises(ContractError, match=f"no permission to {what}") as caught:
                source.read(item)
            assert not isinstance(caught.value, UnfitError)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        list(open_source(str(tmp_path / "nothing")).list())
    with pytest.raises(ContractError):
        open_source("store:a")
    with pytest.raises(ContractError):
        open_source("")
    assert list(open_source(str(tmp_path)).list()) == []


def test_two_names_never_become_one(tmp_path: Path) -> None:
    names = [
        b"a\xff.jpg",
        b"a\\xff.jpg",
        b"a\\\xff.jpg",
        b"a\\\\xff.jpg",
        b"a\\b.jpg",
        "aÿ.jpg".encode(),
        b"%61.jpg",
    ]
    for name in names:
        try:
            (tmp_path / os.fsdecode(name)).write_bytes(name)
        except OSError:
            pytest.skip("this file system wants UTF-8")
    source = open_source(str(tmp_path))
    items = list(source.list())
    assert {source.read(item) for item in items} == set(names)
    assert len({item.name for item in items}) == len({item.uri for item in items}) == len(names)
    assert {"a\\b.jpg", "aÿ.jpg", "%61.jpg"} <= {item.name for item in items}  # as they are
    json.dumps([item.path for item in items], ensure_ascii=False).encode("utf-8")


def test_folders_may_lie_deeper_than_python_recurses(tmp_path: Path) -> None:
    at = tmp_path
    for _ in range(1_100):
        at = at / "d"
        at.mkdir()
    (at / "a.jpg").write_bytes(b"1")
    source = open_source(str(tmp_path))
    (item,) = source.list()
    assert item.name == "d/" * 1_100 + "a.jpg" and source.read(item) == b"1"
    (at / "a.jpg").unlink()
    while at != tmp_path:  # pytest's own way to remove it recurses
        at.rmdir()
        at = at.parent


def test_what_is_no_file_or_too_large_is_never_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "folder").symlink_to(".")
    (tmp_path / "large.jpg").write_bytes(bytes(11))
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 10)
    source = open_source(str(tmp_path))
    words = ["circle", "link to a folder", "too large", "device"]
    for item, word in zip(source.list(), words, strict=True):
        with pytest.raises(UnfitError, match=word) as caught:
            source.read(item)
        assert str(tmp_path) not in str(caught.value)


class _Tagged(MemoryFileSystem):
    """A server that names versions, as object stores do; the tag of `large/*` is no MD5."""

    protocol = "tagged"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def info(self, path: str, **kwargs: Any) -> Any:
        found = super().info(path, **kwargs)
        if found["type"] == "file":
            tag = hashlib.md5(self.cat_file(path)).hexdigest()
            found = {**found, "ETag": f'"{tag}-2"' if "large" in path else f'"{tag}"'}
        return found

    def find(self, path: str, **kwargs: Any) -> Any:
        return {name: self.info(name) for name in super().find(path)}


def test_an_object_that_changed_after_listing_is_tried_again() -> None:
    fsspec.register_implementation("tagged", _Tagged, clobber=True)
    fs = fsspec.filesystem("tagged")
    for name in ("large/a", "plain/a", "plain/b"):
        fs.pipe_file(f"/bucket/{name}", b"first")
    source = open_source("tagged://bucket")
    items = list(source.list())
    assert [source.read(item) for item in items] == [b"first"] * 3
    fs.pipe_file("/bucket/large/a", b"other")
    fs.pipe_file("/bucket/plain/a", b"other")
    fs.pipe_file("/bucket/plain/b", b"longer than before")
    for item in items:
        with pytest.raises(TransientError, match="changed between listing and reading"):
            source.read(item)


def test_one_place_has_one_uri_however_it_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"x")
    monkeypatch.chdir(photos)
    spelled = (str(photos), "../photos", f"{photos}/../photos/", ".", f"file://{photos}")
    assert len({item.uri for uri in spelled for item in open_source(uri).list()}) == 1
