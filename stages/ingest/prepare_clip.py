"""One recording's prepared audio: FLAC at the model's rate, and the facts found on the way. Runs in a worker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from cache.atomic_files import atomic_write_bytes
from cache.errors import CacheError
from cache.fingerprint import canonical, digest_bytes
from stages.contract import Member
from stages.errors import Fault, StageError
from stages.ingest.audio.decode import Recording
from stages.ingest.audio.flac_writer import SILENCE_DBFS, FlacWindows, Written, window_starts
from stages.ingest.audio.mpeg_decoder import DecoderEnded
from stages.ingest.audio.resample import resampled, resampled_length
from stages.ingest.faults import Unfit
from stages.ingest.file_types import WITH_PYAV, suffix
from stages.ingest.integrity.mp3 import looks_like_mp3
from stages.ingest.integrity.riff_ogg_flac import is_known
from stages.ingest.source.archive import read_member
from stages.ingest.stage import IngestParams, prepared_place

MOMENT_SECONDS = 1.0
"""A clip that takes no longer is finished when a stop is asked for: it is nearly there."""


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
    crop_start: int
    """First kept sample of the recording; 0 unless it is a further window of a long one."""
    num_samples: int
    """Kept: at most the model's native length."""
    num_samples_whole: int
    source_sample_rate_hz: int
    num_channels: int
    """Of the source file."""
    length_known: bool
    """False when the file's header did not say, so that a cut could not have been noticed."""
    delay_known: bool
    """False when a codec put silence before the sound and the file does not say how much."""
    num_padding: int
    """Samples, at the file's rate, that an encoder added behind the sound and that are left out."""
    num_stray_bytes: int
    """Of the source file, behind the end that it declares."""
    num_dropouts: int
    """Stretches of exact silence that begin abruptly."""
    num_complaints: int
    """How often the decoder reported damage."""
    complaint: str
    """One of them, in the decoder's words."""
    num_clipped: int
    """Of the whole recording, samples in runs at full scale; `num_clipped_runs` of them."""
    num_clipped_runs: int
    dc_offset: float
    """The larger of the channels' means over the whole recording; 1 is full scale."""
    peak: float
    """Of what is kept, before clamping; 1 is full scale."""
    num_clamped: int
    is_silent: bool
    """Then there is no audio file: it is a silent part of a long recording."""
    num_bytes: int
    """Of the FLAC file."""
    checksum: str
    """`sha256:...` of the FLAC file."""


def kept_facts(shared: Path, digest: str, params: IngestParams) -> tuple[Prepared, ...] | None:
    """The facts of a recording whose clips are all prepared already; None when one is not, or not wholly."""
    first = _kept(shared, digest, params, 0)
    if first is None:
        return None
    others = [_kept(shared, digest, params, start) for start in window_starts(first.num_samples_whole, params) if start]
    kept = (first, *(one for one in others if one is not None))
    return kept if len(kept) == 1 + len(others) and not all(one.is_silent for one in kept) else None


def _kept(shared: Path, digest: str, params: IngestParams, crop_start: int) -> Prepared | None:
    audio = shared / prepared_place(digest, params, crop_start)
    try:
        values = json.loads(audio.with_suffix(".json").read_bytes())
        facts = Prepared(**{field.name: values[field.name] for field in fields(Prepared)})
        whole = facts.is_silent or audio.stat().st_size == facts.num_bytes
        return facts if whole and (facts.digest, facts.crop_start) == (digest, crop_start) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or damaged: it is made anew, and that work is reported as progress


class Interrupted(Exception):
    """Asked to stop in the middle of a long recording; nothing of it was kept."""


def prepare(job: Job, should_stop: Callable[[], bool] = lambda: False) -> tuple[Prepared, ...] | Fault:
    """Decode, check, resample and write one recording; a fault is handed back, not raised.

    Args:
        should_stop: asked while a recording takes more than a moment; shorter ones are finished.

    Raises:
        Interrupted: it said so.
        StageError: the disk is full or refuses. (A plain one: it must survive the way back from another process.)
    """
    try:
        return _prepared(job, should_stop)
    except Unfit as unfit:
        return unfit.fault(job.member.name)
    except CacheError as error:
        raise StageError(str(error)) from None
    except DecoderEnded as error:
        raise StageError(f"{job.member.name}: {error}") from None


