"""Checks an Ogg page by page, as decoders silently skip what they cannot read. Light: standard library only.

Source: RFC 3533 (Ogg pages, streams that follow each other and streams beside each other).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from stages.ingest.faults import FileRejected
from stages.ingest.integrity.checked_file import CheckedFile, after_end

_FIRST_PAGE, _LAST_PAGE = 0x02, 0x04
_NO_POSITION = b"\xff" * 8
"""In place of a position: no packet of sound ends on the page."""
_OPUS_RATE = (48_000).to_bytes(4, "little")
_AUDIO = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")


def checked_ogg(data: bytes) -> CheckedFile:
    """Check that no page is missing or damaged, and that the last one is the end of its stream and says where it lies.

    Decoders silently leave out the sound of a last page without a position. They read the first stream; others, beside
    it or after it, are reported.

    Raises:
        FileRejected: `audio_decode_error` or `audio_truncated`.
    """
    flags, last, end = 0, 0, 0
    expected: dict[bytes, int] = {}
    heads: list[bytes] = []
    for number, (start, stop) in enumerate(ogg_pages(data)):
        page = data[start:stop]
        if page[5] & _FIRST_PAGE and flags & _LAST_PAGE:
            break
        sequence = int.from_bytes(page[18:22], "little")
        stream = page[14:18]
        if sequence != expected.get(stream, sequence if page[5] & _FIRST_PAGE else -1):
            raise FileRejected("audio_decode_error", why=f"a page is missing before page {number}")
        expected[stream] = sequence + 1
        if int.from_bytes(page[22:26], "little") != ogg_checksum(page):
            raise FileRejected("audio_decode_error", why=f"page {number} does not match its checksum")
        if page[5] & _FIRST_PAGE:
            heads.append(page[27 + page[26] :])
        flags, last, end = page[5], start, stop
    if not flags & _LAST_PAGE:
        raise FileRejected("audio_truncated", why="its last page is not the end of the stream")
    if len(expected) == 1 and data[last + 26] and data[last + 6 : last + 14] == _NO_POSITION:
        raise FileRejected("audio_decode_error", why="its last page does not say where the sound ends")
    stray, unread = after_end(data, end)
    more = sum(head.startswith(_AUDIO) for head in heads) - 1
    beside = "a second stream beside the first one" if more > 0 else ""
    return CheckedFile(data=data[:end], num_stray_bytes=stray, unread=unread or beside)


def ogg_pages(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of every page. What follows the last page of a stream, such as a foreign tag, is not a page.

    Raises:
        FileRejected: the data ends inside a page, or there is something between pages, which decoders silently skip.
    """
    start, ended = 0, False
    while start < len(data):
        header = data[start : start + 27]
        if not header.startswith(b"OggS"):
            if ended:
                return
            raise FileRejected("audio_decode_error", why=f"there is no page at byte {start:,}")
        lacing = data[start + 27 : start + 27 + header[26]] if len(header) == 27 else b""
        stop = start + 27 + len(lacing) + sum(lacing)
        if stop > len(data) or len(lacing) < header[-1]:
            raise FileRejected("audio_truncated", why="its last page is cut")
        yield start, stop
        start, ended = stop, bool(header[5] & _LAST_PAGE)


_MIRRORED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def ogg_checksum(page: bytes) -> int:
    """CRC of a page whose checksum field is zero: zlib's polynomial, not reflected, initial value 0, no final XOR."""
    plain = page[:22] + bytes(4) + page[26:]
    mirrored = zlib.crc32(plain.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def opus_at_full_rate(data: bytes) -> bytes:
    """An Opus file that claims to come from 48,000 Hz; any other file unchanged.

    The rate that its header states is that of the recording before it was encoded, as a remark (RFC 7845, 5.1), but
    libsndfile decodes at a rate near it, or at the lowest one where it is 0, and so loses what is above.
    """
    head = data.find(b"OpusHead", 28, 512) if data.startswith(b"OggS") else -1
    if head < 0 or data[head + 12 : head + 16] == _OPUS_RATE:
        return data
    stop = next(ogg_pages(data))[1]
    page = data[: head + 12] + _OPUS_RATE + data[head + 16 : stop]
    return page[:22] + ogg_checksum(page).to_bytes(4, "little") + page[26:] + data[stop:]
