"""Which loudspeaker each channel of a file belongs to, in the file's own order. Light: standard library only.

Sources: RFC 9639, 9.1.3 (FLAC); Vorbis I specification, 4.3.9, and RFC 7845, 5.1.1 (Ogg Vorbis, Opus);
WAVEFORMATEXTENSIBLE (Microsoft); Apple Core Audio Format Specification 1.0, channel layout chunk.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable

Layout = tuple[str, ...]
"""FFmpeg's names: front, back and side with left, right or centre; LFE: low frequencies; T: above the listener."""

_BITS = (
    *("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC"),
    *("SL", "SR", "TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR"),
)
"""Loudspeakers by the bits of a WAVEFORMATEXTENSIBLE mask; Apple's channel labels are these numbers plus one."""
_BY_NUMBER: dict[int, Layout] = {
    len(names): names
    for names in (
        ("FL", "FR", "FC"),
        ("FL", "FR", "BL", "BR"),
        ("FL", "FR", "FC", "BL", "BR"),
        ("FL", "FR", "FC", "LFE", "BL", "BR"),
        ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
        ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
    )
}
"""FLAC's order, which is that of WAV, for files that name none."""
_VORBIS: dict[int, Layout] = {
    len(names): names
    for names in (
        ("FL", "FC", "FR"),
        ("FL", "FR", "BL", "BR"),
        ("FL", "FC", "FR", "BL", "BR"),
        ("FL", "FC", "FR", "BL", "BR", "LFE"),
        ("FL", "FC", "FR", "SL", "SR", "BC", "LFE"),
        ("FL", "FC", "FR", "SL", "SR", "BL", "BR", "LFE"),
    )
}
_APPLE = {
    108: "FL FR SL SR",
    113: "FL FR FC",
    114: "FC FL FR",
    115: "FL FR FC BC",
    116: "FC FL FR BC",
    117: "FL FR FC SL SR",
    118: "FL FR SL SR FC",
    119: "FL FC FR SL SR",
    120: "FC FL FR SL SR",
    121: "FL FR FC LFE SL SR",
    122: "FL FR SL SR FC LFE",
    123: "FL FC FR SL SR LFE",
    124: "FC FL FR SL SR LFE",
    125: "FL FR FC LFE SL SR BC",
    126: "FL FR FC LFE SL SR FLC FRC",
    127: "FC FLC FRC FL FR SL SR LFE",
    128: "FL FR FC LFE SL SR BL BR",
    131: "FL FR BC",
    132: "FL FR SL SR",
    133: "FL FR LFE",
    134: "FL FR LFE BC",
    135: "FL FR LFE SL SR",
    136: "FL FR FC LFE",
    137: "FL FR FC LFE BC",
    138: "FL FR SL SR LFE",
    141: "FC FL FR SL SR BC",
    142: "FC FL FR SL SR BC LFE",
    143: "FC FL FR SL SR BL BR",
    144: "FC FL FR SL SR BL BR BC",
}
"""The upper half of Apple's layout tags."""
_FROM_LABELS, _FROM_BITS = 0, 1
_MASK_TAG = re.compile(rb"WAVEFORMATEXTENSIBLE_CHANNEL_MASK=0x([0-9A-Fa-f]{1,8})")
_SURROUND_FAMILY = 1
_EXTENSIBLE = 0xFFFE


def usual_layout(num_channels: int) -> Layout | None:
    """The arrangement of a file that names none, by its number of channels."""
    return _BY_NUMBER.get(num_channels)


def channel_layout(data: bytes, num_channels: int) -> Layout | None:
    """The loudspeakers of a file's channels; None where they are no loudspeakers of a known arrangement.

    Args:
        data: any container that libsndfile reads.
    """
    stated, layout = _stated(data, num_channels)
    layout = layout if stated else usual_layout(num_channels)
    return layout if layout is not None and len(layout) == num_channels else None


