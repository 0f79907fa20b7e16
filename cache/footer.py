"""A checksum for the footer of a Parquet file. Light: standard library only.

Parquet protects its pages but not its footer, and pyarrow may end the whole process on a flipped bit there. Ours is
guarded by a crc32 written between the last page and the footer. Those bytes belong to nobody: by the format, the footer
is found from the file's end and pages by the offsets in it, so every reader looks past them.
"""

from __future__ import annotations

import os
import zlib
from typing import BinaryIO

MARK = b"footer crc32 "
_SEAL_BYTES = len(MARK) + 4
_TAIL_BYTES = 8
"""The footer's length and the word PAR1 end every file."""


def seal_footer(file: BinaryIO) -> None:
    """Put the checksum into a file that was just written; open for reading and writing."""
    file.seek(-_footer_bytes(file), os.SEEK_END)
    footer = file.read()
    file.seek(-len(footer), os.SEEK_END)
    file.write(MARK + zlib.crc32(footer).to_bytes(4, "little") + footer)


def check_footer(file: BinaryIO) -> None:
    """Compare the footer with its checksum. A file of another program has none: its reader must judge it.

    Raises:
        ValueError: they differ, or the file has no whole footer.
    """
    num_bytes = _footer_bytes(file)
    if file.seek(0, os.SEEK_END) < num_bytes + _SEAL_BYTES:
        raise ValueError("it is cut")
    file.seek(-num_bytes - _SEAL_BYTES, os.SEEK_END)
    seal, footer = file.read(_SEAL_BYTES), file.read()
    file.seek(0)
    if seal.startswith(MARK) and int.from_bytes(seal[len(MARK) :], "little") != zlib.crc32(footer):
        raise ValueError("its footer does not match its checksum")


def _footer_bytes(file: BinaryIO) -> int:
    """Bytes of the footer together with the tail. ValueError when there is no tail."""
    if file.seek(0, os.SEEK_END) < _TAIL_BYTES:
        raise ValueError("it is cut")
    file.seek(-_TAIL_BYTES, os.SEEK_END)
    tail = file.read()
    if not tail.endswith(b"PAR1"):
        raise ValueError("it does not end as a Parquet file does")
    return int.from_bytes(tail[:4], "little") + _TAIL_BYTES
