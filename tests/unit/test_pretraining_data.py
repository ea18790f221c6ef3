"""What a pretraining is given: how labels and pictures can be wrong, and what becomes of them."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from sdflow_core.faces.detect import Face
from sdflow_core.faces.pretraining.calibration import held_out
from sdflow_core.faces.pretraining.data import DataConfig, FaceSet, align_face, load_faces, part_of
from sdflow_core.faces.pretraining.duplicates import find_duplicates
from sdflow_core.faces.pretraining.labels import match_labels, read_label_table
from sdflow_core.faces.pretraining.run import _calibrates
from sdflow_core.faces.pretraining.sampling import group_counts, sampling_weights
from sdflow_core.records.errors import AccessError, ContractError, NotFoundError, TransientError
from tasks.pretrain import folder_of

A = ("smiling", "young")
HEAD = b"path,smiling,young,race\n"
GOOD = HEAD + b"a.jpg,0.5,1,x\nb.jpg,,0,\n"


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        (b"", ["empty file"]),
        (b"\n \n", ["empty file"]),
        (HEAD, ["header alone"]),
        (b"path,smiling\na.jpg,1\n", ["no column young, race", "line 1"]),
        (b"path;smiling;young;race\na.jpg;1;1;x\n", ["no column", "commas"]),
        (b"path,smiling,young,race,Young\na.jpg,1,1,x,1\n", ["young twice", "line 1"]),
        (HEAD + b"a.jpg,0.5,1,x\nb.jpg,1.5,1,x\n", ["'1.5'", "line 3, column smiling"]),
        (HEAD + b"a.jpg,-0.1,1,x\n", ["line 2, column smiling"]),
        (HEAD + b"a.jpg,1,nan,x\n", ["'nan'", "line 2, column young"]),
        (HEAD + b"a.jpg,1,inf,x\n", ["line 2, column young"]),
        (HEAD + b"a.jpg,1,yes,x\n", ["'yes'", "line 2, column young"]),
        (HEAD + b"a.jpg,1,1,x\nb.jpg,1,1,x\n./a.jpg,0,0,x\n", ["listed twice", "line 2", "line 4"]),
        (HEAD + b",1,1,x\n", ["name of a file", "line 2, column path"]),
        (HEAD + b"a.jpg,1,1\n", ["4 cells", "line 2"]),
        (HEAD + b"a.jpg,1,1,x,y\n", ["4 cells", "line 2"]),
        (HEAD + b'a.jpg,1,1,"x"y\n', ["line 2"]),
        (HEAD + b"a.jpg,1,1,x\ncaf\xe9.jpg,1,1,x\n", ["UTF-8", "line 3"]),
        (GOOD.decode().encode("utf-16"), ["UTF-8"]),
        (HEAD + b"a.jpg,,1,x\nb.jpg,,0,x\n", ["empty cells alone", "column smiling"]),
    ],
)
def test_a_wrong_label_table_is_refused_with_its_place(table: bytes, parts: list[str]) -> None:
    with pytest.raises(ContractError) as refused:
        read_label_table(table, A, ("race",))
    for part in parts:
        assert part in str(refused.value)


def test_empty_cells_are_unknown_and_categories_are_any_text() -> None:
    table = read_label_table(b"\xef\xbb\xbf" + GOOD, A, ("race",))
    assert table.scores["a.jpg"] == [0.5, 1.0]
    assert math.isnan(table.scores["b.jpg"][0]) and table.scores["b.jpg"][1] == 0.0
    assert table.categories == {"a.jpg": ("x",), "b.jpg": ("",)}
    assert table.remarks() == ["column smiling has no value above 0.5: nothing can be learned from it"]


@pytest.mark.parametrize(
    ("paths", "names", "found"),
    [
        (["p/1", "q/1"], ["p/1", "q/1"], {"p/1": "p/1", "q/1": "q/1"}),
        (["set/p/1", "set/q/1"], ["p/1", "q/1"], {"p/1": "set/p/1", "q/1": "set/q/1"}),
        (["p/1"], ["set/p/1", "set/q/1"], {"set/p/1": "p/1"}),
        (["set/p/1", "set/q/1"], ["p/1", "q/1", "set/p/1"], {"p/1": "set/p/1", "q/1": "set/q/1"}),
        # two sets hold a person of one name: a label never goes to the wrong one
        (["p/1", "q/1"], ["x/p/1", "y/p/1", "x/q/1"], {"x/q/1": "q/1"}),
    ],
)
def test_labels_find_their_files(paths: list[str], names: list[str], found: dict[str, str]) -> None:
    table = read_label_table(b"path,a\n" + "".join(f"{p},1\n" for p in paths).encode(), ["a"])
    matching = match_labels(names, table)
    assert matching.label_of == found
    assert set(matching.unknown) == set(paths) - set(found.values())


def test_labels_that_name_no_file() -> None:
    rows = "".join(f"p{i}.jpg,1\n" for i in range(9)).encode()
    table = read_label_table(b"path,a\n" + rows, ["a"])
    assert match_labels([f"p{i}.jpg" for i in range(2, 9)], table).remarks(table) == [
        "2 of 9 labels name no file, for example line 2, line 3"
    ]
    with pytest.raises(ContractError, match="9 labels .lines 2, 3, 4, ...") as refused:
        match_labels(["other.jpg"], table)
    assert "p1.jpg" not in str(refused.value) and "other.jpg" not in str(refused.value)
    with pytest.raises(ContractError, match="other.jpg"):
        match_labels(["other.jpg"], table, show_names=True)


def test_an_attribute_that_no_picture_is_labelled_for() -> None:
    table = read_label_table(b"path,a,b\np.jpg,1,\nq.jpg,,1\n", ["a", "b"])
    assert len(match_labels(["p.jpg", "q.jpg"], table).label_of) == 2
    with pytest.raises(ContractError, match="values of b"):
        match_labels(["p.jpg"], table)


class Seen:
    """A detector that reads its answer from the picture's first pixels: what to find, and where."""

    digest = "seen"

    def find(self, image: np.ndarray) -> list[Face]:
        kind = int(image[0, 0, 0]) // 20
        middle = np.array([image.shape[1], image.shape[0]]) / 2
        size = min(image.shape[:2]) / 4

        def face(at: np.ndarray, size: float, turned: bool = False) -> Face:
            unit = np.array([[-0.4, -0.4], [0.4, -0.4], [0, 0], [-0.35, 0.4], [0.35, 0.4]])
            return Face(np.array([*(at - size), 2 * size, 2 * size]), at + unit * size, 0.9, turned)

        return {
            0: lambda: [face(middle, size)],
            1: list[Face],
            2: lambda: [face(middle * (0.6, 1), size), face(middle * (1.4, 1), size)],
            3: lambda: [face(middle, size, turned=True)],
            4: lambda: [face(middle * (0.05, 1), size)],
            5: lambda: [face(middle, 4.0)],
            6: lambda: [face(middle * (0.35, 1), size)],
            7: lambda: [face(middle, size), face(middle * (0.2, 0.2), size / 3)],
        }[kind]()


