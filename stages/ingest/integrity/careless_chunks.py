"""Puts right what careless writers of chunks get wrong, where one reading is possible. Light: standard library only.

Each returns the file as a decoder expects it and a sentence about what was wrong, which is empty where nothing was.
"""

from __future__ import annotations

import struct
from functools import partial
from itertools import pairwise

from stages.ingest.integrity.checked_file import is_placeholder, truncated
from stages.ingest.integrity.chunk_layout import ChunkLayout, is_name
from stages.ingest.integrity.tags import start_of_trailing_tags

_PLAIN_AIFC = {b"NONE", b"twos", b"sowt", b"in24", b"in32", b"42ni", b"23ni", b"fl32", b"FL32", b"fl64", b"FL64"}
_FILLING = {b"data": b"junk", b"SSND": b"(c) "}
"""Names of chunks that every reader skips, to put in place of an empty chunk of sound; for CAF `free`."""


def laid_out(data: bytes, box: ChunkLayout) -> tuple[bytes, str]:
    """The file with its chunks before the sound where its format says, and no empty chunk beside the full one."""
    data, unpadded = _padded(data, box)
    data, empty = _without_empty_sound(data, box)
    return data, "; ".join(filter(None, (unpadded, empty)))


def _padded(data: bytes, box: ChunkLayout) -> tuple[bytes, str]:
    """The file with its chunks before the sound as long as they say and even, where a byte or two is wrong."""
    heads = _heads(data, box)
    ends = [box.next_chunk(data, stop) for stop in map(partial(_stop, data, box), heads)]
    if not heads or (heads[1:] == ends[:-1] and all((head - box.first) % box.align == 0 for head in heads)):
        return data, ""
    mended = bytearray(data[: box.first])
    length = struct.calcsize(box.head)
    for head, after in pairwise(heads):
        content = data[head + length : min(after, max(_stop(data, box, head), head + length))]
        name = struct.unpack_from(box.head, data, head)[0]
        mended += struct.pack(box.head, name, len(content) + box.counts_itself) + content
        mended += bytes((box.first - len(mended)) % box.align)
    mended += data[heads[-1] :]
    _grow_whole_size(mended, box, len(data))
    return bytes(mended), "a chunk before the sound is not as long as it says, or lacks the byte that makes it even"


def _heads(data: bytes, box: ChunkLayout) -> list[int]:
    """Where the chunks up to that of the sound begin, each at most two bytes from where it should; [] without sound."""
    heads = [box.first]
    while is_name(name := data[heads[-1] : heads[-1] + 4]) and name != box.audio:
        begin = box.next_chunk(data, _stop(data, box, heads[-1]))
        near = [begin + by for by in (0, 1, 2, -1, -2) if begin + by >= heads[-1] + struct.calcsize(box.head)]
        named = [one for one in near if is_name(data[one : one + 4])]
        certain = [one for one in named if data[one : one + 4] in (box.audio, b"fmt ", b"COMM")]
        heads.append((certain or named or [len(data)])[0])
    return heads if name == box.audio else []


def _stop(data: bytes, box: ChunkLayout, head: int) -> int:
    """The byte at which the content of the chunk that begins here ends, by its size."""
    length = struct.calcsize(box.head)
    if head + length > len(data):
        return len(data)
    return head + length + max(0, int(struct.unpack_from(box.head, data, head)[1]) - box.counts_itself)


def _grow_whole_size(mended: bytearray, box: ChunkLayout, length: int) -> None:
    """State the new size of a whole file whose length was another, where it stated its size."""
    declared = box.declared(bytes(mended[: box.first]))
    if declared is not None and box.whole_less < declared <= length + 1 and len(mended) != length:
        struct.pack_into(
            box.head[0] + box.head[-1], mended, box.size_at, declared - box.whole_less + len(mended) - length
        )


def _without_empty_sound(data: bytes, box: ChunkLayout) -> tuple[bytes, str]:
    """The file with another name for chunks of sound that are empty where one is not: decoders take the last one."""
    sounds = [(start, size) for name, start, size in box.chunks(data) if name == box.audio]
    empty = [start for start, size in sounds if size <= box.before_sound]
    if not empty or len(empty) == len(sounds):
        return data, ""
    mended = bytearray(data)
    name = b"free" if data[:4] == b"caff" else _FILLING[box.audio]
    for start in empty:
        head = start - struct.calcsize(box.head)
        mended[head : head + 4] = name
    return bytes(mended), "it has an empty chunk of sound beside the full one"


def true_stop(data: bytes, box: ChunkLayout, start: int, stop: int, declared: int | None) -> tuple[int, str]:
    """Where the sound ends, if its size counts headers in and the size of the whole file shows it.

    Args:
        start: where the sound begins.
        stop: where it ends by its own size.
        declared: size of the whole file by its header.
    """
    end = start_of_trailing_tags(data, start)
    if declared != end or _ends_at(data[:end], box, stop) == end:
        return stop, ""
    data = data[:end]
    for begin in range(max(start, stop - start), min(stop, end + 1)):
        if begin == end or (is_name(data[begin : begin + 4]) and _ends_at(data, box, begin) == end):
            said = (
                f"its sound says {stop - start:,} bytes and is {begin - start:,}, as the size of the whole file shows"
            )
            return begin, said
    return stop, ""


def _ends_at(data: bytes, box: ChunkLayout, begin: int) -> int:
    """The byte at which the chunks that begin here end; -1 where something is no chunk."""
    stop = begin
    for name, start, size in box.chunks(data, box.next_chunk(data, begin)):
        if not is_name(name):
            return -1
        stop = start + size
    return stop if len(data) - stop > 1 or stop > len(data) else len(data)


def with_aiff_length(data: bytes, found: dict[bytes, tuple[int, int]], size: int) -> tuple[bytes, str]:
    """The AIFF with the number of samples that its sound of this size holds, where its header states another.

    Raises:
        FileRejected: `audio_truncated` where the sound should begin behind its own end.
    """
    start, length = found.get(b"COMM", (0, 0))
    if length < 18 or (data[8:12] == b"AIFC" and data[start + 18 : start + 22] not in _PLAIN_AIFC):
        return data, ""
    channels, frames, bits = struct.unpack_from(">HIH", data, start)
    sample = channels * -(-bits // 8)
    there = size - 8 - struct.unpack_from(">I", data, found[b"SSND"][0])[0]  # sound may begin at an offset
    if data[8:12] not in (b"AIFF", b"AIFC") or not sample:
        return data, ""
    if there < 0:
        raise truncated(size - there, size)
    if 0 <= there - frames * sample < sample:
        return data, ""
    mended = bytearray(data)
    struct.pack_into(">I", mended, start + 2, there // sample)
    if not frames or is_placeholder(frames * sample, there) or is_placeholder(frames, there):
        return bytes(mended), ""
    return bytes(mended), f"{frames:,} samples of {channels} channels and {bits} bits, {there:,} bytes of sound"
