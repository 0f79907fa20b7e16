"""How long a zip's list of contents is, before it is read into memory. Light: standard library only.

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
"""Of the list of contents, on average: 46, a name and what systems add. A list is judged by its bytes, since what it
says about its own count may be a lie."""


def check_list_length(path: Path, limits: ArchiveLimits) -> None:
    """Refuse a list of contents that is longer than the limit on members allows.

    Raises:
        SourceUnreadable: it is. (What is no zip at all is told by whoever opens it.)
    """
    count, num_bytes = declared_list(path)
    if count > limits.max_members or num_bytes > limits.max_members * _BYTES_PER_MEMBER:
        raise too_many_members(path, limits)


def too_many_members(path: Path, limits: ArchiveLimits) -> SourceUnreadable:
    """The error, with its remedy."""
    why = f"it holds more than {limits.max_members:,} files; none was read"
    return SourceUnreadable(path, why, "Split the dataset, or raise --max-members.")


def declared_list(path: Path) -> tuple[int, int]:
    """(number of entries, bytes) that a zip declares for its list of contents; zeros when it declares none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            tail_start = max(0, size - _END_BYTES - _LONGEST_COMMENT - _LOCATOR_BYTES - _END64_BYTES)
            file.seek(tail_start)
            tail = file.read()
    except OSError:
        return 0, 0
    place = tail.rfind(_END)
    if place < 0 or len(tail) < place + _END_BYTES:
        return 0, 0
    count, num_bytes = struct.unpack_from("<HI", tail, place + 10)
    place64 = tail.rfind(_END64, 0, place)
    if tail[place - _LOCATOR_BYTES :].startswith(_LOCATOR64) and 0 <= place64 <= len(tail) - _END64_BYTES:
        count64, num_bytes64 = struct.unpack_from("<QQ", tail, place64 + 32)
        return max(count, count64) if count != 0xFFFF else count64, num_bytes64
    return count, num_bytes
