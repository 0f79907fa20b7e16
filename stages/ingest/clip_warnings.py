"""Warnings about recordings that are used. Light: standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from stages.contract import Member
from stages.errors import Fault
from stages.ingest.faults import warning
from stages.ingest.stage import IngestParams
from stages.plural import is_or_are, pluralized

if TYPE_CHECKING:
    from stages.ingest.prepare_clip import PreparedClip

_CLIPPED_SHARE = 1e-4
"""Share of a recording's samples in runs at full scale; below this a listener notices nothing."""
_HARMLESS_STRAY_BYTES = 128
"""Most bytes before or after the sound without a warning: an old tag, or the size of a header that counts itself."""
_MUCH_LEFT_OUT = 0.1
"""Share of the power that may be left out without a warning: an LFE channel of music has less."""
_DC_OFFSET = 0.02
"""Smallest DC offset to warn of, as a part of full scale (-34 dB); converters leave less."""


def clip_warnings(prepared: Mapping[str, Sequence[PreparedClip]], params: IngestParams) -> Iterable[Fault]:
    """All warnings about recordings.

    Args:
        prepared: the windows of each recording, by member name.
    """
    for name, parts in prepared.items():
        yield from _about_recording(name, parts[0])
        yield from _about_windows(name, parts, params)


def _about_recording(name: str, facts: PreparedClip) -> Iterable[Fault]:
    if facts.layout:
        mixed = {"layout": facts.layout, "db": -facts.gain_db}
        yield warning(name, "channels_mixed", count=facts.num_channels, **mixed)
    elif facts.num_channels > 2:
        yield warning(name, "channels_dropped", count=facts.num_channels)
    if facts.share_left_out > _MUCH_LEFT_OUT:
        yield warning(name, "sound_left_out", percent=100 * facts.share_left_out)
    if not facts.length_known:
        yield warning(name, "length_unknown")
    if not facts.delay_known:
        yield warning(name, "codec_delay_unknown")
    if facts.num_padding:
        yield _about_samples(name, "codec_padding", facts.num_padding)
    if facts.contradiction:
        yield warning(name, "header_contradiction", facts=facts.contradiction)
    if facts.num_leading_bytes > _HARMLESS_STRAY_BYTES:
        yield warning(name, "leading_bytes", count=facts.num_leading_bytes)
    if facts.unread:
        yield warning(name, "sound_unread", what=facts.unread)
    elif facts.num_stray_bytes > _HARMLESS_STRAY_BYTES:
        yield warning(name, "stray_bytes", count=facts.num_stray_bytes)
    if facts.num_dropouts:
        begin = "begins" if facts.num_dropouts == 1 else "begin"
        yield warning(name, "dropouts", stretches=pluralized(facts.num_dropouts, "stretch", "stretches"), begin=begin)
    if facts.num_complaints:
        times = "once" if facts.num_complaints == 1 else f"{facts.num_complaints:,} times"
        yield warning(name, "decoder_complaints", times=times, complaint=facts.complaint)
    if facts.num_clipped > _CLIPPED_SHARE * facts.num_samples_whole:
        yield warning(name, "clipping", count=facts.num_clipped, runs=pluralized(facts.num_clipped_runs, "run"))
    if abs(facts.dc_offset) > _DC_OFFSET:
        yield warning(name, "dc_offset", offset=facts.dc_offset)


def _about_samples(name: str, type: str, number: int, **facts: object) -> Fault:
    """A warning about a number of samples."""
    return warning(name, type, samples=pluralized(number, "sample"), are=is_or_are(number), **facts)


def _about_windows(name: str, parts: Sequence[PreparedClip], params: IngestParams) -> Iterable[Fault]:
    """Warnings about what is clamped, cropped or left out of a recording."""
    rate, whole = params.sample_rate_hz, parts[0].num_samples_whole
    if clamped := sum(part.num_clamped for part in parts):
        yield _about_samples(name, "clamped", clamped, peak=max(part.peak for part in parts))
    if whole < params.downsampling_ratio:
        ms = 1000 * params.downsampling_ratio / rate
        yield _about_samples(name, "shorter_than_frame", whole, limit=params.downsampling_ratio, ms=ms)
    for part in parts:
        if part.is_silent:
            start, stop = part.crop_start / rate, (part.crop_start + part.num_samples) / rate
            yield warning(name, "window_silent", start=start, stop=stop)
    kept = parts[-1].crop_start + parts[-1].num_samples
    if kept < whole and params.long_clips == "first":
        yield warning(name, "cropped_to_native", seconds=whole / rate, kept=kept / rate)
    elif kept < whole:
        yield _about_samples(name, "rest_dropped", whole - kept)


def same_sounds(members: Iterable[Member]) -> Iterable[Fault]:
    """A warning for each group of audio files with the same bytes, about the first of them."""
    by_digest: dict[str, list[str]] = defaultdict(list)
    for member in members:
        by_digest[str(member.digest)].append(member.name)
    for names in by_digest.values():
        first, *others = sorted(names)
        if others:
            shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
            yield warning(first, "same_sound", others=shown, count=len(names))
