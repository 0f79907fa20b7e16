"""What decides the manifest and the prepared audio. Light: standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cache.fingerprint import fingerprint
from stages.contract import Stage
from stages.ingest.caption_template import template_fault
from stages.ingest.source.limits import ArchiveLimits

AUDIO_VERSION = 2
"""Bump when the same source bytes and params should give other prepared samples."""
RESAMPLERS = {
    "resampy": {"filter": "kaiser_best", "length": "ceil(n * to / from)"},
    "soxr": {"filter": "HQ", "length": "ceil(n * to / from)"},
}
"""What each resampler's name stands for: recorded with the audio params, so a change of filter is a change of name."""
LONG_CLIPS = ("first", "split")
_COUNTS = (
    "sample_rate_hz",
    "downsampling_ratio",
    "min_clips",
    "max_clips",
    "max_members",
    "max_member_bytes",
    "max_total_bytes",
)


@dataclass(frozen=True, kw_only=True)
class IngestParams:
    """All of it is hashed; `audio_params` is the part that decides prepared samples."""

    native_samples: int
    """The model's native length in samples: no clip is longer."""
    sample_rate_hz: int = 44100
    downsampling_ratio: int = 4096
    """Samples per latent frame; a clip shorter than one frame is a fault."""
    duration_seconds: float | None = None
    """The window clips are cropped and padded to when they are read; None: the longest clip of the dataset."""
    resampler: str = "resampy"
    long_clips: str = "first"
    """A recording beyond the native length: `first` keeps its first native window, `split` makes a clip of each."""
    trigger_phrase: str | None = None
    """Put before every caption that does not hold it already."""
    caption_template: str | None = None
    """Such as "{genre}, {bpm} BPM": captions are made of each clip's JSON sidecar, tags and .txt; None: the .txt."""
    min_clips: int = 1
    max_clips: int = 2000
    max_member_bytes: int = ArchiveLimits.max_member_bytes
    max_total_bytes: int = ArchiveLimits.max_total_bytes
    max_compression_ratio: float = ArchiveLimits.max_compression_ratio
    max_members: int = ArchiveLimits.max_members
    skip_bad: bool = False
    """Go on without the clips that have faults; faults of the archive itself still end the run."""

    def __post_init__(self) -> None:
        for name, holds, rule in _rules(self):
            if not holds:
                raise ValueError(f"ingest.{name} must be {rule}; got {getattr(self, name)!r}")

    @property
    def limits(self) -> ArchiveLimits:
        """The bounds that guard reading the archive."""
        return ArchiveLimits(
            max_member_bytes=self.max_member_bytes,
            max_total_bytes=self.max_total_bytes,
            max_compression_ratio=self.max_compression_ratio,
            max_members=self.max_members,
        )


def _rules(params: IngestParams) -> Iterator[tuple[str, bool, str]]:
    """(field, whether it holds, the rule in words), field by field."""
    for name in _COUNTS:
        yield name, _is_count(getattr(params, name)), "a whole number of at least 1"
    native = params.native_samples
    yield "native_samples", _is_count(native) and native >= params.downsampling_ratio, "at least one latent frame"
    yield "max_clips", params.max_clips >= params.min_clips, f"at least min_clips ({params.min_clips})"
    seconds = params.duration_seconds
    yield "duration_seconds", seconds is None or _is_positive(seconds), "a positive number of seconds, or unset"
    yield "max_compression_ratio", _is_positive(params.max_compression_ratio), "a positive number"
    yield "resampler", params.resampler in RESAMPLERS, f"one of {', '.join(RESAMPLERS)}"
    yield "long_clips", params.long_clips in LONG_CLIPS, f"one of {', '.join(LONG_CLIPS)}"
    phrase = params.trigger_phrase
    yield "trigger_phrase", phrase is None or bool(phrase.strip()), "some text, or unset"
    wrong = None if params.caption_template is None else template_fault(params.caption_template)
    yield "caption_template", wrong is None, f"a template such as '{{genre}}, {{bpm}} BPM' ({wrong})"
    yield "skip_bad", isinstance(params.skip_bad, bool), "true or false"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def audio_params(params: IngestParams) -> dict[str, Any]:
    """The part of the params that decides prepared samples, with the version of the code that makes them."""
    return {
        "version": AUDIO_VERSION,
        "sample_rate_hz": params.sample_rate_hz,
        "num_channels": 2,
        "native_samples": params.native_samples,
        "encoding": "flac, 24 bit",
        "resampler": {"name": params.resampler, **RESAMPLERS[params.resampler]},
    }


def prepared_key(digest: str, params: IngestParams, crop_start: int = 0) -> str:
    """Name of one clip's prepared audio: what it was made of, how, and from which sample on."""
    record = {"digest": digest, "audio_params": audio_params(params)}
    return fingerprint("prepared", {**record, "crop_start": crop_start} if crop_start else record)


def prepared_place(digest: str, params: IngestParams, crop_start: int = 0) -> str:
    """The prepared file, relative to the shared folder."""
    key = prepared_key(digest, params, crop_start)
    return f"prepared/{key[:2]}/{key}.flac"


STAGE = Stage("ingest", 2, IngestParams, (), "stages.ingest.run:ingest")
