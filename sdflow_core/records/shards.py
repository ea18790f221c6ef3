"""Shards: immutable Parquet files of rows, and the columns of them that this process has already read.

Parquet with zstd; tensors as `fixed_shape_tensor` with BYTE_STREAM_SPLIT in row groups of 256, so that
pandas, DuckDB and polars read a shard as it lies, and 256 rows by id cost little.
"""

from __future__ import annotations

import io
import threading
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import ContractError, CorruptError, NotFoundError
from .keys import sha256_hex
from .objects import LocalStore, Store

__all__ = ["Shard", "load_columns", "shard_schema", "wplus_column", "wplus_numpy", "write_shard"]

ROW_GROUP_ROWS = 256
TODO = "restore the shard from a backup, or remove the dataset and run the step again"
# Enough for the plain columns of some hundred thousand rows.
_ONE_READ_BYTES = 2 * 2**20
_CACHE_BYTES = 256 * 2**20


def wplus_column(values: npt.ArrayLike) -> Any:
    """W+ codes as a column.

    Args:
        values: [N, L, D], written as float32.

    Returns:
        A `pyarrow.FixedShapeTensorArray` of N tensors (L, D).

    Raises:
        ContractError: Not three axes.
    """
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.ndim != 3:
        raise ContractError("W+ codes have another shape", expected="[N, L, D]", found=list(array.shape))
    kind: Any = pa.fixed_shape_tensor(pa.float32(), array.shape[1:])
    flat = pa.array(array.reshape(-1), pa.float32())
    storage = pa.FixedSizeListArray.from_arrays(flat, array.shape[1] * array.shape[2])
    return pa.ExtensionArray.from_storage(kind, storage)


def wplus_numpy(table: pa.Table, column: str) -> npt.NDArray[np.float32]:
    """A column of W+ codes as one array [N, L, D] float32; rows keep their order.

    Raises:
        ContractError: There is no such column, it holds no tensors, or some are missing.
    """
    if column not in table.column_names:
        raise ContractError("a column is missing", expected=column, found=table.column_names)
    chunked: Any = table.column(column)
    if not isinstance(chunked.type, pa.FixedShapeTensorType):
        raise ContractError("a column holds no tensors", found=str(chunked.type), where=column)
    if chunked.null_count:
        raise ContractError(
            "some rows have no W+ code", found=chunked.null_count, where=column, todo="read kept rows"
        )
    shape = tuple(cast("list[int]", chunked.type.shape))
    parts = [
        np.asarray(chunk.storage.flatten()).reshape(len(chunk), *shape)
        for chunk in chunked.chunks
        if len(chunk)
    ]
    if not parts:
        return np.zeros((0, *shape), np.float32)
    # A copy: callers hand it to torch, which wants memory that may be written.
    return np.concatenate(parts).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Shard:
    """One file of rows, as its journal entry names it."""

    key: str
    recipe: str
    rows: int


def write_shard(store: Store, folder: str, recipe: str, rows: pa.Table) -> tuple[str, str]:
    """Writes rows under a unique name.

    Returns:
        The key and the SHA-256 of the file.
    """
    sink = io.BytesIO()
    strings = [item.name for item in rows.schema if pa.types.is_string(item.type)]
    tensors = [item.name for item in rows.schema if isinstance(item.type, pa.FixedShapeTensorType)]
    writer: Any = pq
    writer.write_table(
        rows,
        sink,
        compression="zstd",
        # Every row_key is another one: a dictionary of them only costs.
        use_dictionary=[name for name in strings if name != "row_key"],
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in tensors} or None,
        row_group_size=ROW_GROUP_ROWS,
        write_page_checksum=True,
    )
    data = sink.getvalue()
    key = f"{folder}/{recipe[:16]}-{uuid.uuid4().hex}.parquet"
    store.create(key, data)
    return key, sha256_hex(data)


class _Columns:
    """Columns in memory, the longest unused forgotten first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.names: dict[tuple[str, str], list[str]] = {}
        self._columns: OrderedDict[tuple[str, str, str], pa.ChunkedArray] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[str, str, str]) -> pa.ChunkedArray | None:
        with self.lock:
            found = self._columns.get(key)
            if found is not None:
                self._columns.move_to_end(key)
            return found

    def keep(self, key: tuple[str, str, str], column: pa.ChunkedArray) -> None:
        # Codes are most of the bytes and read a few times: they would drive out what is asked for often.
        if column.nbytes > _CACHE_BYTES // 2 or isinstance(column.type, pa.FixedShapeTensorType):
            return
        with self.lock:
            replaced = self._columns.pop(key, None)
            self._bytes += column.nbytes - (replaced.nbytes if replaced is not None else 0)
            self._columns[key] = column
            while self._bytes > _CACHE_BYTES:
                self._bytes -= self._columns.popitem(last=False)[1].nbytes


_cache = _Columns()


def shard_schema(store: Store, shard: Shard) -> pa.Schema:
    """Names and types of a shard's columns."""
    with store.open_input(shard.key) as file:
        return cast(pa.Schema, pq.read_schema(file))


def _few_reads(store: Store, file: BinaryIO) -> BinaryIO:
    """The file, in memory where every read is a request and one request for all of it is the cheapest.

    A larger file is read in ranges: its end, which says where columns lie, and these, joined by pyarrow.
    """
    if isinstance(store, LocalStore):
        return file
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return io.BytesIO(file.read()) if size <= _ONE_READ_BYTES else file


def load_columns(store: Store, shard: Shard, columns: Sequence[str] | None, *, keep: bool = True) -> pa.Table:
    """Columns of one shard, from memory where they were read before. Absent columns are left out.

    Without `keep`, what is read now is not kept in memory: for who keeps it in another form.

    Raises:
        CorruptError: The shard is missing or was changed (page checksums).
    """
    found: dict[str, pa.ChunkedArray] = {}
    local = isinstance(store, LocalStore)
    try:
        names = _cache.names.get((store.uri, shard.key))
        if names is not None:
            for name in names:
                if columns is None or name in columns:
                    column = _cache.get((store.uri, shard.key, name))
                    if column is not None:
                        found[name] = column
        if names is None or any(n not in found for n in names if columns is None or n in columns):
            with store.open_input(shard.key) as file:
                reader: Any = pq.ParquetFile(
                    _few_reads(store, file), page_checksum_verification=True, pre_buffer=not local
                )
                names = list(cast("list[str]", reader.schema_arrow.names))
                _cache.names[(store.uri, shard.key)] = names
                missing = [n for n in names if (columns is None or n in columns) and n not in found]
                # Few columns of few rows: handing them to other threads costs more than reading them.
                part = reader.read(columns=missing, use_threads=False)
            for name in missing:
                found[name] = part.column(name)
                if keep:
                    _cache.keep((store.uri, shard.key, name), found[name])
        wanted = [name for name in names if columns is None or name in columns]
    except NotFoundError as error:
        raise CorruptError("a shard is missing", where=store.url(shard.key), todo=TODO) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptError(
            "a shard cannot be read", found=error, where=store.url(shard.key), todo=TODO
        ) from error
    return pa.table({name: found[name] for name in wanted})
