"""Rows of a dataclass in one Parquet file, byte for byte the same for the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, BinaryIO, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache.atomic_files import written_aside
from cache.errors import ManifestDamaged, ManifestMismatch
from cache.parquet_checksum import check_seal, seal

R = TypeVar("R")
ROW_GROUP_ROWS = 8192
_COLUMN_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def write_rows(path: Path, rows: Iterable[object], row_type: type) -> int:
    """Write rows, in order, as one manifest; return how many. Memory does not grow with their number.

    Args:
        rows: dataclass instances of `row_type`, whose fields are str, int, float or bool, each possibly None.

    Raises:
        ManifestMismatch: a row does not fit its own type; nothing is written.
        WriteFailed: the disk is full or the folder refuses.
    """
    schema, waiting, count = _schema(row_type), iter(rows), 0
    with written_aside(path) as file:
        with _writer(file, schema) as writer:
            while group := list(islice(waiting, ROW_GROUP_ROWS)):
                writer.write_batch(_batch(path, group, row_type, schema))
                count += len(group)
        seal(file)
    return count


def read_rows(path: Path, row_type: type[R]) -> list[R]:
    """All rows of a manifest, in order. Errors as `iter_rows`."""
    return list(iter_rows(path, row_type))


def iter_rows(path: Path, row_type: type[R], batch: int = 1024) -> Iterator[R]:
    """The rows of a manifest, in order, `batch` of them in memory at a time.

    Raises:
        ManifestDamaged: the file is cut, flipped or no Parquet file.
        ManifestMismatch: a column is missing, of another type, or unknown to the row type.
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as file, _damage_named(path):
        for columns in _batches(_opened(file, path, row_type), batch):
            for values in columns.to_pylist():
                yield row_type(**values)


def read_columns(path: Path, row_type: type[R]) -> Columns[R]:
    """All rows of a manifest, for a reader of some of them, again and again. Errors as `iter_rows`."""
    with path.open("rb") as file, _damage_named(path):
        table = _opened(file, path, row_type)
        # Column after column: what is kept of one is then not strewn among what is let go of others.
        return Columns(row_type, {field.name: _held(table, field) for field in _schema(row_type)})


@dataclass(frozen=True)
class Repeated:
    """Texts of which few are different."""

    texts: list[str]
    places: np.ndarray
    """Of each row, its text among them."""


class Columns(Generic[R]):
    """Rows held by column: some 150 bytes each, where objects take six times that. A row is made when it is read."""

    def __init__(self, row_type: type[R], columns: Mapping[str, np.ndarray | Repeated | pa.ChunkedArray]) -> None:
        self._row_type, self._columns = row_type, columns

    def __len__(self) -> int:
        column = next(iter(self._columns.values()))
        return len(column.places if isinstance(column, Repeated) else column)

    def __getitem__(self, index: int) -> R:
        return self._row_type(**{name: self.value(name, index) for name in self._columns})

    def value(self, name: str, index: int) -> Any:
        """One field of one row."""
        column = self._columns[name]
        if isinstance(column, np.ndarray):
            return column[index].item()
        return column.texts[column.places[index]] if isinstance(column, Repeated) else column[index].as_py()

    def numbers(self, name: str) -> np.ndarray:
        """One field of all rows, numbers none of which may be missing."""
        column = self._columns[name]
        assert isinstance(column, np.ndarray), f"{name} holds no plain numbers"
        return column


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a manifest is read, as what it means."""
    try:
        yield
    except (pa.ArrowException, ValueError, OSError) as error:
        raise ManifestDamaged(path, str(error)) from error


def _opened(file: BinaryIO, path: Path, row_type: type) -> pq.ParquetFile:
    check_seal(file)
    table = pq.ParquetFile(file, page_checksum_verification=True)
    _check_columns(path, table.schema_arrow, row_type)
    return table


def _batches(table: pq.ParquetFile, size: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    for group in range(table.num_row_groups):  # asked for all at once, the reader keeps the bytes of every group
        yield from table.iter_batches(batch_size=size, row_groups=[group], columns=columns, use_threads=False)


def _held(table: pq.ParquetFile, field: pa.Field) -> np.ndarray | Repeated | pa.ChunkedArray:
    """A column as it is kept: of texts, each once if that saves room, for which the first rows decide."""
    parts: list[pa.Array] = []
    folds = False
    for batch in _batches(table, ROW_GROUP_ROWS, [field.name]):
        part = batch.column(0)
        if not parts and pa.types.is_string(field.type) and not field.nullable:
            folds = 2 * len(part.unique()) <= len(part)
        parts.append(part.dictionary_encode() if folds else part)
    column = pa.chunked_array(parts, parts[0].type if parts else field.type)
    if folds:
        folded = column.unify_dictionaries().combine_chunks()
        return Repeated(folded.dictionary.to_pylist(), folded.indices.to_numpy())
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
    strangers = {type(row).__name__ for row in rows if type(row) is not row_type}
    if strangers:
        raise ManifestMismatch(path, row_type.__name__, [f"a row of {name} among them" for name in sorted(strangers)])
    columns = [[getattr(row, field.name) for row in rows] for field in schema]
    faults = [fault for field, column in zip(schema, columns, strict=True) for fault in _faults(field, column)]
    if faults:
        raise ManifestMismatch(path, row_type.__name__, faults)
    return pa.record_batch([_array(path, row_type, *pair) for pair in zip(schema, columns, strict=True)], schema=schema)


def _array(path: Path, row_type: type, field: pa.Field, column: list[object]) -> pa.Array:
    try:
        return pa.array(column, field.type)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise ManifestMismatch(path, row_type.__name__, [f"{field.name}: {error}"]) from error


def _faults(field: pa.Field, column: list[object]) -> list[str]:
    """The first value of a column that its type does not allow, in words. pyarrow alone would let True pass for 1."""
    allowed = {kind for kind, column_type in _COLUMN_TYPES.items() if column_type == field.type}
    if field.nullable:
        allowed.add(NoneType)
    for number, value in enumerate(column):
        if type(value) not in allowed:
            return [f"row {number}: {field.name} is {value!r}, not {_words(field)}"]
    return []


def _words(field: pa.Field) -> str:
    return f"{field.type}{' or None' if field.nullable else ''}"


def _check_columns(path: Path, found: pa.Schema, row_type: type) -> None:
    wanted = _schema(row_type)
    missing = [f"column {field.name} ({_words(field)}) is missing" for field in wanted if field.name not in found.names]
    extra = [f"column {name} is unknown" for name in found.names if name not in wanted.names]
    wrong = [
        f"column {field.name} is {_words(found.field(field.name))}, not {_words(field)}"
        for field in wanted
        if field.name in found.names and not found.field(field.name).equals(field)
    ]
    if missing or extra or wrong:
        raise ManifestMismatch(path, row_type.__name__, missing + extra + wrong)
