"""Manifests: rows of a dataclass in one Parquet file; the same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, BinaryIO, Generic, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache.errors import ManifestDamaged, ManifestMismatch
from cache.files.atomic_files import atomic_write
from cache.files.parquet_checksum import insert_checksum, verify_checksum

R = TypeVar("R")
ROW_GROUP_ROWS = 8192
_COLUMN_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def write_rows(path: Path, rows: Iterable[object], row_type: type) -> int:
    """Writes rows, in order, as one manifest, in constant memory; returns their number.

    Args:
        rows: dataclass instances of `row_type`, whose fields are str, int, float or bool, each possibly None.

    Raises:
        ManifestMismatch: a row has another type, or a value of another type than its field; nothing is written.
        WriteFailed: the disk is full, or the folder cannot be written to.
    """
    schema, remaining, count = _schema(row_type), iter(rows), 0
    with atomic_write(path) as file:
        with _writer(file, schema) as writer:
            while group := list(islice(remaining, ROW_GROUP_ROWS)):
                writer.write_batch(_batch(path, group, row_type, schema))
                count += len(group)
        insert_checksum(file)
    return count


def read_rows(path: Path, row_type: type[R]) -> list[R]:
    """All rows of a manifest, in order. Raises what `iter_rows` raises."""
    return list(iter_rows(path, row_type))


def iter_rows(path: Path, row_type: type[R], batch: int = 1024) -> Iterator[R]:
    """Yields the rows of a manifest, in order, with `batch` of them in memory at a time.

    Raises:
        ManifestDamaged: the file is truncated, corrupted or no Parquet file.
        ManifestMismatch: a column is missing, of another type, or unknown to the row type.
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as file, _translated_errors(path):
        for columns in _batches(_open_table(file, path, row_type), batch):
            for values in columns.to_pylist():
                yield row_type(**values)


def read_columns(path: Path, row_type: type[R]) -> Columns[R]:
    """All rows of a manifest, held by column for random access. Raises what `iter_rows` raises."""
    with path.open("rb") as file, _translated_errors(path):
        table = _open_table(file, path, row_type)
        # One column after the other, so that the memory kept is not fragmented by what is freed in between.
        return Columns(row_type, {field.name: _read_column(table, field) for field in _schema(row_type)})


@dataclass(frozen=True)
class DictionaryColumn:
    """A dictionary-encoded column of strings."""

    texts: list[str]
    """The distinct strings."""
    indices: np.ndarray
    """(rows,) index into `texts`."""


Column: TypeAlias = "np.ndarray | DictionaryColumn | pa.ChunkedArray"


class Columns(Generic[R]):
    """Rows held by column: about 150 bytes each, a sixth of what objects take. Rows are made when they are read."""

    def __init__(self, row_type: type[R], columns: Mapping[str, Column]) -> None:
        self._row_type, self._columns = row_type, columns

    def __len__(self) -> int:
        column = next(iter(self._columns.values()))
        return len(column.indices if isinstance(column, DictionaryColumn) else column)

    def __getitem__(self, index: int) -> R:
        return self._row_type(**{name: self.value(name, index) for name in self._columns})

    def value(self, name: str, index: int) -> Any:
        """One field of one row."""
        column = self._columns[name]
        if isinstance(column, np.ndarray):
            return column[index].item()
        return column.texts[column.indices[index]] if isinstance(column, DictionaryColumn) else column[index].as_py()

    def numbers(self, name: str) -> np.ndarray:
        """One numeric field of all rows, without missing values."""
        column = self._columns[name]
        assert isinstance(column, np.ndarray), f"{name} is not a numeric column"
        return column


@contextmanager
def _translated_errors(path: Path) -> Iterator[None]:
    """Raises ManifestDamaged for errors of pyarrow and of the file system during the block."""
    try:
        yield
    except (pa.ArrowException, ValueError, OSError) as error:
        raise ManifestDamaged(path, str(error)) from error


def _open_table(file: BinaryIO, path: Path, row_type: type) -> pq.ParquetFile:
    verify_checksum(file)
    table = pq.ParquetFile(file, page_checksum_verification=True)
    _check_columns(path, table.schema_arrow, row_type)
    return table


