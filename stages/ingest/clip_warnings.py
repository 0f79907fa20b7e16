"""What a user should know about recordings that are used. Light: standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from stages.errors import Fault
from stages.ingest.faults import note
from stages.ingest.stage import IngestParams
from stages.plural import is_or_are, pluralized

if TYPE_CHECKING:
    from stages.ingest.prepare_clip import Prepared

_CLIPPED_SHARE = 1e-4
"""Of a recording's samples in runs at full scale; below this a listener notices nothing."""
_SLOPPY_BYTES = 128
"""Behind a declared end: an old tag, or a header that counts itself."""
_DC_OFFSET = 0.02
"""Of full scale (-34 dB); below this it is what converters leave."""


def prepared_notes(prepared: Mapping[str, Sequence[Prepared]], params: IngestParams) -> Iterable[Fault]:
    """Every note, by member name."""
    for name, parts in prepared.items():
        yield from _about_recording(name, parts[0])
        yield from _about_windows(name, parts, params)


def _about_recording(name: str, facts: Prepared) -> Iterable[Fault]:
    if facts.num_channels > 2:
        yield note(name, "channels_dropped", count=facts.num_channels)
    if not facts.length_known:
        yield note(name, "length_unknown")
    if not facts.delay_known:
        yield note(name, "codec_delay_unknown")
    if facts.num_padding:
        yield _counted(name, "codec_padding", facts.num_padding)
    if facts.num_stray_bytes > _SLOPPY_BYTES:
        yield note(name, "stray_bytes", count=facts.num_stray_bytes)
    if facts.num_dropouts:
        begin = "begins" if facts.num_dropouts == 1 else "begin"
        yield note(name, "dropouts", stretches=pluralized(facts.num_dropouts, "stretch", "stretches"), begin=begin)
    if facts.num_complaints:
        times = "once" if facts.num_complaints == 1 else f"{facts.num_complaints:,} times"
        yield note(name, "decoder_complaints", times=times, complaint=facts.complaint)
    if facts.num_clipped > _CLIPPED_SHARE * facts.num_samples_whole:
        yield note(name, "clipping", count=facts.num_clipped, runs=pluralized(facts.num_clipped_runs, "run"))
    if abs(facts.dc_offset) > _DC_OFFSET:
        yield note(name, "dc_offset", offset=facts.dc_offset)


def _counted(name: str, type: str, number: int, **facts: object) -> Fault:
    """A note about so many samples."""
    return note(name, type, samples=pluralized(number, "sample"), are=is_or_are(number), **facts)


def _about_windows(name: str, parts: Sequence[Prepared], params: IngestParams) -> Iterable[Fault]:
    """About what is kept of a recording: clamped, cut, left out."""
    rate, whole = params.sample_rate_hz, parts[0].num_samples_whole
    if clamped := sum(part.num_clamped for part in parts):
        yield _counted(name, "clamped", clamped, peak=max(part.peak for part in parts))
    for part in parts:
        if part.is_silent:
            start, stop = part.crop_start / rate, (part.crop_start + part.num_samples) / rate
            yield note(name, "window_silent", start=start, stop=stop)
    kept = parts[-1].crop_start + parts[-1].num_samples
    if kept < whole and params.long_clips == "first":
        yield note(name, "cropped_to_native", seconds=whole / rate, kept=kept / rate)
    elif kept < whole:
        yield note(name, "rest_dropped", count=whole - kept)
