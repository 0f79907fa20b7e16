"""Tags that programs put before and after any audio file, whatever its container. Light: standard library only.

Sources: id3.org (ID3v1; ID3v2.4, 3.1 header and 3.4 footer), the APEv2 and Lyrics3 specifications.
"""

from __future__ import annotations

TAG_MARKERS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3", b"3DI")
_ID3V1_BYTES, _ID3V2_BYTES, _APE_BYTES = 128, 10, 32
_HAS_FOOTER = 0x10
_LYRICS_END = b"LYRICS200"


def without_leading_tags(data: bytes) -> bytes:
    """The file without tags before its header: decoders skip them, but then miscount where the audio ends."""
    end = end_of_leading_tags(data)
    return data[end:] if end else data


def end_of_leading_tags(data: bytes) -> int:
    """The byte at which the tags before a file end, and zeros after them, but for those that an MP4 begins with."""
    end = 0
    while (after := _end_of_ape(data, _end_of_id3(data, end))) > end:
        end = after
    if not end:
        return 0
    start = _end_of_zeros(data, end)
    name_of_box = data.find(b"ftyp", start, start + 8)
    return start if name_of_box < 0 else max(end, name_of_box - 4)


def _end_of_ape(data: bytes, offset: int) -> int:
    """The byte at which an APEv2 tag with a header, or an ID3v1 tag, that begins there ends."""
    if data.startswith(b"APETAGEX", offset) and len(data) >= offset + _APE_BYTES:
        return offset + _APE_BYTES + int.from_bytes(data[offset + 12 : offset + 16], "little")
    is_id3v1 = data.startswith(b"TAG", offset) and len(data) > offset + _ID3V1_BYTES
    return offset + _ID3V1_BYTES if is_id3v1 else offset


def end_of_tags(data: bytes, offset: int = 0) -> int:
    """The byte at which ID3v2 tags that begin at `offset`, and zeros after them, end."""
    return _end_of_zeros(data, _end_of_id3(data, offset))


def _end_of_id3(data: bytes, offset: int) -> int:
    while data[offset : offset + 3] == b"ID3" and len(data) >= offset + _ID3V2_BYTES:
        footer = _ID3V2_BYTES if data[offset + 5] & _HAS_FOOTER else 0
        offset += _ID3V2_BYTES + _synchsafe(data[offset + 6 : offset + 10]) + footer
    return offset


def _synchsafe(digits: bytes) -> int:
    """The size in four bytes of seven bits each."""
    size = 0
    for byte in digits:
        size = size << 7 | byte & 0x7F
    return size


def _end_of_zeros(data: bytes, offset: int) -> int:
    while data[offset : offset + 1] == b"\0":
        offset += 1
    return offset


def start_of_trailing_tags(data: bytes, start: int) -> int:
    """The byte at which the tags at the end of the file begin; its length where there are none after `start`."""
    stop = len(data)
    while (size := _last_tag_bytes(data, stop)) and stop - size >= start:
        stop -= size
    return stop


def _last_tag_bytes(data: bytes, stop: int) -> int:
    """Size of the tag that ends at `stop`; 0 if none does."""
    if data[max(0, stop - _ID3V1_BYTES) : stop].startswith(b"TAG"):
        return _ID3V1_BYTES
    footer = data[max(0, stop - _APE_BYTES) : stop]
    if footer.startswith(b"APETAGEX"):
        has_header = footer[23] & 0x80
        return int.from_bytes(footer[12:16], "little") + (_APE_BYTES if has_header else 0)
    if footer.endswith(_LYRICS_END) and footer[-15:-9].isdigit():
        return int(footer[-15:-9]) + 15
    if footer[-_ID3V2_BYTES:].startswith(b"3DI"):
        return _synchsafe(footer[-4:]) + 2 * _ID3V2_BYTES
    return 0