def _batches(table: pq.ParquetFile, size: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    for group in range(table.num_row_groups):  # given all groups at once, the reader keeps the bytes of every group
        yield from table.iter_batches(batch_size=size, row_groups=[group], columns=columns, use_threads=False)


def _read_column(table: pq.ParquetFile, field: pa.Field) -> Column:
    """A column in memory; strings are dictionary-encoded if that saves memory for the first rows."""
    parts: list[pa.Array] = []
    use_dictionary = False
    for batch in _batches(table, ROW_GROUP_ROWS, [field.name]):
        part = batch.column(0)
        if not parts and pa.types.is_string(field.type) and not field.nullable:
            use_dictionary = 2 * len(part.unique()) <= len(part)
        parts.append(part.dictionary_encode() if use_dictionary else part)
    column = pa.chunked_array(parts, parts[0].type if parts else field.type)
    if use_dictionary:
        encoded = column.unify_dictionaries().combine_chunks()
        return DictionaryColumn(encoded.dictionary.to_pylist(), encoded.indices.to_numpy())
    return column if pa.types.is_string(column.type) or column.null_count else column.to_numpy()


def _writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, schema, compression="none", write_statistics=False, write_page_checksum=True)


def _schema(row_type: type) -> pa.Schema:
    if not is_dataclass(row_type):
        raise TypeError(f"rows must be of a dataclass; got {row_type!r}")
    hints = get_type_hints(row_type)
    return pa.schema([_column(row_type, field.name, hints[field.name]) for field in fields(row_type)])


def _column(row_type: type, name: str, hint: Any) -> pa.Field:
    choices = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    kinds = choices - {NoneType}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind not in _COLUMN_TYPES:
        raise TypeError(f"{row_type.__name__}.{name} must be str, int, float or bool, possibly None; got {hint}")
    return pa.field(name, _COLUMN_TYPES[kind], nullable=NoneType in choices)


def _batch(path: Path, rows: list[object], row_type: type, schema: pa.Schema) -> pa.RecordBatch:
    others = {type(row).__name__ for row in rows if type(row) is not row_type}
    if others:
        raise ManifestMismatch(path, row_type.__name__, [f"a row has the type {name}" for name in sorted(others)])
    columns = [[getattr(row, field.name) for row in rows] for field in schema]
    errors = [error for field, column in zip(schema, columns, strict=True) for error in _type_errors(field, column)]
    if errors:
        raise ManifestMismatch(path, row_type.__name__, errors)
    return pa.record_batch([_array(path, row_type, *pair) for pair in zip(schema, columns, strict=True)], schema=schema)


def _array(path: Path, row_type: type, field: pa.Field, column: list[object]) -> pa.Array:
    try:
        return pa.array(column, field.type)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise ManifestMismatch(path, row_type.__name__, [f"{field.name}: {error}"]) from error


def _type_errors(field: pa.Field, column: list[object]) -> list[str]:
    """Describes the first value of a column whose type is wrong. pyarrow alone would accept True for 1."""
    allowed = {kind for kind, column_type in _COLUMN_TYPES.items() if column_type == field.type}
    if field.nullable:
        allowed.add(NoneType)
    for number, value in enumerate(column):
        if type(value) not in allowed:
            return [f"row {number}: {field.name} is {value!r}, not {_type_name(field)}"]
    return []


def _type_name(field: pa.Field) -> str:
    return f"{field.type}{' or None' if field.nullable else ''}"


def _check_columns(path: Path, found: pa.Schema, row_type: type) -> None:
    wanted = _schema(row_type)
    missing = [
        f"column {field.name} ({_type_name(field)}) is missing" for field in wanted if field.name not in found.names
    ]
    extra = [f"column {name} is unknown" for name in found.names if name not in wanted.names]
    wrong = [
        f"column {field.name} is {_type_name(found.field(field.name))}, not {_type_name(field)}"
        for field in wanted
        if field.name in found.names and not found.field(field.name).equals(field)
    ]
    if missing or extra or wrong:
        raise ManifestMismatch(path, row_type.__name__, missing + extra + wrong)
