"""Bounds on what a dataset may ask of this machine, checked against what it declares. Light: standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stages.contract import Member
from stages.ingest.faults import Unfit, as_text


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """What may be read, and unpacked."""

    max_member_bytes: int = 2 << 30
    """Unpacked size of one file: three hours of 16 bit stereo. A file is read whole into memory."""
    max_total_bytes: int = 64 << 30
    """Unpacked size of all files."""
    max_compression_ratio: float = 200.0
    """Unpacked over packed size of one file of a zip; sound hardly packs, a bomb packs a thousandfold."""
    max_members: int = 50_000
    """Files of any kind. A zip's list of contents is read whole into memory."""


RATIO_FLOOR_BYTES = 1 << 20
"""Files smaller than this unpacked are let through at any ratio: a second of silence packs as well as a bomb."""


def over_limit(num_bytes: int, packed_bytes: int | None, limits: ArchiveLimits) -> Unfit | None:
    """Why one file may not be read, going by its declared sizes."""
    if num_bytes > limits.max_member_bytes:
        return Unfit("member_too_large", size=num_bytes, limit=limits.max_member_bytes)
    if (ratio := compression_ratio(num_bytes, packed_bytes)) > limits.max_compression_ratio:
        return Unfit("compression_ratio", ratio=ratio, limit=limits.max_compression_ratio)
    return None


def compression_ratio(num_bytes: int, packed_bytes: int | None) -> float:
    """Unpacked over packed size; 0 where that says nothing."""
    if packed_bytes is None or num_bytes < RATIO_FLOOR_BYTES:
        return 0.0
    return num_bytes / max(1, packed_bytes)


def over_total(total_bytes: int, limits: ArchiveLimits) -> Unfit | None:
    """Why none of the files may be read."""
    if total_bytes > limits.max_total_bytes:
        return Unfit("archive_too_large", size=total_bytes, limit=limits.max_total_bytes)
    return None


def within(members: Sequence[Member], limits: ArchiveLimits) -> list[Member]:
    """The members, those beyond these limits with their fault: the dataset may have been listed under wider ones."""
    unread = over_total(sum(member.num_bytes for member in members), limits)
    return [_judged(member, unread or over_limit(member.num_bytes, member.packed_bytes, limits)) for member in members]


def _judged(member: Member, unfit: Unfit | None) -> Member:
    if unfit is None or member.fault is not None:
        return member
    return replace(member, digest=None, fault=as_text(unfit.fault(member.name)))
