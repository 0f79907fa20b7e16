"""Sound that libsndfile does not read (AAC and ALAC in MP4, raw AAC, WMA), through the optional package PyAV.

AAC and WMA encoders put silence before the sound and fill their last frame behind it. An MP4 says how much, and what
it says is left out; raw AAC and WMA do not, so all of it is kept and the recording says that its delay is not known.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import av
import numpy as np
from av.error import FFmpegError

from stages.ingest.audio.decode import Recording
from stages.ingest.faults import Unfit
from stages.ingest.integrity.mp4_asf_adts import check_adts, surplus_bytes

_FRAME_SAMPLES = 1024
"""Of AAC; an MP4's declared length is off by less than that."""
_MOST_PADDING_SAMPLES = 8192
"""Two frames of ALAC, eight of AAC: an encoder fills its last frame and no more."""
_WMA_SLACK_SAMPLES = 8192
"""A WMA counts its encoder's delay in milliseconds, and its decoder leaves some of it out."""


class ForeignRecording(Recording):
    """As `Recording`; anything the decoder complains about is a fault, not a gap.

    Raises:
        Unfit: not a sound file FFmpeg knows, or cut short.
    """

    def _open(self, data: bytes) -> None:
        self.num_stray_bytes = surplus_bytes(data)
        try:
            self._container = av.open(io.BytesIO(data), "r", options={"err_detect": "explode"})
            stream = self._container.streams.audio[0]
        except (FFmpegError, IndexError, ValueError) as error:
            raise Unfit("audio_decode_error", why=_words(error)) from error
        if self._container.format.name == "aac":
            check_adts(data)
        self._stream = stream
        self.sample_rate_hz: int = stream.codec_context.sample_rate
        self.num_channels: int = stream.codec_context.channels
        self._is_mp4 = "mp4" in self._container.format.name
        self.delay_known = self._is_mp4
        self.length_known = self._is_mp4 and stream.duration is not None
        self._declared = 0
        self._slack = _FRAME_SAMPLES if self._is_mp4 else _WMA_SLACK_SAMPLES
        is_guess = self._container.format.name == "aac"  # raw AAC has no header: FFmpeg guesses from the bit rate
        if stream.duration is not None and stream.time_base is not None and not is_guess:
            self._declared = round(stream.duration * stream.time_base * self.sample_rate_hz)

    def _decoded(self) -> Iterator[np.ndarray]:
        room = self._declared if self.length_known else 1 << 62
        stream = self._stream
        stream.codec_context.options = {"err_detect": "explode"}
        resampler = av.AudioResampler(format="flt", layout=stream.codec_context.layout, rate=self.sample_rate_hz)
        try:
            for frame in self._container.decode(stream):
                if frame.is_corrupt:
                    raise Unfit("audio_decode_error", why="a frame of it is damaged")
                for plain in resampler.resample(frame):
                    block_NC = plain.to_ndarray().reshape(-1, self.num_channels)
                    self.num_padding += max(0, len(block_NC) - room)
                    if room > 0:
                        yield block_NC[:room]
                    room -= len(block_NC)
        except (FFmpegError, ValueError) as error:
            raise Unfit("audio_decode_error", why=_words(error)) from error

    def check(self) -> None:
        """What only the whole recording shows.

        Raises:
            Unfit: `audio_truncated` or `absurd_peak`.
        """
        if self._declared - self.num_samples >= self._slack or self.num_padding > _MOST_PADDING_SAMPLES:
            why = (
                f"its header says {self._declared:,} samples, {self.num_samples + self.num_padding:,} could be decoded"
            )
            raise Unfit("audio_truncated", why=why)
        super().check()


def _words(error: Exception) -> str:
    """FFmpeg's own words, without the name that PyAV gives the buffer."""
    return str(getattr(error, "strerror", "") or "") or "its content is damaged or is no sound"
