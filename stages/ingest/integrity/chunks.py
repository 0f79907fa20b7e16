"""Checks WAV, RF64, BW64, W64, AIFF, CAF and AU against their declared lengths. Light: standard library only.

Where the length is a placeholder, the decoder gets the true one, as decoders differ in what they make of them.
Sources: the RIFF/WAVE and AIFF chunk layouts (Microsoft/IBM 1991; Apple AIFF 1.3), EBU Tech 3306 (RF64), ITU-R
BS.2088 (BW64), Sony Wave64 1.0, Apple CAF 1.0, the Sun AU header.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from stages.ingest.faults import FileRejected
from stages.ingest.integrity.checked_file import CheckedFile, after_end, is_placeholder, truncated
from stages.ingest.integrity.tags import start_of_trailing_tags

_TOLERATED_BYTES = 8
"""Some writers include the header in the declared size; no audio is missing then."""
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_PLAIN_AIFC = {b"NONE", b"twos", b"sowt", b"in24", b"in32", b"42ni", b"23ni", b"fl32", b"FL32", b"fl64", b"FL64"}
_LONG_WAV = {b"RF64", b"BW64"}


@dataclass(frozen=True, kw_only=True)
class _Container:
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

    def chunks(self, data: bytes, offset: int | None = None) -> Iterator[tuple[bytes, int, int]]:
        """(name, start of content, declared size of content) of the chunks; the last may have a name that none has."""
        offset = self.first if offset is None else offset
        length = struct.calcsize(self.head)
        while offset + length <= len(data):
            name, size = struct.unpack_from(self.head, data, offset)
            yield name[:4], offset + length, size - self.counts_itself
            if not all(32 <= byte < 127 for byte in name[:4]):
                return
            stop = offset + length + max(0, size - self.counts_itself)
            offset = stop + -stop % self.align

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


_LITTLE = _Container(head="<4sI", first=12, audio=b"data")
_BIG = _Container(head=">4sI", first=12, audio=b"data")
_W64 = _Container(head="<16sQ", first=40, audio=b"data", size_at=16, counts_itself=24, whole_less=0, align=8)
_CAF = _Container(head=">4sq", first=8, audio=b"data", size_at=0, align=1)
_AIFF = _Container(head=">4sI", first=12, audio=b"SSND")
_CONTAINERS = {
    **{b"RIFF": _LITTLE, b"RF64": _LITTLE, b"BW64": _LITTLE},
    **{b"RIFX": _BIG, b"riff": _W64, b"caff": _CAF, b"FORM": _AIFF},
}
AU_MAGIC = (b".snd", b"dns.")
CHUNK_MAGIC = tuple(_CONTAINERS)


def checked_chunks(data: bytes) -> CheckedFile:
    """Check a file of chunks against the lengths that it declares.

    Raises:
        FileRejected: `audio_truncated`, or `audio_decode_error` where its format cannot be believed.
    """
    box = _CONTAINERS[data[:4]]
    found = {name: (start, size) for name, start, size in reversed(list(box.chunks(data)))}
    declared = _size_in_ds64(data, found, 0) or box.declared(data)
    contradiction = _about_format(data, found, box)
    if box.audio not in found:
        if declared and not is_placeholder(declared - box.whole_less, len(data)) and declared > len(data):
            raise truncated(declared, len(data))
        return _without_audio(data, found)
    start, size = found[box.audio]
    size = _size_in_ds64(data, found, 8) if data[:4] in _LONG_WAV and size == 0xFFFFFFFF else size
    known = not _is_unknown(data, box, start, size)
    stop = start + size if known else start_of_trailing_tags(data, start)
    if stop > len(data):
        raise truncated(stop, len(data))
    end, unread = _end_of_chunks(data, box, stop, declared) if known else (stop, "")
    stray, another = after_end(data, end)
    if known and not contradiction:
        contradiction = _about_whole_size(declared, end, data, box)
    must_mend = not known or unread or end < len(data) or data[:4] == b"BW64" or (declared or end) < stop
    mended = _for_decoder(data, box, start, stop, stop if unread else end) if must_mend else data
    if contradiction and b"fmt " in found:
        mended = _with_whole_bits(mended, found[b"fmt "][0], box.head[0])
    return CheckedFile(
        data=_with_aiff_length(mended, found, stop - start) if data[:4] == b"FORM" else bytes(mended),
        length_known=known,
        num_stray_bytes=stray,
        unread=unread or another,
        contradiction=contradiction,
    )


def _about_whole_size(declared: int | None, end: int, data: bytes, box: _Container) -> str:
    """What is wrong with the size of the whole file, where all of its sound is there nevertheless."""
    beyond = declared is not None and declared > max(end, len(data)) + _TOLERATED_BYTES
    if declared is None or not beyond or is_placeholder(declared - box.whole_less, len(data)):
        return ""
    return f"it says {declared:,} bytes in all, {len(data):,} are there, with all of its sound"


def _without_audio(data: bytes, found: dict[bytes, tuple[int, int]]) -> CheckedFile:
    """A file in which the chunk of the sound was not found: the decoder says what is wrong, unless its end is lost."""
    stop = max((start + size for start, size in found.values()), default=0)
    if stop > len(data) or len(data) <= 44:
        raise truncated(max(stop, 44), len(data))
    return CheckedFile(data=data)


def _size_in_ds64(data: bytes, found: dict[bytes, tuple[int, int]], offset: int) -> int:
    """The size of an RF64 (at 0) or of its sound (at 8) in the chunk for that; 0 where there is none."""
    start, size = found.get(b"ds64", (0, 0))
    if data[:4] not in _LONG_WAV or size < 16 or start + 16 > len(data):
        return 0
    return int(struct.unpack_from("<Q", data, start + offset)[0]) + (0 if offset else 8)


def _is_unknown(data: bytes, box: _Container, start: int, size: int) -> bool:
    """Whether the size of the sound is a placeholder. One that is empty, with chunks after it, holds no sound."""
    offset = 8 if box.audio == b"SSND" else 0
    if not is_placeholder(size - offset, len(data) - start) and not is_placeholder(size, len(data) - start):
        return False
    later = list(box.chunks(data, start))
    is_empty = size == 0 and later and later[-1][1] + later[-1][2] in (len(data), len(data) + 1)
    return not is_empty or not all(_is_name(name) for name, _, _ in later)


def _is_name(name: bytes) -> bool:
    return name.isascii() and name.strip(b" _()").isalnum()


def _end_of_chunks(data: bytes, box: _Container, stop: int, declared: int | None) -> tuple[int, str]:
    """The byte at which the chunks after the sound end, and what further sound is among them.

    Raises:
        FileRejected: `audio_truncated` where they are no chunks: its header declares less audio than there is.
    """
    end = min(max(declared or len(data), stop), len(data))
    rest = data[stop:end]
    begin = stop + -stop % box.align
    if not _is_name(data[begin : begin + 4]) and _is_name(data[stop : stop + 4]):
        begin = stop  # a careless writer left out the byte that makes an odd chunk even
    later = list(box.chunks(data[:end], begin))
    if declared is None:
        ends = [start + size for name, start, size in later if _is_name(name) and start + size <= end]
        later, end = later[: len(ends)], max([stop, *ends])
    elif len(rest) > _TOLERATED_BYTES and any(rest) and not (later and _is_name(later[0][0])):
        why = f"{len(rest):,} unknown bytes follow the audio that its header declares"
        raise FileRejected("audio_truncated", why=why)
    more = sum(name == box.audio for name, _, _ in later)
    return end, "a second chunk of sound" if more else ""


def _for_decoder(data: bytes, box: _Container, start: int, stop: int, end: int) -> bytearray:
    """The file up to the end of its sound, with its true sizes. An RF64 becomes the WAV that fits, where one does."""
    mended = box.with_sizes(data, start, stop, end)
    if data[:4] in _LONG_WAV and stop < 1 << 32:
        mended[:4] = b"RIFF"
        for name, begin, _ in box.chunks(data[:start]):
            if name == b"ds64":
                mended[begin - 8 : begin - 4] = b"JUNK"
    elif data[:4] == b"BW64":
        mended[:4] = b"RF64"
    return mended


def _about_format(data: bytes, found: dict[bytes, tuple[int, int]], box: _Container) -> str:
    start, size = found.get(b"fmt ", (0, 0))
    if not start or box.audio != b"data" or start + size > len(data):
        return ""
    return contradiction_in_fmt(data[start : start + size], box.head[0])


def contradiction_in_fmt(chunk: bytes, order: str) -> str:
    """Which of a PCM format's redundant fields disagree with rate, channels and bits, which every player goes by.

    Raises:
        FileRejected: `audio_decode_error` where both redundant fields agree on another size of a sample: then it is
            as likely that channels or bits are wrong, which would change the pitch.
    """
    if len(chunk) < 16:
        raise FileRejected("audio_decode_error", why="its format chunk is too short")
    kind, channels, rate, byte_rate, align, bits = struct.unpack_from(f"{order}HHIIHH", chunk)
    if kind == _EXTENSIBLE and len(chunk) >= 26:
        (kind,) = struct.unpack_from(f"{order}H", chunk, 24)
    size = channels * -(-bits // 8)
    if kind not in (_PCM, _FLOAT) or (align == size and byte_rate in (0, rate * size)):
        return ""
    facts = f"{channels} channels of {bits} bits at {rate:,} Hz, {align} bytes a sample, {byte_rate:,} bytes a second"
    is_in_four_bytes = kind == _PCM and 16 < bits <= 24 and align == 4 * channels
    if align != size and align and rate * align == byte_rate and not is_in_four_bytes:
        raise FileRejected("audio_decode_error", why=f"its header contradicts itself: {facts}")
    return facts


def _with_whole_bits(data: bytes | bytearray, start: int, order: str) -> bytearray:
    """The WAV with 32 instead of 24 bits where each sample takes four bytes: libsndfile only guesses that."""
    mended = bytearray(data)
    channels, bits, align = (struct.unpack_from(f"{order}H", data, start + at)[0] for at in (2, 14, 12))
    if 16 < bits <= 24 and align == 4 * channels:
        struct.pack_into(f"{order}H", mended, start + 14, 32)
    return mended


def wave_format_tag(data: bytes) -> int | None:
    """The format tag of a RIFF or RIFX file, such as 1 for PCM, also of an extensible one; None where it has none."""
    box = _BIG if data.startswith(b"RIFX") else _LITTLE
    for name, start, _ in box.chunks(data):
        if name == b"fmt " and start + 2 <= len(data):
            (tag,) = struct.unpack_from(f"{box.head[0]}H", data, start)
            if tag == _EXTENSIBLE and start + 26 <= len(data):
                (tag,) = struct.unpack_from(f"{box.head[0]}H", data, start + 24)
            return int(tag)
    return None


def mpeg_payload(data: bytes) -> bytes:
    """The MPEG frames of a RIFF file that holds nothing else, as MP3 encoders write it; any other file unchanged.

    libsndfile takes the length of such a file from its size, and finds less.
    """
    if not data.startswith((b"RIFF", b"RIFX")) or wave_format_tag(data) not in (0x50, 0x55):
        return data
    box = _CONTAINERS[data[:4]]
    found = next(((start, start + size) for name, start, size in box.chunks(data) if name == b"data"), None)
    return data[slice(*found)] if found else data


def _with_aiff_length(data: bytes | bytearray, found: dict[bytes, tuple[int, int]], size: int) -> bytes:
    """The AIFF, with its number of samples where that is a placeholder.

    Raises:
        FileRejected: `audio_truncated` where the number does not agree with the size of the sound.
    """
    start, length = found.get(b"COMM", (0, 0))
    if length < 18 or (data[8:12] == b"AIFC" and bytes(data[start + 18 : start + 22]) not in _PLAIN_AIFC):
        return bytes(data)
    channels, frames, bits = struct.unpack_from(">HIH", data, start)
    sample = channels * -(-bits // 8)
    there = size - 8 - struct.unpack_from(">I", data, found[b"SSND"][0])[0]  # sound may begin at an offset
    if data[8:12] not in (b"AIFF", b"AIFC") or not sample or 0 <= there - frames * sample < sample:
        return bytes(data)
    if frames and not is_placeholder(frames * sample, there) and not is_placeholder(frames, there):
        why = f"its header says {frames:,} samples of {channels} channels and {bits} bits, {there:,} bytes are there"
        raise FileRejected("audio_truncated", why=why)
    mended = bytearray(data)
    struct.pack_into(">I", mended, start + 2, there // sample)
    return bytes(mended)


def checked_au(data: bytes) -> CheckedFile:
    """Check an AU file, of either byte order.

    Raises:
        FileRejected: `audio_truncated`.
    """
    if len(data) < 24:
        raise truncated(24, len(data))
    order = ">" if data.startswith(b".snd") else "<"
    start, size = struct.unpack_from(f"{order}II", data, 4)
    known = not is_placeholder(size, len(data) - start)
    stop = start + size if known else max(start, start_of_trailing_tags(data, start))
    if stop > len(data):
        raise truncated(stop, len(data))
    stray, unread = after_end(data, stop)
    mended = bytearray(data[:stop])
    struct.pack_into(f"{order}I", mended, 8, min(0xFFFFFFFE, stop - start))
    return CheckedFile(data=bytes(mended), length_known=known, num_stray_bytes=stray, unread=unread)
