"""One audio file decoded, block by block, and looked at on the way. Suffixes: N samples, C channels (two)."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping

import numpy as np

from stages.ingest.audio.level import Level
from stages.ingest.audio.mpeg_decoder import MpegFile, may_be_mpeg
from stages.ingest.audio.mpeg_process import BLOCK_FRAMES, OPEN_ERRORS, READ_ERRORS, ForwardOnlySoundFile, error_text
from stages.ingest.faults import Unfit
from stages.ingest.integrity.flac_md5 import FlacSum, flac_sum
from stages.ingest.integrity.mp3 import Walked, check_frames, looks_like_mp3
from stages.ingest.integrity.riff_ogg_flac import check_whole, stray_bytes

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 2_000, 768_000
LOUDEST_PEAK = 16.0
"""Beyond this a float file is damaged or scaled as integers; up to it, it is loud and gets clamped."""
_LENGTH_UNKNOWN = 1 << 62
"""libsndfile announces a length beyond this when the file does not say."""


class Recording:
    """A sound file in memory. Read its `blocks` once, to the end; `check` then says whether it was fit.

    Raises:
        Unfit: not a sound file libsndfile knows, cut short, or of a rate beyond reason.
    """

    delay_known = True
    """False when a codec put silence before the sound and the file does not say how much."""
    length_known = True
    """Whether the file says how long it is: else a cut between two of its parts could not be noticed."""
    _expected: int | None = None
    """Samples that there must be."""
    num_stray_bytes = 0
    """Behind the end that the file itself declares."""
    _sum: FlacSum | None = None
    num_padding = 0
    """Samples that an encoder added behind the sound and that are left out."""
    complaints: Mapping[str, int] = {}
    """What the decoder reported about damage, and how often; complete once all blocks are read."""

    def __init__(self, data: bytes) -> None:
        self.num_samples = 0
        """Samples read so far, at the file's own rate."""
        self.peak = 0.0
        self.level = Level()
        self._open(data)
        if not LOWEST_RATE_HZ <= self.sample_rate_hz <= HIGHEST_RATE_HZ:
            bounds = {"low": LOWEST_RATE_HZ, "high": HIGHEST_RATE_HZ}
            raise Unfit("sample_rate_unsupported", rate=self.sample_rate_hz, **bounds)

    def _open(self, data: bytes) -> None:
        self.length_known = check_whole(data)
        self.num_stray_bytes = stray_bytes(data)
        # Before the decoder sees it: a fault says more than the decoder's words.
        walked = check_frames(data) if looks_like_mp3(data) else None
        self._file = _opened(data)
        self.sample_rate_hz: int = self._file.samplerate
        self.num_channels: int = self._file.channels
        declared = self._file.frames
        self.length_known &= declared < _LENGTH_UNKNOWN
        self._expected = declared if self.length_known else None
        if self._file.format == "MP3":
            self._expect(check_frames(data) if walked is None else walked)
        self._sum = flac_sum(data, self._file.subtype, declared)
        if isinstance(self._file, MpegFile):
            self.complaints = self._file.complaints

    def _expect(self, walked: Walked | None) -> None:
        """What an MP3 does not announce, libsndfile guesses from its size and the first frame's bit rate."""
        if walked is None or not walked.is_announced:
            self.length_known = False
            self._expected = None if walked is None else walked.num_samples

    def blocks(self) -> Iterator[np.ndarray]:
        """The sound as (2, n) float32 blocks: mono doubled, of more than two channels the first two.

        The blocks are views of interleaved samples, as files hold them: what is written again is never turned around.

        Raises:
            Unfit: the decoder fails on the way, or a sample is not finite.
        """
        for block_NC in self._decoded():
            block_CN = np.ascontiguousarray(block_NC[:, :2] if self.num_channels > 1 else block_NC.repeat(2, axis=1)).T
            self.num_samples += block_CN.shape[1]
            # NaN wins over every number in numpy's min and max, so these two find NaN, infinity and the peak.
            peak = max(-float(block_CN.min()), float(block_CN.max()))
            if not math.isfinite(peak):
                raise Unfit("not_finite")
            self.peak = max(self.peak, peak)
            self.level.add(block_CN, peak)
            yield block_CN

    def _decoded(self) -> Iterator[np.ndarray]:
        """(n, channels) float32 blocks, none of them empty."""
        while len(block_NC := self._read_block()):
            if self._sum is not None:
                self._sum.add(block_NC)
            yield block_NC

    def _read_block(self) -> np.ndarray:
        if isinstance(self._file, MpegFile):
            return self._file.read_block()
        try:
            block_NC: np.ndarray = self._file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        except READ_ERRORS as error:
            raise Unfit("audio_decode_error", why=error_text(error)) from error
        return block_NC

    def check(self) -> None:
        """What only the whole recording shows.

        Raises:
            Unfit: `audio_truncated` or `absurd_peak`.
        """
        if self._expected is not None and self.num_samples != self._expected:
            says = "header says" if self.length_known else "frames hold"
            why = f"its {says} {self._expected:,} samples, {self.num_samples:,} could be decoded"
            raise Unfit("audio_truncated", why=why)
        if self._sum is not None and not self._sum.fits():
            raise Unfit("audio_decode_error", why="its sound does not match the checksum in its header")
        if self.peak > LOUDEST_PEAK:
            raise Unfit("absurd_peak", peak=self.peak)


def _opened(data: bytes) -> ForwardOnlySoundFile | MpegFile:
    """The file, with whatever may go to libmpg123 in a process of its own."""
    if may_be_mpeg(data):
        return MpegFile(data)
    try:
        return ForwardOnlySoundFile(io.BytesIO(data))
    except OPEN_ERRORS as error:
        raise Unfit("audio_decode_error", why=error_text(error)) from error
