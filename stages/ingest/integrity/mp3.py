"""Checks an MP3 frame by frame, as decoders silently skip what they cannot read. Light: standard library only.

Sources: ISO 11172-3 and 13818-3 (frame header), the Xing, LAME and VBRI headers in the first frame
(gabriel.mp3-tech.org).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from stages.ingest.faults import FileRejected
from stages.ingest.integrity.checked_file import after_end
from stages.ingest.integrity.tags import TAG_MARKERS, end_of_leading_tags, end_of_tags

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
_MAX_LEADING_BYTES = 1 << 20
_SILENT_FRAMES = 16
"""Fewest that are added where the decoder would guess the length."""
_CERTAIN_FRAMES = 10
"""So many frames of one kind in a row are no chance."""
_PLACEHOLDER = 1 << 24
"""A hundred hours: a larger number of frames means that the writer did not know it."""
_VBRI_AT = 36
_OTHER_KINDS = {
    *(b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff", b"FORM", b"caff", b".snd", b"dns.", b"OggS", b"fLaC"),
    *(b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75", b"\0\0\x01\xba", b"wvpk", b"TTA1", b"MAC ", b"FLV\x01", b"PK\3\4"),
}
"""First bytes of files that may hold MP3 frames among others, or by chance."""


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
class _Summary:
    """What an encoder's summary of the file (Xing, Info or VBRI), which stands in for a first frame, declares."""

    is_xing: bool
    num_frames: int | None
    """Audio frames, without the summary itself."""
    num_bytes: int | None
    """Of all frames, as a rule with the summary itself."""


@dataclass(frozen=True, kw_only=True)
class FrameScan:
    """Result of going through a file frame by frame."""

    data: bytes
    """The frames for the decoder."""
    num_samples: int | None
    """Samples of each channel in all audio frames; None where a Xing header, which may state padding, counts them."""
    num_added: int
    """Samples of silent frames that follow them in `data`."""
    is_declared: bool
    """Whether the file declares its number of frames; if not, missing frames cannot be detected."""
    delay_known: bool
    """Whether the header says how many samples the encoder added before the sound."""
    num_leading_bytes: int = 0
    """Bytes before the first frame that are no tags."""
    num_stray_bytes: int = 0
    """Bytes after the last frame that are no tags."""
    unread: str = ""
    """What further sound the file holds that decoders leave out."""
    contradiction: str = ""
    """That its header counts other frames than there are, though none is missing."""


def looks_like_mp3(data: bytes) -> bool:
    """Whether layer III frames come first, after tags and, in a file of no other known kind, after anything else."""
    return frame_at(data, end_of_tags(data)) is not None or _searched_start(data) is not None


def check_frames(data: bytes) -> FrameScan | None:
    """Check that frames follow each other without gaps, as many as the first declares, the last one complete.

    Returns:
        None for another layer or a free bit rate, whose frames cannot be followed.

    Raises:
        FileRejected: `audio_truncated`, or `audio_decode_error` where there is something between frames.
    """
    first, num_leading = _first_frame(data)
    kind = frame_at(data, first)
    if kind is None:
        return None
    ends, joined = _walk(data, first, kind)
    end, summary = ends[-1], _summary(data, first, kind)
    if end > len(data):
        raise FileRejected("audio_truncated", why="its last frame is cut")
    there = len(ends) - (summary is not None)
    declared = _declared(summary)
    _check_rest(data, end, complete=bool(joined) or (declared is not None and there >= declared))
    stray, unread = (len(data) - end, joined) if joined else _after_frames(data, end)
    contradiction, used = "", there
    if declared is not None and declared != there:
        assert summary is not None, "only a summary declares a number"
        if _is_confirmed(summary, ends, first, declared):
            used, unread = declared, unread or f"{there - declared:,} frames that its header does not count"
        elif declared < there or _is_whole(summary, ends, first, there):
            contradiction = f"it counts {declared:,} frames, {there:,} are there"
        else:
            raise FileRejected("audio_truncated", why=f"its header says {declared:,} frames, {there:,} are there")
    frames, num_silent = _for_decoder(data[first:end], kind, summary, used)
    return FrameScan(
        data=frames,
        num_added=num_silent * kind.num_samples,
        num_samples=None if _has_count(summary) else used * kind.num_samples,
        is_declared=declared is not None,
        delay_known=_states_delay(data, first, kind),
        num_leading_bytes=num_leading,
        num_stray_bytes=stray,
        unread=unread,
        contradiction=contradiction,
    )


def _walk(data: bytes, first: int, kind: Frame) -> tuple[list[int], str]:
    """The byte at which each frame ends, and what other file begins after the last of them.

    Raises:
        FileRejected: `audio_decode_error` where the rate changes.
    """
    ends: list[int] = []
    for start, frame in _frames(data, first):
        if (frame.version, frame.rate_hz) != (kind.version, kind.rate_hz):
            raise FileRejected("audio_decode_error", why=f"its sample rate changes at byte {start:,}")
        if ends and _summary(data, start, frame):
            return ends, "another MP3 file"
        ends.append(start + frame.num_bytes)
    return ends, ""


