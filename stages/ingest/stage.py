"""Stage `ingest`: its params and the keys of prepared audio. Light: standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cache.fingerprint import fingerprint
from stages.contract import Stage
from stages.field import OptionalPackage, check, param
from stages.ingest.caption_template import template_fault
from stages.ingest.source.limits import ArchiveLimits
from stages.text import control_fault

AUDIO_VERSION = 3
"""Bump when the same source bytes and params should give different prepared samples."""
RESAMPLERS = {
    "resampy": {"filter": "kaiser_best", "length": "ceil(n * to / from)"},
    "soxr": {"filter": "HQ", "length": "ceil(n * to / from)"},
}
"""Settings of each resampler, recorded with the audio params: another filter gives other keys."""

SOXR = OptionalPackage(extra="soxr", package="soxr", module="soxr")
MUTAGEN = OptionalPackage(extra="tags", package="mutagen", module="mutagen")
LIMITS = "Limits of the dataset"
"""Section of docs/fields.md."""


@dataclass(frozen=True, kw_only=True)
class IngestParams:
    """Params of ingest; all of them are hashed. `audio_params` is the part that decides prepared samples."""

    native_samples: int
    """The model's native length in samples: no clip is longer."""
    sample_rate_hz: int = param(44100, ge=1)
    downsampling_ratio: int = param(4096, ge=1)
    """Samples per latent frame; the window is at least one frame."""
    duration_seconds: float | None = param(
        None,
        name="duration",
        ge=1,
        le=380,
        help="crop or pad clips to this many seconds, at most the model's native length; unset: the longest clip",
    )
    """Applied when a clip is read; prepared audio keeps the whole clip."""
    resampler: str = param(
        "resampy",
        choices=tuple(RESAMPLERS),
        needs=SOXR,
        order=2,
        help="sample rate converter",
    )
    long_clips: str = param(
        "first",
        choices=("first", "split"),
        order=1,
        help="recordings longer than the native length: keep the first part, or make one clip of each part",
    )
    trigger_phrase: str | None = param(
        None, fault=control_fault, rule="plain text", help="text put before every caption"
    )
    """Not repeated before a caption that contains it already."""
    captions: str | None = param(
        None,
        fault=control_fault,
        rule="text",
        help="table in the data that holds the captions, such as metadata.csv or metadata.jsonl; unset: .txt files",
    )
    """By its path inside the data; with a column for the file (file_name) and one for the caption (caption, text)."""
    caption: str | None = param(
        None, fault=control_fault, rule="plain text", help="one caption for every clip; their .txt files are not used"
    )
    caption_template: str | None = param(
        None,
        fault=template_fault,
        rule="a template such as '{genre}, {bpm} BPM'",
        needs=MUTAGEN,
        help='captions made of the .json or tags, as "{genre}, {bpm} BPM"; {caption} is the .txt, {filename} the name',
    )
    min_clips: int = param(1, ge=1)
    max_clips: int = param(2000, ge=1, section=LIMITS, help="largest number of clips accepted")
    max_member_bytes: int = param(
        ArchiveLimits.max_member_bytes, ge=1, section=LIMITS, help="largest file accepted, unpacked"
    )
    max_total_bytes: int = param(
        ArchiveLimits.max_total_bytes,
        ge=1,
        section=LIMITS,
        help="largest dataset accepted, unpacked; also the largest download",
    )
    max_compression_ratio: float = param(
        ArchiveLimits.max_compression_ratio,
        gt=0,
        section=LIMITS,
        help="largest ratio of unpacked to packed size of a file over 512 MiB, against zip bombs",
    )
    max_members: int = param(
        ArchiveLimits.max_members, ge=1, section=LIMITS, help="largest number of files of any kind accepted"
    )
    skip_bad: bool = param(False, section=LIMITS, help="leave out clips that have faults, and record them")
    """Faults of the archive itself still end the run."""

    def __post_init__(self) -> None:
        check(self, "ingest")
        if not isinstance(self.native_samples, int) or self.native_samples < self.downsampling_ratio:
            raise ValueError(f"ingest.native_samples must be at least one latent frame; got {self.native_samples!r}")
        if self.max_clips < self.min_clips:
            raise ValueError(f"ingest.max_clips must be at least min_clips ({self.min_clips}); got {self.max_clips!r}")

    @property
    def limits(self) -> ArchiveLimits:
        """The limits under which the archive is read."""
        return ArchiveLimits(
            max_member_bytes=self.max_member_bytes,
            max_total_bytes=self.max_total_bytes,
            max_compression_ratio=self.max_compression_ratio,
            max_members=self.max_members,
        )


def audio_params(params: IngestParams) -> dict[str, Any]:
    """The part of the params that decides prepared samples, and `AUDIO_VERSION`."""
    return {
        "version": AUDIO_VERSION,
        "sample_rate_hz": params.sample_rate_hz,
        "num_channels": 2,
        "native_samples": params.native_samples,
        "encoding": "flac, 24 bit",
        "resampler": {"name": params.resampler, **RESAMPLERS[params.resampler]},
    }


def prepared_key(digest: str, params: IngestParams, crop_start: int = 0) -> str:
    """Fingerprint of one clip's prepared audio: source digest, audio params, and first sample unless that is 0."""
    record = {"digest": digest, "audio_params": audio_params(params)}
    return fingerprint("prepared", {**record, "crop_start": crop_start} if crop_start else record)


def prepared_path(digest: str, params: IngestParams, crop_start: int = 0) -> str:
    """Path of the prepared file, relative to the shared folder."""
    key = prepared_key(digest, params, crop_start)
    return f"prepared/{key[:2]}/{key}.flac"


STAGE = Stage("ingest", 3, IngestParams, (), "stages.ingest.run:ingest")
