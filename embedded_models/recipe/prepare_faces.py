"""LFW, its attributes and UTKFace -> the folder and the label CSV that `sdflow pretrain` takes.

Usage: `python embedded_models/recipe/prepare_faces.py --lfw lfw.tar --lfw-attributes lfw_attributes.csv
--utkface utkface.tar --to FOLDER [--json]`

Writes FOLDER/faces/lfw/<person>/<file>, FOLDER/faces/utkface_<file> and FOLDER/labels.csv. Both sets show
real people and are for research alone: FOLDER must lie outside of this repository. Then:

    sdflow pretrain FOLDER/faces --labels FOLDER/labels.csv --name embedded
        --config embedded_models/recipe/embedded.toml --teacher MODELS

UTKFace lies flat: there, a file is a person of its own. LFW keeps a folder a person.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Our name -> column of lfw_attributes.csv. These scores are a classifier's, not a person's: an AUC against
# them is agreement with that teacher. Of 11,805 rows, above .5 / above .9:
#   smiling 3,617 / 2,476   eyeglasses 2,140 / 1,699   male 9,267 / 9,139   young 3,491 / 1,294
#   mouth_open 5,130 / 3,516   gray_hair 3,522 / 625   receding_hairline 1,921 / 112   bald 1,054 / 177
#   blond_hair 813 / 238   wearing_hat 604 / 400   bangs 274 / 98
#   no_beard 10,680 / 10,069: a beard is its opposite, so 1,125 rows
# Taken is what has some 500 positives (50 test people), can be seen in a crop of the face and can be edited.
# Bangs have only half of that; they are written, and worth a figure with a wide margin.
# Left out: too few (rosy cheeks 0, brown hair 11, bushy eyebrows 50, goatee 119, black hair 137, sideburns
# 202, mustache 262, heavy makeup 109, earrings and lipstick about 400 and hardly seen at 64 px); outside the
# crop (necktie, necklace, straight hair); of the photograph (blurry); judgements of a person (attractive,
# chubby, big or pointy nose, big lips); close to race, which is not to be edited (pale skin, narrow eyes);
# the smile once more (high cheekbones).
LFW_COLUMNS = {
    "smiling": "Smiling",
    "eyeglasses": "Eyeglasses",
    "male": "Male",
    "young": "Young",
    "beard": "No_Beard",
    "bald": "Bald",
    "receding_hairline": "Receding_Hairline",
    "mouth_open": "Mouth_Slightly_Open",
    "gray_hair": "Gray_Hair",
    "blond_hair": "Blond_Hair",
    "wearing_hat": "Wearing_Hat",
    "bangs": "Bangs",
}
INVERTED = frozenset({"beard"})
GROUPS = ("gender", "age_band", "race")

# Both sets in one set of words. UTKFace calls Hispanic, Latino and Middle Eastern people "others"; DeepFace
# tells two of these apart. The groups are for balance and for figures: none can be edited.
_LFW_GENDER = {"man": "man", "woman": "woman"}
_LFW_RACE = {
    "white": "white",
    "black": "black",
    "asian": "asian",
    "indian": "indian",
    "latino hispanic": "other",
    "middle eastern": "other",
}
_UTK_GENDER = ("man", "woman")
_UTK_RACE = ("white", "black", "asian", "indian", "other")
_UTK_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.")
# Certainly young up to 30, certainly not from 50, half at 40: a soft ramp, as the classifier of LFW also
# changes its mind over two decades.
YOUNG_UNTIL, OLD_FROM = 30, 50
_BANDS = ((18, "0-17"), (30, "18-29"), (45, "30-44"), (60, "45-59"), (200, "60+"))


def young(age: float) -> float:
    """Soft label of an age in years.

    Example:
        >>> young(12), young(40), young(71)
        (1.0, 0.5, 0.0)
    """
    return round(min(1.0, max(0.0, (OLD_FROM - age) / (OLD_FROM - YOUNG_UNTIL))), 3)


def age_band(age: float) -> str:
    """Group of an age in years."""
    return next(name for below, name in _BANDS if age < below)


def lfw_row(row: dict[str, str]) -> dict[str, str]:
    """A row of lfw_attributes.csv in our names; what is missing there stays empty."""
    out: dict[str, str] = {"path": row["path"]}
    for name, column in LFW_COLUMNS.items():
        raw = row[column].strip()
        out[name] = f"{1.0 - float(raw):.5f}" if raw and name in INVERTED else raw
    out["gender"] = _LFW_GENDER.get(row["df_gender"].strip().lower(), "")
    out["age_band"] = age_band(float(row["df_age"])) if row["df_age"].strip() else ""
    out["race"] = _LFW_RACE.get(row["df_race"].strip().lower(), "")
    return out


def utkface_row(name: str) -> dict[str, str] | None:
    """Labels from a file name `<age>_<gender>_<race>_<date>`; None where it is none."""
    found = _UTK_NAME.match(name)
    if found is None:
        return None
    age, gender, race = (int(part) for part in found.groups())
    return {
        "path": f"utkface_{name}",
        "male": str(1 - gender),
        "young": f"{young(age)}",
        "gender": _UTK_GENDER[gender],
        "age_band": age_band(age),
        "race": _UTK_RACE[race],
    }


def pictures(archive: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the JPEG files of an archive. Nothing is unpacked: names are only looked at."""
    with tarfile.open(archive) as files:
        for member in files:
            parts = member.name.split("/")
            if member.isfile() and member.name.endswith(".jpg") and not {"", ".", ".."} & set(parts):
                opened = files.extractfile(member)
                assert opened is not None  # of a file there is always one
                yield member.name, opened.read()