def _stated(data: bytes, num_channels: int) -> tuple[bool, Layout | None]:
    """(whether the file says what its channels are, the layout)."""
    if data.startswith(b"OggS"):
        return _ogg(data, num_channels)
    if data.startswith(b"fLaC"):
        return _masked(int(found[1], 16)) if (found := _MASK_TAG.search(data, 0, 1 << 16)) else (False, None)
    if data.startswith(b"caff"):
        return _apple(_caf_chunk(data, b"chan"))
    if data.startswith(b"FORM"):
        return _apple(_chunk(data, b"CHAN", ">"))
    return _extensible(_wave_format(data))


def _wave_format(data: bytes) -> bytes:
    """The format chunk of a RIFF, RF64 or W64 file; empty for other files."""
    if data.startswith(b"riff"):  # W64: GUIDs, of which the first four bytes are the names
        place = data.find(b"fmt \xf3\xac\xd3\x11", 0, 1 << 16)
        return data[place + 24 : place + 64] if place >= 0 else b""
    if data.startswith((b"RIFF", b"RF64", b"BW64")):
        return _chunk(data, b"fmt ", "<")
    return _chunk(data, b"fmt ", ">") if data.startswith(b"RIFX") else b""


def _extensible(chunk: bytes) -> tuple[bool, Layout | None]:
    """The layout of a WAVEFORMATEXTENSIBLE with a mask."""
    if len(chunk) < 40:
        return False, None
    order = "<" if chunk.startswith(b"\xfe\xff") else ">"
    kind, mask = struct.unpack_from(f"{order}H18xI", chunk)
    return _masked(mask) if kind == _EXTENSIBLE else (False, None)


def _masked(mask: int) -> tuple[bool, Layout | None]:
    """The loudspeakers of a mask; one of 0 says nothing, as many programs write it."""
    if mask >> len(_BITS):
        return True, None
    return bool(mask), tuple(name for bit, name in enumerate(_BITS) if mask >> bit & 1)


def _ogg(data: bytes, num_channels: int) -> tuple[bool, Layout | None]:
    """Vorbis has one order; Opus has it in its mapping family 1, and sound fields or plain tracks in others."""
    head = data[28 : 28 + 64]
    if head.startswith(b"OpusHead"):
        return True, _VORBIS.get(num_channels) if head[18:19] == bytes([_SURROUND_FAMILY]) else None
    return (True, _VORBIS.get(num_channels)) if head.startswith(b"\x01vorbis") else (False, None)


def _apple(chunk: bytes) -> tuple[bool, Layout | None]:
    """A channel layout chunk: a tag, a mask, or one label per channel."""
    if len(chunk) < 12:
        return False, None
    tag, mask, number = struct.unpack_from(">III", chunk)
    if tag >> 16 == _FROM_BITS:
        return _masked(mask)
    if tag >> 16 == _FROM_LABELS:
        last = min(number, (len(chunk) - 12) // 20)
        return True, _labelled(struct.unpack_from(">I", chunk, 12 + 20 * one)[0] for one in range(last))
    return True, tuple(_APPLE.get(tag >> 16, "").split())


def _labelled(labels: Iterable[int]) -> Layout:
    return tuple(_BITS[label - 1] for label in labels if 0 < label <= len(_BITS))


def _chunk(data: bytes, name: bytes, order: str) -> bytes:
    """The content of the first chunk of that name of a RIFF or FORM file; empty where there is none."""
    offset = 12
    while len(data) >= offset + 8:
        found, size = struct.unpack_from(f"{order}4sI", data, offset)
        if found == name:
            return data[offset + 8 : offset + 8 + size]
        offset += 8 + size + size % 2
    return b""


def _caf_chunk(data: bytes, name: bytes) -> bytes:
    """The content of the first chunk of that name of a CAF file; empty where there is none."""
    offset = 8
    while len(data) >= offset + 12:
        (size,) = struct.unpack_from(">q", data, offset + 4)
        if data[offset : offset + 4] == name:
            return data[offset + 12 : offset + 12 + size]
        if size < 0:
            return b""
        offset += 12 + size
    return b""
