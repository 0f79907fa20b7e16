"""Puts right what careless writers of chunks get wrong, where one reading is possible. Light: standard library only.

Each returns the file as a decoder expects it and a sentence about what was wrong, which is empty where nothing was.
"""

from __future__ import annotations

import struct

from stages.ingest.integrity.checked_file import is_placeholder, truncated
from stages.ingest.integrity.chunk_layout import ChunkLayout, is_name
from stages.ingest.integrity.tags import start_of_trailing_tags

_PLAIN_AIFC = {b"NONE", b"twos", b"sowt", b"in24", b"in32", b"42ni", b"23ni", b"fl32", b"FL32", b"fl64", b"FL64"}
_FILLING = {b"data": b"junk", b"SSND": b"(c) "}
"""Names of chunks that every reader skips, to put in place of an empty chunk of sound; for CAF `free`."""


def laid_out(data: bytes, box: ChunkLayout) -> tuple[bytes, str]:
    """The file with its chunks before the sound where its format says, and no empty chunk before the full one."""
    data, unpadded = _padded(data, box)
    data, empty = _without_empty_sound(data, box)
    return data, "; ".join(filter(None, (unpadded, empty)))


def _padded(data: bytes, box: ChunkLayout) -> tuple[bytes, str]:
    """The file with the bytes that make odd chunks before the sound even, where they were left out."""
    heads = []
    for name, start, _ in box.chunks(data):
        heads.append(start - struct.calcsize(box.head))
        if name == box.audio:
            break
    else:
        return data, ""
    if all(head % box.align == box.first % box.align for head in heads):
        return data, ""
    mended = bytearray()
    for before, head in zip([0, *heads], heads, strict=False):
        mended += data[before:head]
        mended += bytes((box.first - len(mended)) % box.align)
    mended += data[heads[-1] :]
    _grow_whole_size(mended, box, len(data))
    return bytes(mended), "a chunk of odd size before the sound lacks the byte that makes it even"


def _grow_whole_size(mended: bytearray, box: ChunkLayout, length: int) -> None:
    """State the new size of a whole file whose length was another, where it stated its size."""
    declared = box.declared(bytes(mended[: box.first]))
    if declared is not None and box.whole_less < declared <= length + 1:
        struct.pack_into(
            box.head[0] + box.head[-1], mended, box.size_at, declared - box.whole_less + len(mended) - length
        )


def _without_empty_sound(data: bytes, box: ChunkLayout) -> tuple[bytes, str]:
    """The file with another name for a chunk of sound that is empty and comes before one that is not."""
    sounds = [(start, size) for name, start, size in box.chunks(data) if name == box.audio]
    empty = [start for start, size in sounds if size <= box.before_sound]
    if not empty or len(empty) == len(sounds) or empty[0] != sounds[0][0]:
        return data, ""
    mended = bytearray(data)
    name = b"free" if data[:4] == b"caff" else _FILLING[box.audio]
    for start in empty:
        head = start - struct.calcsize(box.head)
        mended[head : head + 4] = name
    return bytes(mended), "an empty chunk of sound comes before the full one"


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
