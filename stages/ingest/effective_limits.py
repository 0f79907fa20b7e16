"""Limits that a dataset stays within, told apart from those it reaches. Light: standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stages.contract import Member
from stages.ingest.captions.pairing import num_audio
from stages.ingest.source.limits import compression_ratio
from stages.ingest.stage import IngestParams


def settled(params: IngestParams, members: Sequence[Member]) -> IngestParams:
    """The params, each limit that these files stay within at its usual value, or at what they need if that is more.

    Such a limit leaves no trace in the result, so it must leave none in its name: raising `--max-clips` makes nothing
    anew. A limit that the files exceed stays as it is; under its name nothing is found, and the run that follows
    refuses the dataset.

    Args:
        members: as they were listed under these very limits.
    """
    usual = IngestParams(native_samples=params.native_samples, downsampling_ratio=params.downsampling_ratio)
    needed = {
        "max_members": len(members),
        "max_member_bytes": max((member.num_bytes for member in members), default=0),
        "max_total_bytes": sum(member.num_bytes for member in members),
        "max_compression_ratio": max((_ratio(member) for member in members), default=0.0),
    }
    if params.long_clips == "first":  # else only the sound says how many clips there are
        needed["max_clips"] = max(num_audio(members), params.min_clips)
    within = {name: need for name, need in needed.items() if need <= getattr(params, name)}
    return replace(params, **{name: max(getattr(usual, name), need) for name, need in within.items()})


def _ratio(member: Member) -> float:
    return compression_ratio(member.num_bytes, member.packed_bytes)
