"""The ingest stage: manifest and prepared audio of a dataset, and every fault of every file in one pass."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import disk_space
from stages.contract import Inputs, Resources
from stages.errors import DatasetFaults, InsufficientDiskSpace
from stages.ingest import prepare_clip
from stages.ingest.audio.decode import Recording
from stages.ingest.audio.resample import resample
from stages.ingest.faults import ARCHIVE_WIDE, MESSAGES, fault
from stages.ingest.run import MANIFEST, ingest
from stages.ingest.source import limits
from stages.ingest.source.listing import open_source
from stages.ingest.window import dataset_window
from stages.plural import is_or_are, pluralized
from stages.prepared_audio import read_prepared
from tests.small_datasets import PARAMS, RATE, clips, faults, folder, run, sound, tone, workspace, zipped


@pytest.fixture
def decoded(monkeypatch):
    """Sizes of the decoded files, in order."""
    seen: list[int] = []

    def noting(data: bytes) -> Recording:
        seen.append(len(data))
        return Recording(data)

    monkeypatch.setattr(prepare_clip, "Recording", noting)
    return seen


def test_every_clip_becomes_a_row_in_order_with_its_prompt(tmp_path):
    files = {**clips("b", "sub/a"), "c.flac": sound(tone(1.0, channels=1), form="FLAC"), "c.txt": b"  a bell \n"}
    outcome, rows = run(zipped(tmp_path / "d.zip", files), workspace(tmp_path))
    assert [(row.clip_id, row.prompt, row.caption_source) for row in rows] == [
        ("b", "tone number 0", "b.txt"),
        ("c", "a bell", "c.txt"),
        ("sub/a", "tone number 1", "sub/a.txt"),
    ]
    assert [(row.num_channels, row.source_sample_rate_hz, row.crop_start) for row in rows] == [
        (2, RATE, 0),
        (1, RATE, 0),
        (2, RATE, 0),
    ]
    assert outcome.facts["num_clips"] == 3


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_audio_at_the_models_rate_is_stored_losslessly(tmp_path, subtype):
    data = sound(np.random.default_rng(0).uniform(-1, 1, (20000, 2)), subtype=subtype)
    _, rows = run(folder(tmp_path / "d", {"a.wav": data, "a.txt": b"noise"}), workspace(tmp_path))
    source, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    assert np.array_equal(read_prepared(tmp_path / "shared" / rows[0].audio), source.T)


@given(level=st.floats(1.0, 3.0), seed=st.integers(0, 9))
@settings(max_examples=8, deadline=None)
def test_float_audio_is_clamped_to_full_scale_and_off_by_half_a_24_bit_step_at_most(tmp_path_factory, level, seed):
    place = tmp_path_factory.mktemp("clamp")
    audio = np.random.default_rng(seed).uniform(-level, level, (5000, 2)).astype(np.float32)
    data = folder(place / "d", {"a.wav": sound(audio, subtype="FLOAT"), "a.txt": b"noise"})
    outcome, rows = run(data, workspace(place))
    kept = read_prepared(place / "shared" / rows[0].audio)
    ceiling = 1 - 2.0**-23
    assert np.abs(kept - np.clip(audio.T, -1, ceiling)).max() <= 2.0**-24
    beyond = int((np.abs(audio) > 1).sum())
    said = [one["msg"] for one in outcome.facts["warnings"] if one["type"] == "clamped"]
    assert said == (
        []
        if not beyond
        else [
            f"{pluralized(beyond, 'sample')} {is_or_are(beyond)} beyond full scale "
            f"(peak {np.abs(audio).max():.3f}) and {is_or_are(beyond)} clamped."
        ]
    )


def test_another_rate_is_resampled_as_a_whole_signal_would_be(tmp_path):
    audio = tone(3.0, rate=48000) + np.random.default_rng(0).uniform(-0.1, 0.1, (144000, 2)).astype(np.float32)
    files = {"a.wav": sound(audio, 48000, subtype="FLOAT"), "a.txt": b"noise"}
    _, rows = run(folder(tmp_path / "d", files), workspace(tmp_path))
    assert rows[0].num_samples == math.ceil(144000 * 147 / 160)
    kept = read_prepared(tmp_path / "shared" / rows[0].audio)
    assert np.abs(kept - resample(audio.T, 48000, RATE)).max() <= 2.0**-24


def test_a_long_recording_keeps_its_first_native_window_and_records_its_length(tmp_path):
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (round(9.3 * 22050), 1)).astype(np.float32)
    files = {"a.wav": sound(audio, 22050, subtype="FLOAT"), "a.txt": b"noise", **clips("b")}
    outcome, rows = run(folder(tmp_path / "d", files), workspace(tmp_path))
    assert (rows[0].num_samples, rows[0].seconds_total, rows[0].num_channels) == (PARAMS.native_samples, 10, 1)
    whole = resample(audio.T.repeat(2, axis=0), 22050, RATE)
    kept = read_prepared(tmp_path / "shared" / rows[0].audio)
    assert np.abs(kept - whole[:, : PARAMS.native_samples]).max() <= 2.0**-24
    assert outcome.facts["longest_clip_seconds"] == pytest.approx(9.3, abs=1e-3)
    assert outcome.facts["window_samples"] == PARAMS.native_samples
    assert [(one["member"], one["type"]) for one in outcome.facts["warnings"]] == [("a.wav", "cropped_to_native")]


@pytest.mark.parametrize("rate", [RATE, 48000])
def test_damage_after_the_native_window_is_detected_too(tmp_path, rate):
    audio = tone(9.0, rate=rate)
    audio[-100] = np.nan
    data = folder(tmp_path / "d", {"a.wav": sound(audio, rate, subtype="FLOAT"), "a.txt": b"tone"})
    assert ("a.wav", "not_finite") in faults(data, tmp_path)


@given(
    lengths=st.lists(st.integers(4096, 10**7), min_size=1, max_size=5),
    seconds=st.none() | st.floats(1, 380),
)
@settings(deadline=None)
def test_the_window_is_the_duration_or_the_longest_clip_between_one_frame_and_the_native_length(lengths, seconds):
    params = replace(PARAMS, duration_seconds=seconds)
    found = dataset_window(lengths, params)
    wanted = max(lengths) if seconds is None else round(seconds * RATE)
    assert found.num_samples == min(max(wanted, 4096), params.native_samples)
    assert (found.num_frames - 1) * 4096 < found.num_samples <= found.num_frames * 4096


def test_the_native_window_has_the_published_number_of_frames():
    for seconds, frames in ((120, 1292), (380, 4092)):
        assert dataset_window([10**9], replace(PARAMS, native_samples=seconds * RATE)).num_frames == frames


def test_each_row_records_its_crop_or_pad_to_the_window(tmp_path):
    files = {**clips("short", seconds=0.5), **clips("long", seconds=2.0)}
    data = folder(tmp_path / "d", files)
    _, rows = run(data, workspace(tmp_path), duration_seconds=1.0)
    assert {row.clip_id: (row.num_samples_cut, row.num_samples_padded, row.seconds_total) for row in rows} == {
        "long": (RATE, 0, 2),
        "short": (0, RATE - RATE // 2, 1),
    }


def test_another_window_or_caption_decodes_nothing_again(tmp_path, decoded):
    data = folder(tmp_path / "d", clips("a", "b"))
    run(data, workspace(tmp_path))
    assert len(decoded) == 2
    (data / "a.txt").write_bytes(b"another caption")
    _, rows = run(data, workspace(tmp_path), duration_seconds=1.0, trigger_phrase="zxq", skip_bad=True)
    assert len(decoded) == 2
    assert [row.prompt for row in rows] == ["zxq, another caption", "zxq, tone number 1"]


def test_one_added_file_decodes_one_file(tmp_path, decoded):
    data = folder(tmp_path / "d", clips("a", "b"))
    run(data, workspace(tmp_path))
    folder(data, clips("x", seconds=0.7))
    _, rows = run(data, workspace(tmp_path))
    assert len(rows) == 3
    assert len(decoded) == 3


def test_the_same_bytes_under_two_names_are_decoded_once(tmp_path, decoded):
    same = sound(tone())
    files = {"a.wav": same, "a.txt": b"one", "b.wav": same, "b.txt": b"two"}
    _, rows = run(folder(tmp_path / "d", files), workspace(tmp_path))
    assert len(decoded) == 1
    assert [(row.clip_id, row.prompt) for row in rows] == [("a", "one"), ("b", "two")]
    assert rows[0].audio == rows[1].audio


def test_another_dataset_in_the_same_store_reuses_its_clips(tmp_path, decoded):
    run(folder(tmp_path / "one", clips("a", "b")), workspace(tmp_path))
    run(zipped(tmp_path / "two.zip", clips("a", "b")), workspace(tmp_path))
    assert len(decoded) == 2


@pytest.mark.parametrize("damage", ["no audio", "short audio", "no facts", "damaged facts", "facts of another version"])
def test_an_incomplete_prepared_clip_is_made_again_to_the_same_bytes(tmp_path, decoded, damage):
    data = folder(tmp_path / "d", clips("a", "b"))
    _, rows = run(data, workspace(tmp_path))
    audio = tmp_path / "shared" / rows[0].audio
    facts, content = audio.with_suffix(".json"), audio.read_bytes()
    if damage == "no audio":
        audio.unlink()
    elif damage == "short audio":
        audio.write_bytes(content[:-1])
    elif damage == "no facts":
        facts.unlink()
    elif damage == "damaged facts":
        facts.write_text("{")
    else:
        facts.write_text(json.dumps({"digest": rows[0].digest}))
    assert run(data, workspace(tmp_path))[1] == rows
    assert len(decoded) == 3
    assert audio.read_bytes() == content


def test_results_do_not_depend_on_the_datasets_path_or_packing(tmp_path):
    files = {
        **clips("a", "b/c"),
        "notes.md": b"words",
        "loud.wav": sound(2 * tone(level=0.9), subtype="FLOAT"),
        "loud.txt": b"x",
    }
    here, there = tmp_path / "here", tmp_path / "there" / "deep"
    there.mkdir(parents=True)
    results = []
    for place, data in (
        (here, folder(here / "d", files)),
        (there, zipped(there / "e.zip", files, zipfile.ZIP_DEFLATED)),
    ):
        outcome, _ = run(data, workspace(place))
        content = (place / "scratch" / MANIFEST).read_bytes()
        assert str(tmp_path).encode() not in content + json.dumps(outcome.facts).encode()
        results.append((outcome.facts, content, tree(place / "shared")))
    assert results[0] == results[1]


@pytest.mark.parametrize("resources", [Resources(workers=2), Resources(workers=2, engine="threading"), Resources()])
def test_results_do_not_depend_on_the_workers(tmp_path, resources):
    files = {**clips("a", "b", "c", rate=48000), **clips("d", "e")}
    data = zipped(tmp_path / "d.zip", files)
    results = []
    for place, used in ((tmp_path / "one", Resources(workers=1)), (tmp_path / "two", resources)):
        outcome, _ = run(data, workspace(place, used))
        results.append((outcome.facts, (place / "scratch" / MANIFEST).read_bytes(), tree(place / "shared")))
    assert results[0] == results[1]


def test_progress_is_reported_clip_by_clip(tmp_path):
    lines: list[tuple[int, int]] = []
    data = folder(tmp_path / "d", clips("a", "b", "c"))
    run(data, workspace(tmp_path, progress=lambda done, total, note="", **_: lines.append((done, total))))
    assert lines == [(0, 3), (1, 3), (2, 3), (3, 3)]
    run(data, workspace(tmp_path, progress=lambda done, total, note="", **_: lines.append((done, total))))
    assert lines[4:] == [(3, 3)]


def test_nothing_but_the_manifest_lies_in_the_workspace(tmp_path):
    run(folder(tmp_path / "d", clips("a")), workspace(tmp_path))
    assert [path.name for path in (tmp_path / "scratch").rglob("*")] == [MANIFEST]


# Faults


def broken() -> dict[str, bytes]:
    """A dataset with one fault of every kind that a file of it can have."""
    cut = sound(tone(1.0))[:-1000]
    with_nan = tone(0.5)
    with_nan[7] = np.nan
    return {
        **clips("good"),
        "cut.wav": cut,
        "cut.txt": b"cut",
        "empty_caption.wav": sound(tone(hz=1)),
        "empty_caption.txt": b" \n",
        "latin_caption.wav": sound(tone(hz=2)),
        "latin_caption.txt": "schön".encode("latin-1"),
        "loud.wav": sound(1e4 * tone(), subtype="FLOAT"),
        "loud.txt": b"loud",
        "lonely.wav": sound(tone(hz=3)),
        "lonely.txt.md": b"no caption",
        "nan.wav": sound(with_nan, subtype="FLOAT"),
        "nan.txt": b"nan",
        "orphan.txt": b"a caption",
        "empty.wav": sound(tone(0.0)),
        "empty.txt": b"empty",
        "silent.wav": sound(0 * tone()),
        "silent.txt": b"silent",
        "song.tak": b"\x00\x00\x00 ftypM4A ",
        "song.txt": b"song",
        "twice.wav": sound(tone(hz=400)),
        "twice.flac": sound(tone(hz=500), form="FLAC"),
        "twice.txt": b"twice",
        "words.wav": b"these are words",
        "words.txt": b"words",
    }


EXPECTED = [
    ("cut.wav", "audio_truncated"),
    ("empty.wav", "audio_empty"),
    ("empty_caption.txt", "empty_caption"),
    ("latin_caption.txt", "caption_not_utf8"),
    ("lonely.wav", "missing_caption"),
    ("loud.wav", "absurd_peak"),
    ("nan.wav", "not_finite"),
    ("orphan.txt", "missing_audio"),
    ("silent.wav", "silent"),
    ("song.tak", "unsupported_audio_format"),
    ("twice.flac", "duplicate_name"),
    ("twice.wav", "duplicate_name"),
    ("words.wav", "audio_decode_error"),
]


@pytest.mark.parametrize("pack", ["zip", "folder"])
def test_every_fault_of_every_file_is_found_in_one_pass(tmp_path, pack):
    data = zipped(tmp_path / "d.zip", broken()) if pack == "zip" else folder(tmp_path / "d", broken())
    assert faults(data, tmp_path) == EXPECTED


@pytest.mark.parametrize(
    ("files", "advised"),
    [
        ({**clips("a"), "b.txt": b"words"}, True),
        ({"a.wav": b"RIFF", "a.txt": b"words"}, False),
        ({**clips("a", "b"), "c.zip": b"PK"}, True),
    ],
)
def test_leaving_out_clips_is_advised_where_it_leaves_some(tmp_path, files, advised):
    with pytest.raises(DatasetFaults) as caught:
        run(folder(tmp_path / "d", files), workspace(tmp_path))
    assert ("--skip-bad" in str(caught.value)) == advised


def test_leaving_out_clips_is_not_advised_to_one_who_does_it_already(tmp_path):
    with pytest.raises(DatasetFaults) as caught:
        run(folder(tmp_path / "d", {**clips("a", "b"), "b.txt": b""}), workspace(tmp_path), skip_bad=True, min_clips=2)
    assert "--skip-bad" not in str(caught.value) and "Fix the files" in str(caught.value)


def test_faults_are_found_by_any_number_of_workers(tmp_path):
    data = zipped(tmp_path / "d.zip", broken())
    with pytest.raises(DatasetFaults) as caught:
        run(data, workspace(tmp_path, Resources(workers=2)))
    assert [(one.member, one.type) for one in caught.value.faults] == EXPECTED


def test_two_faults_of_one_clip_are_both_listed(tmp_path):
    data = folder(tmp_path / "d", {**clips("good"), "a.wav": b"words", "a.txt": b"", "b.flac": b"words"})
    assert faults(data, tmp_path) == [
        ("a.txt", "empty_caption"),
        ("a.wav", "audio_decode_error"),
        ("b.flac", "audio_decode_error"),
        ("b.flac", "missing_caption"),
    ]


def test_skip_bad_leaves_out_clips_with_faults_and_reports_and_records_them(tmp_path):
    said: list[str] = []
    data = zipped(tmp_path / "d.zip", broken())
    outcome, rows = run(data, workspace(tmp_path, say=said.append), skip_bad=True)
    assert [row.clip_id for row in rows] == ["good"]
    assert [(one["member"], one["type"]) for one in outcome.facts["skipped"]] == EXPECTED
    left_out = " ".join(line for line in said if line.startswith("left out"))
    assert all(member in left_out for member, _ in EXPECTED)


def test_a_dangling_link_is_a_fault_that_skip_bad_leaves_out(tmp_path):
    data = folder(tmp_path / "d", {**clips("good"), "gone.wav": b"", "gone.txt": b"gone"})
    (data / "gone.wav").unlink()
    (data / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    assert faults(data, tmp_path) == [("gone.wav", "dangling_link")]
    outcome, rows = run(data, workspace(tmp_path), skip_bad=True)
    assert [row.clip_id for row in rows] == ["good"]
    assert [one["type"] for one in outcome.facts["skipped"]] == ["dangling_link"]


def test_faults_of_the_archive_end_the_run_even_with_skip_bad(tmp_path):
    data = zipped(tmp_path / "d.zip", {**clips("good"), "../evil.wav": b"x", "bad.wav": b"words", "bad.txt": b"x"})
    assert ("../evil.wav", "path_traversal") in faults(data, tmp_path, skip_bad=True)
    assert ("bad.wav", "audio_decode_error") in faults(data, tmp_path, skip_bad=True)


def test_no_usable_clip_is_a_fault_listed_with_those_of_the_clips(tmp_path):
    data = folder(tmp_path / "d", {"a.wav": b"words", "a.txt": b"x"})
    assert faults(data, tmp_path, skip_bad=True) == [("", "too_few_clips"), ("a.wav", "audio_decode_error")]


def test_an_empty_dataset_has_too_few_clips(tmp_path):
    (tmp_path / "d").mkdir()
    assert faults(tmp_path / "d", tmp_path) == [("", "too_few_clips")]
    assert faults(folder(tmp_path / "d", clips("a", "b", "c")), tmp_path, min_clips=4) == [("", "too_few_clips")]


def test_too_many_clips_are_refused_before_any_is_decoded(tmp_path, decoded):
    data = folder(tmp_path / "d", {**clips("a", "b", "c"), "d.txt": b"alone"})
    assert faults(data, tmp_path, max_clips=2) == [("", "too_many_clips"), ("d.txt", "missing_audio")]
    assert decoded == []


def test_limits_hold_although_the_dataset_was_listed_under_wider_ones(tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(limits, "RATIO_FLOOR_BYTES", 1 << 20)
    nearly_empty = np.zeros((400_000, 2))
    nearly_empty[:4000] = np.random.default_rng(0).uniform(-1, 1, (4000, 2))
    files = {**clips("a", "b"), "bomb.wav": sound(nearly_empty), "bomb.txt": b"bomb"}
    data = zipped(tmp_path / "d.zip", files, zipfile.ZIP_DEFLATED)
    assert faults(data, tmp_path, max_compression_ratio=50.0) == [("bomb.wav", "compression_ratio")]
    assert faults(data, tmp_path, max_member_bytes=200_000) == [("bomb.wav", "member_too_large")]
    assert len(decoded) == 2
    assert faults(data, tmp_path, max_total_bytes=200_000) == [("", "archive_too_large")]
    assert len(decoded) == 2


def test_a_file_that_changes_while_the_dataset_is_read_is_a_fault(tmp_path):
    data = folder(tmp_path / "d", clips("a", "b"))
    source = open_source(data)
    (data / "a.wav").write_bytes(sound(tone(1.0)))
    with pytest.raises(DatasetFaults) as caught:
        ingest(Inputs(source=source), PARAMS, workspace(tmp_path))
    assert [(one.member, one.type) for one in caught.value.faults] == [("a.wav", "member_changed")]


@pytest.mark.parametrize("num_samples", [1, 5, 4095])
@pytest.mark.parametrize("rate", [RATE, 48000, 22050])
def test_a_clip_shorter_than_a_latent_frame_is_used_with_a_note(tmp_path, num_samples, rate):
    short = sound(np.full((num_samples, 2), 0.25), rate)
    outcome, (row, _) = run(
        folder(tmp_path / "d", {"a.wav": short, "a.txt": b"a hit", **clips("b")}), workspace(tmp_path)
    )
    assert row.num_samples == read_prepared(tmp_path / "shared" / row.audio).shape[1] == -(-num_samples * RATE // rate)
    assert (row.seconds_total, row.num_samples_padded) == (1, RATE // 2 - row.num_samples)
    notes = {one["type"] for one in outcome.facts["warnings"] if one["member"] == "a.wav"}
    assert ("shorter_than_frame" in notes) == (row.num_samples < 4096)


def test_the_window_of_clips_shorter_than_a_latent_frame_is_one_frame(tmp_path):
    outcome, (row,) = run(folder(tmp_path / "d", clips("a", seconds=0.01)), workspace(tmp_path))
    assert (outcome.facts["window_samples"], outcome.facts["window_frames"]) == (4096, 1)
    assert row.num_samples + row.num_samples_padded == 4096


def test_whether_a_clip_is_shorter_than_a_frame_follows_from_the_model_not_from_what_is_stored(tmp_path, decoded):
    data = folder(tmp_path / "d", clips("a", seconds=0.5))
    run(data, workspace(tmp_path), downsampling_ratio=1024)
    outcome, _ = run(data, workspace(tmp_path), downsampling_ratio=32768)
    assert [one["type"] for one in outcome.facts["warnings"]] == ["shorter_than_frame"]
    assert len(decoded) == 1


@pytest.mark.parametrize(("peak_db", "is_silent"), [(-61, True), (-59, False)])
def test_what_peaks_below_60_db_is_silent(tmp_path, peak_db, is_silent):
    level = 10 ** (peak_db / 20)
    data = folder(tmp_path / "d", {**clips("a"), "q.wav": sound(tone(level=level), subtype="FLOAT"), "q.txt": b"quiet"})
    if is_silent:
        assert faults(data, tmp_path) == [("q.wav", "silent")]
    else:
        assert len(run(data, workspace(tmp_path))[1]) == 2


def test_too_little_disk_space_is_an_error_before_anything_is_written(tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(disk_space, "free_bytes", lambda folder: 1000)
    with pytest.raises(InsufficientDiskSpace, match="It was not begun"):
        run(folder(tmp_path / "d", clips("a")), workspace(tmp_path))
    assert decoded == []
    assert not list((tmp_path / "shared").rglob("*"))


@pytest.mark.parametrize("type", sorted(MESSAGES))
def test_every_fault_says_what_is_wrong_and_what_to_do(type):
    facts = dict.fromkeys(re.findall(r"{(\w+)", MESSAGES[type]), 1)
    said = fault("a.wav", type, **facts)
    assert len(re.findall(r"[.]( |$)", said.msg)) >= 2, "one sentence each"
    assert said.as_json() == {"loc": ["body", "audio_data_url", "a.wav"], "type": type, "msg": said.msg}
    assert set(MESSAGES) >= ARCHIVE_WIDE


def tree(root) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_rows_hold_no_numpy_numbers(tmp_path):
    _, rows = run(folder(tmp_path / "d", clips("a", rate=48000)), workspace(tmp_path))
    assert {type(value) for value in dataclasses.asdict(rows[0]).values()} <= {int, str}
