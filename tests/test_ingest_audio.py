"""Decoding: every format is read, and damage is detected."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from stages.ingest.audio.decode import Recording
from stages.ingest.audio.mpeg_decoder import MpegFile
from stages.ingest.faults import FileRejected
from stages.ingest.integrity.container import checked_file
from stages.ingest.integrity.mp3 import check_frames
from stages.ingest.integrity.ogg import ogg_checksum, ogg_pages
from tests.small_datasets import RATE, sound, tone

FORMS = [
    ("WAV", "PCM_16", RATE),
    ("WAV", "PCM_24", 48000),
    ("WAV", "FLOAT", 96000),
    ("WAV", "PCM_U8", 22050),
    ("FLAC", "PCM_16", RATE),
    ("AIFF", "PCM_24", 48000),
    ("MP3", "MPEG_LAYER_III", RATE),
    ("OGG", "VORBIS", 32000),
    ("OGG", "OPUS", 48000),
]


def noisy(rate: int, seconds: float = 2.0, channels: int = 2) -> np.ndarray:
    """A tone in noise, which fills the frames of every codec."""
    audio = tone(seconds, rate=rate, channels=channels)
    return audio + np.random.default_rng(0).uniform(-0.05, 0.05, audio.shape).astype(np.float32)


def decoded(data: bytes) -> tuple[Recording, np.ndarray]:
    recording = Recording(data)
    blocks = list(recording.blocks())
    recording.check()
    return recording, np.concatenate(blocks, axis=1)


def fault(data: bytes) -> str:
    with pytest.raises(FileRejected) as caught:
        decoded(data)
    return caught.value.type


@pytest.mark.parametrize(("form", "subtype", "rate"), FORMS)
def test_every_format_is_decoded_to_its_end(form, subtype, rate):
    audio = noisy(rate)
    recording, audio_AX = decoded(sound(audio, rate, form, subtype))
    assert (recording.sample_rate_hz, recording.num_channels, recording.num_samples) == (rate, 2, len(audio))
    assert recording.length_known
    assert np.corrcoef(audio_AX[0], audio[:, 0])[0, 1] > 0.98


@pytest.mark.parametrize("channels", [1, 2, 9, 12])
def test_mono_is_doubled_and_of_channels_without_a_known_arrangement_the_first_two_are_kept(channels):
    audio = tone(0.2, channels=channels)
    recording, audio_AX = decoded(sound(audio, RATE, "WAV", "FLOAT"))
    assert recording.num_channels == channels
    assert audio_AX.shape == (2, len(audio)) and audio_AX.T.flags.c_contiguous, "interleaved, as files hold it"
    assert np.array_equal(audio_AX, audio[:, [0, min(1, channels - 1)]].T)


@pytest.mark.parametrize(("form", "subtype", "rate"), FORMS)
def test_a_file_cut_in_half_is_detected_in_every_format(form, subtype, rate):
    data = sound(noisy(rate), rate, form, subtype)
    assert fault(data[: len(data) // 2]) in {"audio_truncated", "audio_decode_error"}


@pytest.mark.parametrize(
    ("form", "subtype"), [(form, subtype) for form, subtype, _ in FORMS if form in ("WAV", "AIFF")]
)
def test_a_pcm_file_without_its_last_samples_is_detected(form, subtype):
    data = sound(noisy(RATE), RATE, form, subtype)
    assert fault(data[:-4]) == "audio_truncated"


@pytest.mark.parametrize(("form", "subtype", "rate"), FORMS)
@pytest.mark.parametrize("num_bytes", [0, 3, 20])
def test_the_first_bytes_of_a_file_alone_are_rejected(form, subtype, rate, num_bytes):
    assert fault(sound(noisy(rate), rate, form, subtype)[:num_bytes]) in {"audio_truncated", "audio_decode_error"}


@pytest.mark.parametrize(("form", "subtype", "rate"), [one for one in FORMS if one[0] in ("FLAC", "OGG")])
def test_flipped_bytes_are_detected_where_the_format_allows_it(form, subtype, rate):
    data = bytearray(sound(noisy(rate, 4.0), rate, form, subtype))
    for place in np.random.default_rng(1).integers(len(data) // 4, len(data) - 200, 200):
        data[place] ^= 0x5A
    assert fault(bytes(data)) in {"audio_truncated", "audio_decode_error"}


@pytest.mark.parametrize(("form", "subtype", "rate"), [one for one in FORMS if one[0] in ("FLAC", "OGG")])
def test_a_second_half_of_zeros_is_detected_where_the_format_allows_it(form, subtype, rate):
    data = sound(noisy(rate), rate, form, subtype)
    half = len(data) // 2
    assert fault(data[:half] + bytes(len(data) - half)) in {"audio_truncated", "audio_decode_error"}


def test_an_ogg_page_cut_at_its_end_is_detected():
    data = sound(noisy(RATE), RATE, "OGG", "VORBIS")
    with pytest.raises(FileRejected, match="audio_truncated"):
        checked_file(data[:-1])


@pytest.mark.parametrize(("form", "subtype", "rate"), [one for one in FORMS if one[0] == "OGG"])
def test_an_ogg_whose_last_page_has_no_position_is_a_fault_as_its_sound_would_be_lost(form, subtype, rate):
    data = sound(noisy(rate), rate, form, subtype)
    (*_, (start, stop)) = ogg_pages(data)
    page = data[start : start + 6] + b"\xff" * 8 + data[start + 14 : stop]
    page = page[:22] + ogg_checksum(page).to_bytes(4, "little") + page[26:]
    assert len(decoded(data)[1]) > 0
    assert fault(data[:start] + page) == "audio_decode_error"


def test_text_with_an_audio_suffix_is_rejected():
    assert fault(b"this is no sound at all, just words " * 50) == "audio_decode_error"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_samples_are_detected_anywhere(value):
    for place in (0, 40_000, -1):
        audio = tone(2.0)
        audio[place, 1] = value
        assert fault(sound(audio, RATE, "WAV", "FLOAT")) == "not_finite"


@pytest.mark.parametrize(
    ("peak", "expected"), [(15.0, None), (-15.0, None), (17.0, "absurd_peak"), (-1e6, "absurd_peak")]
)
def test_loud_audio_is_accepted_and_an_absurd_peak_is_not(peak, expected):
    audio = tone(0.5)
    audio[100, 0] = peak
    data = sound(audio, RATE, "WAV", "FLOAT")
    if expected:
        assert fault(data) == expected
    else:
        assert decoded(data)[0].peak == 15.0


@pytest.mark.parametrize("rate", [1, 1999, 768_001, 2**31 - 1])
def test_an_unsupported_sample_rate_is_rejected(rate):
    data = bytearray(sound(tone(0.2)))
    struct.pack_into("<II", data, 24, rate, 0)  # a byte rate of zero says nothing
    assert fault(bytes(data)) == "sample_rate_unsupported"


def test_errors_of_libsndfile_are_quoted_without_addresses():
    with pytest.raises(FileRejected) as caught:
        Recording(b"nonsense" * 20)
    message = caught.value.fault("a.wav").msg
    assert "0x" not in message and "BytesIO" not in message


def test_a_wav_written_to_a_pipe_is_read_and_its_length_is_unknown():
    data = bytearray(sound(tone(0.5)))
    struct.pack_into("<I", data, 4, 0xFFFFFFFF)
    struct.pack_into("<I", data, data.index(b"data") + 4, 0xFFFFFFFF)
    recording, audio_AX = decoded(bytes(data))
    assert not recording.length_known
    assert audio_AX.shape[1] == len(tone(0.5))


def test_a_size_that_includes_the_header_and_bytes_after_the_end_are_accepted():
    data = bytearray(sound(tone(0.5)))
    struct.pack_into("<I", data, 4, len(data))
    assert checked_file(bytes(data))
    assert checked_file(sound(tone(0.5)) + b"\xff" * 100)


def test_chunks_before_the_audio_are_skipped():
    plain = sound(tone(0.5))
    listed = plain[:12] + b"LIST" + struct.pack("<I", 7) + b"INFOabc\x00" + plain[12:]
    listed = listed[:4] + struct.pack("<I", len(listed) - 8) + listed[8:]
    assert checked_file(listed)
    with pytest.raises(FileRejected, match="audio_truncated"):
        checked_file(listed[:-1000])


def low_mp3(rate: int, channels: int, compression: float, seconds: float = 6.0) -> bytes:
    """An MP3 of a constant low bit rate; where its frames are too small for one, without a header that counts them."""
    buffer = io.BytesIO()
    form = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": compression}
    soundfile.write(buffer, noisy(rate, seconds, channels), rate, **form)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("compression", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_an_mp3_of_a_low_bit_rate_decodes_to_the_same_samples_in_blocks_and_at_once(channels, compression, rate):
    data = low_mp3(rate, channels, compression)
    at_once, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert np.abs(decoded(data)[1][:channels].T - at_once).max() < 1e-7


def test_an_mp3_that_declares_no_number_of_frames_is_read_whole_and_its_length_is_unknown():
    data = low_mp3(44100, 2, 0.99)
    assert b"Xing" not in data and b"Info" not in data
    recording, audio_AX = decoded(data)
    assert not recording.length_known
    # 6 s and what the encoder puts around them, in frames of 1152.
    assert audio_AX.shape[1] % 1152 == 0 and 6 * 44100 + 1105 <= audio_AX.shape[1] < 6 * 44100 + 1105 + 2 * 1152


def uncounted(data: bytes) -> bytes:
    """The MP3 with a Xing or Info header that declares no number of frames."""
    (start,) = [data.index(tag) for tag in (b"Xing", b"Info") if tag in data[:2000]]
    return data[: start + 4] + bytes(104) + data[start + 108 :]


def test_an_mp3_whose_header_declares_no_frames_is_read_whole():
    recording, audio_AX = decoded(uncounted(low_mp3(44100, 2, 0.5)))
    assert not recording.length_known
    assert audio_AX.shape[1] >= 6 * 44100


def test_a_variable_bit_rate_mp3_that_libsndfile_would_cut_is_read_whole():
    data = uncounted(sound(noisy(44100), 44100, "MP3", "MPEG_LAYER_III"))
    scan = check_frames(data)
    assert scan is not None and decoded(data)[1].shape[1] == scan.num_samples


def test_an_mp3_that_declares_no_number_of_frames_and_ends_within_one_is_truncated():
    with pytest.raises(FileRejected) as caught:
        decoded(low_mp3(44100, 2, 0.99)[:-50])
    assert caught.value.type == "audio_truncated"


def test_frames_that_the_decoder_leaves_out_are_detected_without_a_header(monkeypatch):
    read = MpegFile.read_block
    monkeypatch.setattr(MpegFile, "read_block", lambda file: read(file)[:-1])
    with pytest.raises(FileRejected) as caught:
        decoded(low_mp3(44100, 1, 0.99))
    assert "frames hold" in str(caught.value.facts["why"])


def test_blocks_add_up_to_the_whole_file():
    audio = noisy(RATE, 3.0)
    data = sound(audio, RATE, "FLAC", "PCM_24")
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    assert np.array_equal(decoded(data)[1], whole.T)
