"""A crc32 inside a Parquet file for what the format does not protect. Light: standard library only.

Parquet can checksum the content of its pages, but neither their headers nor the footer: after a flipped bit there,
pyarrow may silently read fewer rows or crash the process. Files written here hold a crc32 between the last page and the
footer. Readers find the footer from the end of the file, and pages by the offsets in it, so every Parquet reader skips
these bytes.
"""

from __future__ import annotations

import os
import zlib
from typing import BinaryIO

FOOTER_ONLY, WHOLE_FILE = b"footer crc32 ", b"file crc32   "
_CHECKSUM_BYTES = len(WHOLE_FILE) + 4
_TAIL_BYTES = 8
"""Every file ends with the length of its footer and the letters PAR1."""
_BLOCK_BYTES = 2**20


def insert_checksum(file: BinaryIO, scope: bytes = WHOLE_FILE) -> None:
    """Inserts the checksum into a Parquet file that was just written and is open for reading and writing.

    Args:
        scope: FOOTER_ONLY where the content has checksums of its own and should not be read as a whole.
    """
    start = _footer_start(file)
    file.seek(start)
    footer = file.read()
    crc32 = _crc32(file, start, footer, scope)
    file.seek(start)
    file.write(scope + crc32.to_bytes(4, "little") + footer)


def verify_checksum(file: BinaryIO) -> None:
    """Compares a file with its checksum, and rewinds it. Files of other programs have none and pass.

    Raises:
        ValueError: they differ, or the footer is incomplete.
    """
    start = _footer_start(file)
    file.seek(max(start - _CHECKSUM_BYTES, 0))
    stored = file.read(min(start, _CHECKSUM_BYTES))
    footer, scope = file.read(), stored[:-4]
    if scope in (FOOTER_ONLY, WHOLE_FILE):
        crc32 = _crc32(file, start - _CHECKSUM_BYTES, footer, scope)
        if int.from_bytes(stored[-4:], "little") != crc32:
            raise ValueError("its content does not match its checksum")
    file.seek(0)


def _crc32(file: BinaryIO, end: int, footer: bytes, scope: bytes) -> int:
    """crc32 of the footer, and with WHOLE_FILE of everything before `end` as well."""
    crc32 = zlib.crc32(footer)
    if scope == WHOLE_FILE:
        file.seek(0)
        for start in range(0, end, _BLOCK_BYTES):
            crc32 = zlib.crc32(file.read(min(_BLOCK_BYTES, end - start)), crc32)
    return crc32


def _footer_start(file: BinaryIO) -> int:
    """Offset of the footer. Raises: ValueError, when it is incomplete."""
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(num_bytes - _TAIL_BYTES, 0))
    tail = file.read()
    start = num_bytes - _TAIL_BYTES - int.from_bytes(tail[:4], "little")
    if not tail.endswith(b"PAR1") or start < 0:
        raise ValueError("it is truncated, or no Parquet file")
    return start
