"""Checks Matroska and WebM against the size that their segment states. Light: standard library only.

Source: RFC 8794, 4 to 6 (variable-size integers, elements, unknown sizes) and RFC 9559, 5.1 (the segment).
"""

from __future__ import annotations

from stages.ingest.faults import FileRejected
from stages.ingest.integrity.checked_file import CheckedFile, after_end, truncated

EBML_MAGIC = b"\x1a\x45\xdf\xa3"
_SEGMENT, _VOID = b"\x18\x53\x80\x67", b"\xec"


def checked_matroska(data: bytes) -> CheckedFile:
    """Check that the first segment is all there; what follows it is reported and not decoded.

    A segment of unknown size, as a live stream has, goes to the end of the file.

    Raises:
        FileRejected: `audio_truncated` or `audio_decode_error`.
    """
    start = _past_void(data, _content(data, len(EBML_MAGIC)) + _size(data, len(EBML_MAGIC), "header"))
    if data[start : start + 4] != _SEGMENT:
        raise FileRejected("audio_decode_error", why=f"no segment begins at byte {start:,}")
    at = start + len(_SEGMENT)
    if _is_unknown(data, at):
        return CheckedFile(data=data, length_known=False)
    end = _content(data, at) + _size(data, at, "segment")
    if end > len(data):
        raise truncated(end, len(data))
    end = _past_void(data, end)
    stray, unread = after_end(data, end)
    return CheckedFile(data=data[:end], num_stray_bytes=stray, unread=unread)


def _past_void(data: bytes, start: int) -> int:
    """The byte after elements that only fill space."""
    while data[start : start + 1] == _VOID and not _is_unknown(data, start + 1):
        stop = _content(data, start + 1) + _size(data, start + 1, "filling")
        if stop > len(data):
            return start
        start = stop
    return start


def _num_bytes(data: bytes, at: int) -> int:
    """Bytes of the size field at this byte: 1 more than the zeros before its first bit; 0 where there is none."""
    first = data[at] if at < len(data) else 0
    width = 9 - first.bit_length() if first else 0
    return width if at + width <= len(data) else 0


def _size(data: bytes, at: int, name: str) -> int:
    width = _num_bytes(data, at)
    if not width:
        raise FileRejected("audio_truncated", why=f"the size of its {name} is cut")
    return int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)


def _content(data: bytes, at: int) -> int:
    return at + _num_bytes(data, at)


def _is_unknown(data: bytes, at: int) -> bool:
    """Whether all bits of the size are set, which means that the writer did not know it."""
    width = _num_bytes(data, at)
    every = (1 << 7 * width) - 1
    return bool(width) and int.from_bytes(data[at : at + width], "big") & every == every
