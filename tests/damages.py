"""A corpus of damaged audio files: each is detected, proven harmless, or undetectable in principle.

`python -m tests.damages` prints the table: kind of damage by format.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cache.fingerprint import digest_bytes
from stages.contract import Member
from stages.errors import Fault
from stages.ingest.clip_warnings import clip_warnings
from stages.ingest.integrity.mp3 import frame_at
from stages.ingest.integrity.ogg import ogg_pages
from stages.ingest.prepare_clip import PreparedClip, RecordingJob, prepare
from tests.pyav_formats import (
    PYAV_DAMAGES,
    PYAV_EXPECTED,
    PYAV_FORMATS,
    PYAV_HARMLESS,
    PYAV_UNDETECTABLE,
    written_by_pyav,
)
from tests.small_datasets import PARAMS, RATE, sound

FORMS = {
    "WAV 16": ("a.wav", "WAV", "PCM_16", RATE),
    "WAV 24": ("a.wav", "WAV", "PCM_24", RATE),
    "WAV float": ("a.wav", "WAV", "FLOAT", RATE),
    "AIFF": ("a.aiff", "AIFF", "PCM_16", RATE),
    "FLAC": ("a.flac", "FLAC", "PCM_16", RATE),
    "MP3": ("a.mp3", "MP3", "MPEG_LAYER_III", RATE),
    "OGG": ("a.ogg", "OGG", "VORBIS", RATE),
    "OPUS": ("a.opus", "OGG", "OPUS", 48000),
}
WITH_PYAV = find_spec("av") is not None
if WITH_PYAV:
    FORMS |= PYAV_FORMATS
PCM = ("WAV 16", "WAV 24", "WAV float", "AIFF")


@lru_cache
def whole(form: str) -> bytes:
    """Three seconds of a tone in noise, without DC offset, which fills the frames of every codec."""
    rate = FORMS[form][3]
    time_X = np.arange(3 * rate) / rate
    noise_XA = np.random.default_rng(0).uniform(-0.05, 0.05, (3 * rate, 2))
    tone_XA = 0.3 * np.sin(2 * np.pi * 440 * time_X)[:, None] * [1.0, 0.5]
    return written(form, tone_XA + noise_XA)


def written(form: str, audio_XA: np.ndarray) -> bytes:
    """The audio as a file of that format."""
    _, container, subtype, rate = FORMS[form]
    audio_XA = audio_XA.astype(np.float32)
    if form in PYAV_FORMATS:
        return written_by_pyav(container, subtype, audio_XA, rate)
    return sound(audio_XA, rate, container, subtype)


def changed(edit: Callable[[np.ndarray], np.ndarray]) -> Callable[[str, bytes], bytes]:
    """Damage to the audio itself, before it is written."""

    def made(form: str, data: bytes) -> bytes:
        time_X = np.arange(3 * FORMS[form][3]) / FORMS[form][3]
        return written(form, edit(0.3 * np.sin(2 * np.pi * 440 * time_X)[:, None] * [1.0, 0.5]))

    return made


def flipped(data: bytes, places: list[int], mask: int = 0x5A) -> bytes:
    return bytes(byte ^ mask if place in set(places) else byte for place, byte in enumerate(data))


def flips(count: int) -> Callable[[str, bytes], bytes]:
    """Bytes flipped in the audio, away from the header and the end."""

    def made(form: str, data: bytes) -> bytes:
        places = np.random.default_rng(1).integers(len(data) // 3, len(data) - 500, count)
        mended = bytearray(data)
        for place in places:
            mended[place] ^= 0x5A
        return bytes(mended)

    return made


def packed(form: str, data: bytes, chunk: bytes, offset: int, layout: str, *values: object) -> bytes:
    """The file with a field of a chunk overwritten."""
    mended = bytearray(data)
    struct.pack_into(layout, mended, data.index(chunk) + offset, *values)
    return bytes(mended)


def middle(data: bytes) -> int:
    return len(data) // 2 // 4 * 4


def frame_start(data: bytes, number: int) -> int:
    """Where one MP3 frame begins."""
    place = 0
    while frame_at(data, place) is None:
        place += 1
    for _ in range(number):
        found = frame_at(data, place)
        assert found is not None
        place += found.num_bytes
    return place


def without_frame(form: str, data: bytes) -> bytes:
    start, stop = frame_start(data, 40), frame_start(data, 41)
    return data[:start] + data[stop:]


def page(data: bytes, number: int) -> tuple[int, int]:
    return list(ogg_pages(data))[number]


def without_page(form: str, data: bytes) -> bytes:
    start, stop = page(data, 4)
    return data[:start] + data[stop:]


def with_page_twice(form: str, data: bytes) -> bytes:
    start, stop = page(data, 4)
    return data[:stop] + data[start:stop] + data[stop:]


def without_last_page(form: str, data: bytes) -> bytes:
    return data[: list(ogg_pages(data))[-1][0]]


def with_nan(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(audio: np.ndarray) -> np.ndarray:
        audio[1000, 1] = value
        return audio

    return edit


def half_silent(audio: np.ndarray) -> np.ndarray:
    audio[len(audio) // 2 :] = 0
    return audio


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One way a file can be damaged."""

    kind: str
    forms: tuple[str, ...]
    make: Callable[[str, bytes], bytes]


