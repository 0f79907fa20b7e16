"""Shards as Parquet: one item per row group, its bytes in one plain, uncompressed page, so that any Parquet tool reads
them and a crop is one positioned read.

The file offset of an item follows from the footer alone (Parquet format, column metadata and data pages): the page of a
required BYTE_ARRAY in PLAIN encoding ends with a four-byte length and the bytes, so they start at
data_page_offset + total_compressed_size - length. The length on disk is compared when a file is opened.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache.aside import written_aside
from cache.shards._protocol import HEADER, Header, Items, Layout, OpenFile, ShardReader, header_of, raw

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
_TAIL_BYTES = 8
"""Every Parquet file ends with its footer's length and PAR1."""
_MARK = b"footer crc32 "


def write(path: Path, items: Items, metadata: Mapping[str, str]) -> None:
    """Seal items into one file; see ShardFormat.write."""
    header = header_of(items, metadata)
    schema = pa.schema(_COLUMNS, metadata={HEADER: header.text()})
    with written_aside(path, keep_first=True) as file:
        with _writer(file, schema) as writer:
            for (key, values), frames, check in zip(items, header.num_frames, header.checksums, strict=True):
                columns = [[key], [frames], [check], [raw(values)]]
                arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        _seal_footer(file)


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

    def layout_of(self, path: Path) -> Layout:
        """Header from the schema's metadata and the small columns; offsets from the footer."""
        _check_footer(path)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_columns(file.schema_arrow)
            index = file.read(columns=_NAMES[:_VALUES], use_threads=False)
            header = Header.parsed(
                file.metadata.metadata[HEADER.encode()].decode(), *(column.to_pylist() for column in index)
            )
            why = _not_in_place(file)
            return Layout(header=header, offsets=None if why else _offsets(path, file, header), slow_because=why)

    def slow_bytes(self, path: Path, row: int) -> bytes:
        """One item through pyarrow, whatever its encoding."""
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for number in range(file.num_row_groups):
                num_rows = file.metadata.row_group(number).num_rows
                if row < num_rows:
                    return bytes(file.read_row_group(number, columns=["values"])[0][row].as_py())
                row -= num_rows
        raise ValueError(f"it ends before row {row}")


def _check_columns(found: pa.Schema) -> None:
    if [(column.name, column.type) for column in found] != [(column.name, column.type) for column in _COLUMNS]:
        raise ValueError(f"its columns are {', '.join(f'{column.name} {column.type}' for column in found)}")


def _not_in_place(file: pq.ParquetFile) -> str:
    """Why items cannot be read in place; empty for files of our own writing."""
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
    """Where each item's bytes start, each compared with the length written just before it."""
    shard, offsets = OpenFile(path), []
    for row, frames in enumerate(header.num_frames):
        column = file.metadata.row_group(row).column(_VALUES)
        length = frames * header.frame_bytes
        offset = column.data_page_offset + column.total_compressed_size - length
        written = np.zeros(1, "<u4")
        if shard.read_at(raw(written), offset - _LENGTH_BYTES) < _LENGTH_BYTES or int(written[0]) != length:
            raise ValueError(f"row {row} does not lie where its footer says")
        offsets.append(offset)
    return tuple(offsets)


def _seal_footer(file: BinaryIO) -> None:
    """Put the footer's crc32 before it, where every reader looks past it.

    Parquet itself does not protect its footer, and pyarrow may end the whole process on a flipped bit there. Bytes
    between the last page and the footer belong to nobody: the footer is found from the end, pages by their offsets.
    """
    file.seek(-_footer_bytes(file), os.SEEK_END)
    footer = file.read()
    file.seek(-len(footer), os.SEEK_END)
    file.write(_MARK + zlib.crc32(footer).to_bytes(4, "little") + footer)


def _check_footer(path: Path) -> None:
    """Compare the footer with the crc32 before it. A file of another program has none, and pyarrow must judge it."""
    with path.open("rb") as file:
        seal_bytes = len(_MARK) + 4
        file.seek(-_footer_bytes(file) - seal_bytes, os.SEEK_END)
        seal, footer = file.read(seal_bytes), file.read()
    if seal.startswith(_MARK) and int.from_bytes(seal[len(_MARK) :], "little") != zlib.crc32(footer):
        raise ValueError("its footer does not match its checksum")


def _footer_bytes(file: BinaryIO) -> int:
    """Bytes of the footer with the length and the magic word that end the file."""
    file.seek(-_TAIL_BYTES, os.SEEK_END)
    tail = file.read()
    if not tail.endswith(b"PAR1"):
        raise ValueError("it does not end as a Parquet file does")
    return int.from_bytes(tail[:4], "little") + len(tail)
