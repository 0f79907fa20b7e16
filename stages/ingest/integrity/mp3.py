"""Checks an MP3 frame by frame, as decoders silently skip what they cannot read. Light: standard library only.

Sources: ISO 11172-3 and 13818-3 (frame header), the Xing and LAME header in the first frame (gabriel.mp3-tech.org).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from stages.ingest.faults import FileRejected
from stages.ingest.integrity.checked_file import after_end
from stages.ingest.integrity.tags import TAG_MARKERS, end_of_tags

_BITRATES = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""kbit/s of layer III, by version bits (2.5 has version 2's)."""
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_LAYER_3 = 1
_MAX_STRAY_BYTES = 4096
"""Bytes of an unknown kind that may follow the last frame: some programs write their own tags."""
_SEARCHED_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The header of an MPEG audio frame."""

    version: int
    rate_hz: int
    num_bytes: int
    is_mono: bool

    @property
    def num_samples(self) -> int:
        """Samples of each channel."""
        return 1152 if self.version == 3 else 576


def frame_at(data: bytes, offset: int) -> Frame | None:
    """The layer III frame at this byte; None if there is none, or one of a free bit rate, whose size is unknown."""
    if len(data) < offset + 4 or data[offset] != 0xFF or data[offset + 1] & 0xE0 != 0xE0:
        return None
    version, layer = data[offset + 1] >> 3 & 3, data[offset + 1] >> 1 & 3
    bitrate, rate = data[offset + 2] >> 4, data[offset + 2] >> 2 & 3
    if layer != _LAYER_3 or version == 1 or bitrate in (0, 15) or rate == 3:
        return None
    rate_hz = _RATES[version][rate]
    bits = (144 if version == 3 else 72) * _BITRATES[3 if version == 3 else 2][bitrate] * 1000
    padding = data[offset + 2] >> 1 & 1
    is_mono = data[offset + 3] >> 6 == 3
    return Frame(version=version, rate_hz=rate_hz, num_bytes=bits // rate_hz + padding, is_mono=is_mono)


@dataclass(frozen=True, kw_only=True)
class FrameScan:
    """Result of going through a file frame by frame."""

    num_samples: int
    """Samples of each channel in all audio frames."""
    is_declared: bool
    """Whether the file declares its number of frames; if not, missing frames cannot be detected."""
    delay_known: bool
    """Whether the header says how many samples the encoder added before the sound."""
    num_stray_bytes: int = 0
    """Bytes after the last frame that are no tags."""
    unread: str = ""
    """What further sound follows that decoders leave out."""


def looks_like_mp3(data: bytes) -> bool:
    """Whether a layer III frame comes first, after ID3 tags and zeros."""
    return frame_at(data, end_of_tags(data)) is not None


def check_frames(data: bytes) -> FrameScan | None:
    """Check that frames follow each other without gaps, as many as the first declares, the last one complete.

    Returns:
        None for another layer or a free bit rate, whose frames cannot be followed.

    Raises:
        FileRejected: `audio_truncated`, or `audio_decode_error` where there is something between frames.
    """
    start = first = _first_frame(data)
    kind = frame_at(data, start)
    if kind is None:
        return None
    count, joined = 0, ""
    for start, frame in _frames(data, first):
        if (frame.version, frame.rate_hz) != (kind.version, kind.rate_hz):
            raise FileRejected("audio_decode_error", why=f"its sample rate changes at byte {start:,}")
        if count and _header(data, start, frame):
            joined = "another MP3 file"
            break
        count, end = count + 1, start + frame.num_bytes
    declared = declared_frames(data, first, kind)
    if end > len(data):
        raise FileRejected("audio_truncated", why="its last frame is cut")
    _check_rest(data, end, complete=bool(joined) or (declared is not None and count - 1 >= declared))
    stray, unread = (len(data) - end, joined) if joined else _after_frames(data, end)
    if declared is not None and count - 1 > declared + 1:
        unread = unread or f"{count - 1 - declared:,} frames more than its header declares"
    if declared is not None and count - 1 < declared:
        raise FileRejected("audio_truncated", why=f"its header says {declared:,} frames, {count - 1:,} are there")
    num_audio_frames = count - 1 if _header(data, first, kind) else count
    return FrameScan(
        num_samples=num_audio_frames * kind.num_samples,
        is_declared=declared is not None,
        delay_known=_states_delay(data, first, kind),
        num_stray_bytes=stray,
        unread=unread,
    )


def _first_frame(data: bytes) -> int:
    """The byte at which the frames begin.

    Raises:
        FileRejected: something else comes before them.
    """
    offset = end_of_tags(data)
    if frame_at(data, offset) is None and data[offset : offset + 1] != b"\xff":
        raise FileRejected("audio_decode_error", why=f"there is no frame at byte {offset:,}")
    return offset


def _frames(data: bytes, offset: int) -> Iterator[tuple[int, Frame]]:
    """(first byte, frame) for as long as frames follow each other; the last may reach beyond the end of the file."""
    while (frame := frame_at(data, offset)) is not None:
        yield offset, frame
        offset += frame.num_bytes


def declared_frames(data: bytes, offset: int, frame: Frame) -> int | None:
    """Number of audio frames in the Xing (or Info) header, which is the first frame and not counted itself."""
    head = _header(data, offset, frame)
    if not head or not head[7] & 1:
        return None
    count: int = struct.unpack(">I", head[8:12])[0]
    return count


def _header(data: bytes, offset: int, frame: Frame) -> bytes:
    """The first 12 bytes of the Xing (or Info) header; empty where the first frame is an audio frame."""
    side = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[
        frame.version == 3, frame.is_mono
    ]
    head = data[offset + 4 + side : offset + 16 + side]
    return head if len(head) == 12 and head[:4] in (b"Xing", b"Info") else b""


def _states_delay(data: bytes, offset: int, frame: Frame) -> bool:
    """Whether a LAME tag follows the fields of the Xing header: the encoder's name, then at 21 the delay in 12 bits."""
    head = _header(data, offset, frame)
    if not head:
        return False
    at = data.index(head, offset) + 8 + sum(size for bit, size in enumerate((4, 4, 100, 4)) if head[7] >> bit & 1)
    return bool(data[at : at + 4].strip(b"\0 ")) and any(data[at + 21 : at + 24])


