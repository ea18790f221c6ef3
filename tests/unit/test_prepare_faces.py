"""The recipe that lays two research sets out for a pretraining, on archives with no real picture in them."""

from __future__ import annotations

import csv
import io
import math
import tarfile
from pathlib import Path

import pytest

from embedded_models.recipe.prepare_faces import GROUPS, LFW_COLUMNS, ROOT, age_band, prepare, young
from sdflow_core.faces.pretraining.data import person_of
from sdflow_core.faces.pretraining.labels import match_labels, read_label_table


def archive(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as files:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            files.addfile(member, io.BytesIO(name.encode()))
    return path


def attributes(path: Path, names: list[str]) -> Path:
    row = dict.fromkeys(LFW_COLUMNS.values(), "0.25") | {"df_race": "latino hispanic", "df_gender": "Man"}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", *row, "df_age"])
        writer.writeheader()
        for name in names:
            writer.writerow({"path": name, **row, "df_age": "44"})
    return path


def test_two_sets_become_one_folder_and_one_table(tmp_path: Path) -> None:
    lfw = archive(
        tmp_path / "lfw.tar", ["lfw/Ann/Ann_1.jpg", "lfw/Ann/Ann_2.jpg", "lfw/../../evil.jpg", "notes.txt"]
    )
    csv_file = attributes(tmp_path / "a.csv", ["lfw/Ann/Ann_1.jpg", "lfw/Gone/Gone_1.jpg"])
    utk = archive(
        tmp_path / "utk.tar",
        ["utkface/26_1_2_2017.jpg.chip.jpg", "utkface/70_0_4_2017.jpg.chip.jpg", "utkface/20_1.jpg"],
    )
    to = tmp_path / "out"
    said = prepare(to, lfw, csv_file, utk)
    assert said == prepare(to, lfw, csv_file, utk), "twice is once"
    names = sorted(p.relative_to(to / "faces").as_posix() for p in (to / "faces").rglob("*") if p.is_file())
    assert names == [
        "lfw/Ann/Ann_1.jpg",
        "lfw/Ann/Ann_2.jpg",
        "utkface_26_1_2_2017.jpg.chip.jpg",
        "utkface_70_0_4_2017.jpg.chip.jpg",
    ]
    assert not (tmp_path / "evil.jpg").exists()
    assert [said[key] for key in ("lfw", "lfw_labels_without_file", "utkface", "utkface_unnamed")] == [
        2,
        1,
        2,
        1,
    ]
    assert len({person_of(name) for name in names}) == 3, "each file of UTKFace is a person"
    table = read_label_table((to / "labels.csv").read_bytes(), ["male", "young", "beard", "smiling"], GROUPS)
    assert match_labels(names, table).unknown == ()
    assert table.scores["lfw/Ann/Ann_1.jpg"] == [0.25, 0.25, 0.75, 0.25]
    assert table.categories["lfw/Ann/Ann_1.jpg"] == ("man", "30-44", "other")
    woman = table.scores["utkface_26_1_2_2017.jpg.chip.jpg"]
    assert woman[:2] == [0.0, 1.0] and all(math.isnan(value) for value in woman[2:])
    assert table.categories["utkface_26_1_2_2017.jpg.chip.jpg"] == ("woman", "18-29", "asian")
    assert table.scores["utkface_70_0_4_2017.jpg.chip.jpg"][:2] == [1.0, 0.0]


def test_ages() -> None:
    assert [young(age) for age in (1, 30, 35, 40, 50, 116)] == [1.0, 1.0, 0.75, 0.5, 0.0, 0.0]
    assert [age_band(age) for age in (0, 17, 18, 59, 60, 116)] == [
        "0-17",
        "0-17",
        "18-29",
        "45-59",
        "60+",
        "60+",
    ]


def test_no_picture_gets_into_the_repository(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="outside"):
        prepare(ROOT / "faces", None, None, archive(tmp_path / "utk.tar", ["utkface/26_1_2_2017.jpg"]))
    assert not (ROOT / "faces").exists()
    with pytest.raises(SystemExit, match="--lfw"):
        prepare(tmp_path, tmp_path / "lfw.tar", None, None)
