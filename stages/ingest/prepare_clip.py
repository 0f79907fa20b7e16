"""Prepares one recording: decodes, checks, resamples and writes it as FLAC with its facts. Runs in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cache.errors import CacheError
from cache.files.atomic_files import atomic_write_bytes
from cache.fingerprint import digest_bytes
from stages.contract import Member
from stages.errors import Fault, StageError
from stages.ingest.audio.decode import NotOpened, Recording
from stages.ingest.audio.flac_writer import SILENCE_DBFS, FlacWindows, WrittenWindow, window_starts
from stages.ingest.audio.mpeg_decoder import DecoderEnded
from stages.ingest.audio.resample import resampled, resampled_length
from stages.ingest.audio_content import kind_for_pyav
from stages.ingest.faults import FileRejected
from stages.ingest.file_types import WITH_PYAV, suffix
from stages.ingest.integrity.tags import without_leading_tags
from stages.ingest.source.archive import read_member
from stages.ingest.stage import IngestParams, prepared_path
from stages.prepared_audio import read_facts, write_facts
from stages.text import other_format

GRACE_SECONDS = 1.0
"""After a stop is requested, a clip that has taken no longer than this is finished."""


@dataclass(frozen=True, kw_only=True)
class RecordingJob:
    """What a worker needs to prepare one recording: paths and params, no samples."""

    source: Path
    kind: str
    member: Member
    shared: Path
    params: IngestParams


@dataclass(frozen=True, kw_only=True)
class PreparedClip:
    """Facts about one prepared clip, stored as JSON beside its FLAC. Lengths are in samples at the model's rate."""

    digest: str
    crop_start: int
    """First kept sample of the recording; 0 unless it is a further window of a long one."""
    num_samples: int
    """Samples kept: at most the model's native length."""
    num_samples_whole: int
    """Samples of the whole recording."""
    source_sample_rate_hz: int
    num_channels: int
    """Channels of the source file."""
    layout: str
    """Loudspeakers of channels that are mixed down, such as "FL FR FC"; empty where nothing is mixed."""
    gain_db: float
    """Change of level by that, so that nothing clips."""
    share_left_out: float
    """Share of the sound's power that is in channels which are left out."""
    length_known: bool
    """False when the file's header does not say how long it is, so missing audio could not be detected."""
    delay_known: bool
    """False when a codec added silence before the sound and the file does not say how much."""
    num_padding: int
    """Samples, at the file's rate, that an encoder added at the end and that are left out."""
    num_leading_bytes: int
    """Bytes of the source file before its first frame that are no tags."""
    num_stray_bytes: int
    """Bytes of the source file after the end that it declares."""
    unread: str
    """What further sound the file holds that is not read; empty if none."""
    contradiction: str
    """Which redundant fields of its header disagree with the others; empty if none."""
    num_dropouts: int
    """Stretches of exact silence that begin abruptly."""
    num_complaints: int
    """How often the decoder reported damage."""
    complaint: str
    """The most frequent of these reports, in the decoder's words."""
    num_clipped: int
    """Samples of the whole recording in runs at full scale."""
    num_clipped_runs: int
    """Number of those runs."""
    dc_offset: float
    """The larger of the channels' means over the whole recording; 1 is full scale."""
    peak: float
    """Peak of the samples kept, before clamping; 1 is full scale."""
    num_clamped: int
    """Samples beyond full scale."""
    is_silent: bool
    """True for a silent part of a long recording; it has no FLAC file."""
    num_bytes: int
    """Size of the FLAC file."""
    checksum: str
    """`sha256:...` of the FLAC file."""


def stored_facts(shared: Path, digest: str, params: IngestParams) -> tuple[PreparedClip, ...] | None:
    """The facts of all windows of a recording that is prepared already; None when one is missing or incomplete."""
    first = _stored(shared, digest, params, 0)
    if first is None:
        return None
    starts = [start for start in window_starts(first.num_samples_whole, params) if start]
    others = [_stored(shared, digest, params, start) for start in starts]
    found = (first, *(one for one in others if one is not None))
    return found if len(found) == 1 + len(others) and not all(one.is_silent for one in found) else None


def _stored(shared: Path, digest: str, params: IngestParams, crop_start: int) -> PreparedClip | None:
    audio = shared / prepared_path(digest, params, crop_start)
    try:
        facts = PreparedClip(**read_facts(audio))
        is_complete = facts.is_silent or audio.stat().st_size == facts.num_bytes
        return facts if is_complete and (facts.digest, facts.crop_start) == (digest, crop_start) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or damaged: it is made again, and that work is reported as progress


class Interrupted(Exception):
    """A stop was requested in the middle of a long recording; nothing of it was kept."""


def prepare(job: RecordingJob, should_stop: Callable[[], bool] = lambda: False) -> tuple[PreparedClip, ...] | Fault:
    """Decode, check, resample and write one recording; a fault is returned, not raised.

    Args:
        should_stop: called while a recording takes longer than GRACE_SECONDS; shorter ones are finished.

    Raises:
        Interrupted: should_stop returned True.
        StageError: the disk is full or not writable, or the MP3 decoder ended. (Of this class itself, whose one
            argument lets it be pickled on its way back from another process.)
    """
    try:
        return _prepared(job, should_stop)
    except FileRejected as rejection:
        return rejection.fault(job.member.name)
    except CacheError as error:
        raise StageError(str(error)) from None
    except DecoderEnded as error:
        raise StageError(f"{job.member.name}: {error}") from None