ALL = tuple(FORMS)
PYAV = tuple(form for form in PYAV_FORMATS if form in FORMS)
DAMAGES = [
    Damage(kind="empty file", forms=ALL, make=lambda form, data: b""),
    Damage(kind="first 40 bytes only", forms=ALL, make=lambda form, data: data[:40]),
    Damage(kind="first four bytes wrong", forms=ALL, make=lambda form, data: b"\x13\x37\x00\x01" + data[4:]),
    Damage(kind="first kilobyte zeros", forms=ALL, make=lambda form, data: bytes(1024) + data[1024:]),
    Damage(kind="words instead of sound", forms=ALL, make=lambda form, data: b"404 not found\n" * 900),
    Damage(kind="cut at half", forms=ALL, make=lambda form, data: data[: len(data) // 2]),
    Damage(kind="last 100 bytes gone", forms=ALL, make=lambda form, data: data[:-100]),
    Damage(kind="last byte gone", forms=ALL, make=lambda form, data: data[:-1]),
    Damage(
        kind="second half zeros",
        forms=ALL,
        make=lambda form, data: data[: middle(data)] + bytes(len(data) - middle(data)),
    ),
    Damage(
        kind="4 KiB of zeros inside",
        forms=ALL,
        make=lambda form, data: data[: middle(data)] + bytes(4096) + data[middle(data) + 4096 :],
    ),
    Damage(
        kind="4 KiB missing inside",
        forms=ALL,
        make=lambda form, data: data[: middle(data)] + data[middle(data) + 4096 :],
    ),
    Damage(
        kind="4 KiB twice inside", forms=ALL, make=lambda form, data: data[: middle(data) + 4096] + data[middle(data) :]
    ),
    Damage(kind="200 bytes flipped", forms=ALL, make=flips(200)),
    Damage(kind="one byte flipped", forms=ALL, make=flips(1)),
    Damage(kind="junk behind the end", forms=ALL, make=lambda form, data: data + b"junk" * 100),
    Damage(kind="junk before the start", forms=ALL, make=lambda form, data: b"junk" * 100 + data),
    Damage(kind="all silent", forms=ALL, make=changed(lambda audio: 0 * audio)),
    Damage(kind="second half silent", forms=("WAV 16", "FLAC"), make=changed(half_silent)),
    Damage(
        kind="shorter than a latent frame",
        forms=("WAV 16", "AIFF", "FLAC", "OGG", *PYAV),
        make=changed(lambda audio: audio[:3000]),
    ),
    Damage(
        kind="clipped",
        forms=("WAV 16", "FLAC", "AIFF", *PYAV),
        make=changed(lambda audio: np.clip(6 * audio, -1, 1)),
    ),
    Damage(
        kind="off centre",
        forms=("WAV 16", "WAV float", "FLAC", "OGG", *PYAV),
        make=changed(lambda audio: audio + 0.1),
    ),
    Damage(kind="NaN sample", forms=("WAV float",), make=changed(with_nan(np.nan))),
    Damage(kind="infinite sample", forms=("WAV float",), make=changed(with_nan(np.inf))),
    Damage(kind="scaled as integers", forms=("WAV float",), make=changed(lambda audio: audio * 32768)),
    Damage(kind="loud beyond full scale", forms=("WAV float",), make=changed(lambda audio: 6 * audio)),
    Damage(
        kind="sample rate in the header",
        forms=("WAV 16", "WAV 24", "WAV float"),
        make=lambda form, data: packed(form, data, b"fmt ", 12, "<I", 48000),
    ),
    Damage(
        kind="sample rate in the header",
        forms=("AIFF",),
        make=lambda form, data: packed(form, data, b"COMM", 18, ">H", 0xBB80),
    ),
    Damage(kind="sample rate in the header", forms=("FLAC",), make=lambda form, data: flipped(data, [19], 0x01)),
    Damage(
        kind="channels in the header",
        forms=("WAV 16",),
        make=lambda form, data: packed(form, data, b"fmt ", 10, "<H", 1),
    ),
    Damage(
        kind="channels in the header", forms=("AIFF",), make=lambda form, data: packed(form, data, b"COMM", 8, ">H", 1)
    ),
    Damage(
        kind="length in the header too long",
        forms=("WAV 16",),
        make=lambda form, data: packed(form, data, b"data", 4, "<I", len(data)),
    ),
    Damage(kind="length in the header too long", forms=("FLAC",), make=lambda form, data: flipped(data, [24], 0x40)),
    Damage(
        kind="length in the header too short",
        forms=("WAV 16",),
        make=lambda form, data: packed(form, data, b"data", 4, "<I", 200_000),
    ),
    Damage(
        kind="length in the header too short",
        forms=("AIFF",),
        make=lambda form, data: packed(form, data, b"COMM", 10, ">I", 50_000),
    ),
    Damage(kind="length in the header too short", forms=("FLAC",), make=lambda form, data: flipped(data, [23], 0x02)),
    Damage(kind="sum of the sound (MD5) in the header", forms=("FLAC",), make=lambda form, data: flipped(data, [30])),
    Damage(kind="a frame missing", forms=("MP3",), make=without_frame),
    Damage(
        kind="a frame's header flipped",
        forms=("MP3",),
        make=lambda form, data: flipped(data, [frame_start(data, 40) + 2], 0x10),
    ),
    Damage(
        kind="a frame's header zeroed",
        forms=("MP3",),
        make=lambda form, data: flipped(data, [frame_start(data, 40)], 0xFF),
    ),
    Damage(kind="a page missing", forms=("OGG", "OPUS"), make=without_page),
    Damage(kind="a page twice", forms=("OGG", "OPUS"), make=with_page_twice),
    Damage(kind="the last page missing", forms=("OGG", "OPUS"), make=without_last_page),
]
if WITH_PYAV:
    DAMAGES += [Damage(kind=kind, forms=forms, make=make) for kind, (forms, make) in PYAV_DAMAGES.items()]


HARMLESS = {
    "junk behind the end": "the container ends by its own account before it; the prepared audio is the same bytes",
    **PYAV_HARMLESS,
}
UNDETECTABLE = {
    "one byte flipped": "{form} carries no checksum of its sound; inside a zip its CRC catches it",
    "200 bytes flipped": "{form} carries no checksum of its sound; inside a zip its CRC catches it",
    "sample rate in the header": "AIFF names its rate once and nothing else depends on it",
    "second half silent": "silence is a sound; it begins quietly here, as a fade would",
}
UNDETECTABLE_OF = {
    ("one byte flipped", "MP3"): "a frame's sum is optional and encoders leave it out; inside a zip its CRC catches it",
    **PYAV_UNDETECTABLE,
}
EXPECTED = {
    "empty file": "audio_not_there",
    "first 40 bytes only": "audio_truncated",
    "first four bytes wrong": "audio_decode_error",
    "first kilobyte zeros": "audio_decode_error",
    "words instead of sound": "audio_decode_error",
    "cut at half": "audio_truncated",
    "last 100 bytes gone": "audio_truncated",
    "last byte gone": "audio_truncated",
    "second half zeros": "audio_decode_error",
    "4 KiB of zeros inside": "audio_decode_error",
    "4 KiB missing inside": "audio_decode_error",
    "4 KiB twice inside": "audio_decode_error",
    "200 bytes flipped": "audio_decode_error",
    "one byte flipped": "audio_decode_error",
    "junk before the start": "audio_decode_error",
    "all silent": "silent",
    "shorter than a latent frame": "shorter_than_frame",
    "clipped": "clipping",
    "off centre": "dc_offset",
    "NaN sample": "not_finite",
    "infinite sample": "not_finite",
    "scaled as integers": "absurd_peak",
    "loud beyond full scale": "clamped, clipping",
    "sample rate in the header": "audio_decode_error",
    "length in the header too long": "audio_truncated",
    "length in the header too short": "audio_truncated",
    "sum of the sound (MD5) in the header": "audio_decode_error",
    "a frame missing": "audio_truncated",
    "a frame's header flipped": "audio_decode_error",
    "a frame's header zeroed": "audio_decode_error",
    "a page missing": "audio_decode_error",
    "a page twice": "audio_decode_error",
    "the last page missing": "audio_truncated",
    "the list of contents (moov) missing": "audio_decode_error",
    "the list of contents (moov) zeros": "audio_decode_error",
    "all of the sound (mdat) zeros": "audio_decode_error",
}
"""Fault or warning that each kind leads to; by format where it differs:"""
EXPECTED_OF = {
    **{("second half zeros", form): "dropouts" for form in PCM},
    **{("4 KiB of zeros inside", form): "dropouts" for form in PCM},
    **{("4 KiB missing inside", form): "audio_truncated" for form in PCM},
    **{("4 KiB twice inside", form): "stray_bytes" for form in PCM},
    **{("junk behind the end", form): "stray_bytes" for form in (*PCM, "FLAC", "MP3", "OGG", "OPUS")},
    **{("sample rate in the header", form): "header_contradiction" for form in ("WAV 16", "WAV 24", "WAV float")},
    **{(kind, "FLAC"): "audio_decode_error" for kind in ("cut at half", "last 100 bytes gone", "last byte gone")},
    **{(kind, form): "" for kind in ("200 bytes flipped", "one byte flipped") for form in PCM},
    ("one byte flipped", "MP3"): "",
    ("junk before the start", "MP3"): "leading_bytes",
    **{
        (kind, "MP3"): "codec_delay_unknown, leading_bytes, length_unknown"
        for kind in ("first four bytes wrong", "first kilobyte zeros")
    },
    ("200 bytes flipped", "WAV float"): "absurd_peak",
    ("second half zeros", "MP3"): "audio_truncated",
    ("sample rate in the header", "AIFF"): "",
    **{("channels in the header", form): "cropped_to_native, header_contradiction" for form in ("WAV 16", "AIFF")},
    ("length in the header too long", "WAV 16"): "header_contradiction",
    ("length in the header too short", "AIFF"): "header_contradiction",
    ("length in the header too long", "FLAC"): "audio_decode_error",
    ("length in the header too short", "FLAC"): "audio_decode_error",
    **PYAV_EXPECTED,
}


def verdict(form: str, data: bytes) -> tuple[str, str]:
    """How ingest judges a file: (`caught`, type), (`noted`, types), (`same`, "") or (`other`, "")."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / FORMS[form][0]).write_bytes(data)
        member = Member(name=FORMS[form][0], num_bytes=len(data), digest=digest_bytes(data))
        job = RecordingJob(
            source=Path(place), kind="folder", member=member, shared=Path(place) / "shared", params=PARAMS
        )
        made = prepare(job)
    if isinstance(made, Fault):
        return "caught", made.type
    noted = {note.type for note in clip_warnings({"a": made}, PARAMS)} - {note.type for note in usual_notes(form)}
    if noted:
        return "noted", ", ".join(sorted(noted))
    return ("same", "") if made[0].checksum == prepared_whole(form)[0].checksum else ("other", "")


def usual_notes(form: str) -> list[Fault]:
    """Warnings about an undamaged file, such as that WMA does not declare its encoder's delay."""
    return list(clip_warnings({"a": prepared_whole(form)}, PARAMS))


@lru_cache
def prepared_whole(form: str) -> tuple[PreparedClip, ...]:
    """The facts of the undamaged file's prepared audio."""
    data = whole(form)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / FORMS[form][0]).write_bytes(data)
        member = Member(name=FORMS[form][0], num_bytes=len(data), digest=digest_bytes(data))
        made = prepare(
            RecordingJob(source=Path(place), kind="folder", member=member, shared=Path(place) / "s", params=PARAMS)
        )
    assert not isinstance(made, Fault), made
    return made


def expected(kind: str, form: str) -> str:
    """Expected type of fault or warning; empty where the damage is harmless or undetectable."""
    return EXPECTED_OF.get((kind, form), EXPECTED.get(kind, ""))


def reason(outcome: str, kind: str, form: str) -> str:
    """One cell of the table."""
    if outcome == "same":
        return f"harmless: {HARMLESS[kind]}"
    why = UNDETECTABLE_OF.get((kind, form)) or UNDETECTABLE[kind]
    return f"undetectable: {why.format(form=form)}"


def cells() -> list[tuple[str, str, str, str]]:
    """(kind, format, outcome, type) of the whole corpus."""
    return [
        (damage.kind, form, *verdict(form, damage.make(form, whole(form))))
        for damage in DAMAGES
        for form in damage.forms
    ]


def main() -> None:
    found = cells()
    for kind, form, outcome, type in found:
        said = f"{outcome} as {type}" if type else reason(outcome, kind, form)
        print(f"{kind:<38} {form:<10} {said}")
    if not WITH_PYAV:
        print(f"\n{', '.join(PYAV_FORMATS)}: not measured: PyAV is not installed (pip install av)")
    counts = {what: sum(cell[2] == what for cell in found) for what in ("caught", "noted", "same", "other")}
    kinds = len({cell[0] for cell in found})
    print(
        f"\n{len(found)} damages ({kinds} kinds, {len(FORMS)} formats): {counts['caught']} refused, {counts['noted']} "
        f"warned of, {counts['same']} harmless, {counts['other']} undetectable in principle"
    )


if __name__ == "__main__":
    sys.exit(main())
