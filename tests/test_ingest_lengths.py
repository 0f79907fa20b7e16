"""Every container is held to the length it states; placeholders, tags and further streams are read right or said."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from stages.ingest.audio.decode import Recording
from stages.ingest.audio.mpeg_decoder import end_idle_decoders
from stages.ingest.faults import FileRejected
from stages.ingest.integrity.mp3 import check_frames, frame_at
from stages.ingest.integrity.ogg import ogg_checksum, ogg_pages
from stages.ingest.prepare_clip import open_recording
from tests.pyav_formats import written_by_pyav
from tests.small_datasets import RATE, sound, tone

CONTAINERS = ("WAV", "RIFX", "RF64", "BW64", "W64", "AIFF", "AIFC", "AU", "AU little", "CAF")
PLACEHOLDERS = (0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
ID3V1 = b"TAG" + bytes(125)


def id3(size: int = 5000, *, footer: bool = False) -> bytes:
    digits = bytes((size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127))
    end = b"3DI\4\0\x10" + digits if footer else b""
    return b"ID3\4\0" + (b"\x10" if footer else b"\0") + digits + b"\xff" * size + end


def ape(size: int = 100) -> bytes:
    footer = b"APETAGEX" + struct.pack("<IIII", 2000, size + 32, 1, 0) + bytes(8)
    return b"x" * size + footer


def pcm(form: str) -> bytes:
    order = "<" if form in ("WAV", "RF64", "BW64", "W64", "AU little") else ">"
    return (tone(0.5) * 32767).astype(f"{order}i2").tobytes()


def made(
    form: str, *, size: int | None = None, extra: bytes = b"", fmt: tuple[int, int, int] = (RATE * 4, 4, 16)
) -> bytes:
    """A file of that container whose size of the sound is what is given; None for the truth."""
    data = pcm(form)
    size = len(data) if size is None else size
    little = struct.pack("<HHIIHH", 1, 2, RATE, *fmt)
    if form in ("WAV", "RIFX"):
        order = "<" if form == "WAV" else ">"
        chunks = struct.pack(f"{order}4sIHHIIHH", b"fmt ", 16, 1, 2, RATE, *fmt)
        body = b"WAVE" + chunks + b"data" + struct.pack(f"{order}I", size) + data + extra
        whole = len(body) if size == len(data) else (size + 36) & 0xFFFFFFFF if size else 0
        return {"WAV": b"RIFF", "RIFX": b"RIFX"}[form] + struct.pack(f"{order}I", whole) + body
    if form in ("RF64", "BW64"):
        ds64 = b"ds64" + struct.pack("<IQQQI", 28, size + 72 + len(extra), size, size // 4, 0)
        body = b"WAVE" + ds64 + b"fmt " + struct.pack("<I", 16) + little + b"data\xff\xff\xff\xff" + data + extra
        return form.encode() + b"\xff\xff\xff\xff" + body
    if form == "W64":
        tail = bytes.fromhex("f3acd3118cd100c04f8edb8a")
        riff = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")
        body = b"wave" + tail + b"fmt " + tail + struct.pack("<Q", 40) + little
        body += b"data" + tail + struct.pack("<Q", size + 24 if size else 0) + data + extra
        return riff + struct.pack("<Q", len(body) + 24 if size == len(data) else size) + body
    if form in ("AIFF", "AIFC"):
        frames = size // 4 if size < 1 << 31 else 0
        rate = bytes.fromhex("400eac44000000000000")
        kind = b"NONE\0\0" if form == "AIFC" else b""
        body = form.encode() + b"COMM" + struct.pack(">IHIH", 18 + len(kind), 2, frames, 16) + rate + kind
        body += b"SSND" + struct.pack(">III", min(size + 8, 0xFFFFFFFF) if size else 0, 0, 0) + data + extra
        return b"FORM" + struct.pack(">I", len(body) if size == len(data) else min(size, 0xFFFFFFFF)) + body
    if form.startswith("AU"):
        order = "<" if form == "AU little" else ">"
        return {"<": b"dns.", ">": b".snd"}[order] + struct.pack(f"{order}5I", 24, size, 3, RATE, 2) + data + extra
    desc = struct.pack(">d4sIIIII", RATE, b"lpcm", 0, 4, 1, 2, 16)
    stated = size + 4 if size not in PLACEHOLDERS else -1 if size else 0
    return b"caff\0\1\0\0desc" + struct.pack(">q", 32) + desc + b"data" + struct.pack(">qI", stated, 0) + data + extra


def decoded(data: bytes) -> tuple[Recording, np.ndarray]:
    recording = open_recording(data)
    blocks_AX = list(recording.blocks())
    recording.check()
    return recording, np.concatenate(blocks_AX, axis=1)


def fault(data: bytes) -> str:
    with pytest.raises(FileRejected) as caught:
        decoded(data)
    return caught.value.type


def the_sound() -> np.ndarray:
    return ((tone(0.5) * 32767).astype(np.int16) / 32768).astype(np.float32).T


@pytest.mark.parametrize("form", CONTAINERS)
def test_a_whole_file_is_read_whole_and_nothing_is_said(form):
    recording, audio_AX = decoded(made(form))
    assert np.array_equal(audio_AX, the_sound())
    assert (recording.length_known, recording.num_stray_bytes) == (True, 0)
    assert (recording.unread, recording.contradiction) == ("", "")


@pytest.mark.parametrize("form", CONTAINERS)
@pytest.mark.parametrize("cut", [1, 4, 1000, 60_000])
def test_every_container_that_states_a_length_is_held_to_it(form, cut):
    assert fault(made(form)[:-cut]) == "audio_truncated"


@pytest.mark.parametrize("form", CONTAINERS)
@pytest.mark.parametrize("size", PLACEHOLDERS, ids=hex)
def test_a_placeholder_instead_of_a_length_is_read_to_the_end_and_the_length_is_unknown(form, size):
    recording, audio_AX = decoded(made(form, size=size))
    assert np.array_equal(audio_AX, the_sound())
    assert not recording.length_known


@pytest.mark.parametrize("form", CONTAINERS)
@pytest.mark.parametrize("size", [None, 0xFFFFFFFF])
@pytest.mark.parametrize("tag", [ID3V1, ape(), ape() + ID3V1], ids=["ID3v1", "APE", "both"])
def test_a_tag_after_the_end_is_neither_sound_nor_a_fault(form, size, tag):
    recording, audio_AX = decoded(made(form, size=size) + tag)
    assert np.array_equal(audio_AX, the_sound())
    assert recording.num_stray_bytes == 0


@pytest.mark.parametrize("form", [*CONTAINERS, "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("tag", [id3(), id3(footer=True), id3() + id3(300), id3() + bytes(40)])
def test_tags_before_the_header_change_no_sample(form, tag):
    data = made(form) if form in CONTAINERS else sound(tone(0.5), form=form)
    plain, plain_AX = decoded(data)
    tagged, tagged_AX = decoded(tag + data)
    assert np.array_equal(tagged_AX, plain_AX)
    assert (tagged.length_known, tagged.num_stray_bytes) == (plain.length_known, 0)


@pytest.mark.parametrize("form", CONTAINERS)
def test_a_file_behind_a_tag_is_held_to_its_length_too(form):
    assert fault(id3() + made(form)[:-5000]) == "audio_truncated"


@pytest.mark.parametrize("form", [*CONTAINERS, "FLAC", "OGG", "MP3"])
def test_a_second_file_after_the_first_is_said(form):
    data = made(form) if form in CONTAINERS else sound(tone(0.5), form=form)
    once, once_AX = decoded(data)
    twice, twice_AX = decoded(data + data)
    assert "another" in twice.unread and not once.unread
    assert np.array_equal(twice_AX, once_AX) or form == "MP3"
    assert "another" in decoded(data + id3() + data)[0].unread


@pytest.mark.parametrize("form", [*CONTAINERS, "FLAC", "OGG", "MP3"])
def test_anything_else_after_the_end_is_counted(form):
    data = made(form) if form in CONTAINERS else sound(tone(0.5), form=form)
    try:
        recording, _ = decoded(data + b"\x01\x02strange" * 100)
    except FileRejected:
        assert form in ("RF64", "BW64"), "a file may be refused, never read in part without a word"
    else:
        assert recording.num_stray_bytes == 900


def test_a_second_chunk_of_sound_in_one_file_is_said():
    plain = made("WAV")
    data = made("WAV", extra=b"data" + struct.pack("<I", 8000) + bytes(8000))
    recording, audio_AX = decoded(data)
    assert recording.unread == "a second chunk of sound" and audio_AX.shape == decoded(plain)[1].shape


def test_chunks_after_the_sound_are_no_fault():
    listed = b"LIST" + struct.pack("<I", 10) + b"INFOISFT\0\0"
    recording, audio_AX = decoded(made("WAV", extra=listed))
    assert np.array_equal(audio_AX, the_sound()) and recording.num_stray_bytes == 0


def test_an_empty_chunk_of_sound_before_other_chunks_stays_empty():
    listed = b"LIST" + struct.pack("<I", 10) + b"INFOISFT\0\0"
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 2, RATE, RATE * 4, 4, 16) + b"data" + bytes(4) + listed
    recording = Recording(b"RIFF" + struct.pack("<I", len(head)) + head)
    assert list(recording.blocks()) == [] and recording.length_known


@pytest.mark.parametrize("form", ["WAV", "RIFX", "RF64", "BW64", "W64"])
@pytest.mark.parametrize("fmt", [(88200, 4, 16), (RATE * 4, 2, 16), (0, 0, 16), (1, 3, 16)])
def test_redundant_fields_that_are_wrong_lead_to_a_note(form, fmt):
    recording, audio_AX = decoded(made(form, fmt=fmt))
    assert np.array_equal(audio_AX, the_sound()) and "16 bits" in recording.contradiction


def test_24_bits_in_four_bytes_are_read_at_their_level():
    samples = (tone(0.5) * 32767).astype("<i2").astype("<i4") << 16
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 2, RATE, RATE * 8, 8, 24)
    body = head + b"data" + struct.pack("<I", samples.nbytes) + samples.tobytes()
    recording, audio_AX = decoded(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert np.array_equal(audio_AX, the_sound()) and "24 bits" in recording.contradiction


def piped(data: bytes) -> bytes:
    """The FLAC as an encoder writes it to a pipe: no number of samples, no MD5."""
    return data[:21] + bytes((data[21] & 0xF0,)) + bytes(4) + bytes(16) + data[42:]


@pytest.mark.parametrize("after", [b"", ID3V1, b"\x01\x02junk" * 100])
def test_a_flac_from_a_pipe_is_read_to_its_end_and_its_length_is_unknown(after):
    data = sound(tone(0.5), form="FLAC")
    recording, audio_AX = decoded(piped(data) + after)
    assert np.array_equal(audio_AX, decoded(data)[1])
    assert not recording.length_known and (recording.num_stray_bytes > 128) == (len(after) > 128)


@pytest.mark.parametrize("cut", [1, 100, 3000])
def test_a_flac_from_a_pipe_that_is_cut_inside_a_frame_is_detected(cut):
    assert fault(piped(sound(tone(0.5), form="FLAC"))[:-cut]) == "audio_truncated"


def test_a_flac_without_a_checksum_that_states_too_few_samples_is_detected():
    data = bytearray(sound(tone(0.5), form="FLAC"))
    total = int.from_bytes(data[22:26], "big")
    data[26:42] = bytes(16)
    for fewer in (4096, 100):
        data[22:26] = (total - fewer).to_bytes(4, "big")
        assert fault(bytes(data)) == "audio_decode_error"
    data[22:26] = (4096).to_bytes(4, "big")
    assert fault(bytes(data)) == "audio_decode_error"


def frames_of(data: bytes, start: int = 0) -> list[bytes]:
    frames = []
    while (frame := frame_at(data, start)) is not None:
        frames.append(data[start : start + frame.num_bytes])
        start += frame.num_bytes
    return frames


def test_mp3_frames_beyond_those_that_its_header_counts_are_said():
    data = sound(tone(0.5), form="MP3")
    more = b"".join(frames_of(data)[5:15])
    assert decoded(data + more)[0].unread == "10 frames that its header does not count"


def with_count(data: bytes, number: int) -> bytes:
    """The MP3 whose header counts that many frames more than there are."""
    at = next(data.index(name) for name in (b"Xing", b"Info") if name in data[:2000]) + 8
    count = int.from_bytes(data[at : at + 4], "big") + number
    return data[:at] + count.to_bytes(4, "big") + data[at + 4 :]


@pytest.mark.parametrize("number", [-10, -1, 1, 500])
def test_an_mp3_whose_header_counts_wrong_is_read_whole_where_its_size_says_that_nothing_is_missing(number):
    data = sound(tone(0.5), form="MP3")
    recording, audio_AX = decoded(with_count(data, number))
    assert np.array_equal(audio_AX, decoded(data)[1])
    assert "frames" in recording.contradiction and not recording.unread


def test_an_mp3_whose_count_of_frames_is_a_placeholder_is_read_whole_and_its_length_is_unknown():
    data = sound(tone(0.5), form="MP3")
    at = next(data.index(name) for name in (b"Xing", b"Info") if name in data[:2000]) + 8
    for placeholder in (bytes(4), b"\xff" * 4):
        recording, audio_AX = decoded(data[:at] + placeholder + data[at + 4 :])
        assert np.array_equal(audio_AX, decoded(data)[1]) and not recording.length_known


@pytest.mark.parametrize("lost", [1, 2, 5, 11])
def test_an_mp3_that_was_cut_out_of_a_longer_one_is_read_whole(lost):
    frames = frames_of(sound(tone(0.5), form="MP3"))[lost:]
    recording, audio_AX = decoded(b"".join(frames))
    assert audio_AX.shape[1] == 1152 * len(frames)
    assert not recording.length_known and not recording.delay_known


@pytest.mark.parametrize("junk", [b"\r\n", b"junk" * 100, bytes(3000), ID3V1, b"\1\2" * 40_000])
def test_what_is_before_the_first_frame_of_an_mp3_is_left_out_and_counted(junk):
    data = sound(tone(0.5), form="MP3")
    recording, audio_AX = decoded(junk + data)
    assert np.array_equal(audio_AX, decoded(data)[1])
    assert recording.num_leading_bytes == (0 if junk in (ID3V1, bytes(3000)) else len(junk))


def test_the_summary_of_a_fraunhofer_encoder_is_no_sound_and_its_count_is_held():
    frames = frames_of(sound(tone(0.5), form="MP3"))[1:]
    sizes = struct.pack(">IIHHHH", sum(map(len, frames)), len(frames), 1, 1, 2, 100)
    summary = (frames[0][:4] + bytes(32) + b"VBRI" + struct.pack(">HHH", 1, 0, 75) + sizes).ljust(len(frames[0]), b"\0")
    recording, audio_AX = decoded(summary + b"".join(frames))
    assert np.array_equal(audio_AX, decoded(b"".join(frames))[1]) and recording.length_known
    assert fault(summary + b"".join(frames[:-2])) == "audio_truncated"


@pytest.mark.parametrize("tag", [id3(), id3() + bytes(40), ID3V1])
def test_a_tag_before_an_mp4_takes_nothing_of_it(tag):
    data = written_by_pyav("ipod", "alac", tone(0.5), RATE)
    assert np.array_equal(decoded(tag + data)[1], decoded(data)[1])


@pytest.mark.parametrize("rate", [0, 8000, 16000, 44100])
def test_the_rate_that_an_opus_file_was_made_from_changes_nothing(rate):
    data = sound(tone(0.5, hz=9000, rate=48000), 48000, "OGG", "OPUS")
    at = data.index(b"OpusHead") + 12
    stop = next(ogg_pages(data))[1]
    page = data[:at] + rate.to_bytes(4, "little") + data[at + 4 : stop]
    other = page[:22] + ogg_checksum(page).to_bytes(4, "little") + page[26:] + data[stop:]
    assert np.array_equal(decoded(other)[1], decoded(data)[1])


@pytest.mark.parametrize("tag", [0, 0xFFFE, 0x9999])
def test_a_wav_of_an_unknown_encoding_is_a_fault(tag):
    data = bytearray(made("WAV"))
    struct.pack_into("<H", data, 20, tag)
    assert fault(bytes(data)) == "audio_decode_error"


def test_a_file_in_the_current_folder_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "._").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    end_idle_decoders()
    assert decoded(sound(tone(0.5), form="MP3"))[1].size


def test_an_mp3_without_a_header_that_states_its_delay_is_noted():
    buffer = io.BytesIO()
    form = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.99}
    soundfile.write(buffer, tone(0.5), RATE, **form)
    assert not decoded(buffer.getvalue())[0].delay_known
    assert decoded(sound(tone(0.5), form="MP3"))[0].delay_known


def test_a_header_without_the_encoders_delay_is_noted():
    data = bytearray(sound(tone(0.5), form="MP3"))
    at = data.index(b"LAME")
    data[at : at + 24] = bytes(24)
    found = check_frames(bytes(data))
    assert found is not None and found.is_declared and not found.delay_known


@pytest.mark.parametrize(("form", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")])
def test_codecs_that_state_their_delay_or_have_none_are_not_noted(form, subtype):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(0.5, rate=48000), 48000, format=form, subtype=subtype)
    assert decoded(buffer.getvalue())[0].delay_known


@pytest.mark.parametrize("offset", [4, 512])
def test_the_sound_of_an_aiff_may_begin_at_an_offset(offset):
    data = bytearray(made("AIFF"))
    at = data.index(b"SSND")
    data[at + 16 : at + 16] = bytes(offset)
    struct.pack_into(">II", data, at + 4, len(pcm("AIFF")) + 8 + offset, offset)
    struct.pack_into(">I", data, 4, len(data) - 8)
    assert np.array_equal(decoded(bytes(data))[1], the_sound())


@pytest.mark.parametrize("pad", [b"", b"\0"])
def test_chunks_after_a_sound_of_an_odd_size_may_lack_the_byte_between(pad):
    sound_of = np.arange(1, 4002, dtype=np.uint8).tobytes()
    fmt = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, RATE, 1, 8)
    body = b"WAVE" + fmt + b"data" + struct.pack("<I", len(sound_of)) + sound_of + pad
    body += b"LIST" + struct.pack("<I", 18) + b"INFOISFT\6\0\0\0writer"
    assert decoded(b"RIFF" + struct.pack("<I", len(body)) + body)[1].shape[1] == len(sound_of)
