"""One clip's prepared audio: FLAC at the model's rate, and the facts found on the way. Runs in a worker.

Suffixes: N samples, C channels (two).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import soundfile

from cache.aside import write_aside
from cache.errors import CacheError
from cache.fingerprint import canonical, digest_bytes
from stages.contract import Member
from stages.errors import Fault, StageError
from stages.ingest.archive import read_member
from stages.ingest.audio import Recording
from stages.ingest.faults import Unfit
from stages.ingest.resampling import resampled, resampled_length
from stages.ingest.stage import IngestParams, prepared_key

SILENCE_DBFS = -60.0
"""A clip whose peak stays below this is silent: nothing in it would be heard beside other clips."""
_FULL_SCALE = 1 << 23


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to prepare one clip: names, no sound."""

    source: Path
    kind: str
    member: Member
    shared: Path
    params: IngestParams


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is known about one prepared clip; kept beside it as JSON. Lengths are in samples at the model's rate."""

    digest: str
    num_samples: int
    """Kept: at most the model's native length."""
    num_samples_whole: int
    source_sample_rate_hz: int
    num_channels: int
    """Of the source file."""
    length_known: bool
    """False when the file's header did not say, so that a cut could not have been noticed."""
    peak: float
    """Of what is kept, before clamping; 1 is full scale."""
    num_clamped: int
    num_bytes: int
    """Of the FLAC file."""
    checksum: str
    """`sha256:...` of the FLAC file."""


def prepared_place(digest: str, params: IngestParams) -> str:
    """The prepared file, relative to the shared folder."""
    key = prepared_key(digest, params)
    return f"prepared/{key[:2]}/{key}.flac"


def kept_facts(shared: Path, digest: str, params: IngestParams) -> Prepared | None:
    """The facts of a clip that is prepared already; None when it is not, or not wholly."""
    audio = shared / prepared_place(digest, params)
    try:
        values = json.loads(audio.with_suffix(".json").read_bytes())
        facts = Prepared(**{field.name: values[field.name] for field in fields(Prepared)})
        return facts if audio.stat().st_size == facts.num_bytes and facts.digest == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or damaged: it is made anew, and that work is reported as progress


def prepare(job: Job) -> Prepared | Fault:
    """Decode, check, resample and write one clip; a fault is handed back, not raised.

    Raises:
        StageError: the disk is full or refuses. (A plain one: it must survive the way back from another process.)
    """
    try:
        return _prepared(job)
    except Unfit as unfit:
        return unfit.fault(job.member.name)
    except CacheError as error:
        raise StageError(str(error)) from None


def _prepared(job: Job) -> Prepared:
    params = job.params
    recording = Recording(read_member(job.source, job.kind, job.member))
    sink = _FlacSink(params)
    blocks_CN = recording.blocks()
    for block_CN in resampled(blocks_CN, recording.sample_rate_hz, params.sample_rate_hz):
        sink.write(block_CN)
        if sink.is_full:
            break
    for _ in blocks_CN:
        pass  # beyond the native length nothing is kept, but the file must still be whole
    recording.check()
    whole = resampled_length(recording.num_samples, recording.sample_rate_hz, params.sample_rate_hz)
    check_length(whole, params)
    sink.check()
    content = sink.content()
    facts = Prepared(
        digest=str(job.member.digest),
        num_samples=sink.num_samples,
        num_samples_whole=whole,
        source_sample_rate_hz=recording.sample_rate_hz,
        num_channels=recording.num_channels,
        length_known=recording.length_known,
        peak=sink.peak,
        num_clamped=sink.num_clamped,
        num_bytes=len(content),
        checksum=digest_bytes(content),
    )
    _commit(job.shared / prepared_place(facts.digest, params), content, facts)
    return facts


def check_length(num_samples: int, params: IngestParams) -> None:
    """Raise Unfit when a recording does not fill one latent frame."""
    if num_samples < params.downsampling_ratio:
        bounds = {"rate": params.sample_rate_hz, "limit": params.downsampling_ratio}
        raise Unfit("too_short", count=num_samples, **bounds)


def _commit(audio: Path, content: bytes, facts: Prepared) -> None:
    write_aside(audio, content)
    # The facts go last: a clip whose facts are there is whole.
    write_aside(audio.with_suffix(".json"), canonical(asdict(facts)) + b"\n")


class _FlacSink:
    """FLAC, 24 bit, growing in memory; a 16 or 24 bit source at the model's rate comes back bit for bit."""

    def __init__(self, params: IngestParams) -> None:
        self._buffer = io.BytesIO()
        form = {"samplerate": params.sample_rate_hz, "channels": 2, "format": "FLAC", "subtype": "PCM_24"}
        self._file = soundfile.SoundFile(self._buffer, "w", **form)
        self._room = params.native_samples
        self.num_samples = 0
        self.num_clamped = 0
        self.peak = 0.0

    @property
    def is_full(self) -> bool:
        return self._room == 0

    def write(self, audio_CN: np.ndarray) -> None:
        """Add samples up to the native length; what follows is dropped."""
        audio_CN = audio_CN[:, : self._room]
        if not audio_CN.shape[1]:
            return
        size_CN = np.abs(audio_CN)
        self.peak = max(self.peak, float(size_CN.max()))
        self.num_clamped += int(np.count_nonzero(size_CN > 1.0))
        self._file.write(_as_24_bit(audio_CN).T)
        self._room -= audio_CN.shape[1]
        self.num_samples += audio_CN.shape[1]

    def check(self) -> None:
        """Raise Unfit when nothing can be heard."""
        if self.peak < 10 ** (SILENCE_DBFS / 20):
            raise Unfit("silent", limit=SILENCE_DBFS)

    def content(self) -> bytes:
        """The finished file."""
        self._file.close()
        return self._buffer.getvalue()


def _as_24_bit(audio_CN: np.ndarray) -> np.ndarray:
    """Nearest 24 bit values, clamped to [-1, 1), in the upper bits of int32 as libsndfile takes them."""
    scaled_CN = np.rint(audio_CN * np.float32(_FULL_SCALE))
    return np.clip(scaled_CN, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int32) << 8


def needed_bytes(members: Iterator[Member] | list[Member], params: IngestParams) -> int:
    """About how much disk the prepared audio takes, guessed low from size and suffix: better no false alarm."""
    largest = params.native_samples * 2 * 3
    return sum(min(largest, int(member.num_bytes * _growth(member.name))) for member in members)


def _growth(name: str) -> float:
    """Prepared bytes per source byte: FLAC takes about half of PCM; lossy files grow several times."""
    return 4.0 if name.lower().endswith((".mp3", ".ogg", ".oga", ".opus")) else 0.4
