"""Consent: which source may be edited, how far, until when, and on what evidence.

A consent list is a CSV file with a header:

    source,subject,attributes,expires,evidence
    ann.jpg,ann,smiling;young,2027-12-31,form-17.pdf
    team/*,team,*,,contract-4

`source` is a relative name or a pattern; the exact name goes before patterns, and the first pattern that fits
before later ones. `attributes` is `*` or names separated by `;`. An empty `expires` means no end.
"""

from __future__ import annotations

import csv
import hmac
import io
import re
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase

from .errors import ContractError, NotFoundError
from .keys import canonical_json, sha256_hex
from .objects import Store

__all__ = ["Consent", "ConsentList", "subject_hmac"]

COLUMNS = ("source", "subject", "attributes", "expires", "evidence")
_SECRET = "private/secret.key"
_PATTERN = re.compile(r"[*?\[]")
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


class ConsentList:
    """Consents by source. See the module for the file's form."""

    def __init__(self, rows: Sequence[tuple[str, Consent]]) -> None:
        self._exact = {name: consent for name, consent in rows if not _PATTERN.search(name)}
        # A file may really be called "a[1].jpg": patterns are tried as plain names first.
        self._named = dict(reversed([row for row in rows if _PATTERN.search(row[0])]))
        self._patterns = [row for row in rows if _PATTERN.search(row[0])]

    def __len__(self) -> int:
        return len(self._exact) + len(self._patterns)

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
        rows: list[tuple[str, Consent]] = []
        header: list[str] | None = None
        lines: dict[str, int] = {}
        try:
            for cells in reader:
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
                rows.append((source, consent))
        except csv.Error as error:
            raise ContractError(
                "the consent list is no CSV", found=error, where=f"line {reader.line_num}", todo=_TODO
            ) from error
        if header is None:
            raise ContractError(
                "the consent list is empty", expected="a header and a line a source", todo=_TODO
            )
        return cls(rows)

    def _match(self, name: str) -> Consent | None:
        name = unicodedata.normalize("NFC", name)
        found = self._exact.get(name) or self._named.get(name)
        if found is not None:
            return found
        return next((consent for pattern, consent in self._patterns if fnmatchcase(name, pattern)), None)

    def for_source(self, name: str, today: date) -> Consent | None:
        """The consent that holds for this source today, or None.

        Args:
            name: Name of the source relative to its folder.
            today: The day that counts.
        """
        consent = self._match(name)
        return consent if consent is not None and consent.valid_on(today) else None

    def why_not(self, name: str, today: date) -> str:
        """Why there is no consent for this source, in words; empty when there is."""
        consent = self._match(name)
        if consent is None:
            return "no consent for this source"
        return "" if consent.valid_on(today) else f"consent ended on {consent.expires}"


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
    expires: date | None = None
    if row["expires"]:
        try:
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
    source = unicodedata.normalize("NFC", row["source"].removeprefix("./"))
    return source, Consent(row["subject"], attributes, expires, row["evidence"], digest)


def subject_hmac(store: Store, subject: str) -> str:
    """The name that records use for a person: cannot be guessed without the store's secret key.

    The key is made at the first call, at random, and never replaced.
    """
    try:
        key = store.read(_SECRET)
    except NotFoundError:
        store.create(_SECRET, secrets.token_bytes(32))
        key = store.read(_SECRET)  # another process may have been first
    return hmac.new(key, unicodedata.normalize("NFC", subject).encode(), "sha256").hexdigest()
