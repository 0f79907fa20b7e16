"""What decides the manifest and the prepared audio. Light: standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cache.fingerprint import fingerprint
from stages.contract import Stage
from stages.ingest.limits import ArchiveLimits

AUDIO_VERSION = 1
"""Bump when the same source bytes and params should give other prepared samples."""
RESAMPLERS = {"resampy": {"filter": "kaiser_best", "length": "ceil(n * to / from)"}}
"""What each resampler's name stands for: recorded with the audio params, so a change of filter is a change of name."""


@dataclass(frozen=True, kw_only=True)
class IngestParams:
    """All of it is hashed; `audio_params` is the part that decides prepared samples."""

    native_samples: int
    """The model's native length in samples: longer recordings keep their first native window."""
    sample_rate_hz: int = 44100
    downsampling_ratio: int = 4096
    """Samples per latent frame; a clip shorter than one frame is a fault."""
    duration_seconds: float | None = None
    """The window clips are cropped and padded to when they are read; None: the longest clip of the dataset."""
    resampler: str = "resampy"
    trigger_phrase: str | None = None
    """Put before every caption that does not hold it already."""
    min_clips: int = 1
    max_clips: int = 2000
    max_member_bytes: int = ArchiveLimits.max_member_bytes
    max_total_bytes: int = ArchiveLimits.max_total_bytes
    max_compression_ratio: float = ArchiveLimits.max_compression_ratio
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
        )


def _rules(params: IngestParams) -> Iterator[tuple[str, bool, str]]:
    """(field, whether it holds, the rule in words), field by field."""
    counts = ("sample_rate_hz", "downsampling_ratio", "min_clips", "max_clips", "max_member_bytes", "max_total_bytes")
    for name in counts:
        yield name, _is_count(getattr(params, name)), "a whole number of at least 1"
    native = params.native_samples
    yield "native_samples", _is_count(native) and native >= params.downsampling_ratio, "at least one latent frame"
    yield "max_clips", params.max_clips >= params.min_clips, f"at least min_clips ({params.min_clips})"
    seconds = params.duration_seconds
    yield "duration_seconds", seconds is None or _is_positive(seconds), "a positive number of seconds, or unset"
    yield "max_compression_ratio", _is_positive(params.max_compression_ratio), "a positive number"
    yield "resampler", params.resampler in RESAMPLERS, f"one of {', '.join(RESAMPLERS)}"
    phrase = params.trigger_phrase
    yield "trigger_phrase", phrase is None or bool(phrase.strip()), "some text, or unset"
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


def prepared_key(digest: str, params: IngestParams) -> str:
    """Name of one clip's prepared audio: what it was made of, and how."""
    return fingerprint("prepared", {"digest": digest, "audio_params": audio_params(params)})


STAGE = Stage("ingest", 1, IngestParams, (), "stages.ingest.run:ingest")
