"""Consent: which source may be edited, how far, until when, and on what evidence.

A consent list is a CSV file with a header:

    source,subject,attributes,expires,evidence
    ann.jpg,ann,smiling;young,2027-12-31,form-17.pdf
    team/*,team,*,,contract-4

`source` is a name relative to the folder, or a pattern; the exact name goes before patterns, and the first
pattern that fits before later ones. `attributes` is `*` or names separated by `;`. An empty `expires` means
no end. A line that fits no file is no error, since files come and go: `unused` names it.
"""

from __future__ import annotations

import csv
import hmac
import io
import re
import secrets
import unicodedata
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import date
from fnmatch import translate
from typing import NamedTuple

from .errors import ContractError, NotFoundError
from .keys import canonical_json, sha256_hex
from .objects import Store
from .sources import open_source

__all__ = ["Consent", "ConsentList", "Grant", "Subjects", "subject_hmac"]

COLUMNS = ("source", "subject", "attributes", "expires", "evidence")
_SECRET = "private/secret.key"
_PATTERN = re.compile(r"[*?\[]")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_ABSOLUTE = re.compile(r"/|\\|[A-Za-z]:[\\/]|[a-z][a-z0-9+.-]*://")
_TODO = "correct the consent list; its columns are " + ",".join(COLUMNS)


@dataclass(frozen=True)
class Consent:
    """What one person allowed.

    Attributes:
        subject: Who, as the list names the person: personal data, see `subject_hmac`.
        attributes: Names that may be edited, or `("*",)`.
        expires: Last day on which it holds; None: no end.
        evidence: Where the consent itself is filed.
        digest: SHA-256 of these four.
    """

    subject: str
    attributes: tuple[str, ...]
    expires: date | None
    evidence: str
    digest: str

    def allows(self, attribute: str) -> bool:
        """Whether this attribute may be edited.

        Example:
            >>> Consent("ann", ("smiling",), None, "form-17", "").allows("young")
            False
        """
        return "*" in self.attributes or attribute in self.attributes

    def valid_on(self, today: date) -> bool:
        """Whether it has not ended; the last day counts."""
        return self.expires is None or today <= self.expires


class Grant(NamedTuple):
    """What a list says about one name.

    Attributes:
        consent: The one that holds, or None.
        why: Why there is none, in words; empty when there is one.
        line: Number of the line that the name falls under, also where that consent has ended; 0: none.
    """

    consent: Consent | None
    why: str
    line: int


class ConsentList:
    """Consents by source. See the module for the file's form."""

    def __init__(self, rows: Sequence[tuple[str, Consent, int]]) -> None:
        self._lines = {source: line for source, _, line in rows}
        self._consents = {source: consent for source, consent, _ in rows}
        patterns = [source for source, _, _ in rows if _PATTERN.search(source)]
        self._patterns = [(pattern, re.compile(translate(pattern)).match) for pattern in patterns]
        # By what a pattern begins with: of ten thousand `person-7/*` a name is held against one.
        self._beginning: dict[str, list[int]] = {}
        for number, pattern in enumerate(patterns):
            self._beginning.setdefault(_PATTERN.split(pattern, maxsplit=1)[0], []).append(number)
        self._lengths = sorted({len(beginning) for beginning in self._beginning})

    def __len__(self) -> int:
        return len(self._consents)

    @classmethod
    def read(cls, data: bytes | str) -> ConsentList:
        """Reads a list.

        Args:
            data: The CSV's bytes (UTF-8, with or without a byte order mark) or its text.

        Raises:
            ContractError: Names the line that is wrong.
        """
        if isinstance(data, bytes):
            try:
                data = data.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                line = data[: error.start].count(b"\n") + 1
                raise ContractError(
                    "the consent list is no UTF-8 text", where=f"line {line}", todo=_TODO
                ) from error
        reader = csv.reader(io.StringIO(data.removeprefix("\ufeff"), newline=""), strict=True)
        rows: list[tuple[str, Consent, int]] = []
        header: list[str] | None = None
        lines: dict[str, int] = {}
        try:
            for cells in reader:
                as_written = cells
                cells = [cell.strip() for cell in cells]
                if not any(cells):
                    continue
                if header is None:
                    header = _header(cells, reader.line_num)
                    continue
                source, consent = _row(cells, header, reader.line_num)
                if source in lines:
                    raise ContractError(
                        "the consent list names a source twice",
                        found=source,
                        where=f"lines {lines[source]} and {reader.line_num}",
                        todo="keep one of the two lines",
                    )
                lines[source] = reader.line_num
                rows.append((source, consent, reader.line_num))
                exactly = _source(as_written[header.index("source")])
                if exactly != source and not _PATTERN.search(exactly):
                    # names of files may begin or end with a space
                    rows.append((exactly, consent, reader.line_num))
        except csv.Error as error:
            raise ContractError(
                "the consent list is no CSV", found=error, where=f"line {reader.line_num}", todo=_TODO
            ) from error
        if header is None:
            raise ContractError(
                "the consent list is empty", expected="a header and a line a source", todo=_TODO
            )
        return cls(rows)

    @classmethod
    def load(cls, uri: str, store: Store | None = None) -> ConsentList:
        """Reads the list at an address: a path, `store:<key>` or any fsspec address.

        Raises:
            ContractError: It is not one file, or a line is wrong.
            NotFoundError: There is nothing.
        """
        folder = open_source(uri, store)
        try:
            items = list(folder.list())
        except NotFoundError:
            raise NotFoundError(
                "the consent list does not exist",
                where=uri,
                todo="check --consent, or `consent` in the policy",
            ) from None
        if (
            len(items) != 1
            or items[0].path.rstrip("/").rpartition("/")[2] != uri.rstrip("/").rpartition("/")[2]
        ):
            raise ContractError(
                "the consent list",
                expected="one CSV file",
                found=f"a folder of {len(items)} files",
                where=uri,
            )
        return cls.read(folder.read(items[0]))

    def _line_of(self, name: str) -> str | None:
        """The source or pattern of the line that this name falls under."""
        name = unicodedata.normalize("NFC", name)
        if name in self._consents:  # a file may really be called "a[1].jpg": plain names go first
            return name
        fitting = (self._beginning.get(name[:length], ()) for length in self._lengths if length <= len(name))
        for number in sorted(number for numbers in fitting for number in numbers):
            pattern, fits = self._patterns[number]
            if fits(name):
                return pattern
        return None

    def grant(self, name: str, today: date) -> Grant:
        """All that the list says about one name, looked up once."""
        source = self._line_of(name)
        consent = None if source is None else self._consents[source]
        line = 0 if source is None else self._lines[source]
        if consent is None:
            return Grant(None, "no consent for this source", line)
        if not consent.valid_on(today):
            return Grant(None, f"consent ended on {consent.expires}", line)
        return Grant(consent, "", line)

    def unused_lines(self, used: Set[int]) -> list[int]:
        """Numbers of the lines that are not among these."""
        return sorted(set(self._lines.values()) - used)

    def unused(self, names: Iterable[str]) -> list[int]:
        """Numbers of the lines under which none of these names falls: misspelt, or for files not yet here."""
        found = {self._line_of(name) for name in names}
        return self.unused_lines({self._lines[source] for source in found if source is not None})

    def unknown_attributes(self, known: Iterable[str]) -> list[str]:
        """Attributes that the list allows and that nobody can edit: misspelt, or of other models."""
        said = {name for consent in self._consents.values() for name in consent.attributes}
        return sorted(said - set(known) - {"*"})

    def for_source(self, name: str, today: date) -> Consent | None:
        """The consent that holds for this source today, or None.

        Args:
            name: Name of the source relative to its folder.
            today: The day that counts.
        """
        return self.grant(name, today).consent

    def why_not(self, name: str, today: date) -> str:
        """Why there is no consent for this source, in words; empty when there is."""
        return self.grant(name, today).why