def _after_frames(data: bytes, end: int) -> tuple[int, str]:
    """Number of bytes after the last frame that are no tags, and what sound is among them."""
    stray, unread = after_end(data, end)
    start, stop = end, len(data)
    while stray and start < stop:
        tag = next((size for name, size in ((b"TAG", 128), (b"ID3", 0)) if data.startswith(name, start)), None)
        start = start + tag if tag else end_of_tags(data, start)
        if len(list(zip(range(2), _frames(data, start), strict=False))) == 2:
            return stray, "another MP3 file"
        if not tag:
            break
    return stray, unread


def _check_rest(data: bytes, offset: int, *, complete: bool) -> None:
    """Check that only tags follow the last frame, unless all declared frames are there.

    Raises:
        FileRejected: further frames follow after a gap, or too many unknown bytes do.
    """
    rest = data[offset:]
    if complete or not rest or rest.startswith(TAG_MARKERS):
        return
    for later in range(offset + 1, min(len(data), offset + _SEARCHED_BYTES)):
        if data[later] == 0xFF and len(list(zip(range(3), _frames(data, later), strict=False))) == 3:
            raise FileRejected("audio_decode_error", why=f"{later - offset:,} bytes at byte {offset:,} are no frame")
    if len(rest) > _MAX_STRAY_BYTES:
        raise FileRejected("audio_truncated", why=f"there are no frames from byte {offset:,} on")
