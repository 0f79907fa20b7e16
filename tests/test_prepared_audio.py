"""Prepared audio read back, whole or in part."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.fingerprint import digest_file
from stages.errors import PreparedAudioMissing
from stages.prepared_audio import read_facts, read_prepared, read_prepared_into, write_facts
from tests.prepared_clips import write_prepared

NUM_SAMPLES = 30_000


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared") / "clip.flac"
    audio_XA = np.random.default_rng(0).uniform(-0.9, 0.9, (NUM_SAMPLES, 2)).astype(np.float32)
    return write_prepared(path, audio_XA)


def test_a_clip_is_two_rows_of_float32(clip):
    audio_AX = read_prepared(clip)
    assert audio_AX.shape == (2, NUM_SAMPLES)
    assert audio_AX.dtype == np.float32 and audio_AX.flags.c_contiguous


@given(bounds=st.tuples(st.integers(0, NUM_SAMPLES), st.integers(0, NUM_SAMPLES + 10_000)).map(sorted))
@settings(deadline=None, max_examples=30)
def test_a_part_is_that_part_of_the_whole(clip, bounds):
    start, stop = bounds
    start = min(start, NUM_SAMPLES)
    assert np.array_equal(read_prepared(clip, start, stop), read_prepared(clip)[:, start:stop])


def test_a_missing_file_says_how_to_make_it_again(tmp_path):
    path = tmp_path / "a store" / "shared" / "prepared" / "ab" / "gone.flac"
    store = re.escape(str(tmp_path / "a store"))
    with pytest.raises(PreparedAudioMissing, match=rf"is gone. Run `sa3-trainer verify --repair --store '{store}'`"):
        read_prepared(path)


def test_a_damaged_file_is_no_audio(clip, tmp_path):
    broken = tmp_path / "broken.flac"
    broken.write_bytes(clip.read_bytes()[:20_000])
    write_facts(broken, {"checksum": digest_file(broken), "is_silent": False})
    with pytest.raises(PreparedAudioMissing, match="is damaged"):
        read_prepared(broken)


@pytest.fixture
def sound(tmp_path):
    """A clip whose audio may be replaced."""
    return write_prepared(tmp_path / "sound.flac", np.full((5_000, 2), 0.25, np.float32))


def other_sound(sound, name):
    """Another clip of the same length and size."""
    return write_prepared(sound.with_name(name), np.full((5_000, 2), -0.25, np.float32))


def keeping_times(path, content):
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("reader", [read_prepared, lambda path: read_prepared_into(path, np.empty((100, 2), "f4"))])
def test_sound_audio_of_another_clip_is_not_taken_for_it(sound, reader):
    other = other_sound(sound, "other.flac")
    assert other.stat().st_size == sound.stat().st_size
    keeping_times(sound, other.read_bytes())
    with pytest.raises(PreparedAudioMissing, match="is damaged"):
        reader(sound)


def test_audio_that_changes_after_it_was_read_once_is_compared_again(sound):
    read_prepared(sound, 0, 100)
    other = other_sound(sound, "other.flac")
    ctime_ns = sound.stat().st_ctime_ns
    while sound.stat().st_ctime_ns == ctime_ns:  # the kernel's clock ticks every few milliseconds
        keeping_times(sound, other.read_bytes())
    with pytest.raises(PreparedAudioMissing, match="is damaged"):
        read_prepared(sound, 0, 100)


def test_a_clip_swapped_with_another_together_with_its_facts_is_noticed(sound):
    other = other_sound(sound, "other.flac")
    for suffix in (".flac", ".json"):
        keeping_times(sound.with_suffix(suffix), other.with_suffix(suffix).read_bytes())
    with pytest.raises(PreparedAudioMissing, match="cannot be compared with its facts"):
        read_prepared(sound)


def test_a_changed_digit_in_the_facts_is_noticed(sound):
    write_facts(sound, {"num_samples": 5000, "checksum": digest_file(sound), "is_silent": False})
    facts = sound.with_suffix(".json")
    keeping_times(facts, facts.read_bytes().replace(b"5000", b"4000"))
    with pytest.raises(ValueError, match="checksum does not match"):
        read_facts(sound)


def test_a_file_is_compared_once_per_process_however_many_crops_are_read(sound, monkeypatch):
    read_prepared(sound, 0, 100)
    monkeypatch.setattr("stages.prepared_audio.digest_file", pytest.fail)
    assert read_prepared(sound, 100, 200).shape == (2, 100)


def test_a_folder_in_place_of_the_audio_is_an_error_that_says_so(sound):
    sound.unlink()
    sound.mkdir()
    with pytest.raises(PreparedAudioMissing, match="is no regular file"):
        read_prepared(sound)


def test_a_clip_read_into_an_array_is_the_clip(clip):
    out_XA = np.full((20_000, 2), np.nan, np.float32)
    read_prepared_into(clip, out_XA)
    assert np.array_equal(out_XA.T, read_prepared(clip, 0, 20_000))


def test_an_array_longer_than_the_clip_is_an_error_and_so_is_a_missing_file(clip, tmp_path):
    with pytest.raises(PreparedAudioMissing, match=f"it ends after {NUM_SAMPLES} of {NUM_SAMPLES + 1} samples"):
        read_prepared_into(clip, np.empty((NUM_SAMPLES + 1, 2), np.float32))
    with pytest.raises(PreparedAudioMissing, match="is gone"):
        read_prepared_into(tmp_path / "gone.flac", np.empty((1, 2), np.float32))
