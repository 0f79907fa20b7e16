"""A checksum inside a Parquet file for what the format leaves unguarded. Light: standard library only.

Parquet protects the content of its pages, but neither their headers nor the footer: on a flipped bit there pyarrow may
read fewer rows without a word, or end the whole process. Ours carry a crc32 between the last page and the footer. Those
bytes belong to nobody: by the format, the footer is found from the file's end and pages by the offsets in it, so every
reader looks past them.
"""

from __future__ import annotations

import os
import zlib
from typing import BinaryIO

FOOTER_ONLY, WHOLE_FILE = b"footer crc32 ", b"file crc32   "
_SEAL_BYTES = len(WHOLE_FILE) + 4
_TAIL_BYTES = 8
"""The footer's length and the word PAR1 end every file."""
_BLOCK_BYTES = 2**20


def seal(file: BinaryIO, guarded: bytes = WHOLE_FILE) -> None:
    """Put the checksum into a file that was just written; open for reading and writing.

    Args:
        guarded: FOOTER_ONLY where the content has checksums of its own and is not to be read as a whole.
    """
    start = _footer_start(file)
    file.seek(start)
    footer = file.read()
    check = _crc32(file, start, footer, guarded)
    file.seek(start)
    file.write(guarded + check.to_bytes(4, "little") + footer)


def check_seal(file: BinaryIO) -> None:
    """Compare a file with its checksum. A file of another program has none: its reader must judge it.

    Raises:
        ValueError: they differ, or the file has no whole footer.
    """
    start = _footer_start(file)
    file.seek(max(start - _SEAL_BYTES, 0))
    stored = file.read(min(start, _SEAL_BYTES))
    footer, guarded = file.read(), stored[:-4]
    if guarded in (FOOTER_ONLY, WHOLE_FILE):
        check = _crc32(file, start - _SEAL_BYTES, footer, guarded)
        if int.from_bytes(stored[-4:], "little") != check:
            raise ValueError("its content does not match its checksum")
    file.seek(0)


def _crc32(file: BinaryIO, end: int, footer: bytes, guarded: bytes) -> int:
    """crc32 of the footer, and of all before `end` when that is guarded too."""
    check = zlib.crc32(footer)
    if guarded == WHOLE_FILE:
        file.seek(0)
        for start in range(0, end, _BLOCK_BYTES):
            check = zlib.crc32(file.read(min(_BLOCK_BYTES, end - start)), check)
    return check


def _footer_start(file: BinaryIO) -> int:
    """Where the footer begins. ValueError when there is no whole footer."""
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(num_bytes - _TAIL_BYTES, 0))
    tail = file.read()
    start = num_bytes - _TAIL_BYTES - int.from_bytes(tail[:4], "little")
    if not tail.endswith(b"PAR1") or start < 0:
        raise ValueError("it is cut, or no Parquet file")
    return start