def _declared(summary: _Summary | None) -> int | None:
    """The number of audio frames, unless it is a placeholder."""
    if summary is None or not summary.num_frames or summary.num_frames >= _PLACEHOLDER:
        return None
    return summary.num_frames


def _is_confirmed(summary: _Summary, ends: list[int], first: int, declared: int) -> bool:
    """Whether fewer frames than there are also have the size that is declared: then what follows is another sound."""
    return declared < len(ends) - 1 and _has_size(summary, ends, first, declared)


def _is_whole(summary: _Summary, ends: list[int], first: int, there: int) -> bool:
    """Whether the declared size says that no frame is missing, or one more is declared by counting the summary too."""
    if summary.num_bytes:
        return _has_size(summary, ends, first, there)
    return summary.num_frames == there + 1


def _has_size(summary: _Summary, ends: list[int], first: int, number: int) -> bool:
    """Whether that many audio frames have the declared size, with or without the summary."""
    size = ends[number] - first
    return summary.num_bytes in (size, size - (ends[0] - first))


def _for_decoder(frames: bytes, kind: Frame, summary: _Summary | None, count: int) -> tuple[bytes, int]:
    """The frames with the true count in their Xing header, or with a number of silent frames at the end.

    Where no header counts them libmpg123 guesses the length from the first frames' size, and libsndfile reads no
    further: with silent frames it guesses too late, never too early.
    """
    if _has_count(summary):
        place = _side_bytes(kind) + 12
        return frames[:place] + struct.pack(">I", count) + frames[place + 4 :], 0
    audio = frames if summary is None else frames[kind.num_bytes :]
    largest = max((frame.num_bytes for _, (_, frame) in zip(range(9), _frames(audio, 0), strict=False)), default=0)
    num_silent = _SILENT_FRAMES + max(0, largest * count - len(audio)) // kind.num_bytes
    silent = bytes((frames[0], frames[1] | 1, *frames[2:4])).ljust(kind.num_bytes, b"\0")  # the bit: no checksum
    return audio + silent * num_silent, num_silent


def _has_count(summary: _Summary | None) -> bool:
    return summary is not None and summary.is_xing and summary.num_frames is not None


def _first_frame(data: bytes) -> tuple[int, int]:
    """The byte at which the frames begin, and how many bytes before it are no tags.

    Raises:
        FileRejected: something else comes before them.
    """
    offset = end_of_tags(data)
    if frame_at(data, offset) is None:
        start = _searched_start(data)
        if start is not None:
            return start, start - min(start, end_of_leading_tags(data))
        if data[offset : offset + 1] != b"\xff":
            raise FileRejected("audio_decode_error", why=f"there is no frame at byte {offset:,}")
    return offset, 0


def _searched_start(data: bytes) -> int | None:
    """Where frames begin in a file that begins with something of no known kind, such as a part of a frame."""
    if data[:4] in _OTHER_KINDS or data[4:8] in (b"ftyp", b"moov", b"mdat"):
        return None
    offset = data.find(b"\xff", 0, _MAX_LEADING_BYTES)
    while offset >= 0:
        found = list(zip(range(_CERTAIN_FRAMES), _frames(data, offset), strict=False))
        kinds = {(frame.version, frame.rate_hz) for _, (_, frame) in found}
        if len(kinds) == 1 and len(found) == _CERTAIN_FRAMES:
            return offset
        offset = data.find(b"\xff", offset + 1, _MAX_LEADING_BYTES)
    return None


def _frames(data: bytes, offset: int) -> Iterator[tuple[int, Frame]]:
    """(first byte, frame) for as long as frames follow each other; the last may reach beyond the end of the file."""
    while (frame := frame_at(data, offset)) is not None:
        yield offset, frame
        offset += frame.num_bytes


def _summary(data: bytes, offset: int, frame: Frame) -> _Summary | None:
    """The summary in this frame; None where it is an audio frame."""
    if data[offset + _VBRI_AT : offset + _VBRI_AT + 4] == b"VBRI" and len(data) >= offset + _VBRI_AT + 18:
        num_bytes, frames = struct.unpack_from(">II", data, offset + _VBRI_AT + 10)
        return _Summary(is_xing=False, num_frames=frames, num_bytes=num_bytes)
    head = _header(data, offset, frame)
    if not head:
        return None
    at, flags = offset + 12 + _side_bytes(frame), head[7]
    fields = struct.unpack(">II", data[at : at + 8].ljust(8, b"\0"))
    num_bytes = fields[flags & 1] if flags & 2 else None
    return _Summary(is_xing=True, num_frames=fields[0] if flags & 1 else None, num_bytes=num_bytes)


def _side_bytes(frame: Frame) -> int:
    """Size of the side information, behind which the Xing header stands."""
    return {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[
        frame.version == 3, frame.is_mono
    ]


def _header(data: bytes, offset: int, frame: Frame) -> bytes:
    """The first 12 bytes of the Xing (or Info) header; empty where the first frame is an audio frame."""
    side = _side_bytes(frame)
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
