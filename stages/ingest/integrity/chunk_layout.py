"""How WAV, RF64, BW64, W64, AIFF and CAF lay out their chunks. Light: standard library only.

Sources: the RIFF/WAVE and AIFF chunk layouts (Microsoft/IBM 1991; Apple AIFF 1.3), EBU Tech 3306 (RF64), ITU-R
BS.2088 (BW64), Sony Wave64 1.0, Apple CAF 1.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass


def is_name(name: bytes) -> bool:
    """Whether a chunk may have this name of four characters."""
    return name.isascii() and name.strip(b" _()").isalnum()


@dataclass(frozen=True, kw_only=True)
class ChunkLayout:
    """How a container lays out its chunks."""

    head: str
    """Layout of a chunk's name and size."""
    first: int
    """Where the first chunk begins."""
    audio: bytes
    """Name of the chunk of the sound."""
    size_at: int = 4
    """Where the size of the whole file stands, in the layout of a chunk's size."""
    counts_itself: int = 0
    """Bytes of a chunk's header that its size includes."""
    whole_less: int = 8
    """Bytes of the file that its size leaves out."""
    align: int = 2
    before_sound: int = 0
    """Bytes in the chunk of the sound before its samples."""

    def chunks(self, data: bytes, offset: int | None = None) -> Iterator[tuple[bytes, int, int]]:
        """(name, start of content, declared size of content) of the chunks; the last may have a name that none has."""
        offset = self.first if offset is None else offset
        length = struct.calcsize(self.head)
        while offset + length <= len(data):
            name, size = struct.unpack_from(self.head, data, offset)
            yield name[:4], offset + length, size - self.counts_itself
            if not all(32 <= byte < 127 for byte in name[:4]):
                return
            offset = self.next_chunk(data, offset + length + max(0, size - self.counts_itself))

    def next_chunk(self, data: bytes, stop: int) -> int:
        """Where the chunk after one that ends here begins; a careless writer leaves out the byte that makes it even."""
        begin = stop + -stop % self.align
        return stop if not is_name(data[begin : begin + 4]) and is_name(data[stop : stop + 4]) else begin

    def declared(self, data: bytes) -> int | None:
        """The size of the whole file, where the header states one."""
        if not self.size_at or len(data) < self.first:
            return None
        (size,) = struct.unpack_from(self.head[0] + self.head[-1], data, self.size_at)
        return int(size) + self.whole_less

    def with_sizes(self, data: bytes, start: int, stop: int, end: int) -> bytearray:
        """The file up to `end`, with the sizes that follow in its header; 32 bits hold at most 4 GiB."""
        mended = bytearray(data[:end])
        layout = self.head[0] + self.head[-1]
        most = (1 << 8 * struct.calcsize(layout)) - 1
        own_size_at = start - struct.calcsize(layout)
        struct.pack_into(layout, mended, own_size_at, min(most, stop - start + self.counts_itself))
        if self.size_at:
            struct.pack_into(layout, mended, self.size_at, min(most, end - self.whole_less))
        return mended


LITTLE = ChunkLayout(head="<4sI", first=12, audio=b"data")
BIG = ChunkLayout(head=">4sI", first=12, audio=b"data")
_W64 = ChunkLayout(head="<16sQ", first=40, audio=b"data", size_at=16, counts_itself=24, whole_less=0, align=8)
_CAF = ChunkLayout(head=">4sq", first=8, audio=b"data", size_at=0, align=1, before_sound=4)
_AIFF = ChunkLayout(head=">4sI", first=12, audio=b"SSND", before_sound=8)
LAYOUTS = {
    **{b"RIFF": LITTLE, b"RF64": LITTLE, b"BW64": LITTLE},
    **{b"RIFX": BIG, b"riff": _W64, b"caff": _CAF, b"FORM": _AIFF},
}
