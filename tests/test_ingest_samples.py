"""Fast passes over all samples give what their plain definitions give, in any memory layout."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.ingest.audio.decode import Recording
from stages.ingest.audio.flac_writer import _as_24_bit
from stages.ingest.audio.level import _is_sound
from stages.ingest.audio.resample import FILTER, _window, resampled
from tests.small_datasets import RATE, clips, folder, run, sound, tone, workspace

EDGES = [0.0, -0.0, 1.0, -1.0, 1.5, -7.0, 1 - 2.0**-24, 1 - 2.0**-23, -1 + 2.0**-24, 2.0**-24, 1e-45, -1e-45, 0.5, 3e38]
any_sample = st.sampled_from(EDGES) | st.floats(-2, 2, width=32)
any_block = arrays(np.float32, st.tuples(st.just(2), st.integers(1, 40)), elements=any_sample)


def layouts(block_AX: np.ndarray) -> list[np.ndarray]:
    """The block in planar and in interleaved layout."""
    return [np.ascontiguousarray(block_AX), np.ascontiguousarray(block_AX.T).T]


@settings(deadline=None, max_examples=100)
@given(any_block)
def test_samples_become_the_nearest_24_bit_values_clamped_to_full_scale(block_AX):
    exact_AX = np.clip(np.rint(block_AX.astype(np.float64) * 2**23), -(2**23), 2**23 - 1).astype(np.int64) * 256
    for laid_AX in layouts(block_AX):
        made_XA = _as_24_bit(laid_AX)
        assert made_XA.flags.c_contiguous and made_XA.dtype == np.int32
        np.testing.assert_array_equal(made_XA, exact_AX.T)


@settings(deadline=None, max_examples=100)
@given(any_block)
def test_a_sample_is_silent_only_where_both_channels_are_zero_of_either_sign(block_AX):
    for laid_AX in layouts(block_AX):
        np.testing.assert_array_equal(_is_sound(laid_AX), (block_AX != 0).any(axis=0))


def test_resampled_bits_do_not_depend_on_the_memory_layout_of_blocks():
    audio_AX = np.random.default_rng(0).uniform(-1, 1, (2, 100_000)).astype(np.float32)
    first, second = (
        np.concatenate(list(resampled(np.split(laid_AX, [30_000, 70_000], axis=1), 48000, RATE)), axis=1)
        for laid_AX in layouts(audio_AX)
    )
    np.testing.assert_array_equal(first, second)


def test_the_resampler_reads_resampys_table_without_starting_its_compiler():
    from resampy.filters import get_filter

    half_window, table_step, _ = get_filter(FILTER)
    np.testing.assert_array_equal(_window()[0], half_window)
    assert _window()[1] == table_step
    code = "import sys; from stages.ingest.audio.resample import _window; _window(); print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("offset", [0.0, 0.1, -0.25])
def test_the_mean_of_half_a_minute_is_accurate_to_its_five_digits(offset):
    recording = Recording(sound(tone(30.0, hz=441.0) + np.float32(offset), RATE, "WAV", "FLOAT"))
    for _ in recording.blocks():
        pass
    assert recording.level.dc_offset == pytest.approx(offset, abs=1e-5)


def test_a_clips_audio_is_flushed_before_its_facts_are_written_and_both_names_after(tmp_path, monkeypatch):
    data, work = folder(tmp_path / "d", clips("a")), workspace(tmp_path)
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(handle: int) -> None:
        done.append("flush folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "flush file")
        fsync(handle)

    def named(path: Path, final: Path) -> Path:
        done.append(f"name {final.suffix}")
        return replace(path, final)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", named)
    run(data, work)
    assert done[:4] == ["flush file", "name .flac", "name .json", "flush folder"]


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b"{"])
def test_facts_lost_in_a_power_failure_are_found_again(tmp_path, damage):
    data, work = folder(tmp_path / "d", clips("a")), workspace(tmp_path)
    _, rows = run(data, work)
    (facts,) = (tmp_path / "shared" / "prepared").rglob("*.json")
    before = facts.read_bytes()
    facts.write_bytes(damage)
    assert run(data, work)[1] == rows
    assert facts.read_bytes() == before
