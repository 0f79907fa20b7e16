"""Checks NIST SPHERE and Creative Voice files against the lengths that they declare. Light: standard library only.

Sources: the header of NIST's SPHERE package (NIST_1A); Creative Labs' description of the VOC format (block types).
"""

from __future__ import annotations

from stages.ingest.integrity.checked_file import CheckedFile, after_end, truncated

NIST_MAGIC, VOC_MAGIC = b"NIST", b"Crea"
_VOC_HEADER_BYTES = 26
_VOC_SOUND = {1, 2, 9}
"""Types of blocks that hold samples; 2 goes on with the format of the one before."""


def checked_nist(data: bytes) -> CheckedFile:
    """Check a SPHERE file, whose header of text counts its samples; one that counts none has an unknown length.

    Raises:
        FileRejected: `audio_truncated`.
    """
    lines = data[: 1 << 16].split(b"\n", 2)
    start = int(lines[1]) if len(lines) > 2 and lines[1].strip().isdigit() else 0
    fields = dict(_nist_fields(data[:start]))
    sample = fields.get(b"channel_count", 1) * fields.get(b"sample_n_bytes", 0)
    if not sample or not fields.get(b"sample_count"):
        return CheckedFile(data=data, length_known=False)
    stop = start + sample * fields[b"sample_count"]
    if stop > len(data):
        raise truncated(stop, len(data))
    stray, unread = after_end(data, stop)
    return CheckedFile(data=data[:stop], num_stray_bytes=stray, unread=unread)


def _nist_fields(header: bytes) -> list[tuple[bytes, int]]:
    """The whole numbers among the fields, which look like `sample_count -i 5000`."""
    rows = (line.split() for line in header.splitlines())
    return [(row[0], int(row[2])) for row in rows if len(row) == 3 and row[1] == b"-i" and row[2].isdigit()]


def checked_voc(data: bytes) -> CheckedFile:
    """Check that every block of a VOC is there; the 0 after the last one may be missing. Decoders read the first sound.

    Raises:
        FileRejected: `audio_truncated`.
    """
    offset = int.from_bytes(data[20:22], "little") or _VOC_HEADER_BYTES
    sounds = 0
    while offset < len(data) and (kind := data[offset]):
        stop = offset + 4 + int.from_bytes(data[offset + 1 : offset + 4], "little")
        if stop > len(data):
            raise truncated(stop, len(data))
        sounds += kind in _VOC_SOUND
        offset = stop
    stray, unread = after_end(data, min(offset + 1, len(data)))
    more = "a second block of sound" if sounds > 1 else ""
    return CheckedFile(data=data[: offset + 1], num_stray_bytes=stray, unread=more or unread)
