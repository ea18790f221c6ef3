"""Codes streamed from Parquet shards: what lies in memory does not grow with their number.

A million codes of 18 x 512 are 37 GB. Shards are written in row groups of 256 (`records.shards`); a group is
read whole and the last few are kept, and `row_order` asks for rows of a few groups at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sdflow_core.records.errors import ContractError, CorruptError
from sdflow_core.records.shards import wplus_numpy

Opener = Callable[[], BinaryIO]
_OPEN_FILES = 16
_TODO = "restore the shard from a backup, or write it again"


class ParquetSource:
    """A `code_source.CodeSource` over Parquet files, rows in the order of the files.

    Args:
        files: Addresses (anything that fsspec opens), or functions that open a file.
        codes: Column of W+ codes, a `fixed_shape_tensor` [L, D].
        scores: Columns of scores in [0, 1], in order; or the scores of all rows [N, A], where they lie
            elsewhere (16 bytes a row for four attributes).
        kept_groups: Row groups in memory; at least two windows of `row_order`.

    Raises:
        ContractError: No files, no such columns, shapes that differ, or scores of another number of rows.
        CorruptError: A file that cannot be read.
    """

    def __init__(
        self,
        files: Sequence[str | Opener],
        codes: str = "w_plus",
        scores: Sequence[str] | Tensor = (),
        *,
        kept_groups: int = 16,
    ) -> None:
        if not files:
            raise ContractError("shards of codes", expected="at least one file", found="none")
        self.files, self.codes, self.kept_groups = list(files), codes, kept_groups
        self.columns = [] if isinstance(scores, Tensor) else list(scores)
        self.loaded = 0  # row groups read so far
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._groups: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self._places: list[tuple[int, int]] = []  # (file, row group in it) of each block
        sizes: list[int] = []
        shapes: set[tuple[int, ...]] = set()
        for number in range(len(self.files)):
            reader = self._reader(number)
            shapes.add(self._shape_in(reader.schema_arrow, number))
            for group in range(reader.metadata.num_row_groups):
                self._places.append((number, group))
                sizes.append(reader.metadata.row_group(group).num_rows)
        if len(shapes) != 1:
            raise ContractError("codes of several shapes", expected="one [L, D]", found=sorted(shapes))
        rows, dim = shapes.pop()
        self._shape, self._sizes = (rows, dim), sizes
        self._starts = torch.tensor([0, *accumulate(sizes)], dtype=torch.int64)
        self._scores = scores.float() if isinstance(scores, Tensor) else None
        if self._scores is not None and len(self._scores) != self.rows:
            raise ContractError("scores of the codes", expected=f"{self.rows} rows", found=len(self._scores))

    @property
    def rows(self) -> int:
        """N."""
        return sum(self._sizes)

    @property
    def shape(self) -> tuple[int, int]:
        """(L, D)."""
        return self._shape

    @property
    def attributes(self) -> int:
        """A."""
        return len(self.columns) if self._scores is None else self._scores.shape[1]

    @property
    def blocks(self) -> Sequence[int]:
        """Rows of each row group."""
        return self._sizes

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """See `CodeSource.read`; the row groups touched are read once and the last ones kept."""
        codes = torch.empty(len(index), *self._shape)
        scores = torch.empty(len(index), self.attributes)
        group = torch.searchsorted(self._starts, index.contiguous(), right=True) - 1
        # what is in memory comes first, before a group that is read now drives it out
        touched = sorted(set(group.tolist()), key=lambda number: (number not in self._groups, number))
        for number in touched:
            here = (group == number).nonzero()[:, 0]
            inside = index[here] - self._starts[number]
            found = self._group(number)
            codes[here], scores[here] = found[0][inside], found[1][inside]
        return codes, scores

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `CodeSource.batches`; keeps nothing."""
        waiting: list[tuple[Tensor, Tensor]] = []
        count = 0
        for number in range(len(self._places)):
            group = self._load(number)
            waiting.append(group)
            count += len(group[0])
            while count >= size:
                codes, scores = (torch.cat(parts) for parts in zip(*waiting, strict=True))
                yield codes[:size], scores[:size]
                waiting = [(codes[size:].clone(), scores[size:].clone())]
                count -= size
        if count:
            codes, scores = (torch.cat(parts) for parts in zip(*waiting, strict=True))
            yield codes, scores

    def _group(self, number: int) -> tuple[Tensor, Tensor]:
        if number in self._groups:
            self._groups.move_to_end(number)
        else:
            while len(self._groups) >= self.kept_groups:
                self._groups.popitem(last=False)
            self._groups[number] = self._load(number)
        return self._groups[number]

    def _load(self, number: int) -> tuple[Tensor, Tensor]:
        """One row group: codes [b, L, D] and scores [b, A]."""
        file, group = self._places[number]
        try:
            part: pa.Table = self._reader(file).read_row_group(
                group, columns=[self.codes, *self.columns], use_threads=False
            )
        except (pa.ArrowInvalid, OSError) as error:
            raise CorruptError(
                "a shard cannot be read", found=error, where=self._name(file), todo=_TODO
            ) from error
        self.loaded += 1
        codes = torch.from_numpy(wplus_numpy(part, self.codes).copy())
        if self._scores is not None:
            return codes, self._scores[self._starts[number] : self._starts[number + 1]]
        values = [np.asarray(part.column(name).to_numpy(), np.float32) for name in self.columns]
        return codes, torch.from_numpy(np.stack(values, 1)) if values else torch.empty(len(codes), 0)

    def _reader(self, number: int) -> Any:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number][0]
        opener = self.files[number]
        try:
            file = opener() if callable(opener) else _opened(opener)
            reader: Any = pq.ParquetFile(file, page_checksum_verification=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise CorruptError(
                "a shard cannot be read", found=error, where=self._name(number), todo=_TODO
            ) from error
        while len(self._open) >= _OPEN_FILES:
            self._open.popitem(last=False)[1][1].close()
        self._open[number] = reader, file
        return reader

    def _shape_in(self, schema: pa.Schema, number: int) -> tuple[int, ...]:
        missing = [name for name in (self.codes, *self.columns) if name not in schema.names]
        kind: Any = None if missing else schema.field(self.codes).type
        if missing or not isinstance(kind, pa.FixedShapeTensorType) or len(kind.shape) != 2:
            raise ContractError(
                "columns of a shard",
                expected=f"{self.codes} of tensors [L, D]" + "".join(f", {name}" for name in self.columns),
                found=f"without {missing}" if missing else str(kind),
                where=self._name(number),
            )
        return tuple(cast("list[int]", kind.shape))

    def _name(self, number: int) -> str:
        file = self.files[number]
        return file if isinstance(file, str) else f"file {number}"


def _opened(address: str) -> BinaryIO:
    import fsspec

    opened: Any = fsspec.open(address, "rb")
    return opened.open()