def recording_of(name: str, data: bytes) -> Recording:
    """The sound file in memory, with the decoder its name asks for, unless its bytes show that it is another's.

    Prepared audio is named by bytes: the same bytes under two names must go through the same decoder.
    """
    if suffix(name) in WITH_PYAV and not is_known(data) and not looks_like_mp3(data):
        from stages.ingest.audio.decode_pyav import ForeignRecording  # deferred: it is an optional package

        return ForeignRecording(data)
    return Recording(data)


def _while_wanted(blocks_CN: Iterator[np.ndarray], should_stop: Callable[[], bool]) -> Iterator[np.ndarray]:
    """The blocks, until a stop is asked for and the recording has taken its moment."""
    begun = time.monotonic()
    for block_CN in blocks_CN:
        yield block_CN
        if time.monotonic() - begun > MOMENT_SECONDS and should_stop():
            raise Interrupted


def _prepared(job: Job, should_stop: Callable[[], bool]) -> tuple[Prepared, ...]:
    params = job.params
    recording = recording_of(job.member.name, read_member(job.source, job.kind, job.member))
    sink = FlacWindows(params, job.shared / "prepared")
    blocks_CN = _while_wanted(recording.blocks(), should_stop)
    for block_CN in resampled(blocks_CN, recording.sample_rate_hz, params.sample_rate_hz, params.resampler):
        sink.write(block_CN)
        if sink.is_full:
            break
    for _ in blocks_CN:
        pass  # beyond the native length nothing is kept, but the file must still be whole
    recording.check()
    sink.close()
    whole = resampled_length(recording.num_samples, recording.sample_rate_hz, params.sample_rate_hz)
    check_length(whole, params)
    sink.drop_rest()
    if all(window.is_silent for window in sink.written):
        raise Unfit("silent", limit=SILENCE_DBFS)
    # The first window goes last: without it, the recording counts as not prepared.
    return tuple([_commit(job, recording, whole, sink, window) for window in reversed(sink.written)][::-1])


def _commit(job: Job, recording: Recording, whole: int, sink: FlacWindows, window: Written) -> Prepared:
    """Write one window, and its facts behind it: a clip whose facts are there is whole."""
    content = b"" if window.is_silent else sink.content(window)
    facts = Prepared(
        digest=str(job.member.digest),
        crop_start=window.crop_start,
        num_samples=window.num_samples,
        num_samples_whole=whole,
        source_sample_rate_hz=recording.sample_rate_hz,
        num_channels=recording.num_channels,
        length_known=recording.length_known,
        delay_known=recording.delay_known,
        num_padding=recording.num_padding,
        num_stray_bytes=recording.num_stray_bytes,
        num_dropouts=recording.level.num_dropouts,
        num_complaints=sum(recording.complaints.values()),
        complaint=max(recording.complaints, key=lambda text: recording.complaints[text], default=""),
        num_clipped=recording.level.num_clipped,
        num_clipped_runs=recording.level.num_runs,
        dc_offset=recording.level.dc_offset,
        peak=window.peak,
        num_clamped=window.num_clamped,
        is_silent=window.is_silent,
        num_bytes=len(content),
        checksum=digest_bytes(content),
    )
    audio = job.shared / prepared_place(facts.digest, job.params, facts.crop_start)
    if _kept(job.shared, facts.digest, job.params, facts.crop_start) != facts:
        # Flushing is most of what a short clip costs. The facts make both names last; facts that a power failure took
        # are noticed, and found again by decoding. The sound has no such second chance, so it is flushed.
        if content:
            atomic_write_bytes(audio, content, fsync=("file",))
        atomic_write_bytes(audio.with_suffix(".json"), canonical(asdict(facts)) + b"\n", fsync=("folder",))
    return facts


def check_length(num_samples: int, params: IngestParams) -> None:
    """Raise Unfit when a recording does not fill one latent frame."""
    if num_samples < params.downsampling_ratio:
        bounds = {"rate": params.sample_rate_hz, "limit": params.downsampling_ratio}
        raise Unfit("audio_too_short", count=num_samples, **bounds)


def needed_bytes(members: Iterator[Member] | list[Member], params: IngestParams) -> int:
    """About how much disk the prepared audio takes, guessed low from size and suffix: better no false alarm."""
    largest = params.native_samples * 2 * 3 if params.long_clips == "first" else 1 << 62
    return sum(min(largest, int(member.num_bytes * _growth(member.name))) for member in members)


def _growth(name: str) -> float:
    """Prepared bytes per source byte: FLAC takes about half of PCM; lossy files grow several times."""
    return 4.0 if suffix(name) in {".mp3", ".ogg", ".oga", ".opus", *WITH_PYAV} else 0.4
