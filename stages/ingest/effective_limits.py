"""Params without the limits that a dataset does not reach. Light: standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stages.contract import Member
from stages.ingest.captions.pairing import num_audio
from stages.ingest.source.limits import compression_ratio
from stages.ingest.stage import IngestParams


def with_effective_limits(params: IngestParams, members: Sequence[Member]) -> IngestParams:
    """The params with each limit that these files do not exceed at its default, or at what they need if that is more.

    Such a limit does not change the result, so it must not change the fingerprint: raising `--max-clips` makes nothing
    again. A limit that the files exceed is left as it is; no artifact has that fingerprint, and the run that follows
    refuses the dataset.

    Args:
        members: the files as listed under the limits of `params`.
    """
    defaults = IngestParams(native_samples=params.native_samples, downsampling_ratio=params.downsampling_ratio)
    needed = {
        "max_members": len(members),
        "max_member_bytes": max((member.num_bytes for member in members), default=0),
        "max_total_bytes": sum(member.num_bytes for member in members),
        "max_compression_ratio": max((_ratio(member) for member in members), default=0.0),
    }
    if params.long_clips == "first":  # else the number of clips depends on their lengths
        needed["max_clips"] = max(num_audio(members), params.min_clips)
    not_exceeded = {name: need for name, need in needed.items() if need <= getattr(params, name)}
    return replace(params, **{name: max(getattr(defaults, name), need) for name, need in not_exceeded.items()})


def _ratio(member: Member) -> float:
    return compression_ratio(member.num_bytes, member.packed_bytes)
