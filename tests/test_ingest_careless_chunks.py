"""Files of chunks whose writers were careless are read whole, with a note, where one reading is possible."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest

from stages.ingest.captions.tags import read_tags
from tests.small_datasets import RATE
from tests.test_ingest_lengths import ID3V1, decoded, fault, made, pcm, the_sound

WITH_WHOLE_SIZE = ("WAV", "RIFX", "RF64", "BW64", "W64", "AIFF", "AIFC")
LISTED = b"LIST" + struct.pack("<I", 18) + b"INFOISFT" + struct.pack("<I", 6) + b"writer"
W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")


def order(form: str) -> str:
    return "<" if form in ("WAV", "RF64", "BW64", "W64") else ">"


def head_of_sound(form: str, data: bytes) -> int:
    return data.index(b"SSND" if form.startswith("AIF") else b"data", 36)


def before_sound(form: str, data: bytes, inserted: bytes) -> bytes:
    """The file with these bytes before its chunk of sound, counted in the size of the whole file."""
    at = head_of_sound(form, data)
    data = data[:at] + inserted + data[at:]
    if form == "CAF":
        return data
    where, layout, less = (16, "<Q", 0) if form == "W64" else (4, f"{order(form)}I", 8)
    if form in ("RF64", "BW64"):
        where, layout = 20, "<Q"
    return data[:where] + struct.pack(layout, len(data) - less) + data[where + struct.calcsize(layout) :]


def with_size_of_sound(form: str, data: bytes, more: int) -> bytes:
    """The file whose chunk of sound claims that many bytes more than it has."""
    if form in ("RF64", "BW64"):
        at, layout = 28, "<Q"
    elif form == "W64":
        at, layout = head_of_sound(form, data) + 16, "<Q"
    else:
        at, layout = head_of_sound(form, data) + 4, f"{order(form)}I"
    (size,) = struct.unpack_from(layout, data, at)
    return data[:at] + struct.pack(layout, size + more) + data[at + struct.calcsize(layout) :]


def empty_chunk(form: str) -> bytes:
    """A chunk of sound without samples; a writer that reserves one fills it in elsewhere."""
    if form == "W64":
        return b"data" + W64_TAIL + struct.pack("<Q", 24)
    if form == "CAF":
        return b"data" + struct.pack(">qI", 4, 0)
    if form.startswith("AIF"):
        return b"SSND" + struct.pack(">III", 8, 0, 0)
    return b"data" + bytes(4)


def padless_chunk(form: str) -> bytes:
    """A chunk of nine bytes, without the byte that makes it even (or a multiple of eight)."""
    if form == "W64":
        return b"note" + W64_TAIL + struct.pack("<Q", 24 + 9) + b"made by w"
    return b"NOTE" + struct.pack(f"{order(form)}I", 9) + b"made by w"


@pytest.mark.parametrize("form", [*WITH_WHOLE_SIZE, "CAF"])
def test_an_empty_chunk_of_sound_before_the_full_one_is_passed_over_and_noted(form):
    recording, audio_AX = decoded(before_sound(form, made(form), empty_chunk(form)))
    assert np.array_equal(audio_AX, the_sound())
    assert recording.contradiction == "it has an empty chunk of sound beside the full one" and not recording.unread


@pytest.mark.parametrize("more", [2, 8, 36, 44])
@pytest.mark.parametrize("form", WITH_WHOLE_SIZE)
def test_a_size_of_the_sound_that_counts_headers_in_is_put_right_by_that_of_the_whole_file(form, more):
    recording, audio_AX = decoded(with_size_of_sound(form, made(form), more))
    assert np.array_equal(audio_AX, the_sound())
    assert "as the size of the whole file shows" in recording.contradiction


@pytest.mark.parametrize("more", [8, 44])
@pytest.mark.parametrize("behind", [LISTED, LISTED + ID3V1, ID3V1], ids=["chunk", "chunk and tag", "tag"])
def test_a_size_of_the_sound_that_counts_headers_in_takes_nothing_of_what_follows(more, behind):
    chunk = LISTED if behind.startswith(LISTED) else b""
    data = made("WAV", extra=chunk) + behind[len(chunk) :]
    recording, audio_AX = decoded(with_size_of_sound("WAV", data, more))
    assert np.array_equal(audio_AX, the_sound())
    assert "as the size of the whole file shows" in recording.contradiction


@pytest.mark.parametrize("form", WITH_WHOLE_SIZE)
@pytest.mark.parametrize("more", [1000, 50_000])
def test_a_sound_that_should_be_longer_than_headers_explain_is_cut_short(form, more):
    assert fault(with_size_of_sound(form, made(form), more)) == "audio_truncated"


@pytest.mark.parametrize("form", ["WAV", "RIFX", "W64", "AIFF", "AIFC", "RF64", "BW64"])
def test_a_chunk_before_the_sound_may_lack_the_byte_that_makes_it_even(form):
    recording, audio_AX = decoded(before_sound(form, made(form), padless_chunk(form)))
    assert np.array_equal(audio_AX, the_sound())
    assert "lacks the byte" in recording.contradiction and recording.num_stray_bytes == 0


@pytest.mark.parametrize("more", [-2, -1, 1, 2])
@pytest.mark.parametrize("size", [9, 10])
@pytest.mark.parametrize("form", ["WAV", "RIFX", "AIFF"])
def test_a_chunk_before_the_sound_may_be_a_byte_or_two_longer_or_shorter_than_it_says(form, size, more):
    content = b"made by me"[:size]
    chunk = b"NOTE" + struct.pack(f"{order(form)}I", size + more) + content + bytes(size % 2)
    recording, audio_AX = decoded(before_sound(form, made(form), chunk))
    assert np.array_equal(audio_AX, the_sound()) and recording.num_stray_bytes == 0
    assert recording.contradiction or (size, more) in ((9, 1), (10, -1))  # the byte for an even length explains those


def test_an_empty_chunk_of_sound_after_the_full_one_is_no_second_sound():
    recording, audio_AX = decoded(made("WAV", extra=b"data" + bytes(4)))
    assert np.array_equal(audio_AX, the_sound()) and not recording.unread


def test_two_chunks_before_the_sound_may_lack_their_byte():
    data = before_sound("WAV", made("WAV", extra=LISTED), padless_chunk("WAV") * 2)
    recording, audio_AX = decoded(data)
    assert np.array_equal(audio_AX, the_sound()) and "lacks the byte" in recording.contradiction


@pytest.mark.parametrize("form", ["WAV", "AIFF"])
def test_a_file_that_lacks_such_a_byte_is_held_to_its_length_all_the_same(form):
    assert fault(before_sound(form, made(form), padless_chunk(form))[:-400]) == "audio_truncated"


@pytest.mark.parametrize("form", ["WAV", "RIFX", "RF64", "BW64", "W64"])
@pytest.mark.parametrize("fmt", [(RATE * 8, 8, 16), (RATE * 2, 2, 16), (RATE * 3, 3, 16)])
def test_redundant_fields_that_agree_with_each_other_only_are_noted(form, fmt):
    recording, audio_AX = decoded(made(form, fmt=fmt))
    assert np.array_equal(audio_AX, the_sound()) and "16 bits" in recording.contradiction


@pytest.mark.parametrize("form", ["AIFF", "AIFC"])
@pytest.mark.parametrize("frames", [1, 100, 21_000, 44_100])
def test_the_number_of_samples_in_an_aiff_is_noted_where_its_sound_is_of_another_length(form, frames):
    data = bytearray(made(form))
    struct.pack_into(">I", data, data.index(b"COMM") + 10, frames)
    recording, audio_AX = decoded(bytes(data))
    assert np.array_equal(audio_AX, the_sound())
    assert f"{frames:,} samples of 2 channels" in recording.contradiction and f"{len(pcm(form)):,}" in (
        recording.contradiction
    )


def test_an_aiff_whose_sound_should_begin_behind_its_end_is_a_fault():
    data = bytearray(made("AIFF"))
    struct.pack_into(">I", data, data.index(b"SSND") + 8, 1 << 30)
    assert fault(bytes(data)) == "audio_truncated"


@pytest.mark.parametrize("form", ["AIFF", "AIFC"])
def test_a_damaged_file_in_which_libsndfile_seeks_before_its_beginning_prints_nothing(form, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    data = made(form)
    at = head_of_sound(form, data)
    for name in (b"\xff\xff\xff\x7f", b"\0\xff\xff\xff"):
        damaged = data[:at] + name + data[at + 4 :]
        assert fault(damaged) in ("audio_decode_error", "audio_truncated")
        read_tags(damaged)
    assert printed == []
