"""Size of a zip's central directory, checked before it is read into memory. Light: standard library only.

Source: PKWARE APPNOTE, end of central directory record (4.3.16) and its zip64 form (4.3.14, 4.3.15).
"""

from __future__ import annotations

import struct
from pathlib import Path

from stages.errors import SourceUnreadable
from stages.ingest.source.limits import ArchiveLimits

_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_BYTES, _LOCATOR_BYTES, _END64_BYTES = 22, 20, 56
_LONGEST_COMMENT = 0xFFFF
_BYTES_PER_MEMBER = 512
"""Average size of an entry of the central directory: 46 bytes, a name and what systems add. The size in bytes is
checked because the declared number of entries may be false."""


def check_directory_size(path: Path, limits: ArchiveLimits) -> None:
    """Check a zip's central directory against the limit on members. A file that is not a zip passes.

    Raises:
        SourceUnreadable: it is longer.
    """
    count, num_bytes = declared_directory(path)
    if count > limits.max_members or num_bytes > limits.max_members * _BYTES_PER_MEMBER:
        raise too_many_members(path, limits)


def too_many_members(path: Path, limits: ArchiveLimits) -> SourceUnreadable:
    """The error for too many files, with its remedy."""
    why = f"it holds more than {limits.max_members:,} files; none was read"
    return SourceUnreadable(path, why, "Split the dataset, or raise --max-members.")


def declared_directory(path: Path) -> tuple[int, int]:
    """(number of entries, bytes) that a zip declares for its central directory; zeros when it declares none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            tail_start = max(0, size - _END_BYTES - _LONGEST_COMMENT - _LOCATOR_BYTES - _END64_BYTES)
            file.seek(tail_start)
            tail = file.read()
    except OSError:
        return 0, 0
    offset = tail.rfind(_END)
    if offset < 0 or len(tail) < offset + _END_BYTES:
        return 0, 0
    count, num_bytes = struct.unpack_from("<HI", tail, offset + 10)
    offset64 = tail.rfind(_END64, 0, offset)
    if tail[offset - _LOCATOR_BYTES :].startswith(_LOCATOR64) and 0 <= offset64 <= len(tail) - _END64_BYTES:
        count64, num_bytes64 = struct.unpack_from("<QQ", tail, offset64 + 32)
        return max(count, count64) if count != 0xFFFF else count64, num_bytes64
    return count, num_bytes
