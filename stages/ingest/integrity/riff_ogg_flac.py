"""Checks WAV, AIFF, Ogg and FLAC against their declared lengths, which decoders do not. Light: standard library only.

Sources: the RIFF/WAVE and AIFF chunk layouts (Microsoft/IBM 1991; Apple AIFF 1.3), RFC 3533 (Ogg pages).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

from stages.ingest.faults import FileRejected

_UNKNOWN = (0, 0xFFFFFFFF)
"""Sizes in the header of a stream, whose writer could not go back to fill them in."""
_TOLERATED_BYTES = 8
"""Some writers include the header in the declared size; no audio is missing then."""
_FIRST_PAGE, _LAST_PAGE = 0x02, 0x04
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_FLAC_RATES = {4: 8000, 5: 16000, 6: 22050, 7: 24000, 8: 32000, 9: 44100, 10: 48000, 11: 96000} | {
    1: 88200,
    2: 176400,
    3: 192000,
}
"""Sample rates by the code in a frame header; other codes mean that the rate is elsewhere."""


def check_declared_length(data: bytes) -> bool:
    """Check a file against the length that its container declares.

    Returns:
        False when the container declares none, so that missing audio cannot be detected.

    Raises:
        FileRejected: `audio_truncated`.
    """
    for magic, check in _CHECKS.items():
        if data.startswith(magic):
            return check(data)
    return True


def _check_riff(data: bytes, order: str, audio: bytes) -> bool:
    (declared,) = struct.unpack_from(f"{order}I", data, 4) if len(data) >= 12 else (0,)
    known = declared not in _UNKNOWN
    if known and declared + 8 > len(data) + _TOLERATED_BYTES:
        raise _truncated(declared + 8, len(data))
    end = declared + 8 if known else len(data)
    for name, start, size in _chunks(data, order, end):
        check = _CHUNK_CHECKS.get(name)
        if check and start + size <= len(data):
            check(data[start : start + size], order)
        if name == audio and size in _UNKNOWN:
            return False
        if start + size > len(data) + (0 if name == audio else _TOLERATED_BYTES):
            raise _truncated(start + size, len(data))
        if name == audio:
            _check_trailing_chunks(data, start + size + size % 2, min(end, len(data)), order)
            return known
    return known


def _check_trailing_chunks(data: bytes, start: int, end: int, order: str) -> None:
    """Check that only chunks follow the audio; otherwise its header declares less audio than there is.

    Raises:
        FileRejected: `audio_truncated`.
    """
    rest = data[start:end]
    names = [name for name, _, _ in _chunks(data[:12] + rest, order, 12 + len(rest))]
    if (
        len(rest) > _TOLERATED_BYTES
        and any(rest)
        and not all(name.isascii() and name.isalnum() for name in (name.strip() for name in names[:1]))
    ):
        raise FileRejected(
            "audio_truncated", why=f"{len(rest):,} unknown bytes follow the audio that its header declares"
        )


def stray_bytes(data: bytes) -> int:
    """Number of bytes after the declared end of a RIFF or FORM file; 0 for other files."""
    order = {b"RIFF": "<", b"RIFX": ">", b"FORM": ">"}.get(data[:4])
    if order is None or len(data) < 12:
        return 0
    (declared,) = struct.unpack_from(f"{order}I", data, 4)
    return max(0, len(data) - declared - 8) if declared not in _UNKNOWN else 0


def _check_fmt(chunk: bytes, order: str) -> None:
    """Check the redundant fields of a PCM format: a damaged sample rate would only change the pitch.

    Raises:
        FileRejected: `audio_decode_error`.
    """
    if len(chunk) < 16:
        raise FileRejected("audio_decode_error", why="its format chunk is too short")
    kind, channels, rate, byte_rate, align, bits = struct.unpack_from(f"{order}HHIIHH", chunk)
    if kind == _EXTENSIBLE and len(chunk) >= 26:
        (kind,) = struct.unpack_from(f"{order}H", chunk, 24)
    if kind in (_PCM, _FLOAT) and byte_rate and (rate * align != byte_rate or align != channels * -(-bits // 8)):
        facts = f"{channels} channels of {bits} bits at {rate:,} Hz, and {byte_rate:,} bytes a second"
        raise FileRejected("audio_decode_error", why=f"its header contradicts itself: {facts}")


def wave_format_tag(data: bytes) -> int | None:
    """The format tag of a RIFF or RIFX file, such as 1 for PCM; None where it has none."""
    order = ">" if data.startswith(b"RIFX") else "<"
    for name, start, _ in _chunks(data, order, len(data)):
        if name == b"fmt " and start + 2 <= len(data):
            (tag,) = struct.unpack_from(f"{order}H", data, start)
            return int(tag)
    return None


def mpeg_payload(data: bytes) -> bytes:
    """The MPEG frames of a RIFF file that holds nothing else, as MP3 encoders write it; any other file unchanged.

    libsndfile takes the length of such a file from its size, and finds less.
    """
    if not data.startswith((b"RIFF", b"RIFX")) or wave_format_tag(data) not in (0x50, 0x55):
        return data
    order = ">" if data.startswith(b"RIFX") else "<"
    found = [(start, size) for name, start, size in _chunks(data, order, len(data)) if name == b"data"]
    return data[found[0][0] : sum(found[0])] if found else data


def _check_aiff_length(data: bytes) -> None:
    """Check the number of samples in COMM against the size of the audio.

    Raises:
        FileRejected: `audio_truncated`.
    """
    chunks = {name: (start, size) for name, start, size in _chunks(data, ">", len(data))}
    if data[8:12] != b"AIFF" or not {b"COMM", b"SSND"} <= chunks.keys() or chunks[b"COMM"][1] < 18:
        return
    channels, frames, bits = struct.unpack_from(">HIH", data, chunks[b"COMM"][0])
    there = chunks[b"SSND"][1] - 8
    if channels * frames * -(-bits // 8) != there:
        why = f"its header says {frames:,} samples of {channels} channels and {bits} bits, {there:,} bytes are there"
        raise FileRejected("audio_truncated", why=why)


def _check_form(data: bytes) -> bool:
    known = _check_riff(data, ">", b"SSND")
    _check_aiff_length(data)
    return known


def _check_flac(data: bytes) -> bool:
    """Check the sample rate in the header against the first frame's, which has a checksum.

    Raises:
        FileRejected: `audio_decode_error`, as a damaged rate would change the pitch, or `audio_truncated`.
    """
    offset, last = 4, False
    while not last and len(data) >= offset + 4:
        last = bool(data[offset] & 0x80)
        offset += 4 + int.from_bytes(data[offset + 1 : offset + 4], "big")
    head, frame = data[18:22], data[offset : offset + 4]
    if len(head) < 4 or len(frame) < 4:
        raise FileRejected("audio_truncated", why="there is no audio after its header")
    rate = int.from_bytes(head[:3], "big") >> 4
    coded = _FLAC_RATES.get(frame[2] & 0x0F, rate)
    if coded != rate:
        raise FileRejected("audio_decode_error", why=f"its header says {rate:,} Hz, its first frame {coded:,} Hz")
    return True


def _chunks(data: bytes, order: str, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of content, declared size) of every chunk of a RIFF or FORM file."""
    offset = 12
    while offset + 8 <= min(end, len(data)):
        name, size = struct.unpack_from(f"{order}4sI", data, offset)
        yield name, offset + 8, size
        offset += 8 + size + size % 2