def picture(seed: int, kind: int = 0, width: int = 96, height: int = 96) -> bytes:
    rough = np.random.default_rng(seed).integers(60, 250, (12, 12, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)).copy()
    pixels[0, 0] = kind * 20 + 5
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def loaded(files: dict[str, Callable[[], bytes]], labels: bytes = b"", **options: object) -> FaceSet:
    names = sorted(files)
    table = read_label_table(labels or b"path,a\n" + "".join(f"{n},1\n" for n in names).encode(), ["a"])
    config = DataConfig(minimum=1, max_overhang=0.1, min_eye_distance_px=12)
    given = [(name, files[name]) for name in names]
    return load_faces(given, table, ("a",), size=32, detector=Seen(), config=config, **options)  # type: ignore[arg-type]


def people(count: int) -> dict[str, Callable[[], bytes]]:
    """Enough for all three parts."""
    return {f"person {i:03d}.png": (lambda i=i: picture(i)) for i in range(count)}


def test_unusable_pictures_are_dropped_with_reasons_and_sizes_may_differ() -> None:
    def gone() -> bytes:
        raise NotFoundError("the file vanished between listing and reading")

    files = people(40) | {
        "large.png": lambda: picture(100, 0, 300, 211),
        "two and one in the middle.png": lambda: picture(101, 7),
        "nobody.png": lambda: picture(102, 1),
        "couple.png": lambda: picture(103, 2),
        "turned.png": lambda: picture(104, 3),
        "cut.png": lambda: picture(105, 4),
        "small.png": lambda: picture(106, 5),
        "edge.png": lambda: picture(107, 6),
        "text.png": lambda: b"hello",
        "gone.png": gone,
        "again.png": lambda: picture(7, 0, 94, 95),
    }
    faces = loaded(files)
    assert faces.images.shape == (42, 32, 32, 3) and len(faces.names) == len(faces.scores) == 42
    assert sum(faces.dropped.values()) + 42 == len(files)
    reasons = " | ".join(sorted(faces.dropped))
    assert set(faces.dropped.values()) == {1}
    for part in ("no face", "several faces", "upside down", "cut off", "12 px apart", "10% of the crop",
                 "not a picture", "vanished", "the same photograph"):  # fmt: skip
        assert part in reasons
    assert "person 007.png" not in faces.names, "of two equal ones the first stays"
    assert faces.names == tuple(sorted(faces.names)) and "again.png" in faces.names
    config = DataConfig(min_eye_distance_px=12)
    for row in (0, 20, 41):  # each picture still lies beside its own name
        face = align_face(files[faces.names[row]](), Seen().find, config, 32)
        assert (faces.images[row] == face.pixels).all()


