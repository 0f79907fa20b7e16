"""AAC, ALAC and WMA through PyAV; long recordings split into windows; the choice of resampler."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stages.contract import Inputs
from stages.errors import DatasetFaults, PackageMissing
from stages.ingest import prepare_clip
from stages.ingest.audio.resample import resample, resampled
from stages.ingest.integrity.mp4_asf_adts import mp4_states_delay, stray_bytes
from stages.ingest.run import ingest
from stages.ingest.source import listing
from stages.ingest.source.listing import open_source
from stages.ingest.stage import audio_params, prepared_key
from stages.plural import pluralized
from stages.prepared_audio import read_prepared
from tests.pyav_formats import box, written_by_pyav
from tests.small_datasets import PARAMS, RATE, clips, counted, faults, folder, run, sound, tone, workspace, zipped

NATIVE = PARAMS.native_samples
av = pytest.importorskip("av")
PYAV = [("a.m4a", "ipod", "aac"), ("a.m4a", "ipod", "alac"), ("a.aac", "adts", "aac"), ("a.wma", "asf", "wmav2")]


def dataset(place: Path, name: str, data: bytes) -> Path:
    return folder(place / "d", {name: data, f"{Path(name).stem}.txt": b"words"})


@pytest.mark.parametrize(("name", "container", "codec"), PYAV, ids=lambda value: value)
def test_a_format_that_libsndfile_cannot_read_is_decoded(tmp_path, name, container, codec):
    audio = tone(1.0) + np.random.default_rng(0).uniform(-0.02, 0.02, (RATE, 2)).astype(np.float32)
    outcome, (row,) = run(dataset(tmp_path, name, written_by_pyav(container, codec, audio)), workspace(tmp_path))
    kept = read_prepared(tmp_path / "shared" / row.audio)
    assert row.source_sample_rate_hz == RATE and row.num_channels == 2
    assert abs(row.num_samples - RATE) < 4096
    span = slice(10_000, 30_000)
    lags = {lag: float((kept[0, lag:][span] * audio[span, 0]).sum()) for lag in range(0, 3000)}
    best = max(lags, key=lambda lag: lags[lag])
    assert lags[best] > 0.95 * float((audio[span, 0] ** 2).sum())
    types = {one["type"] for one in outcome.facts["warnings"]}
    assert ("codec_delay_unknown" in types) == (container != "ipod")


@pytest.mark.parametrize("codec", ["aac", "alac"])
def test_the_padding_that_an_mp4_declares_is_left_out_and_recorded(tmp_path, codec):
    audio = tone(1.0)
    outcome, (row,) = run(dataset(tmp_path, "a.m4a", written_by_pyav("ipod", codec, audio)), workspace(tmp_path))
    kept = read_prepared(tmp_path / "shared" / row.audio)
    assert abs(row.num_samples - RATE) <= RATE // 1000, "an MP4 counts in milliseconds"
    span = slice(20_000, 24_000)
    assert np.corrcoef(kept[0, span], audio[span, 0])[0, 1] > 0.99, "the sound begins where it began"
    said = [one["msg"] for one in outcome.facts["warnings"] if one["type"] == "codec_padding"]
    assert bool(said) == (codec == "aac")


def test_an_mp4_that_does_not_say_where_its_sound_begins_is_noted():
    data = written_by_pyav("ipod", "aac", tone(1.0))
    assert mp4_states_delay(data) and not mp4_states_delay(data.replace(b"elst", b"free"))
    assert prepare_clip.open_recording(data).delay_known
    assert not prepare_clip.open_recording(data.replace(b"elst", b"free")).delay_known
    assert prepare_clip.open_recording(written_by_pyav("ipod", "alac", tone(1.0))).delay_known, "it has none"


@pytest.mark.parametrize(("name", "container", "codec"), PYAV[:2], ids=lambda value: value)
def test_a_truncated_mp4_is_detected(tmp_path, name, container, codec):
    data = written_by_pyav(container, codec, tone(2.0))
    found = faults(dataset(tmp_path, name, data[: len(data) // 2]), tmp_path)
    assert found[0][1] in {"audio_decode_error", "audio_truncated"}


def test_text_with_such_a_suffix_is_rejected(tmp_path):
    assert faults(dataset(tmp_path, "a.wma", b"just words " * 500), tmp_path) == [("a.wma", "audio_decode_error")]


def test_without_the_package_such_a_file_is_a_fault_that_says_what_to_install(tmp_path, monkeypatch):
    data = folder(tmp_path / "d", {**clips("b"), "a.m4a": written_by_pyav("ipod", "aac", tone(1.0)), "a.txt": b"words"})
    with_it = open_source(data).fingerprint
    monkeypatch.setattr(listing, "find_spec", lambda name: None)
    without = open_source(data)
    assert without.fingerprint != with_it, "installing it later must not find the result that was made without it"
    with pytest.raises(DatasetFaults, match="Install PyAV with `pip install av`") as caught:
        ingest(Inputs(source=without), PARAMS, workspace(tmp_path))
    assert [(one.member, one.type) for one in caught.value.faults] == [("a.m4a", "audio_needs_pyav")]
    assert [row.clip_id for row in run(data, workspace(tmp_path), skip_bad=True)[1]] == ["b"]


@pytest.mark.parametrize(("form", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
def test_bytes_are_decoded_alike_under_every_name(tmp_path, form, subtype):
    data = sound(tone(0.5), RATE, form, subtype)
    found = {}
    for name in ("a.wav", "a.m4a", "a.aac", "a.wma", "a.flac", "a.mp3"):
        (row,) = run(dataset(tmp_path / name, name, data), workspace(tmp_path / name))[1]
        found[name] = (row.audio, read_prepared(tmp_path / name / "shared" / row.audio).tobytes())
    assert len(set(found.values())) == 1, "prepared audio is named by bytes, not by names"


@pytest.mark.parametrize(("name", "container", "codec"), PYAV, ids=lambda value: value)
@pytest.mark.parametrize("wrong", ["a.wav", "a.mp3", "a.flac", "a.m4a", "a.wma"])
def test_what_pyav_decodes_is_decoded_under_every_name(tmp_path, name, container, codec, wrong):
    data = written_by_pyav(container, codec, tone(0.5))
    (row,) = run(dataset(tmp_path / "right", name, data), workspace(tmp_path / "right"))[1]
    (same,) = run(dataset(tmp_path / "wrong", wrong, data), workspace(tmp_path / "wrong"))[1]
    assert (same.audio, same.num_samples) == (row.audio, row.num_samples)


@pytest.mark.parametrize(("container", "codec"), [("ogg", "flac"), ("tta", "tta"), ("wv", "wavpack")])
def test_a_lossless_kind_that_only_pyav_knows_is_decoded_to_the_sample(tmp_path, container, codec):
    audio = tone(1.0)
    try:
        data = written_by_pyav(container, codec, audio)
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"this PyAV cannot write it: {error}")
    outcome, (row,) = run(dataset(tmp_path, "a.oga", data), workspace(tmp_path))
    kept = read_prepared(tmp_path / "shared" / row.audio)
    assert kept.shape[1] == RATE and np.abs(kept - audio.T).max() < 2.0**-6
    assert "codec_delay_unknown" not in {one["type"] for one in outcome.facts["warnings"]}


@pytest.mark.parametrize(
    ("name", "container", "codec"),
    [
        ("a.mka", "matroska", "flac"),
        ("a.weba", "webm", "libopus"),
        ("a.wv", "wv", "wavpack"),
        ("a.tta", "tta", "tta"),
        ("a.3gp", "3gp", "aac"),
        ("a.3g2", "3g2", "aac"),
    ],
)
def test_audio_suffixes_of_kinds_that_pyav_reads_are_clips(tmp_path, name, container, codec):
    outcome, (row,) = run(
        dataset(tmp_path, name, written_by_pyav(container, codec, tone(0.5), 48000)), workspace(tmp_path)
    )
    assert row.audio.endswith(".flac") and not [one for one in outcome.facts["warnings"] if one["type"] == "other_file"]


@pytest.mark.parametrize("container", ["matroska", "webm", "mp4"])
def test_opus_states_its_delay_in_any_container(container):
    recording = prepare_clip.open_recording(written_by_pyav(container, "libopus", tone(0.5, rate=48000), 48000))
    assert sum(block.shape[1] for block in recording.blocks()) == 24_000 and recording.delay_known


def test_alac_in_a_caf_of_ffmpeg_keeps_the_end_of_its_last_packet():
    recording = prepare_clip.open_recording(written_by_pyav("caf", "alac", tone(0.5)))
    assert sum(block.shape[1] for block in recording.blocks()) == RATE // 2 and recording.length_known


def test_flac_in_ogg_that_is_cut_is_a_fault(tmp_path):
    data = written_by_pyav("ogg", "flac", tone(2.0))
    assert faults(dataset(tmp_path, "a.oga", data[: len(data) // 2]), tmp_path)[0][1] == "audio_truncated"


def in_wave(payload: bytes, tag: int, rate: int = RATE) -> bytes:
    """MPEG frames as the data chunk of a RIFF file."""
    form = struct.pack("<HHIIHHHHIHHH", tag, 2, rate, 16000, 1, 0, 12, 1, 2, 417, 1, 1393)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"fact" + struct.pack("<II", 4, 50_000)
    chunks += b"data" + struct.pack("<I", len(payload)) + payload + bytes(len(payload) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def test_mp3_in_a_wav_is_the_mp3(tmp_path):
    mp3 = sound(tone(1.0), RATE, "MP3", "MPEG_LAYER_III")
    (plain,) = run(dataset(tmp_path / "mp3", "a.mp3", mp3), workspace(tmp_path / "mp3"))[1]
    (inside,) = run(dataset(tmp_path / "wav", "a.wav", in_wave(mp3, 0x55)), workspace(tmp_path / "wav"))[1]
    kept = [read_prepared(tmp_path / name / "shared" / row.audio) for name, row in (("mp3", plain), ("wav", inside))]
    assert np.array_equal(*kept)
    cut = in_wave(mp3[: len(mp3) // 2], 0x55)
    assert faults(dataset(tmp_path / "cut", "a.wav", cut), tmp_path / "cut") == [("a.wav", "audio_truncated")]


def test_what_no_decoder_knows_is_a_fault(tmp_path):
    assert faults(dataset(tmp_path, "a.wav", b"MThd" + bytes(5000)), tmp_path) == [("a.wav", "audio_decode_error")]


def test_without_the_package_the_bytes_decide_too_and_may_change_the_dataset_s_name(tmp_path, monkeypatch):
    data = folder(tmp_path / "d", {"a.m4a": sound(tone(0.5)), "a.txt": b"words", "b.wav": b"?" * 99, "b.txt": b"words"})
    with_it = open_source(data).fingerprint
    for module in (listing, prepare_clip):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert open_source(data).fingerprint != with_it, "PyAV might decode b.wav"
    outcome, rows = run(data, workspace(tmp_path), skip_bad=True)
    assert [row.clip_id for row in rows] == ["a"]
    assert "PyAV" in outcome.facts["skipped"][0]["msg"]


@pytest.mark.parametrize("pack", [folder, zipped])
def test_without_the_package_a_file_under_a_wrong_name_is_named_for_what_it_is(tmp_path, monkeypatch, pack):
    files = {"a.wav": written_by_pyav("adts", "aac", tone(0.5)), "a.txt": b"words"}
    data = pack(tmp_path / "d.zip", files)
    monkeypatch.setattr(listing, "find_spec", lambda name: None)
    (member,) = [one for one in open_source(data).members if one.fault]
    assert member.fault.startswith("audio_needs_pyav: by its content it is raw AAC")


def test_raw_aac_may_have_tags_before_and_after_its_frames(tmp_path):
    data = written_by_pyav("adts", "aac", tone(1.0))
    tagged = b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + data + b"TAG" + bytes(125)
    outcome, (row,) = run(dataset(tmp_path, "a.aac", tagged), workspace(tmp_path))
    plain, (same,) = run(dataset(tmp_path / "plain", "a.aac", data), workspace(tmp_path / "plain"))
    assert (row.num_samples, outcome.facts["warnings"]) == (same.num_samples, plain.facts["warnings"])


@pytest.mark.parametrize("codec", ["aac", "alac"])
def test_an_mp4_may_have_its_moov_box_before_the_audio_and_a_box_without_a_size(codec):
    data = written_by_pyav("ipod", codec, tone(1.0))
    start, stop = box(data, b"mdat")
    assert stray_bytes(data) == 0
    endless = data[:start] + data[stop:] + bytes(4) + data[start + 4 : stop]
    assert stray_bytes(endless) == 0, "a size of zero means: to the end"
    wide = data[:start] + b"\0\0\0\1mdat" + (stop - start + 8).to_bytes(8, "big") + data[start + 8 :]
    assert stray_bytes(wide) == 0, "a size of one means: see the eight bytes behind"
    assert stray_bytes(data + b"strange things") == 14


def test_a_streamed_wma_declares_no_size_and_is_not_checked_against_it():
    data = bytearray(written_by_pyav("asf", "wmav2", tone(1.0)))
    assert stray_bytes(bytes(data)) == 0 and stray_bytes(bytes(data) + b"more") == 4
    data[data.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")) + 88] |= 1
    assert stray_bytes(bytes(data) + b"more") == 0
    assert stray_bytes(bytes(data[:-50])) == 0


# Long recordings


def noise(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * rate), channels)).astype(np.float32)


@pytest.mark.parametrize("rate", [RATE, 22050])
def test_a_long_recording_becomes_one_clip_per_native_window(tmp_path, rate):
    audio = noise(9.5, rate)
    data = folder(tmp_path / "d", {"a.wav": sound(audio, rate, subtype="FLOAT"), "a.txt": b"noise", **clips("b")})
    outcome, rows = run(data, workspace(tmp_path), long_clips="split")
    assert [(row.clip_id, row.crop_start, row.num_samples, row.seconds_total) for row in rows] == [
        ("a", 0, NATIVE, 10),
        ("a#2", NATIVE, NATIVE, 10),
        ("a#3", 2 * NATIVE, math.ceil(9.5 * RATE) - 2 * NATIVE, 10),
        ("b", 0, RATE // 2, 1),
    ]
    whole = resample(audio.T.repeat(2, axis=0), rate, RATE)
    kept = np.concatenate([read_prepared(tmp_path / "shared" / row.audio) for row in rows[:3]], axis=1)
    assert kept.shape == whole.shape and np.abs(kept - whole).max() <= 2.0**-24
    assert len({row.audio for row in rows}) == 4 and outcome.facts["num_clips"] == 4
    assert outcome.facts["warnings"] == []


@pytest.mark.parametrize(("rest", "windows"), [(4095, 1), (4096, 2), (0, 1), (1, 1)])
def test_a_remainder_shorter_than_one_latent_frame_is_dropped_with_a_warning(tmp_path, rest, windows):
    audio = noise((NATIVE + rest) / RATE)
    data = folder(tmp_path / "d", {"a.wav": sound(audio), "a.txt": b"noise"})
    outcome, rows = run(data, workspace(tmp_path), long_clips="split")
    assert len(rows) == windows
    said = [one["msg"] for one in outcome.facts["warnings"]]
    dropped = f"its end is left out: {pluralized(rest, 'sample')}, less than one latent frame."
    assert said == ([dropped] if 0 < rest < 4096 else [])


def test_a_silent_window_makes_no_clip_and_the_others_keep_their_numbers(tmp_path):
    audio = noise(12.0)
    audio[NATIVE : 2 * NATIVE] = 0
    data = folder(tmp_path / "d", {"a.wav": sound(audio), "a.txt": b"noise"})
    for _ in range(2):
        outcome, rows = run(data, workspace(tmp_path), long_clips="split")
        assert [row.clip_id for row in rows] == ["a", "a#3"]
        assert "the part from 4.0 to 8.0 s is silent and is left out." in [
            one["msg"] for one in outcome.facts["warnings"]
        ]
    assert faults(folder(tmp_path / "e", {"a.wav": sound(0 * audio), "a.txt": b"x"}), tmp_path, long_clips="split") == [
        ("a.wav", "silent")
    ]


def test_first_and_split_share_the_first_window_and_decode_no_complete_recording_again(tmp_path, monkeypatch):
    seen: list[object] = []
    monkeypatch.setattr(prepare_clip, "open_recording", counted(prepare_clip.open_recording, seen))
    data = folder(tmp_path / "d", {"a.wav": sound(noise(9.0)), "a.txt": b"noise"})
    (first,) = run(data, workspace(tmp_path))[1]
    before = (tmp_path / "shared" / first.audio).stat().st_mtime_ns
    rows = run(data, workspace(tmp_path), long_clips="split")[1]
    assert rows[0].audio == first.audio and len(rows) == 3
    assert (tmp_path / "shared" / first.audio).stat().st_mtime_ns == before, "it was whole and stays as it is"
    for way in ("split", "first"):
        run(data, workspace(tmp_path), long_clips=way)
    assert len(seen) == 2
    (tmp_path / "shared" / rows[2].audio).unlink()
    assert run(data, workspace(tmp_path), long_clips="split")[1] == rows
    assert len(seen) == 3
    assert not [path for path in (tmp_path / "shared").rglob("*") if path.suffix not in (".flac", ".json", "")]


def test_windows_count_towards_the_limit_and_their_names_must_be_unique(tmp_path):
    data = folder(tmp_path / "d", {"a.wav": sound(noise(9.0)), "a.txt": b"noise"})
    assert faults(data, tmp_path, long_clips="split", max_clips=2) == [("", "too_many_clips")]
    folder(data, {**clips("a#2")})
    assert faults(data, tmp_path, long_clips="split") == [("a.wav", "duplicate_name")]


def test_each_window_has_its_own_key_and_the_first_one_has_that_of_the_recording():
    assert prepared_key("sha256:00", PARAMS, 0) == prepared_key("sha256:00", PARAMS)
    assert prepared_key("sha256:00", PARAMS, NATIVE) != prepared_key("sha256:00", PARAMS)
    assert prepared_key("sha256:00", PARAMS) == prepared_key("sha256:00", replace(PARAMS, long_clips="split"))


# Warnings about the sound


def warnings(place: Path, audio: np.ndarray, **form: object) -> set[str]:
    data = folder(place / "d", {"a.wav": sound(audio, **form), "a.txt": b"words"})
    return {one["type"] for one in run(data, workspace(place))[0].facts["warnings"]}


def test_clipping_is_warned_of_and_single_samples_at_full_scale_are_not(tmp_path):
    assert warnings(tmp_path / "loud", np.clip(4 * tone(1.0), -1, 1)) == {"clipping"}
    normalised = tone(1.0)
    normalised[::500] = 1.0
    assert warnings(tmp_path / "peaks", normalised) == set()


def test_a_dropout_is_warned_of_and_a_fade_is_not(tmp_path):
    cut, faded = tone(2.0, hz=441), tone(2.0, hz=441)
    cut[RATE // 2 + 25 : RATE] = 0
    faded *= np.linspace(1, -0.5, len(faded)).clip(0)[:, None].astype(np.float32)
    assert warnings(tmp_path / "cut", cut) == {"dropouts"}
    assert warnings(tmp_path / "faded", faded) == set()


def test_a_dc_offset_is_warned_of(tmp_path):
    assert warnings(tmp_path / "off", tone(1.0) + 0.05) == {"dc_offset"}


# Resamplers


@pytest.mark.parametrize("from_hz", [48000, 96000, 22050, 8000, 44099])
def test_soxr_follows_the_length_rule_and_does_not_depend_on_the_blocks(from_hz):
    pytest.importorskip("soxr")
    audio_AX = tone(1.3, rate=from_hz).T
    whole = resample(audio_AX, from_hz, RATE, "soxr")
    assert whole.shape == (2, math.ceil(audio_AX.shape[1] * RATE / from_hz)) and whole.dtype == np.float32
    blocks = [audio_AX[:, start : start + 1000] for start in range(0, audio_AX.shape[1], 1000)]
    assert np.array_equal(np.concatenate(list(resampled(blocks, from_hz, RATE, "soxr")), axis=1), whole)


@pytest.mark.parametrize("hz", [997, 15_000])
def test_soxr_keeps_a_tone_clean(hz):
    pytest.importorskip("soxr")
    out_X = resample(tone(2.0, hz=hz, rate=48000).T, 48000, RATE, "soxr")[0, 4000:-4000].astype(np.float64)
    time_X = (np.arange(out_X.size) + 4000) / RATE
    basis = np.stack([np.sin(2 * np.pi * hz * time_X), np.cos(2 * np.pi * hz * time_X)], axis=1)
    fit_X = basis @ np.linalg.lstsq(basis, out_X, rcond=None)[0]
    assert 10 * np.log10((fit_X**2).mean() / ((out_X - fit_X) ** 2).mean()) > 110


def test_the_resampler_asked_for_is_used_recorded_and_part_of_the_key(tmp_path):
    pytest.importorskip("soxr")
    data = folder(tmp_path / "d", {"a.wav": sound(tone(1.0, rate=48000), 48000), "a.txt": b"tone"})
    outcome, (row,) = run(data, workspace(tmp_path), resampler="soxr")
    assert outcome.facts["audio_params"]["resampler"] == {
        "name": "soxr", "filter": "HQ", "length": "ceil(n * to / from)",
    }  # fmt: skip
    audio, _ = soundfile.read(data / "a.wav", dtype="float32")
    kept = read_prepared(tmp_path / "shared" / row.audio)
    assert np.abs(kept - resample(audio.T, 48000, RATE, "soxr")).max() <= 2.0**-24
    assert audio_params(PARAMS)["resampler"]["name"] == "resampy"


def test_a_resampler_that_is_not_installed_is_an_error_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.ingest.run.find_spec", lambda name: None)
    with pytest.raises(PackageMissing, match="pip install soxr"):
        run(folder(tmp_path / "d", clips("a")), workspace(tmp_path), resampler="soxr")