def open_recording(data: bytes) -> Recording:
    """The recording in memory, with the decoder for its bytes; PyAV is tried where libsndfile cannot open them.

    Raises:
        FileRejected: no decoder can open it.
    """
    if not data:
        raise FileRejected("audio_not_there")
    data = without_leading_tags(data)
    if (other := other_format(data)) is not None:
        raise FileRejected("audio_decode_error", why=f"by its content it is {other}")
    kind = kind_for_pyav(data)
    if kind is not None:
        return _pyav_recording(data, NotOpened("audio_needs_pyav", kind=kind))
    try:
        return Recording(data)
    except NotOpened as rejection:
        return _second_try(data, rejection)


def _second_try(data: bytes, rejection: NotOpened) -> Recording:
    """The recording as PyAV decodes it; raises libsndfile's rejection where PyAV cannot open it either."""
    if find_spec("av") is None:
        why = f"{rejection.facts['why']}; PyAV, which reads more kinds of files, is not installed"
        raise FileRejected(rejection.type, why=why) from rejection
    try:
        return _pyav_recording(data, rejection)
    except FileRejected as error:
        raise rejection if error.type == rejection.type else error from error


def _pyav_recording(data: bytes, rejection: NotOpened) -> Recording:
    """The recording as PyAV decodes it; raises the rejection where PyAV is not installed."""
    if find_spec("av") is None:
        raise rejection
    from stages.ingest.audio.decode_pyav import PyavRecording  # deferred: it is an optional package

    return PyavRecording(data)


def _until_stopped(blocks_AX: Iterator[np.ndarray], should_stop: Callable[[], bool]) -> Iterator[np.ndarray]:
    """The blocks; raises Interrupted once a stop is requested and the recording has taken GRACE_SECONDS."""
    begun = time.monotonic()
    for block_AX in blocks_AX:
        yield block_AX
        if time.monotonic() - begun > GRACE_SECONDS and should_stop():
            raise Interrupted


def _prepared(job: RecordingJob, should_stop: Callable[[], bool]) -> tuple[PreparedClip, ...]:
    params = job.params
    recording = open_recording(read_member(job.source, job.kind, job.member))
    sink = FlacWindows(params, job.shared / "prepared")
    blocks_AX = _until_stopped(recording.blocks(), should_stop)
    for block_AX in resampled(blocks_AX, recording.sample_rate_hz, params.sample_rate_hz, params.resampler):
        sink.write(block_AX)
        if sink.is_full:
            break
    for _ in blocks_AX:
        pass  # beyond the native length nothing is kept, but the file must still be undamaged
    recording.check()
    sink.close()
    whole = resampled_length(recording.num_samples, recording.sample_rate_hz, params.sample_rate_hz)
    if not whole:
        raise FileRejected("audio_empty")
    sink.drop_rest()
    if all(window.is_silent for window in sink.written):
        if recording.mixer.peak_left_out >= 10 ** (SILENCE_DBFS / 20):
            raise FileRejected("used_channels_silent", limit=SILENCE_DBFS, count=recording.num_channels)
        raise FileRejected("silent", limit=SILENCE_DBFS)
    # The first window goes last: without it, the recording counts as not prepared.
    return tuple([_commit(job, recording, whole, sink, window) for window in reversed(sink.written)][::-1])


def _commit(
    job: RecordingJob, recording: Recording, whole: int, sink: FlacWindows, window: WrittenWindow
) -> PreparedClip:
    """Write one window, then its facts: a clip that has its facts is complete."""
    content = b"" if window.is_silent else sink.content(window)
    facts = PreparedClip(
        digest=str(job.member.digest),
        crop_start=window.crop_start,
        num_samples=window.num_samples,
        num_samples_whole=whole,
        source_sample_rate_hz=recording.sample_rate_hz,
        num_channels=recording.num_channels,
        layout=" ".join(recording.mixer.layout),
        gain_db=recording.mixer.gain_db,
        share_left_out=recording.mixer.share_left_out,
        length_known=recording.length_known,
        delay_known=recording.delay_known,
        num_padding=recording.num_padding,
        num_leading_bytes=recording.num_leading_bytes,
        num_stray_bytes=recording.num_stray_bytes,
        unread=recording.unread,
        contradiction=recording.contradiction,
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
    audio = job.shared / prepared_path(facts.digest, job.params, facts.crop_start)
    if _stored(job.shared, facts.digest, job.params, facts.crop_start) != facts:
        # Flushing is most of what a short clip costs. The folder flush after the facts makes both names durable. Facts
        # lost in a power failure are noticed and found again by decoding; lost audio is not, so it is flushed itself.
        if content:
            atomic_write_bytes(audio, content, fsync=("file",))
        write_facts(audio, asdict(facts))
    return facts


def estimated_bytes(members: Iterator[Member] | list[Member], params: IngestParams) -> int:
    """Disk space for the prepared audio, estimated from size and suffix: a lower bound for all but unusual sounds."""
    largest = params.native_samples * 2 * 3 if params.long_clips == "first" else 1 << 62
    return sum(min(largest, int(member.num_bytes * _growth(member.name))) for member in members)


def _growth(name: str) -> float:
    """Bytes of prepared audio per source byte: half of 16-bit PCM, a fifth of 32-bit at 96 kHz; lossy files grow."""
    return 1.5 if suffix(name) in {".mp3", ".ogg", ".oga", ".opus", *WITH_PYAV} else 0.15