def test_a_source_that_fails_is_no_verdict_about_its_files() -> None:
    for kind in (AccessError, TransientError):

        def broken(kind: type[Exception] = kind) -> bytes:
            raise kind("the server says no")

        with pytest.raises(kind):
            loaded(people(3) | {"zz.png": broken})


def test_too_few_faces_unlabelled_ones_and_people_that_cannot_be_split() -> None:
    with pytest.raises(ContractError, match="at least 500 usable faces") as refused:
        loaded(people(12) | {"nobody.png": lambda: picture(102, 1)}, minimum=500)
    assert "12 faces" in str(refused.value) and "1 no face found" in str(refused.value)
    with pytest.raises(ContractError, match="who are not kept for the test"):
        loaded(people(60), minimum=58)
    with pytest.raises(ContractError, match="0 faces"):
        loaded({"nobody.png": lambda: picture(102, 1)})
    with pytest.raises(ContractError, match="names a file"):
        loaded(people(12), b"path,a\nsomebody.png,1\n")
    one = {f"everybody/{name}": read for name, read in people(12).items()}
    with pytest.raises(ContractError, match="1 people: a folder is a person"):
        loaded(one)


def test_overhang_is_kept_as_share_and_as_mask() -> None:
    files = people(60) | {f"near the edge {i}.png": (lambda i=i: picture(200 + i, 6)) for i in range(2)}
    names = sorted(files)
    table = read_label_table(b"path,a\n" + "".join(f"{n},1\n" for n in names).encode(), ["a"])
    config = DataConfig(minimum=1, max_overhang=0.6)
    given = [(name, files[name]) for name in names]
    faces = load_faces(given, table, ("a",), size=32, detector=Seen(), config=config)  # type: ignore[arg-type]
    near = np.array([name.startswith("near") for name in faces.names])
    assert (faces.overhang[~near] == 0).all() and (faces.overhang[near] > 0.05).all()
    mask = faces.inside(np.flatnonzero(near))
    assert mask.shape == (2, 32, 32) and not mask[:, :, 0].any() and mask[:, :, -1].all()
    assert 1 - mask.mean() == pytest.approx(float(faces.overhang[near].mean()), abs=0.03)


def test_the_same_photograph_stays_on_one_side() -> None:
    def smooth(seed: int) -> np.ndarray:
        rough = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(rough).resize((64, 64), Image.Resampling.BICUBIC))

    images = np.stack([smooth(i) for i in range(60)])
    moved = np.roll(images[3], 1, axis=1)
    paler = (images[5] * 0.8 + 20).astype(np.uint8)
    found = find_duplicates(np.concatenate([images, [images[9][:, ::-1], paler, moved]]), same=0.999, kin=0.9)
    assert np.flatnonzero(found.again).tolist() == [60, 61]
    assert found.kin.tolist() == [[3, 62]]
    # a chain: the second is the first again, the third only the second, which is gone
    first, other = (x.astype(float) - x.mean() for x in (smooth(70), smooth(71)))
    chain = [first * np.cos(turn) + other * np.sin(turn) + 128 for turn in (0.0, 0.2, 0.4)]
    again = find_duplicates(np.clip(chain, 0, 255).astype(np.uint8), same=0.95, kin=0.9).again
    assert again.tolist() == [False, True, False]
    # two flat files of one photograph, in two croppings: names that would fall into different parts
    first = next(f"a {i}.png" for i in range(99) if part_of(f"a {i}.png") == 2)
    second = next(f"b {i}.png" for i in range(99) if part_of(f"b {i}.png") == 0)
    files = people(30) | {first: lambda: picture(300, 0, 96, 96), second: lambda: picture(300, 0, 96, 101)}
    faces = loaded(files)
    both = [n for n in faces.names if n in (first, second)]
    assert both[0] == first, "the pair is found"
    assert {int(faces.part[faces.names.index(n)]) for n in both} == {2}


