"""Which decoder a file is for, by its first bytes and whatever its name. Light: standard library only.

Prepared audio is keyed by the bytes: the same bytes under two names must go through the same decoder.
"""

from __future__ import annotations

from stages.ingest.integrity.chunks import wave_format_tag
from stages.ingest.integrity.mp3 import looks_like_mp3
from stages.ingest.integrity.tags import end_of_tags, without_leading_tags

HEAD_BYTES = 1 << 16
"""How much of a file is looked at where it is not read whole."""
_ASF = bytes.fromhex("3026b2758e66cf11")
_FOR_PYAV = {
    "MP4 or QuickTime": lambda data: data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"),
    "Windows Media": lambda data: data.startswith(_ASF),
    "raw AAC": lambda data: _is_adts(data),
    "FLAC in Ogg": lambda data: data.startswith(b"OggS") and data[28:33] == b"\x7fFLAC",
    "Speex": lambda data: data.startswith(b"OggS") and data[28:36] == b"Speex   ",
    "Matroska or WebM": lambda data: data.startswith(b"\x1a\x45\xdf\xa3"),
    "WavPack": lambda data: data.startswith(b"wvpk"),
    "TTA": lambda data: data.startswith(b"TTA1"),
    "Monkey's Audio": lambda data: data.startswith(b"MAC "),
}
"""Kinds that libsndfile cannot read and PyAV can."""
_FOR_LIBSNDFILE = (b"OggS", b"fLaC", b"FORM", b"caff", b".snd", b"riff", b"RF64", b"BW64")
_WAVE_TAGS = {1, 2, 3, 6, 7, 0x11, 0x31, 0x40, 0x50, 0x55, 0xFFFE}
"""Encodings of a RIFF file that are decoded without PyAV."""


def kind_for_pyav(data: bytes) -> str | None:
    """The name of a kind of file that only PyAV decodes; None for any other.

    Args:
        data: a file, or its first HEAD_BYTES.
    """
    return next((name for name, matches in _FOR_PYAV.items() if matches(data)), None)


def is_for_libsndfile(data: bytes) -> bool:
    """Whether a file is certainly of a kind that is decoded without PyAV."""
    data = without_leading_tags(data)
    if data.startswith((b"RIFF", b"RIFX")):
        return wave_format_tag(data) in _WAVE_TAGS
    return kind_for_pyav(data) is None and (data.startswith(_FOR_LIBSNDFILE) or looks_like_mp3(data))


def _is_adts(data: bytes) -> bool:
    """Whether an AAC frame comes first, after tags: a sync word of twelve bits, layer 0."""
    head = data[end_of_tags(data) :][:7]
    return len(head) == 7 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 and head[2] >> 2 & 0xF < 13
