"""Decodes formats that libsndfile cannot read (AAC and ALAC in MP4, raw AAC, WMA) with the optional package PyAV.

AAC and WMA encoders add silence before the audio and fill up their last frame. An MP4 declares how much, and that much
is left out; raw AAC and WMA do not, so all of it is kept and `delay_known` is False.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import av
import numpy as np
from av.error import FFmpegError

from stages.ingest.audio.channel_layout import Layout, usual_layout
from stages.ingest.audio.decode import Recording
from stages.ingest.faults import FileRejected
from stages.ingest.integrity.container import checked_file, is_checked
from stages.ingest.integrity.mp4_asf_adts import check_adts, is_streamed_asf, mp4_states_delay, stray_bytes

_FRAME_SAMPLES = 1024
"""Samples of an AAC frame; the error of an MP4's declared length is less."""
_MAX_PADDING_SAMPLES = 8192
"""Two frames of ALAC, eight of AAC; an encoder only fills up its last frame."""
_WMA_TOLERANCE_SAMPLES = 8192
"""WMA declares its encoder's delay in milliseconds, and decoders leave some of it out."""
_FORMATS = {*("mov", "asf", "aac", "ogg", "matroska", "wav", "w64"), *("caf", "aiff", "au", "flac", "wv", "tta", "ape")}
"""FFmpeg's names of containers that begin with a mark. In others it would look for sound anywhere."""
_LOSSLESS = {"flac", "alac", "wavpack", "tta", "ape"}
_STATES_ITS_DELAY = {"opus", "libopus", "vorbis", "libvorbis", "speex", "libspeex"}
"""Codecs whose own header states the delay in any container, or whose position 0 is where the sound begins."""
_COUNTED = {"ogg", "flac", "wv", "tta", "caf"}
"""Containers that declare the exact number of samples, if the codec is lossless."""


class PyavRecording(Recording):
    """A `Recording` decoded by FFmpeg; any decoding error is a fault.

    Raises:
        FileRejected: not audio that FFmpeg can decode, or truncated.
    """

    def _open(self, data: bytes) -> None:
        found = self._found = checked_file(data)
        data, self.unread, self.contradiction = found.data, found.unread, found.contradiction
        self.num_stray_bytes = found.num_stray_bytes or stray_bytes(data)
        try:
            self._container = av.open(io.BytesIO(data), "r", options={"err_detect": "explode"})
            stream = self._container.streams.audio[0]
        except (FFmpegError, IndexError, ValueError) as error:
            raise FileRejected("audio_decode_error", why=_error_text(error)) from error
        if _FORMATS.isdisjoint(self._container.format.name.split(",")):
            raise FileRejected("audio_decode_error", why="its format is not recognised")
        if self._container.format.name == "aac":
            check_adts(data)
        if len(self._container.streams.audio) > 1:
            self.unread = self.unread or "a second stream beside the first one"
        if stream.codec_context is None:
            raise FileRejected("audio_decode_error", why="no decoder knows its encoding")
        self._stream = stream
        self.sample_rate_hz: int = stream.codec_context.sample_rate
        self.num_channels: int = stream.codec_context.channels
        self._layout = _layout(stream.codec_context.layout)
        self._is_mp4 = "mp4" in self._container.format.name
        is_lossless = stream.codec_context.name in _LOSSLESS or stream.codec_context.name.startswith("pcm_")
        states_delay = stream.codec_context.name in _STATES_ITS_DELAY or (self._is_mp4 and mp4_states_delay(data))
        self.delay_known = is_lossless or states_delay
        is_exact = is_lossless and self._container.format.name in _COUNTED
        self._states_samples = (self._is_mp4 or is_exact) and stream.duration is not None
        self.length_known = self._states_samples or (is_checked(data) and self._found.length_known)
        self._declared = 0
        self._tolerance = _FRAME_SAMPLES if self._is_mp4 else _WMA_TOLERANCE_SAMPLES
        if is_exact:
            self._tolerance = 1
        # Raw AAC has no header, and that of a streamed WMA is not filled in: FFmpeg guesses from the bit rate.
        is_guess = self._container.format.name == "aac" or is_streamed_asf(data)
        if stream.duration is not None and stream.time_base is not None and not is_guess:
            self._declared = round(stream.duration * stream.time_base * self.sample_rate_hz)

    def _decoded(self) -> Iterator[np.ndarray]:
        room = self._declared if self._states_samples else 1 << 62
        stream = self._stream
        stream.codec_context.options = {"err_detect": "explode", **self._trimmed_here()}
        resampler = av.AudioResampler(format="flt", layout=stream.codec_context.layout, rate=self.sample_rate_hz)
        try:
            for frame in self._container.decode(stream):
                if frame.is_corrupt:
                    raise FileRejected("audio_decode_error", why="a frame of it is damaged")
                for plain in resampler.resample(frame):
                    block_XA = plain.to_ndarray().reshape(-1, self.num_channels)
                    self.num_padding += max(0, len(block_XA) - room)
                    if room > 0:
                        yield block_XA[:room]
                    room -= len(block_XA)
        except (FFmpegError, ValueError) as error:
            raise FileRejected("audio_decode_error", why=_error_text(error)) from error

    def _trimmed_here(self) -> dict[str, str]:
        """Options of the decoder: for CAF, whose last packet FFmpeg cuts also where its own writer made it short."""
        is_caf = self._container.format.name == "caf" and self._states_samples
        return {"flags2": "+skip_manual"} if is_caf else {}

    def check(self) -> None:
        """Check the recording after all blocks are read.

        Raises:
            FileRejected: `audio_truncated` or `absurd_peak`.
        """
        if self._declared - self.num_samples >= self._tolerance or self.num_padding > _MAX_PADDING_SAMPLES:
            why = (
                f"its header says {self._declared:,} samples, {self.num_samples + self.num_padding:,} could be decoded"
            )
            raise FileRejected("audio_truncated", why=why)
        super().check()


def _layout(layout: av.AudioLayout) -> Layout | None:
    """The loudspeakers in FFmpeg's order; by their number where the file names none."""
    names = tuple(channel.name for channel in layout.channels)
    return usual_layout(len(names)) if set(names) == {"NONE"} else names


def _error_text(error: Exception) -> str:
    """FFmpeg's own message, without the name that PyAV gives the buffer."""
    return str(getattr(error, "strerror", "") or "") or "its content is damaged or is not audio"