def _check_ogg(data: bytes) -> bool:
    """Check that no page is missing or damaged and that the last one is marked as the end of its stream.

    Raises:
        FileRejected: `audio_decode_error` or `audio_truncated`.
    """
    flags = 0
    expected: dict[bytes, int] = {}
    for number, (start, stop) in enumerate(ogg_pages(data)):
        page = data[start:stop]
        sequence = int.from_bytes(page[18:22], "little")
        stream = page[14:18]
        if sequence != expected.get(stream, sequence if page[5] & _FIRST_PAGE else -1):
            raise FileRejected("audio_decode_error", why=f"a page is missing before page {number}")
        expected[stream] = sequence + 1
        if int.from_bytes(page[22:26], "little") != ogg_checksum(page):
            raise FileRejected("audio_decode_error", why=f"page {number} does not match its checksum")
        flags = page[5]
    if not flags & _LAST_PAGE:
        raise FileRejected("audio_truncated", why="its last page is not the end of the stream")
    return True


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


def _truncated(declared: int, there: int) -> FileRejected:
    return FileRejected("audio_truncated", why=f"its header says {declared:,} bytes, {there:,} are there")


_CHUNK_CHECKS: dict[bytes, Callable[[bytes, str], None]] = {b"fmt ": _check_fmt}
_CHECKS: dict[bytes, Callable[[bytes], bool]] = {
    b"RIFF": lambda data: _check_riff(data, "<", b"data"),
    b"RIFX": lambda data: _check_riff(data, ">", b"data"),
    b"FORM": _check_form,
    b"OggS": _check_ogg,
    b"fLaC": _check_flac,
}
"""Checks by the first four bytes of a file."""