def write(path: Path, data: bytes) -> None:
    """A file as a whole or not at all; what is there already is not written again."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)


def prepare(to: Path, lfw: Path | None, attributes: Path | None, utkface: Path | None) -> dict[str, object]:
    """Write the pictures and the labels.

    Raises:
        SystemExit: The folder lies in the repository, or there is nothing to do.
    """
    to = to.resolve()
    if to.is_relative_to(ROOT):
        raise SystemExit(f"{to} lies in the repository: pictures of real people must stay outside of it")
    if (lfw is None) != (attributes is None) or (lfw is None and utkface is None):
        raise SystemExit("give --lfw with --lfw-attributes, or --utkface, or all three")
    rows: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    written: set[str] = set()
    if lfw is not None and attributes is not None:
        for name, data in pictures(lfw):
            write(to / "faces" / name, data)
            written.add(name)
        counts["lfw"] = len(written)
        with attributes.open(encoding="utf-8", newline="") as file:
            labelled = [lfw_row(row) for row in csv.DictReader(file)]
        rows += [row for row in labelled if row["path"] in written]
        counts["lfw_labelled"], counts["lfw_labels_without_file"] = len(rows), len(labelled) - len(rows)
    for name, data in pictures(utkface) if utkface is not None else ():
        row = utkface_row(name.rpartition("/")[2])
        if row is None:
            counts["utkface_unnamed"] += 1
            continue
        write(to / "faces" / row["path"], data)
        rows.append(row)
        counts["utkface"] += 1
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ("path", *LFW_COLUMNS, *GROUPS), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(to / "labels.csv", table.getvalue().encode())
    positives = {n: sum(float(r.get(n) or 0) > 0.5 for r in rows) for n in LFW_COLUMNS}
    groups = {n: dict(Counter(r[n] for r in rows).most_common()) for n in GROUPS}
    return {**counts, "rows": len(rows), "positives": positives, "groups": groups, "folder": str(to)}


def main() -> None:
    """Print what was written; with --json one object as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lfw", type=Path, help="LFW, deep-funneled, as a tar archive")
    parser.add_argument("--lfw-attributes", type=Path, help="its attributes, a CSV file")
    parser.add_argument("--utkface", type=Path, help="UTKFace, aligned, as a tar archive")
    parser.add_argument("--to", type=Path, required=True, help="a folder outside of this repository")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    said = prepare(options.to, options.lfw, options.lfw_attributes, options.utkface)
    if options.json:
        print(json.dumps(said, sort_keys=True))
        return
    for key, value in said.items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    main()
