"""Prepared audio read back, whole or in part."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import PreparedAudioMissing
from stages.prepared_audio import read_prepared, read_prepared_into

NUM_SAMPLES = 30_000


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared") / "clip.flac"
    audio_XA = np.random.default_rng(0).uniform(-0.9, 0.9, (NUM_SAMPLES, 2)).astype(np.float32)
    soundfile.write(path, audio_XA, 44100, subtype="PCM_24")
    return path


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
    with pytest.raises(PreparedAudioMissing, match=r"is gone. Run `sa3-trainer ingest`"):
        read_prepared(tmp_path / "gone.flac")


def test_a_damaged_file_is_no_audio(clip, tmp_path):
    broken = tmp_path / "broken.flac"
    broken.write_bytes(clip.read_bytes()[:20_000])
    with pytest.raises(PreparedAudioMissing, match="is damaged"):
        read_prepared(broken)


def test_a_clip_read_into_an_array_is_the_clip(clip):
    out_XA = np.full((20_000, 2), np.nan, np.float32)
    read_prepared_into(clip, out_XA)
    assert np.array_equal(out_XA.T, read_prepared(clip, 0, 20_000))


def test_an_array_longer_than_the_clip_is_an_error_and_so_is_a_missing_file(clip, tmp_path):
    with pytest.raises(PreparedAudioMissing, match=f"it ends after {NUM_SAMPLES} of {NUM_SAMPLES + 1} samples"):
        read_prepared_into(clip, np.empty((NUM_SAMPLES + 1, 2), np.float32))
    with pytest.raises(PreparedAudioMissing, match="is gone"):
        read_prepared_into(tmp_path / "gone.flac", np.empty((1, 2), np.float32))
