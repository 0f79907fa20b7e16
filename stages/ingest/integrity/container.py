"""The checks of a file's container, chosen by its first bytes. Light: standard library only."""

from __future__ import annotations

from collections.abc import Callable

from stages.ingest.integrity.checked_file import CheckedFile
from stages.ingest.integrity.chunks import AU_MAGIC, CHUNK_MAGIC, checked_au, checked_chunks
from stages.ingest.integrity.flac import checked_flac
from stages.ingest.integrity.matroska import EBML_MAGIC, checked_matroska
from stages.ingest.integrity.ogg import checked_ogg
from stages.ingest.integrity.old_containers import NIST_MAGIC, VOC_MAGIC, checked_nist, checked_voc

_CHECKS: dict[bytes, Callable[[bytes], CheckedFile]] = {
    **dict.fromkeys(CHUNK_MAGIC, checked_chunks),
    **dict.fromkeys(AU_MAGIC, checked_au),
    b"OggS": checked_ogg,
    b"fLaC": checked_flac,
    EBML_MAGIC: checked_matroska,
    NIST_MAGIC: checked_nist,
    VOC_MAGIC: checked_voc,
}
"""Checks by the first four bytes of a file."""


def is_checked(data: bytes) -> bool:
    """Whether a file is of a container that is held to its length."""
    return data[:4] in _CHECKS


def checked_file(data: bytes) -> CheckedFile:
    """Check a file against the length that its container declares.

    Raises:
        FileRejected: `audio_truncated` or `audio_decode_error`.
    """
    check = _CHECKS.get(data[:4])
    return check(data) if check else CheckedFile(data=data)
