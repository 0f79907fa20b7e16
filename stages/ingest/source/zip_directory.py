"""Size of a zip's central directory, checked before it is read into memory. Light: standard library only.

Source: PKWARE APPNOTE, end of central directory record (4.3.16) and its zip64 form (4.3.14, 4.3.15).
"""

from __future__ import annotations

import re
import shlex
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


_SPLIT_MARK = b"PK\x07\x08"
"""First bytes of the first part of a split zip (APPNOTE 8.5.3)."""
_PART_SUFFIX = re.compile(r"\.(z\d\d|zip\.\d\d\d)", re.IGNORECASE)
"""`.z01`, as zip and WinZip name parts, and `.zip.001`, as 7-Zip and `split` do."""


def split_zip(path: Path) -> SourceUnreadable | None:
    """The error for one part of a split zip, with the command that joins the parts; None for any other file."""
    part = next((found for found in _PART_SUFFIX.finditer(path.name) if found.end() == len(path.name)), None)
    if part is None and not _is_last_of_several(path) and not _starts_with(path, _SPLIT_MARK):
        return None
    whole = f"{path.name[: part.start()] if part else path.stem}"
    if part is not None and part[0].lower().startswith(".zip."):
        join = f"cat {shlex.quote(whole)}.zip.* > {shlex.quote(whole)}-whole.zip"
    else:
        join = f"zip -s 0 {shlex.quote(whole)}.zip --out {shlex.quote(whole)}-whole.zip"
    return SourceUnreadable(
        path,
        "it is one part of a split zip, and holds only a part of the files",
        f"Put all parts into one folder, join them there with `{join}`, and give {whole}-whole.zip.",
    )


def _is_last_of_several(path: Path) -> bool:
    """Whether the end of the central directory says that the zip has more than one part ("disk")."""
    tail, offset = _tail(path)
    if offset < 0:
        return False
    disk, first_disk = struct.unpack_from("<HH", tail, offset + 4)
    locator = tail[max(0, offset - _LOCATOR_BYTES) : offset]
    if locator.startswith(_LOCATOR64):
        (disk,) = struct.unpack_from("<I", locator, 16)  # the number of parts
        return bool(disk > 1)
    return 0 < disk < 0xFFFF or 0 < first_disk < 0xFFFF


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


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
    tail, offset = _tail(path)
    if offset < 0:
        return 0, 0
    count, num_bytes = struct.unpack_from("<HI", tail, offset + 10)
    offset64 = tail.rfind(_END64, 0, offset)
    if tail[offset - _LOCATOR_BYTES :].startswith(_LOCATOR64) and 0 <= offset64 <= len(tail) - _END64_BYTES:
        count64, num_bytes64 = struct.unpack_from("<QQ", tail, offset64 + 32)
        return max(count, count64) if count != 0xFFFF else count64, num_bytes64
    return count, num_bytes


def _tail(path: Path) -> tuple[bytes, int]:
    """The end of the file, and where in it the end record of the central directory begins; -1 when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _END_BYTES - _LONGEST_COMMENT - _LOCATOR_BYTES - _END64_BYTES))
            tail = file.read()
    except OSError:
        return b"", -1
    offset = tail.rfind(_END)
    return tail, offset if len(tail) >= offset + _END_BYTES else -1
