"""Checks a FLAC's frames against its header, also one from a pipe. Light: standard library only.

Source: RFC 9639, 8.2 (STREAMINFO), 9.1 (frame header), 9.3 (frame footer).
"""

from __future__ import annotations

from collections.abc import Iterator

from stages.ingest.faults import FileRejected
from stages.ingest.integrity.checked_file import CheckedFile, after_end
from stages.ingest.integrity.tags import start_of_trailing_tags

_RATES = {4: 8000, 5: 16000, 6: 22050, 7: 24000, 8: 32000, 9: 44100, 10: 48000, 11: 96000} | {
    1: 88200,
    2: 176400,
    3: 192000,
}
"""Sample rates by the code in a frame header; other codes mean that the rate is elsewhere."""
_MAX_HEADER_BYTES = 16
_MAX_SEARCHED_BYTES = 1 << 18
"""A frame is hardly ever longer; up to here its end is looked for when something follows."""


def _crc_table(polynomial: int, bits: int) -> list[int]:
    table = []
    for value in range(256):
        crc = value << bits - 8
        for _ in range(8):
            crc = crc << 1 ^ (polynomial if crc >> bits - 1 & 1 else 0)
        table.append(crc & (1 << bits) - 1)
    return table


_CRC8, _CRC16 = _crc_table(0x107, 8), _crc_table(0x18005, 16)


def checked_flac(data: bytes) -> CheckedFile:
    """Check a FLAC's rate against its first frame, and its length against its last one.

    Raises:
        FileRejected: `audio_decode_error`, as a damaged rate would change the pitch and a damaged length would lose
            sound, or `audio_truncated`.
    """
    first = _first_frame(data)
    if len(data) < 42 or len(data) < first + 4:
        raise FileRejected("audio_truncated", why="there is no audio after its header")
    rate = int.from_bytes(data[18:21], "big") >> 4
    coded = _RATES.get(data[first + 2] & 0x0F, rate)
    if coded != rate:
        raise FileRejected("audio_decode_error", why=f"its header says {rate:,} Hz, its first frame {coded:,} Hz")
    total = int.from_bytes(data[21:26], "big") & (1 << 36) - 1
    return _with_known_length(data, first, total) if total else _with_counted_length(data, first)


def _first_frame(data: bytes) -> int:
    offset, last = 4, False
    while not last and len(data) >= offset + 4:
        last = bool(data[offset] & 0x80)
        offset += 4 + int.from_bytes(data[offset + 1 : offset + 4], "big")
    return offset


def _with_known_length(data: bytes, first: int, total: int) -> CheckedFile:
    last = next((start for start, begin, size in _frames(data, first) if begin + size == total), None)
    if last is None:
        raise FileRejected("audio_decode_error", why=f"none of its frames ends at sample {total:,}, as its header says")
    end = _end_of_frame(data, last)
    if end is None:
        return CheckedFile(data=data)  # its last frame is damaged, which the decoder reports
    if any(start == end and begin == total for start, begin, _ in _frames(data[: end + 64], end)):
        why = f"its header says {total:,} samples, but more follow"
        raise FileRejected("audio_decode_error", why=why)
    stray, unread = after_end(data, end)
    return CheckedFile(data=data[:end], num_stray_bytes=stray, unread=unread)


def _with_counted_length(data: bytes, first: int) -> CheckedFile:
    """A FLAC from a pipe, with the length that its frames add up to."""
    total, last = 0, first
    for start, begin, size in _frames(data, first):
        if begin == total:
            total, last = begin + size, start
    end = _end_of_frame(data, last) if total else None
    if end is None:
        raise FileRejected("audio_truncated", why="its last frame is cut or damaged")
    stray, unread = after_end(data, end)
    counted = (data[21] & 0xF0) << 32 | total
    known = data[:21] + counted.to_bytes(5, "big") + data[26:end]
    return CheckedFile(data=known, length_known=False, num_stray_bytes=stray, unread=unread)


def _frames(data: bytes, offset: int) -> Iterator[tuple[int, int, int]]:
    """(first byte, first sample, number of samples) of whatever has a frame's header with a valid checksum."""
    fixed = int.from_bytes(data[8:10], "big")
    sync = data[offset : offset + 2]
    while sync in (b"\xff\xf8", b"\xff\xf9") and (offset := data.find(sync, offset)) >= 0:
        found = _header(data[offset : offset + _MAX_HEADER_BYTES], fixed)
        if found:
            yield offset, *found
        offset += 1


def _header(head: bytes, fixed: int) -> tuple[int, int] | None:
    """(first sample, number of samples) of the frame that begins with these bytes."""
    if len(head) < 6:
        return None
    ones = 8 - (head[4] ^ 0xFF).bit_length()
    length = max(1, ones)
    number = head[4] & (0x7F >> ones if ones else 0x7F)
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    block, rate = head[2] >> 4, head[2] & 0x0F
    at = 4 + length
    wide = {6: 1, 7: 2}.get(block, 0)
    end = at + wide + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if block == 0 or rate == 15 or ones == 1 or end >= len(head) or _crc8(head[:end]) != head[end]:
        return None
    if wide:
        size = int.from_bytes(head[at : at + wide], "big") + 1
    else:
        size = 192 if block == 1 else 576 << block - 2 if block < 6 else 256 << block - 8
    return (number if head[1] & 1 else number * fixed), size


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = _CRC8[crc ^ byte]
    return crc


def _end_of_frame(data: bytes, start: int) -> int | None:
    """The byte at which a frame ends: where its checksum, with itself, gives zero; the end of the file if it does."""
    likely = {len(data), start_of_trailing_tags(data, start)}
    marks = (data[start : start + 2], b"fLaC", b"ID3")
    crc, ends = 0, list[int]()
    for place, byte in enumerate(data[start : start + _MAX_SEARCHED_BYTES], start + 1):
        crc = (crc << 8 & 0xFFFF) ^ _CRC16[crc >> 8 ^ byte]
        if crc == 0 and place - start > 8:
            ends.append(place)
    certain = (place for place in ends if place in likely or data.startswith(marks, place))
    return next(certain, ends[0] if ends else None)
