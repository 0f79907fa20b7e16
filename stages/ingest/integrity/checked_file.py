"""What the checks of a container found, and what follows its end. Light: standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from stages.ingest.faults import FileRejected
from stages.ingest.integrity.tags import end_of_tags, start_of_trailing_tags

_SOUND_FILES = {
    **dict.fromkeys((b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff"), "WAV"),
    **{b"FORM": "AIFF", b"OggS": "Ogg", b"fLaC": "FLAC", b"caff": "CAF", b".snd": "AU", b"dns.": "AU"},
    b"\x1a\x45\xdf\xa3": "Matroska",
}
"""Formats by their first four bytes."""
_PLACEHOLDERS = (0x7F000000, 0x7FFFF000, 0x80000000, 0xFFFFFFFF)
"""Sizes that writers to a pipe put where they cannot go back; the second half of a gibibyte less is SoX's for AIFF."""
_NEARBY = 1 << 13
"""Some count headers in, or round down to whole samples."""


@dataclass(frozen=True, kw_only=True)
class CheckedFile:
    """A file that is as long as it declares, or declares no length."""

    data: bytes
    """The bytes for the decoder: without what follows its end, and with lengths in place of placeholders."""
    length_known: bool = True
    """False when the header declares none, so that missing audio cannot be detected."""
    num_stray_bytes: int = 0
    """Bytes after the declared end that are no tags."""
    unread: str = ""
    """What further sound the file holds that is not read, such as `another FLAC file`."""
    contradiction: str = ""
    """Which redundant fields of its header disagree with the others."""


def is_placeholder(size: int, there: int) -> bool:
    """Whether a declared size means that the writer did not know it.

    Args:
        there: bytes that follow in the file. A file of more than two gigabytes may be as long as it says.
    """
    return size <= 0 or (size > there and (size >= 1 << 40 or any(abs(size - one) < _NEARBY for one in _PLACEHOLDERS)))


def after_end(data: bytes, end: int) -> tuple[int, str]:
    """Number of bytes after the end of a file that are no tags, and what sound they begin with, if any."""
    start = min(end_of_tags(data, end), len(data))
    stop = start_of_trailing_tags(data, start)
    if stop <= start:
        return 0, ""
    kind = _SOUND_FILES.get(data[start : start + 4])
    return stop - end, f"another {kind} file" if kind else ""


def truncated(declared: int, there: int) -> FileRejected:
    """The fault of a file that ends before its declared length."""
    return FileRejected("audio_truncated", why=f"its header says {declared:,} bytes, {there:,} are there")