def _header(cells: list[str], line: int) -> list[str]:
    names = [cell.lower() for cell in cells]
    if len(set(names)) != len(names) or set(names) != set(COLUMNS):
        raise ContractError(
            "the consent list has another header",
            expected=",".join(COLUMNS),
            found=",".join(cells),
            where=f"line {line}",
            todo=_TODO,
        )
    return names


def _row(cells: list[str], header: list[str], line: int) -> tuple[str, Consent]:
    where = f"line {line}"
    if len(cells) != len(header):
        raise ContractError(
            "a line of the consent list has another number of cells",
            expected=len(header),
            found=len(cells),
            where=where,
            todo=_TODO,
        )
    row = dict(zip(header, cells, strict=True))
    for name in ("source", "subject", "attributes"):
        if not row[name]:
            raise ContractError(f"the consent list has an empty {name}", where=where, todo=_TODO)
    attributes = tuple(part.strip() for part in row["attributes"].split(";") if part.strip())
    if not attributes:
        raise ContractError("the consent list has an empty attributes", where=where, todo=_TODO)
    if _ABSOLUTE.match(row["source"]):
        raise ContractError(
            "the consent list has a source that is no relative name",
            expected="a name or a pattern relative to the folder of pictures",
            found=row["source"],
            where=where,
            todo=_TODO,
        )
    expires: date | None = None
    if row["expires"]:
        try:
            if not _DATE.fullmatch(row["expires"]):  # Python would also take 20271231 and 2027-W52-5
                raise ValueError
            expires = date.fromisoformat(row["expires"])
        except ValueError as error:
            raise ContractError(
                "the consent list has a date that cannot be read",
                expected="YYYY-MM-DD or nothing",
                found=row["expires"],
                where=where,
                todo=_TODO,
            ) from error
    digest = sha256_hex(
        canonical_json(
            [row["subject"], list(attributes), expires.isoformat() if expires else None, row["evidence"]]
        )
    )
    return _source(row["source"]), Consent(row["subject"], attributes, expires, row["evidence"], digest)


def _source(cell: str) -> str:
    return unicodedata.normalize("NFC", cell.removeprefix("./"))


class Subjects:
    """The names that records use for people: cannot be guessed without the store's secret key.

    The key is made at the first use, at random, and never replaced; here it is read once, so that a million
    names are no million reads. Keep none of these longer than a step: destroying the key is part of erasing.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._key: bytes | None = None

    def hmac(self, subject: str) -> str:
        """The name for one person, 64 hexadecimal digits."""
        if self._key is None:
            self._key = _secret(self._store)
        return hmac.digest(self._key, unicodedata.normalize("NFC", subject).encode(), "sha256").hex()


def subject_hmac(store: Store, subject: str) -> str:
    """The name that records use for one person; see `Subjects` for many."""
    return Subjects(store).hmac(subject)


def _secret(store: Store) -> bytes:
    try:
        return store.read(_SECRET)
    except NotFoundError:
        store.create(_SECRET, secrets.token_bytes(32))
        return store.read(_SECRET)  # another process may have been first
