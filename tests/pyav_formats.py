"""Audio that libsndfile cannot read, written by PyAV, and damage to it. Needs the optional package."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np

from tests.small_datasets import RATE, sound, tone

PYAV_FORMATS = {
    "AAC (MP4)": ("a.m4a", "ipod", "aac", RATE),
    "ALAC (MP4)": ("a.m4a", "ipod", "alac", RATE),
    "AAC (raw)": ("a.aac", "adts", "aac", RATE),
    "WMA": ("a.wma", "asf", "wmav2", RATE),
}
MP4 = ("AAC (MP4)", "ALAC (MP4)")


def written_by_pyav(container: str, codec: str, audio_XA: np.ndarray, rate: int = RATE) -> bytes:
    """The audio as a file that PyAV writes."""
    import av  # deferred: an optional package

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo")
        stream.bit_rate = 192_000
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio_XA.T), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, 0
        form = stream.codec_context.format or "fltp"
        size = stream.codec_context.frame_size or 2048
        fitted = av.AudioResampler(format=form, layout="stereo", rate=rate, frame_size=size)
        for part in [*fitted.resample(frame), *fitted.resample(None), None]:
            for packet in stream.encode(part):
                file.mux(packet)
    return buffer.getvalue()


def box(data: bytes, name: bytes) -> tuple[int, int]:
    """Start and end of the first MP4 box of that name, at any level."""
    start = data.index(name) - 4
    return start, start + int.from_bytes(data[start : start + 4], "big")


def cut_moov(form: str, data: bytes) -> bytes:
    """The moov box, which comes last, cut in its middle, as by an interrupted download."""
    start, stop = box(data, b"moov")
    return data[: (start + stop) // 2]


def without_moov(form: str, data: bytes) -> bytes:
    return data[: box(data, b"moov")[0]]


def zeroed_moov(form: str, data: bytes) -> bytes:
    start, stop = box(data, b"moov")
    return data[: start + 8] + bytes(stop - start - 8) + data[stop:]


def zeroed_mdat(form: str, data: bytes) -> bytes:
    """The mdat box filled with zeros, as by a download that reserved its space and was interrupted."""
    start, stop = box(data, b"mdat")
    return data[: start + 8] + bytes(stop - start - 8) + data[stop:]


def in_box(name: bytes, offset: int, layout: str, value: int) -> Callable[[str, bytes], bytes]:
    """A field of a box overwritten."""

    def made(form: str, data: bytes) -> bytes:
        mended = bytearray(data)
        struct.pack_into(layout, mended, box(data, name)[0] + offset, value)
        return bytes(mended)

    return made


def adts_frames(data: bytes) -> list[int]:
    """Start of each frame of raw AAC, by their lengths, and the end of the last one."""
    places = [0]
    while places[-1] < len(data):
        head = data[places[-1] : places[-1] + 7]
        places.append(places[-1] + ((head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5))
    return places


def without_adts_frame(form: str, data: bytes) -> bytes:
    start, stop = adts_frames(data)[40:42]
    return data[:start] + data[stop:]


def flipped_adts_header(form: str, data: bytes) -> bytes:
    place = adts_frames(data)[40]
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def cut_wav_under_this_name(form: str, data: bytes) -> bytes:
    """A file that was renamed instead of converted, and truncated, which FFmpeg would not notice."""
    return sound(tone(1.0))[:-1000]


PYAV_DAMAGES: dict[str, tuple[tuple[str, ...], Callable[[str, bytes], bytes]]] = {
    "the list of contents (moov) cut": (MP4, cut_moov),
    "the list of contents (moov) missing": (MP4, without_moov),
    "the list of contents (moov) zeros": (MP4, zeroed_moov),
    "all of the sound (mdat) zeros": (MP4, zeroed_mdat),
    "length in the header too long": (MP4, in_box(b"mdhd", 24, ">I", 30 * RATE)),
    "sample rate in the header": (MP4, in_box(b"mdhd", 20, ">I", 48000)),
    "a frame missing": (("AAC (raw)",), without_adts_frame),
    "a frame's header flipped": (("AAC (raw)",), flipped_adts_header),
    "a cut WAV under this name": (tuple(PYAV_FORMATS), cut_wav_under_this_name),
}
NO_CHECKSUM = "{form} carries no checksum of its sound; inside a zip its CRC catches it"
PYAV_UNDETECTABLE = {
    ("4 KiB of zeros inside", "ALAC (MP4)"): NO_CHECKSUM,
    ("one byte flipped", "ALAC (MP4)"): NO_CHECKSUM,
    ("a frame missing", "AAC (raw)"): "its frames are neither counted nor numbered; inside a zip its CRC catches it",
    ("shorter than a latent frame", "AAC (raw)"): "its encoder's own silence fills it up, and it does not say how much",
}
PYAV_HARMLESS = {
    "length in the header too long": "FFmpeg counts the list of frames instead; the prepared audio is the same bytes",
}
PYAV_EXPECTED = {
    **{(kind, form): "audio_truncated" for kind in ("first four bytes wrong", "cut at half") for form in MP4},
    **{("cut at half", form): "audio_truncated" for form in ("AAC (raw)", "WMA")},
    **{("4 KiB missing inside", form): "audio_truncated" for form in (*MP4, "WMA")},
    **{("first 40 bytes only", form): "audio_decode_error" for form in (*MP4, "WMA")},
    **{("junk behind the end", form): "stray_bytes" for form in (*MP4, "WMA")},
    **{("length in the header too long", form): "" for form in MP4},
    **{("sample rate in the header", form): "audio_truncated" for form in MP4},
    **dict.fromkeys(PYAV_UNDETECTABLE, ""),
    **{("a cut WAV under this name", form): "audio_truncated" for form in PYAV_FORMATS},
    ("the list of contents (moov) cut", MP4[0]): "audio_truncated",
    ("the list of contents (moov) cut", MP4[1]): "audio_truncated",
    ("4 KiB twice inside", "WMA"): "stray_bytes",
    ("junk behind the end", "AAC (raw)"): "audio_decode_error",
    ("clipped", "ALAC (MP4)"): "clipping",
    **{("clipped", form): "clamped, clipping" for form in PYAV_FORMATS if not form.startswith("ALAC")},
}
"""Fault or warning that each kind leads to, where it differs from the other formats."""
