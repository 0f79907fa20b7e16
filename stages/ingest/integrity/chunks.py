"""Checks WAV, RF64, BW64, W64, AIFF, CAF and AU against their declared lengths. Light: standard library only.

Where the length is a placeholder, the decoder gets the true one, as decoders differ in what they make of them.
Sources: the RIFF/WAVE and AIFF chunk layouts (Microsoft/IBM 1991; Apple AIFF 1.3), EBU Tech 3306 (RF64), ITU-R
BS.2088 (BW64), Sony Wave64 1.0, Apple CAF 1.0, the Sun AU header.
"""

from __future__ import annotations

import struct

from stages.ingest.faults import FileRejected
from stages.ingest.integrity.careless_chunks import laid_out, true_stop, with_aiff_length
from stages.ingest.integrity.checked_file import CheckedFile, after_end, is_placeholder, truncated
from stages.ingest.integrity.chunk_layout import BIG, LAYOUTS, LITTLE, ChunkLayout, is_name
from stages.ingest.integrity.tags import start_of_trailing_tags

_TOLERATED_BYTES = 8
"""Some writers include the header in the declared size; no audio is missing then."""
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_LONG_WAV = {b"RF64", b"BW64"}
AU_MAGIC = (b".snd", b"dns.")
CHUNK_MAGIC = tuple(LAYOUTS)


def checked_chunks(data: bytes) -> CheckedFile:
    """Check a file of chunks against the lengths that it declares.

    Raises:
        FileRejected: `audio_truncated`, or `audio_decode_error` where its format cannot be believed.
    """
    box = LAYOUTS[data[:4]]
    data, careless = laid_out(data, box)
    found = {name: (start, size) for name, start, size in reversed(list(box.chunks(data)))}
    declared = _size_in_ds64(data, found, 0) or box.declared(data)
    about_format = _about_format(data, found, box)
    if box.audio not in found:
        if declared and not is_placeholder(declared - box.whole_less, len(data)) and declared > len(data):
            raise truncated(declared, len(data))
        return _without_audio(data, found)
    start, size = found[box.audio]
    size = _size_in_ds64(data, found, 8) if data[:4] in _LONG_WAV and size == 0xFFFFFFFF else size
    known = not _is_unknown(data, box, start, size)
    stop = start + size if known else start_of_trailing_tags(data, start)
    stop, miscounted = true_stop(data, box, start, stop, declared) if known else (stop, "")
    if stop > len(data):
        raise truncated(stop, len(data))
    end, unread = _end_of_chunks(data, box, stop, declared) if known else (stop, "")
    stray, another = after_end(data, end)
    too_long = _about_whole_size(declared, end, data, box) if known else ""
    must_mend = not known or unread or miscounted or end < len(data) or data[:4] == b"BW64" or (declared or end) < stop
    mended = _for_decoder(data, box, start, stop, stop if unread else end) if must_mend else data
    if about_format:
        mended = _with_whole_bits(mended, found[b"fmt "][0], box.head[0])
    mended, frames = with_aiff_length(mended, found, stop - start) if data[:4] == b"FORM" else (mended, "")
    notes = (careless, about_format, miscounted, too_long, frames)
    return CheckedFile(
        data=mended,
        length_known=known,
        num_stray_bytes=stray,
        unread=unread or another,
        contradiction="; ".join(filter(None, notes)),
    )


def _about_whole_size(declared: int | None, end: int, data: bytes, box: ChunkLayout) -> str:
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


def _is_unknown(data: bytes, box: ChunkLayout, start: int, size: int) -> bool:
    """Whether the size of the sound is a placeholder. One that is empty, with chunks after it, holds no sound."""
    if not is_placeholder(size - box.before_sound, len(data) - start) and not is_placeholder(size, len(data) - start):
        return False
    later = list(box.chunks(data, start))
    is_empty = size == 0 and later and later[-1][1] + later[-1][2] in (len(data), len(data) + 1)
    return not is_empty or not all(is_name(name) for name, _, _ in later)


