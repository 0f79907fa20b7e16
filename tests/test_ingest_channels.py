"""More than two channels: the same sound from every format, mixed by loudspeakers, and what is left out is said."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from stages.ingest.audio.channel_layout import channel_layout
from stages.ingest.audio.downmix import StereoMixer
from stages.prepared_audio import read_prepared
from tests.small_datasets import RATE, faults, folder, run, sound, workspace

FL, FR, FC, LFE, SL, SR = range(200, 800, 100)
"""The tone of each loudspeaker, in Hz."""
WAVE = (FL, FR, FC, LFE, SL, SR)
VORBIS = (FL, FC, FR, SL, SR, LFE)


def tones(*hz: int, rate: int = RATE) -> np.ndarray:
    """(X, A): a second of one tone per channel."""
    return 0.2 * np.sin(2 * np.pi * np.arange(rate)[:, None] / rate * np.array(hz))


def heard(place, name: str, data: bytes) -> tuple[list[dict[int, float]], dict[str, str]]:
    """(level of each tone in the left and the right channel, notes by type)."""
    outcome, (row,) = run(folder(place / "d", {name: data, "a.txt": b"tones"}), workspace(place))
    kept_AX = read_prepared(place / "shared" / row.audio)[:, :RATE]
    spectra = [2 * np.abs(np.fft.rfft(channel_X)) / RATE for channel_X in kept_AX]
    levels = [{hz: round(float(spectrum[hz]), 2) for hz in WAVE if spectrum[hz] > 0.01} for spectrum in spectra]
    return levels, {one["type"]: one["msg"] for one in outcome.facts["warnings"]}


FRONT, AROUND = round(0.2 / (1 + 2**0.5), 2), round(0.2 / (1 + 2**0.5) * 2**-0.5, 2)
MIXED = [{FL: FRONT, FC: AROUND, SL: AROUND}, {FR: FRONT, FC: AROUND, SR: AROUND}]


@pytest.mark.parametrize(
    ("name", "form", "subtype", "order"),
    [
        ("a.wav", "WAVEX", "PCM_16", WAVE),
        ("a.wav", "WAV", "PCM_16", WAVE),
        ("a.wav", "RF64", "PCM_16", WAVE),
        ("a.w64", "W64", "PCM_16", WAVE),
        ("a.flac", "FLAC", "PCM_16", WAVE),
        ("a.aiff", "AIFF", "PCM_16", WAVE),
        ("a.caf", "CAF", "PCM_16", WAVE),
        ("a.au", "AU", "PCM_16", WAVE),
        ("a.ogg", "OGG", "VORBIS", VORBIS),
        ("a.opus", "OGG", "OPUS", VORBIS),
    ],
)
def test_surround_sounds_the_same_from_every_format(tmp_path, name, form, subtype, order):
    rate = 48000 if subtype == "OPUS" else RATE
    levels, notes = heard(tmp_path, name, sound(tones(*order, rate=rate), rate, form, subtype))
    for level, expected in zip(levels, MIXED, strict=True):
        assert level.keys() == expected.keys()
        assert all(abs(level[hz] - expected[hz]) < 0.03 for hz in expected)
    assert "7.7 dB lower" in notes["channels_mixed"]


@pytest.mark.parametrize(("codec", "container"), [("aac", "ipod"), ("alac", "ipod"), ("flac", "ogg")])
def test_surround_that_pyav_decodes_sounds_the_same(tmp_path, codec, container):
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=RATE, layout="5.1")
        frame = av.AudioFrame.from_ndarray(tones(*WAVE).T.astype(np.float32).copy(), format="fltp", layout="5.1")
        frame.sample_rate, frame.pts = RATE, 0
        form, size = stream.codec_context.format or "fltp", stream.codec_context.frame_size or 4096
        fitted = av.AudioResampler(format=form, layout="5.1", rate=RATE, frame_size=size)
        for part in [*fitted.resample(frame), *fitted.resample(None), None]:
            for packet in stream.encode(part):
                file.mux(packet)
    levels, _ = heard(tmp_path, "a.m4a", buffer.getvalue())
    for level, expected in zip(levels, MIXED, strict=True):
        assert all(abs(level[hz] - expected[hz]) < 0.03 for hz in expected)


def with_mask(mask: int, num_channels: int) -> bytes:
    data = bytearray(sound(tones(*WAVE[:num_channels]), RATE, "WAVEX", "PCM_16"))
    struct.pack_into("<I", data, data.index(b"fmt ") + 8 + 20, mask)
    return bytes(data)


@pytest.mark.parametrize(
    ("mask", "layout"),
    [(0x103, ("FL", "FR", "BC")), (0xB, ("FL", "FR", "LFE")), (0, ("FL", "FR", "FC")), (1 << 30, None), (0x3, None)],
)
def test_a_wav_s_own_mask_goes_before_the_usual_order(mask, layout):
    assert channel_layout(with_mask(mask, 3), 3) == layout


def test_a_flac_s_mask_goes_before_the_usual_order():
    data = b"fLaC" + bytes(40) + b"WAVEFORMATEXTENSIBLE_CHANNEL_MASK=0x60F" + bytes(9)
    assert channel_layout(data, 6) == ("FL", "FR", "FC", "LFE", "SL", "SR")


@pytest.mark.parametrize(
    ("chunk", "layout"),
    [
        (struct.pack(">III", 124 << 16 | 6, 0, 0), ("FC", "FL", "FR", "SL", "SR", "LFE")),
        (struct.pack(">III", 1 << 16, 0x60F, 0), ("FL", "FR", "FC", "LFE", "SL", "SR")),
        (struct.pack(">III", 0, 0, 6) + b"".join(struct.pack(">I16x", n) for n in (3, 1, 2, 10, 11, 4)),
         ("FC", "FL", "FR", "SL", "SR", "LFE")),
        (struct.pack(">III", 0xFFFF << 16 | 6, 0, 0), None),
    ],
)  # fmt: skip
def test_a_caf_s_layout_is_read(chunk, layout):
    data = b"caff\0\1\0\0" + b"chan" + struct.pack(">q", len(chunk)) + chunk
    assert channel_layout(data, 6) == layout


@pytest.mark.parametrize("family", [0, 2, 255])
def test_opus_channels_that_are_no_loudspeakers_are_not_mixed(family):
    head = b"OpusHead\x01\x06" + bytes(8) + bytes([family])
    assert channel_layout(b"OggS" + bytes(24) + head + bytes(20), 6) is None


def test_of_an_unknown_arrangement_the_first_two_are_used_and_much_sound_left_out_is_said(tmp_path):
    audio = np.concatenate([0.1 * tones(200, 300), tones(*([400] * 8))], axis=1)
    levels, notes = heard(tmp_path, "a.wav", sound(audio))
    assert [list(level) for level in levels] == [[FL], [FR]]
    assert "only the first two" in notes["channels_dropped"]
    assert notes["sound_left_out"].startswith("100 % of its sound")


def test_sound_that_is_in_the_centre_alone_is_kept(tmp_path):
    audio = np.zeros((RATE, 6))
    audio[:, 2:3] = tones(FC)
    levels, notes = heard(tmp_path, "a.flac", sound(audio, form="FLAC"))
    assert levels == [{FC: AROUND}, {FC: AROUND}] and "sound_left_out" not in notes


def test_a_clip_whose_sound_is_all_in_channels_that_are_left_out_is_a_fault_that_says_so(tmp_path):
    audio = np.zeros((RATE, 10))
    audio[:, 5:6] = tones(FC)
    found = faults(folder(tmp_path / "d", {"a.wav": sound(audio), "a.txt": b"tones"}), tmp_path)
    assert found == [("a.wav", "used_channels_silent")]


def test_a_mix_never_clips_and_stereo_is_left_as_it_is():
    loud_XA = np.ones((3, 6), np.float32)
    mixer = StereoMixer(6, ("FL", "FR", "FC", "LFE", "BL", "BR"))
    assert np.abs(mixer.stereo(loud_XA)).max() <= 1
    pair_XA = np.array([[0.5, -0.25]], np.float32)
    assert StereoMixer(2, ("FC", "LFE")).stereo(pair_XA).tolist() == pair_XA.tolist()


def test_soundfile_returns_vorbis_channels_in_the_file_s_own_order():
    audio, _ = soundfile.read(io.BytesIO(sound(tones(*VORBIS), RATE, "OGG", "VORBIS")))
    assert [int(np.abs(np.fft.rfft(audio[:RATE, one])).argmax()) for one in range(5)] == list(VORBIS[:5])


@pytest.mark.parametrize(
    ("tag", "layout"),
    [
        ((136 << 16) + 4, "FL FR FC LFE"),
        ((138 << 16) + 5, "FL FR SL SR LFE"),
        ((141 << 16) + 6, "FC FL FR SL SR BC"),
        ((144 << 16) + 8, "FC FL FR SL SR BL BR BC"),
    ],
)
def test_a_caf_s_layout_tag_names_as_many_loudspeakers_as_it_counts(tag, layout):
    chunk = b"chan" + struct.pack(">qIII", 12, tag, 0, 0)
    assert channel_layout(b"caff\0\1\0\0" + chunk, tag & 0xFF) == tuple(layout.split())