def test_one_photograph_does_not_teach_and_calibrate() -> None:
    def first(letter: str, calibrates: bool) -> str:
        names = [f"{letter} {i}.png" for i in range(99)]
        return next(n for n in names if part_of(n) == 0 and held_out([n])[0] == calibrates)

    learned, kept = first("a", False), first("b", True)
    files = people(60) | {learned: lambda: picture(300, 0, 96, 96), kept: lambda: picture(300, 0, 96, 101)}
    faces = loaded(files)
    rows = [faces.names.index(n) for n in (learned, kept)]
    assert len({faces.people[row] for row in rows}) == 1, "the pair is found"
    assert len({bool(_calibrates(faces)[row]) for row in rows}) == 1
    assert len(set(faces.people)) == len(faces.people) - 1 and _calibrates(faces).any()


def test_flat_files_sorted_into_folders_are_another_training() -> None:
    flat = people(60)
    table = b"path,a\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(flat)).encode()
    letter = next(x for x in "abcdefghij" if {part_of(f"{x}{i:02d}") for i in range(30)} == {0, 1, 2})
    sorted_in = {f"{letter}{i // 2:02d}/{name}": read for i, (name, read) in enumerate(flat.items())}
    one, two = loaded(flat, table), loaded(sorted_in, table)
    # the same pictures in the same order with the same labels: only who is on which side has changed
    assert (one.images == two.images).all() and (one.scores == two.scores).all()
    assert (one.part != two.part).any()
    key = "a" * 64
    assert folder_of(key, one, table) == folder_of(key, loaded(flat, table), table)
    assert folder_of(key, one, table) != folder_of(key, two, table)
    # labels that now belong to other pictures, under a table of the same bytes
    moved = dict(zip(flat, [*list(flat.values())[1:], flat["person 000.png"]], strict=True))
    third = loaded(moved, table)
    assert folder_of(key, one, table) != folder_of(key, third, table)
    assert "person" not in folder_of(key, two, table)


def skewed() -> FaceSet:
    genders = ("man",) * 800 + ("woman",) * 150 + ("",) * 50
    races = ("x",) * 700 + ("y",) * 250 + ("z",) * 50
    empty = np.zeros((1000, 2, 2, 3), np.uint8)
    return FaceSet(
        empty, np.zeros((1000, 1), np.float32), ("a",), np.arange(1000) % 3, ("n",) * 1000, {},
        groups={"gender": genders, "race": races},
    )  # fmt: skip


def test_balanced_sampling_meets_every_group_alike() -> None:
    faces = skewed()
    assert group_counts(faces, ["gender"]) == {("man",): 800, ("woman",): 150, ("",): 50}
    flat = sampling_weights(faces, ["gender"], 0.0)
    assert (flat == 1).all()
    full = sampling_weights(faces, ["gender"], 1.0)
    genders = np.array(faces.groups["gender"])
    assert full.mean() == pytest.approx(1.0)
    assert full[genders == "man"].sum() == pytest.approx(full[genders == "woman"].sum())
    assert full[genders == ""] == pytest.approx(1.0), "unknown rows get the mean"
    half = sampling_weights(faces, ["gender"], 0.5)
    assert 1 < half[genders == "woman"][0] < full[genders == "woman"][0]
    drawn = np.random.default_rng(0).choice(1000, 20_000, p=full / full.sum())
    counts = Counter(genders[drawn])
    assert counts["woman"] / counts["man"] == pytest.approx(1.0, abs=0.05)


def test_weights_are_capped_counted_on_the_rows_that_are_drawn_and_checked() -> None:
    faces = skewed()
    both = sampling_weights(faces, ["gender", "race"], 1.0, cap=3.0)
    assert both.max() <= 3.0 + 1e-9 and both.mean() == pytest.approx(1.0)
    assert sampling_weights(faces, ["gender", "race"], 1.0, cap=1.0) == pytest.approx(1.0)
    rows = faces.part != 2
    some = sampling_weights(faces, ["race"], 1.0, rows=rows)
    assert (some[~rows] == 0).all() and some[rows].mean() == pytest.approx(1.0)
    races = np.array(faces.groups["race"])
    assert some[races == "x"].sum() == pytest.approx(some[races == "y"].sum())
    assert (sampling_weights(faces, [], 1.0) == 1).all()
    with pytest.raises(ContractError, match="age_band"):
        sampling_weights(faces, ["age_band"])
    with pytest.raises(ContractError, match="strength"):
        sampling_weights(faces, ["race"], 1.5)
