"""Limits on the declared sizes of a dataset's files. Light: standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stages.contract import Member
from stages.ingest.faults import FileRejected, as_line


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """Limits under which a zip or folder is read."""

    max_member_bytes: int = 2 << 30
    """Unpacked size of one file: three hours of 16-bit stereo. A file is read whole into memory."""
    max_total_bytes: int = 64 << 30
    """Unpacked size of all files."""
    max_compression_ratio: float = 200.0
    """Unpacked over packed size of one large file of a zip: audio hardly compresses, a zip bomb a thousandfold."""
    max_members: int = 50_000
    """Number of files of any kind. A zip's central directory is read whole into memory."""


RATIO_FLOOR_BYTES = 512 << 20
"""Files smaller than this unpacked (50 minutes of 16-bit stereo) may have any ratio: a clip padded with silence packs
as well as a bomb, and what a file takes in memory is bounded by its unpacked size."""


def over_limit(num_bytes: int, packed_bytes: int | None, limits: ArchiveLimits) -> FileRejected | None:
    """Why one file may not be read, by its declared sizes; None if it may."""
    if num_bytes > limits.max_member_bytes:
        return FileRejected("member_too_large", size=num_bytes, limit=limits.max_member_bytes)
    if (ratio := compression_ratio(num_bytes, packed_bytes)) > limits.max_compression_ratio:
        return FileRejected("compression_ratio", ratio=ratio, limit=limits.max_compression_ratio)
    return None


def compression_ratio(num_bytes: int, packed_bytes: int | None) -> float:
    """Unpacked over packed size; 0 for small files and in folders."""
    if packed_bytes is None or num_bytes < RATIO_FLOOR_BYTES:
        return 0.0
    return num_bytes / max(1, packed_bytes)


def over_total(total_bytes: int, limits: ArchiveLimits) -> FileRejected | None:
    """Why none of the files may be read; None if they may."""
    if total_bytes > limits.max_total_bytes:
        return FileRejected("archive_too_large", size=total_bytes, limit=limits.max_total_bytes)
    return None


def apply_limits(members: Sequence[Member], limits: ArchiveLimits) -> list[Member]:
    """The members, those beyond these limits with a fault: the dataset may have been listed under wider limits."""
    unread = over_total(sum(member.num_bytes for member in members), limits)
    return [
        _with_fault(member, unread or over_limit(member.num_bytes, member.packed_bytes, limits)) for member in members
    ]


def _with_fault(member: Member, rejection: FileRejected | None) -> Member:
    if rejection is None or member.fault is not None:
        return member
    return replace(member, digest=None, fault=as_line(rejection.fault(member.name)))
