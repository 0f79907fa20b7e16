"""Decodes an audio file block by block and checks it on the way. Suffixes: A audio channels (two), X samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from stages.ingest.audio.channel_layout import Layout, channel_layout
from stages.ingest.audio.downmix import StereoMixer
from stages.ingest.audio.level import LevelMeter
from stages.ingest.audio.mpeg_decoder import MpegFile, may_be_mpeg
from stages.ingest.audio.mpeg_process import BLOCK_FRAMES, DECODE_ERRORS, FileInMemory, ForwardOnlySoundFile, error_text
from stages.ingest.faults import FileRejected
from stages.ingest.integrity.chunks import mpeg_payload
from stages.ingest.integrity.container import checked_file
from stages.ingest.integrity.flac_md5 import FlacMd5, flac_md5
from stages.ingest.integrity.mp3 import FrameScan, check_frames, looks_like_mp3
from stages.ingest.integrity.ogg import opus_at_full_rate

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 2_000, 768_000
LOUDEST_PEAK = 16.0
"""Beyond this a float file is damaged or scaled as integers; up to this it is too loud, and is clamped."""
_LENGTH_UNKNOWN = 1 << 62
"""libsndfile returns a length beyond this when the file declares none."""


_HELD_TO_LENGTH = {
    "WAV",
    "WAVEX",
    "RF64",
    "W64",
    "AIFF",
    "AU",
    "CAF",
    "FLAC",
    "OGG",
    "MP3",
    "MPEG",
    "NIST",
    "VOC",
    "SVX",
}
"""libsndfile's names of containers whose declared length is checked; of others it takes the length from their size."""


class NotOpened(FileRejected):
    """libsndfile does not know the kind of file, or its encoding; another decoder may."""


