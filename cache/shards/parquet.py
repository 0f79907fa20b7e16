"""Shards as Parquet files: one item per row group, its bytes in one plain, uncompressed page, so that any Parquet tool
can read them and a crop is one positioned read.

The file offset of an item follows from the footer (Parquet format, column metadata and data pages): the page of a
required BYTE_ARRAY in PLAIN encoding ends with a four-byte length and the bytes, so the bytes start at
data_page_offset + total_compressed_size - length. That length is checked when a file is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache.files.atomic_files import atomic_write
from cache.files.parquet_checksum import FOOTER_ONLY, insert_checksum, verify_checksum
from cache.shard_format import HEADER, Header, Items, Layout, RandomAccessFile, ShardReader, bytes_view, new_header

SUFFIX = ".parquet"
_COLUMNS = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("num_frames", pa.int64(), nullable=False),
    pa.field("checksum", pa.string(), nullable=False),
    pa.field("values", pa.binary(), nullable=False),
]
_NAMES = [column.name for column in _COLUMNS]
_VALUES = 3
_LENGTH_BYTES = 4


def write(path: Path, items: Items, metadata: Mapping[str, str]) -> None:
    """Writes items to one new file; see ShardFormat.write."""
    header = new_header(items, metadata)
    schema = pa.schema(_COLUMNS, metadata={HEADER: header.to_text()})
    with atomic_write(path, keep_existing=True) as file:
        with _writer(file, schema) as writer:
            for (key, values), frames, check in zip(items, header.num_frames, header.checksums, strict=True):
                columns = [[key], [frames], [check], [bytes_view(values)]]
                arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        insert_checksum(file, FOOTER_ONLY)


def _writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        file,
        schema,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
        data_page_version="1.0",
    )


class Reader(ShardReader):
    """Reads one Parquet shard; see ShardReader."""

    library_errors = (*ShardReader.library_errors, pa.ArrowException)

    def read_layout(self, path: Path) -> Layout:
        """The header from the schema's metadata and the small columns; offsets from the footer."""
        with path.open("rb") as file:
            verify_checksum(file)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_columns(file.schema_arrow)
            index = file.read(columns=_NAMES[:_VALUES], use_threads=False)
            header = Header.parse(
                file.metadata.metadata[HEADER.encode()].decode(), *(column.to_pylist() for column in index)
            )
            why = _not_in_place(file)
            return Layout(header=header, offsets=None if why else _offsets(path, file, header), why_no_offsets=why)

    def read_item(self, path: Path, row: int) -> bytes:
        """One item through pyarrow, for any encoding."""
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for number in range(file.num_row_groups):
                num_rows = file.metadata.row_group(number).num_rows
                if row < num_rows:
                    return bytes(file.read_row_group(number, columns=["values"])[0][row].as_py())
                row -= num_rows
        raise ValueError(f"it is truncated before row {row}")


def _check_columns(found: pa.Schema) -> None:
    if [(column.name, column.type) for column in found] != [(column.name, column.type) for column in _COLUMNS]:
        raise ValueError(f"its columns are {', '.join(f'{column.name} {column.type}' for column in found)}")


def _not_in_place(file: pq.ParquetFile) -> str:
    """Why items cannot be read in place; empty for files written here."""
    if file.schema.column(_VALUES).max_definition_level:
        return "its values column may hold nulls"
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        column = group.column(_VALUES)
        if group.num_rows != 1:
            return "a row group holds several items"
        if column.compression != "UNCOMPRESSED":
            return f"its values are compressed ({column.compression})"
        if column.has_dictionary_page or not set(column.encodings) <= {"PLAIN", "RLE"}:
            return f"its values are encoded ({', '.join(column.encodings)})"
    return ""


def _offsets(path: Path, file: pq.ParquetFile, header: Header) -> tuple[int, ...]:
    """File offset of each item, checked against the length stored just before it."""
    shard, offsets = RandomAccessFile(path), []
    for row, frames in enumerate(header.num_frames):
        column = file.metadata.row_group(row).column(_VALUES)
        length = frames * header.frame_bytes
        offset = column.data_page_offset + column.total_compressed_size - length
        written = np.zeros(1, "<u4")
        if shard.read_at(bytes_view(written), offset - _LENGTH_BYTES) < _LENGTH_BYTES or int(written[0]) != length:
            raise ValueError(f"row {row} is not where the footer says")
        offsets.append(offset)
    return tuple(offsets)
