"""Sample-rate conversion: its accuracy, and its independence of blocks, threads and position."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.ingest.audio.resample import ratio_of, resample, resampled, resampled_length
from stages.ingest.stage import RESAMPLERS

TO_HZ = 44100


def sine(hz: float, rate_hz: int, seconds: float = 2.0) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def raw_snr_db(hz: float, from_hz: int) -> float:
    """Signal-to-error ratio of a resampled sine against the sine at the new rate; no fitted gain or phase, no edges."""
    out_X = resample(sine(hz, from_hz)[None].astype(np.float32), from_hz, TO_HZ)[0]
    true_X = sine(hz, TO_HZ)[: out_X.size]
    inner = slice(1000, -1000)
    return 10 * math.log10(np.mean(true_X[inner] ** 2) / np.mean((out_X[inner] - true_X[inner]) ** 2))


def dense(audio_X: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """The defining sum of the filter, output by output, in float64."""
    from resampy.filters import get_filter

    half_window, per_zero, _ = get_filter("kaiser_best")
    shrink = min(1.0, to_hz / from_hz)
    place_X = np.arange(audio_X.size)
    entries = np.arange(half_window.size)
    out = []
    for number in range(resampled_length(audio_X.size, from_hz, to_hz)):
        zeros_X = np.abs(place_X - number * from_hz / to_hz) * shrink
        out.append(shrink * audio_X @ np.interp(zeros_X * per_zero, entries, half_window, right=0.0))
    return np.array(out)


@pytest.mark.parametrize(
    ("hz", "from_hz", "least_db"),
    [
        (997, 48000, 130),
        (17640, 48000, 125),
        (997, 96000, 130),
        (17640, 96000, 125),
        (997, 22050, 105),
        (997, 8000, 105),
    ],
)
def test_a_tone_is_resampled_to_the_same_tone(hz, from_hz, least_db):
    assert raw_snr_db(hz, from_hz) > least_db


@pytest.mark.parametrize(("from_hz", "lowest_hz"), [(48000, 22750), (96000, 22750)])
def test_frequencies_above_the_new_nyquist_frequency_are_removed(from_hz, lowest_hz):
    for hz in np.linspace(lowest_hz, from_hz / 2 - 50, 9):
        out_X = resample(sine(hz, from_hz)[None].astype(np.float32), from_hz, TO_HZ)[0]
        assert 20 * math.log10(np.abs(out_X[1000:-1000]).max()) < -120


@pytest.mark.parametrize("from_hz", [8000, 22050, 32000, 44099, 48000, 88200, 96000, 192000])
def test_a_constant_keeps_its_level(from_hz):
    out_X = resample(np.full((1, from_hz), 0.5, np.float32), from_hz, TO_HZ)[0]
    np.testing.assert_allclose(out_X[500:-500], 0.5, rtol=3e-6)


@given(
    from_hz=st.sampled_from([8000, 11025, 22050, 32000, 44056, 48000, 96000, 44101]),
    num_samples=st.integers(1, 400),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_the_matrix_products_are_the_defining_sum(from_hz, num_samples, seed):
    audio_X = np.random.default_rng(seed).uniform(-1, 1, num_samples).astype(np.float32)
    out_X = resample(audio_X[None], from_hz, TO_HZ)[0]
    np.testing.assert_allclose(out_X, dense(audio_X, from_hz, TO_HZ), atol=2e-6)


@given(from_hz=st.integers(2000, 400_000), num_samples=st.integers(0, 10**9))
@settings(deadline=None)
def test_the_length_is_the_least_that_covers_the_signal(from_hz, num_samples):
    length = resampled_length(num_samples, from_hz, TO_HZ)
    assert (length - 1) * from_hz < num_samples * TO_HZ <= length * from_hz or length == num_samples == 0


@pytest.mark.parametrize("num_samples", [0, 1, 159, 160, 161, 44100, 48000, 65536, 70000])
def test_signals_of_any_length_follow_the_length_rule(num_samples):
    assert resample(np.zeros((2, num_samples), np.float32), 48000, TO_HZ).shape == (
        2,
        math.ceil(num_samples * 147 / 160),
    )


def test_resampling_is_linear():
    random = np.random.default_rng(0)
    one_AX, two_AX = random.uniform(-1, 1, (2, 2, 30000)).astype(np.float32)
    mixed_AX = resample(0.5 * one_AX + 0.25 * two_AX, 48000, TO_HZ)
    apart_AX = 0.5 * resample(one_AX, 48000, TO_HZ) + 0.25 * resample(two_AX, 48000, TO_HZ)
    np.testing.assert_allclose(mixed_AX, apart_AX, atol=1e-6)


@given(periods=st.integers(1, 900))
@settings(max_examples=10, deadline=None)
def test_a_delay_by_whole_periods_is_a_delay_by_whole_periods_after_resampling(periods):
    up, down = ratio_of(48000, TO_HZ).up, ratio_of(48000, TO_HZ).down
    audio_AX = np.random.default_rng(1).uniform(-1, 1, (1, 20000)).astype(np.float32)
    late_AX = np.pad(audio_AX, ((0, 0), (periods * down, 0)))
    np.testing.assert_allclose(
        resample(late_AX, 48000, TO_HZ)[:, periods * up :], resample(audio_AX, 48000, TO_HZ), atol=1e-6
    )


@given(cuts=st.lists(st.integers(0, 150_000), max_size=6), from_hz=st.sampled_from([48000, 22050, 44100]))
@settings(max_examples=12, deadline=None)
def test_the_samples_do_not_depend_on_the_blocks_they_come_in(cuts, from_hz):
    audio_AX = np.random.default_rng(2).uniform(-1, 1, (2, 150_000)).astype(np.float32)
    bounds = [0, *sorted(cuts), 150_000]
    blocks = [audio_AX[:, start:stop] for start, stop in pairwise(bounds)]
    streamed_AX = np.concatenate(list(resampled(blocks, from_hz, TO_HZ)), axis=1)
    assert np.array_equal(streamed_AX, resample(audio_AX, from_hz, TO_HZ))


def test_equal_rates_change_nothing():
    audio_AX = np.random.default_rng(3).uniform(-1, 1, (2, 1000)).astype(np.float32)
    assert np.array_equal(resample(audio_AX, TO_HZ, TO_HZ), audio_AX)


def test_memory_does_not_grow_with_the_signal():
    def peak_bytes(num_blocks: int) -> int:
        tracemalloc.start()
        for _ in resampled((np.zeros((2, 32768), np.float32) for _ in range(num_blocks)), 48000, TO_HZ):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(8)
    assert peak_bytes(200) < 1.5 * peak_bytes(20)


@pytest.mark.parametrize(("from_hz", "tolerance"), [(22050, 1e-6), (32000, 1e-6), (48000, 3e-4), (96000, 3e-4)])
def test_samples_are_those_of_resampy_up_to_its_rounding(from_hz, tolerance):
    """Going down, resampy steps through its table in whole entries: 5e-5 of time, hence the wider bound."""
    import resampy

    audio_X = (0.5 * sine(1000, from_hz, 0.5) + 0.3 * sine(5000, from_hz, 0.5)).astype(np.float32)
    theirs_X = resampy.resample(audio_X, from_hz, TO_HZ, filter=RESAMPLERS["resampy"]["filter"])
    ours_X = resample(audio_X[None], from_hz, TO_HZ)[0]
    inner = slice(300, theirs_X.size - 300)
    np.testing.assert_allclose(ours_X[inner], theirs_X[inner], atol=tolerance)


def test_samples_depend_neither_on_threads_nor_on_compilation():
    code = (
        "import hashlib, numpy, resampy.interpn as compiled; from stages.ingest.audio.resample import resample\n"
        "total = hashlib.sha256()\n"
        "for rate in (8000, 22050, 44099, 48000, 96000):\n"
        "    noise = numpy.random.default_rng(rate).uniform(-1, 1, (2, 100_000)).astype(numpy.float32)\n"
        "    total.update(resample(noise, rate, 44100).tobytes())\n"
        "print(total.hexdigest(), len(compiled._resample_loop_s.signatures), len(compiled._resample_loop_p.signatures))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(said) == 1
    assert said.pop().split()[1:] == ["0", "0"]
