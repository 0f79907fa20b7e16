"""Speed of the resampler, as a multiple of real time and of resampy's, on one thread, stereo.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_resample [SECONDS]

Rounds alternate between the two, so that a busy machine slows both; the medians and their ratio are printed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import resampy

from stages.ingest.audio.resample import FILTER, resample

TO_HZ = 44100
FROM_HZ = (48000, 96000, 88200, 32000, 22050, 8000, 192000, 44099)
ROUNDS = 3


def seconds_taken(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def speeds(from_hz: int, seconds: float) -> tuple[float, float]:
    """Multiples of real time: ours, resampy's."""
    audio_AX = np.random.default_rng(0).uniform(-1, 1, (2, round(seconds * from_hz))).astype(np.float32)
    short_AX = audio_AX[:, : from_hz // 10]
    calls = (
        lambda audio: resample(audio, from_hz, TO_HZ),
        lambda audio: resampy.resample(audio, from_hz, TO_HZ, axis=1, filter=FILTER),
    )
    for call in calls:
        call(short_AX)  # fills the tables, and compiles resampy's code
    rounds = [[seconds / seconds_taken(lambda call=call: call(audio_AX)) for call in calls] for _ in range(ROUNDS)]
    ours, theirs = zip(*rounds, strict=True)
    return statistics.median(ours), statistics.median(theirs)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    print(f"{'from Hz':>8} {'ours':>9} {'resampy':>9} {'ratio':>7}")
    for from_hz in FROM_HZ:
        ours, theirs = speeds(from_hz, seconds)
        print(f"{from_hz:>8} {ours:>8.0f}x {theirs:>8.1f}x {ours / theirs:>6.0f}x")


if __name__ == "__main__":
    main()
