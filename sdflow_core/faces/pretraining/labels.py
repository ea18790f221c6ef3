"""The label CSV of a pretraining: read strictly, matched to files by name; every error names its place."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdflow_core.records.errors import ContractError

PATH_COLUMN = "path"
_WHAT = "the label CSV cannot be used"
_EXAMPLES = 3
_DEEPEST = 4  # leading folders that may be missing on one side


@dataclass(frozen=True)
class LabelTable:
    """A label CSV.

    Attributes:
        attributes: A names.
        groups: G names of category columns.
        scores: path -> A values in [0, 1], NaN where the cell is empty.
        categories: path -> G values, "" where the cell is empty.
        lines: path -> its line in the file, from 1.
    """

    attributes: tuple[str, ...]
    groups: tuple[str, ...]
    scores: dict[str, list[float]]
    categories: dict[str, tuple[str, ...]]
    lines: dict[str, int]

    def remarks(self) -> list[str]:
        """What is no error but should be known: columns from which nothing can be told apart."""
        said: list[str] = []
        for i, name in enumerate(self.attributes):
            known = [row[i] for row in self.scores.values() if not math.isnan(row[i])]
            for side, count in (
                ("above", sum(value > 0.5 for value in known)),
                ("at or below", sum(value <= 0.5 for value in known)),
            ):
                if count == 0:
                    said.append(f"column {name} has no value {side} 0.5: nothing can be learned from it")
        return said


@dataclass(frozen=True)
class Matching:
    """Which label belongs to which file.

    Attributes:
        label_of: file name -> path in the label CSV.
        unknown: Paths of the label CSV that name no file, in the order of the file.
    """

    label_of: dict[str, str]
    unknown: tuple[str, ...]

    def remarks(self, table: LabelTable, *, show_names: bool = False) -> list[str]:
        """Labels without a file, by line: records must not hold names of files, a screen may."""
        if not self.unknown:
            return []
        shown = [
            f"line {table.lines[path]}{f' ({path})' if show_names else ''}"
            for path in self.unknown[:_EXAMPLES]
        ]
        count = f"{len(self.unknown)} of {len(table.scores)} labels name no file"
        return [f"{count}, for example {', '.join(shown)}"]


def read_label_table(data: bytes, attributes: Sequence[str], groups: Sequence[str] = ()) -> LabelTable:
    """Read a label CSV: `path`, a column in [0, 1] per attribute, a column of any text per group.

    Names of columns may differ in upper and lower case; other columns are not looked at. An empty cell means
    that the value is not known. Two spellings of a path (`./a.jpg`, `a.jpg`) are one path.

    Raises:
        ContractError: Not UTF-8, empty, a column missing or named twice, a row with too few or too many
            cells, a value that is no number in [0, 1], a path that is empty or listed twice, an attribute
            without any value. Says line and column.

    Example:
        >>> table = read_label_table(b"path,Smiling,race\\na.jpg,0.25,\\nb.jpg,,x\\n", ["smiling"], ["race"])
        >>> table.scores, table.categories["b.jpg"]
        ({'a.jpg': [0.25], 'b.jpg': [nan]}, ('x',))
    """
    rows = _rows(data)
    header = next(rows, None)
    if header is None:
        raise ContractError(
            _WHAT, expected=f"a header and rows: {_expected(attributes, groups)}", found="an empty file"
        )
    columns = _columns(header[1], attributes, groups)
    scores: dict[str, list[float]] = {}
    categories: dict[str, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    for line, row in rows:
        if len(row) != len(header[1]):
            raise ContractError(
                _WHAT,
                expected=f"{len(header[1])} cells, as in the header",
                found=len(row),
                where=f"line {line}",
            )
        path = _plain(row[columns[PATH_COLUMN]])
        if not path:
            raise ContractError(
                _WHAT, expected="the name of a file", found="an empty cell", where=f"line {line}, column path"
            )
        if path in lines:
            raise ContractError(
                "the label CSV cannot be used: a path is listed twice",
                expected="each file once",
                found=f"the path of line {lines[path]} again",
                where=f"line {line}, column path",
            )
        lines[path] = line
        scores[path] = [_value(row[columns[name.lower()]], line, name) for name in attributes]
        categories[path] = tuple(row[columns[name.lower()]].strip() for name in groups)
    if not lines:
        raise ContractError(_WHAT, expected="at least one row below the header", found="a header alone")
    for i, name in enumerate(attributes):
        if all(math.isnan(row[i]) for row in scores.values()):
            raise ContractError(
                _WHAT,
                expected=f"values for {name}",
                found="empty cells alone",
                where=f"column {name}",
                todo="leave the attribute out, or label some pictures",
            )
    return LabelTable(tuple(attributes), tuple(groups), scores, categories, lines)


def read_labels(data: bytes, attributes: tuple[str, ...]) -> dict[str, list[float]]:
    """The scores alone: path -> values in [0, 1], NaN where a cell is empty. See `read_label_table`."""
    return read_label_table(data, attributes).scores


def match_labels(names: Sequence[str], table: LabelTable, *, show_names: bool = False) -> Matching:
    """Find the file of each label.

    Leading folders may be missing on one side, of all names alike: the reading under which most labels find
    a file is taken. A name that would then stand for two files stands for none.

    Args:
        names: Of the files, relative to the source.
        table: The labels.
        show_names: Errors quote names of files: for the screen of who owns them, not for records.

    Raises:
        ContractError: No label names a file, or an attribute is known of no file.
    """
    best: dict[str, str] = {}
    paths = list(table.scores)
    readings = [(0, 0)] + [(k, 0) for k in range(1, _DEEPEST + 1)] + [(0, k) for k in range(1, _DEEPEST + 1)]
    for off_labels, off_names in readings:
        wanted, files = _shortened(paths, off_labels), _shortened(names, off_names)
        found = {files[short]: wanted[short] for short in wanted.keys() & files.keys()}
        if len(found) > len(best):
            best = found
    if paths and not best:
        lines = ", ".join(str(table.lines[path]) for path in paths[:_EXAMPLES])
        shown = (
            f"labels such as {paths[:_EXAMPLES]}, files such as {sorted(names)[:_EXAMPLES]}"
            if show_names
            else f"{len(paths)} labels (lines {lines}, ...) and {len(names)} files, and no name in common"
        )
        raise ContractError(
            "no label names a file of the source",
            expected="paths relative to the source, with / between parts",
            found=shown,
            where="column path of the label CSV",
        )
    matched = set(best.values())
    for i, name in enumerate(table.attributes):
        if paths and all(math.isnan(table.scores[path][i]) for path in matched):
            raise ContractError(
                "no picture has a label for an attribute",
                expected=f"values of {name} for some files of the source",
                found=f"{len(matched)} labelled files, none with a value in this column",
                where=f"column {name} of the label CSV",
                todo="leave the attribute out, or add pictures that are labelled for it",
            )
    return Matching(best, tuple(path for path in paths if path not in matched))


def _shortened(names: Sequence[str], parts: int) -> dict[str, str]:
    """Name without its first folders -> name; what two names share is left out."""
    out: dict[str, str] = {}
    twice: set[str] = set()
    for name in names:
        pieces = name.split("/", parts)
        if len(pieces) <= parts:
            continue
        if pieces[parts] in out:
            twice.add(pieces[parts])
        out[pieces[parts]] = name
    return {short: name for short, name in out.items() if short not in twice}


def _rows(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of rows that are not blank."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ContractError(
            _WHAT,
            expected="UTF-8",
            found=f"byte 0x{data[error.start]:02x} at {error.start}",
            where=f"line {data[: error.start].count(10) + 1}",
            todo="save the table as CSV in UTF-8",
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ContractError(
                _WHAT, expected="comma-separated values", found=error, where=f"line {reader.line_num}"
            ) from None
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield reader.line_num, row


def _columns(header: list[str], attributes: Sequence[str], groups: Sequence[str]) -> dict[str, int]:
    """Column -> its place."""
    names = [name.strip().lower() for name in header]
    wanted = [PATH_COLUMN, *(name.lower() for name in (*attributes, *groups))]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ContractError(
            _WHAT,
            expected=f"columns {_expected(attributes, groups)}",
            found=f"no column {', '.join(missing)}; there are {', '.join(header)[:200]}",
            where="line 1",
            todo="separate columns by commas, and name them in the first line",
        )
    for name in wanted:
        if names.count(name) > 1 or wanted.count(name) > 1:
            raise ContractError(_WHAT, expected="each column once", found=f"{name} twice", where="line 1")
    return {name: names.index(name) for name in wanted}


def _expected(attributes: Sequence[str], groups: Sequence[str]) -> str:
    return ", ".join([PATH_COLUMN, *attributes, *groups])


def _value(cell: str, line: int, column: str) -> float:
    if not cell.strip():
        return float("nan")
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0.0 <= value <= 1.0:
        raise ContractError(
            _WHAT,
            expected="a number in [0, 1], or an empty cell where it is not known",
            found=repr(cell[:40]),
            where=f"line {line}, column {column}",
        )
    return value


def _plain(path: str) -> str:
    return "/".join(part for part in path.strip().split("/") if part not in ("", "."))