class Recording:
    """An audio file in memory. Read its `blocks` once, to the end, then call `check`.

    Raises:
        FileRejected: not audio that libsndfile can decode, truncated, or of an unsupported sample rate.
    """

    delay_known = True
    """False when a codec added silence before the sound and the file does not say how much."""
    length_known = True
    """Whether the file declares its length; if not, missing audio cannot be detected."""
    _expected: int | None = None
    """Number of samples that must be decoded."""
    _num_added = 0
    """Samples of silence that were added at the end for the decoder."""
    _num_decoded = 0
    """Samples from the decoder, with those that are left out."""
    _num_sound = 1 << 62
    """Samples after which the decoder returns silence that was added for it."""
    num_leading_bytes = 0
    """Bytes before its first frame that are no tags."""
    num_stray_bytes = 0
    """Bytes after the end that the file itself declares."""
    unread = ""
    """What further sound the file holds that is not read."""
    contradiction = ""
    """Which redundant fields of its header disagree with the others."""
    _md5: FlacMd5 | None = None
    _layout: Layout | None = None
    """Loudspeakers of the channels, where they are known."""
    num_padding = 0
    """Samples that an encoder added at the end and that are left out."""
    complaints: Mapping[str, int] = {}
    """What the decoder reported about damage, and how often; complete once all blocks are read."""

    def __init__(self, data: bytes) -> None:
        self.num_samples = 0
        """Samples read so far, at the file's own rate."""
        self.peak = 0.0
        self.level = LevelMeter()
        self._open(data)
        self.mixer = StereoMixer(self.num_channels, self._layout)
        if not LOWEST_RATE_HZ <= self.sample_rate_hz <= HIGHEST_RATE_HZ:
            bounds = {"low": LOWEST_RATE_HZ, "high": HIGHEST_RATE_HZ}
            raise FileRejected("sample_rate_unsupported", rate=self.sample_rate_hz, **bounds)

    def _open(self, data: bytes) -> None:
        found = checked_file(data)
        data, self.length_known, self.num_stray_bytes = found.data, found.length_known, found.num_stray_bytes
        self.unread, self.contradiction = found.unread, found.contradiction
        data = mpeg_payload(data)
        # Before decoding: these faults say more than the decoder's errors.
        scan = check_frames(data) if looks_like_mp3(data) else None
        data = opus_at_full_rate(data) if scan is None else scan.data
        self._file = _opened(data)
        self.sample_rate_hz: int = self._file.samplerate
        self.num_channels: int = self._file.channels
        self._layout = channel_layout(data, self.num_channels)
        declared = self._file.frames
        self.length_known &= declared < _LENGTH_UNKNOWN and self._file.format in _HELD_TO_LENGTH
        self._expected = declared if self.length_known else None
        if self._file.subtype.startswith("MPEG"):
            self.delay_known = scan is not None and scan.delay_known
        if scan is not None:
            self.num_leading_bytes, self.num_stray_bytes = scan.num_leading_bytes, scan.num_stray_bytes
            self.unread, self.contradiction = self.unread or scan.unread, self.contradiction or scan.contradiction
        if self._file.format == "MP3":
            self._expect(scan)
        self._md5 = flac_md5(data, self._file.subtype, declared)
        if isinstance(self._file, MpegFile):
            self.complaints = self._file.complaints

    def _expect(self, scan: FrameScan | None) -> None:
        """Expect the length of an MP3's frames where it declares none: libsndfile guesses it from size and bit rate."""
        self.length_known = scan is not None and scan.is_declared
        if scan is None:
            self._expected = None
        elif scan.num_samples is not None:
            self._expected = self._num_sound = scan.num_samples
            self._num_added = scan.num_added

    def blocks(self) -> Iterator[np.ndarray]:
        """The audio as (2, n) float32 blocks: mono doubled, more than two channels mixed down.

        Blocks are views of interleaved samples, as files store them, so that writing them needs no transposition.

        Raises:
            FileRejected: decoding fails, or a sample is not finite.
        """
        for block_XA in self._decoded():
            block_AX = self.mixer.stereo(block_XA).T
            self.num_samples += block_AX.shape[1]
            # NaN propagates through numpy's min and max, so these two find NaN, infinity and the peak.
            peak = max(-float(block_AX.min()), float(block_AX.max()))
            if not math.isfinite(peak):
                raise FileRejected("not_finite")
            self.peak = max(self.peak, peak)
            self.level.add(block_AX, peak)
            yield block_AX

    def _decoded(self) -> Iterator[np.ndarray]:
        """(n, channels) float32 blocks, none of them empty."""
        room = self._num_sound
        while len(block_XA := self._read_block()):
            self._num_decoded += len(block_XA)
            block_XA = block_XA[:room]
            room -= len(block_XA)
            if not len(block_XA):
                continue  # a decoder of its own process is read to its end
            if self._md5 is not None:
                self._md5.add(block_XA)
            yield block_XA

    def _read_block(self) -> np.ndarray:
        if isinstance(self._file, MpegFile):
            return self._file.read_block()
        try:
            block_XA: np.ndarray = self._file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        except DECODE_ERRORS as error:
            raise FileRejected("audio_decode_error", why=error_text(error)) from error
        return block_XA

    def check(self) -> None:
        """Check the recording after all blocks are read.

        Raises:
            FileRejected: `audio_truncated` or `absurd_peak`.
        """
        self._check_all_decoded()
        if self._expected is not None and self.num_samples != self._expected:
            source = "header says" if self.length_known else "frames hold"
            why = f"its {source} {self._expected:,} samples, {self.num_samples:,} could be decoded"
            raise FileRejected("audio_truncated", why=why)
        if self._md5 is not None and not self._md5.matches():
            raise FileRejected("audio_decode_error", why="its audio does not match the checksum in its header")
        if self.peak > LOUDEST_PEAK:
            raise FileRejected("absurd_peak", peak=self.peak)

    def _check_all_decoded(self) -> None:
        """Check that the decoder left out nothing of an MP3 that had silence added to it, which would hide that."""
        if not self._num_added:
            return
        lacking = min(self._file.frames, self._num_sound + self._num_added) - self._num_decoded
        if lacking > 0:
            why = f"its frames hold {self._num_sound:,} samples, {self._num_sound - lacking:,} could be decoded"
            raise FileRejected("audio_truncated", why=why)


def _opened(data: bytes) -> ForwardOnlySoundFile | MpegFile:
    """The opened file; one that libmpg123 may decode is decoded by another process."""
    try:
        return MpegFile(data) if may_be_mpeg(data) else ForwardOnlySoundFile(FileInMemory(data))
    except FileRejected as rejection:
        raise NotOpened(rejection.type, **rejection.facts) from rejection
    except DECODE_ERRORS as error:
        raise NotOpened("audio_decode_error", why=error_text(error)) from error
