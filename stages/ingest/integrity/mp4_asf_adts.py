"""Checks MP4, WMA and raw AAC against their declared sizes, which FFmpeg does not. Light: standard library only.

Sources: ISO 14496-12, 4.2 (boxes); ASF specification 1.20, 3.1 and 3.2 (header and file properties); ISO 13818-7,
6.2 (ADTS frames).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from stages.ingest.faults import FileRejected
from stages.ingest.integrity.tags import TAG_MARKERS, end_of_tags

_BOXES = {
    b"ftyp",
    b"moov",
    b"mdat",
    b"free",
    b"skip",
    b"udta",
    b"meta",
    b"uuid",
    b"wide",
    b"pnot",
    b"moof",
    b"mfra",
} | {*(b"sidx", b"styp", b"pdin", b"ssix", b"prft")}
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_IS_STREAM = 1
"""Flag of a file that was written as a stream, whose sizes are not valid."""
_LEAST_ADTS_BYTES = 7


def stray_bytes(data: bytes) -> int:
    """Number of bytes after the declared end of an MP4 or WMA, once it is checked to be complete.

    Raises:
        FileRejected: `audio_truncated`.
    """
    if data[4:8] == b"ftyp":
        return len(data) - _end_of_boxes(data)
    return len(data) - _declared_asf_bytes(data) if data.startswith(_ASF_HEADER) else 0


def _end_of_boxes(data: bytes) -> int:
    """The byte at which the last box ends; what follows is no box of a known kind, or another file."""
    offset = 0
    while len(data) >= offset + 8:
        size, name = struct.unpack_from(">I4s", data, offset)
        if name not in _BOXES or (offset and name == b"ftyp"):
            return offset
        if size == 1 and len(data) >= offset + 16:
            (size,) = struct.unpack_from(">Q", data, offset + 8)
        stop = offset + max(8, size) if size else len(data)
        if stop > len(data):
            raise _truncated(f"its {name.decode()} box should end at byte {stop:,}", len(data))
        offset = stop
    return offset


def mp4_states_delay(data: bytes) -> bool:
    """Whether an MP4 says where its sound begins: an edit list that starts later than 0, or iTunes' own note."""
    at = data.find(b"elst")
    if b"iTunSMPB" in data:
        return True
    if at < 4 or len(data) < at + 32:
        return False
    (media_time,) = struct.unpack_from(">q", data, at + 20) if data[at + 4] else struct.unpack_from(">i", data, at + 16)
    return bool(media_time > 0)


def is_streamed_asf(data: bytes) -> bool:
    """Whether a WMA was written as a stream: then the sizes and lengths in its header are not valid."""
    found = (start for name, start, _ in _asf_objects(data) if name == _ASF_FILE and len(data) >= start + 92)
    start = next(found, None) if data.startswith(_ASF_HEADER) else None
    return start is not None and bool(data[start + 88] & _ASF_IS_STREAM)


def _declared_asf_bytes(data: bytes) -> int:
    """The size in the file properties; the actual size where they are missing or not valid."""
    for name, start, _ in _asf_objects(data):
        if name != _ASF_FILE or len(data) < start + 92:
            continue
        (declared,) = struct.unpack_from("<Q", data, start + 40)
        (flags,) = struct.unpack_from("<I", data, start + 88)
        if flags & _ASF_IS_STREAM or not declared:
            return len(data)
        if declared > len(data):
            raise _truncated(f"its header says {declared:,} bytes", len(data))
        return int(declared)
    return len(data)


def _asf_objects(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, size) of the objects in the header object."""
    stop = int.from_bytes(data[16:24], "little")
    offset = 30
    while offset + 24 <= min(stop, len(data)):
        (size,) = struct.unpack_from("<Q", data, offset + 16)
        yield data[offset : offset + 16], offset, size
        offset += max(24, size)


def check_adts(data: bytes) -> None:
    """Check that raw AAC is frame after frame, followed only by tags, zeros, or less than a frame's header.

    Raises:
        FileRejected: `audio_decode_error` where something else comes before, between or after the frames, or
            `audio_truncated`.
    """
    offset = end_of_tags(data)
    while (size := _adts_bytes(data, offset)) is not None:
        if offset + size > len(data):
            raise FileRejected("audio_truncated", why="its last frame is cut")
        offset += size
    rest = data[offset:]
    if len(rest) >= _LEAST_ADTS_BYTES and any(rest) and not rest.startswith(TAG_MARKERS):
        raise FileRejected("audio_decode_error", why=f"there is no frame at byte {offset:,}")


def _adts_bytes(data: bytes, offset: int) -> int | None:
    """Size of the frame at this byte; None if there is none."""
    head = data[offset : offset + _LEAST_ADTS_BYTES]
    if len(head) < _LEAST_ADTS_BYTES or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size if size >= _LEAST_ADTS_BYTES else None


def _truncated(declared: str, there: int) -> FileRejected:
    return FileRejected("audio_truncated", why=f"{declared}, {there:,} are there")