def _end_of_chunks(data: bytes, box: ChunkLayout, stop: int, declared: int | None) -> tuple[int, str]:
    """The byte at which the chunks after the sound end, and what further sound is among them.

    Raises:
        FileRejected: `audio_truncated` where they are no chunks: its header declares less audio than there is.
    """
    end = min(max(declared or len(data), stop), len(data))
    rest = data[stop:end]
    later = list(box.chunks(data[:end], box.next_chunk(data, stop)))
    if declared is None:
        ends = [start + size for name, start, size in later if is_name(name) and start + size <= end]
        later, end = later[: len(ends)], max([stop, *ends])
    elif len(rest) > _TOLERATED_BYTES and any(rest) and not (later and is_name(later[0][0])):
        why = f"{len(rest):,} unknown bytes follow the audio that its header declares"
        raise FileRejected("audio_truncated", why=why)
    more = sum(name == box.audio and size > box.before_sound for name, _, size in later)
    return end, "a second chunk of sound" if more else ""


def _for_decoder(data: bytes, box: ChunkLayout, start: int, stop: int, end: int) -> bytes:
    """The file up to the end of its sound, with its true sizes. An RF64 becomes the WAV that fits, where one does."""
    mended = box.with_sizes(data, start, stop, end)
    if data[:4] in _LONG_WAV and stop < 1 << 32:
        mended[:4] = b"RIFF"
        for name, begin, _ in box.chunks(data[:start]):
            if name == b"ds64":
                mended[begin - 8 : begin - 4] = b"JUNK"
    elif data[:4] == b"BW64":
        mended[:4] = b"RF64"
    return bytes(mended)


def _about_format(data: bytes, found: dict[bytes, tuple[int, int]], box: ChunkLayout) -> str:
    start, size = found.get(b"fmt ", (0, 0))
    if not start or box.audio != b"data" or start + size > len(data):
        return ""
    return contradiction_in_fmt(data[start : start + size], box.head[0])


def contradiction_in_fmt(chunk: bytes, order: str) -> str:
    """Which of a PCM format's redundant fields disagree with rate, channels and bits, which every player goes by.

    Raises:
        FileRejected: `audio_decode_error` where the chunk is too short.
    """
    if len(chunk) < 16:
        raise FileRejected("audio_decode_error", why="its format chunk is too short")
    kind, channels, rate, byte_rate, align, bits = struct.unpack_from(f"{order}HHIIHH", chunk)
    if kind == _EXTENSIBLE and len(chunk) >= 26:
        (kind,) = struct.unpack_from(f"{order}H", chunk, 24)
    size = channels * -(-bits // 8)
    if kind not in (_PCM, _FLOAT) or (align == size and byte_rate in (0, rate * size)):
        return ""
    return f"{channels} channels of {bits} bits at {rate:,} Hz, {align} bytes a sample, {byte_rate:,} bytes a second"


def _with_whole_bits(data: bytes, start: int, order: str) -> bytes:
    """The WAV with 32 instead of 24 bits where each sample takes four bytes: libsndfile only guesses that."""
    mended = bytearray(data)
    channels, bits, align = (struct.unpack_from(f"{order}H", data, start + at)[0] for at in (2, 14, 12))
    if 16 < bits <= 24 and align == 4 * channels:
        struct.pack_into(f"{order}H", mended, start + 14, 32)
    return bytes(mended)


def wave_format_tag(data: bytes) -> int | None:
    """The format tag of a RIFF or RIFX file, such as 1 for PCM, also of an extensible one; None where it has none."""
    box = BIG if data.startswith(b"RIFX") else LITTLE
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
    box = LAYOUTS[data[:4]]
    found = next(((start, start + size) for name, start, size in box.chunks(data) if name == b"data"), None)
    return data[slice(*found)] if found else data


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
