"""One audio file decoded, block by block, and looked at on the way. Suffixes: N samples, C channels (two)."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import numpy as np
import soundfile

from stages.ingest.containers import check_whole, stray_bytes
from stages.ingest.faults import Unfit
from stages.ingest.flac_sum import FlacSum, flac_sum
from stages.ingest.level import Level
from stages.ingest.mpeg import check_frames, looks_like_mp3

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 2_000, 768_000
LOUDEST_PEAK = 16.0
"""Beyond this a float file is damaged or scaled as integers; up to it, it is loud and gets clamped."""
_BLOCK_SAMPLES = 1 << 15
_LENGTH_UNKNOWN = 1 << 62
"""libsndfile announces a length beyond this when the file does not say."""


class Recording:
    """A sound file in memory. Read its `blocks` once, to the end; `check` then says whether it was fit.

    Raises:
        Unfit: not a sound file libsndfile knows, cut short, or of a rate beyond reason.
    """

    delay_known = True
    """False when a codec put silence before the sound and the file does not say how much."""
    num_stray_bytes = 0
    """Behind the end that the file itself declares."""
    _sum: FlacSum | None = None
    num_padding = 0
    """Samples that an encoder added behind the sound and that are left out."""

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
        if looks_like_mp3(data):
            check_frames(data)  # before the decoder sees it: libmpg123 writes its complaints to the terminal
        try:
            self._file = soundfile.SoundFile(io.BytesIO(data))
        except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
            raise Unfit("audio_decode_error", why=_words(error)) from error
        self.sample_rate_hz: int = self._file.samplerate
        self.num_channels: int = self._file.channels
        self._declared: int = self._file.frames
        self.length_known &= self._declared < _LENGTH_UNKNOWN
        if self._file.format == "MP3" and not looks_like_mp3(data):
            check_frames(data)
        self._sum = flac_sum(data, self._file.subtype, self._declared)

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
        while True:
            try:
                block_NC: np.ndarray = self._file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise Unfit("audio_decode_error", why=_words(error)) from error
            if self._sum is not None:
                self._sum.add(block_NC)
            if not len(block_NC):
                return
            yield block_NC

    def check(self) -> None:
        """What only the whole recording shows.

        Raises:
            Unfit: `audio_truncated` or `absurd_peak`.
        """
        if self.length_known and self.num_samples != self._declared:
            why = f"its header says {self._declared:,} samples, {self.num_samples:,} could be decoded"
            raise Unfit("audio_truncated", why=why)
        if self._sum is not None and not self._sum.fits():
            raise Unfit("audio_decode_error", why="its sound does not match the checksum in its header")
        if self.peak > LOUDEST_PEAK:
            raise Unfit("absurd_peak", peak=self.peak)


def _words(error: Exception) -> str:
    """libsndfile's own words, without the address of the buffer that soundfile puts before them."""
    words = str(getattr(error, "error_string", "") or "").strip().rstrip(".")
    return words or "its content is damaged or is no sound"
