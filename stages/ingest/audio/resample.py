"""Sample-rate conversion: resampy's `kaiser_best` filter evaluated exactly at the rational phases, as matrix products.

With to/from reduced to L/M, output m sits at input position m M/L. The places between inputs repeat every M inputs, so
L columns of taps serve the whole signal: output = frames of input @ taps. Any two rates are served so, odd ones too.

Suffixes: C channels, N samples, K samples of one input frame, P output phases of one period.
Method: Smith, "Digital Audio Resampling" (bandlimited interpolation with a tabulated window); the table is resampy's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from stages.ingest.stage import RESAMPLERS

FILTER = RESAMPLERS["resampy"]["filter"]

_SMALLEST_PERIOD = 64
"""Inputs per frame at least: a shorter period is repeated, or the matrix products would be too thin to be fast."""
_PHASES_AT_ONCE = 48
"""Outputs of one matrix product. Neighbouring phases share most of their inputs; phases far apart share none."""
_CHUNK_SAMPLES = 1 << 16
"""Input samples per round and channel. Fixed: the same signal meets the same matrix shapes, and rounds alike."""
_KEPT_TAPS = 1 << 23
"""Taps (float32) kept from round to round; a ratio that needs more computes them afresh in each round."""
_PRODUCT_SIZE = 1 << 18
"""Multiplications of one matrix product at most. BLAS libraries compute products this small in the calling thread, so
the samples do not depend on how many threads or workers there are."""


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Some neighbouring outputs of a period, and the part of the input frame they look at."""

    outputs: slice
    inputs: slice
    taps_KP: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The geometry of one conversion, in samples."""

    up: int
    """L: outputs per `down` inputs."""
    down: int
    """M."""
    reach: int
    """Inputs on each side of a position that the filter can see."""
    num_inputs: int
    """Inputs that one row of the matrix product moves on: a multiple of M."""
    num_outputs: int
    """Outputs that one row gives: the same multiple of L."""

    @property
    def num_rows(self) -> int:
        """Rows of one round."""
        return _multiple(max(4, _CHUNK_SAMPLES // self.num_inputs), self.rows_at_once)

    @property
    def rows_at_once(self) -> int:
        """Rows of one matrix product: a power of two."""
        columns = _PHASES_AT_ONCE * (2 * self.reach + math.ceil(_PHASES_AT_ONCE * self.down / self.up) + 1)
        return 1 << max(0, (_PRODUCT_SIZE // columns).bit_length() - 1)

    @property
    def frame(self) -> int:
        """Inputs that one row looks at: its own and the filter's reach on both sides."""
        return self.num_inputs + 2 * self.reach


def _multiple(number: int, of: int) -> int:
    """The next multiple of `of`."""
    return -(-number // of) * of


def resampled_length(num_samples: int, from_hz: int, to_hz: int) -> int:
    """ceil(n * to / from): every output that begins inside the signal."""
    return -(-num_samples * to_hz // from_hz)


def resample(audio_CN: np.ndarray, from_hz: int, to_hz: int, engine: str = "resampy") -> np.ndarray:
    """A whole signal at another rate: (C, N) float32 in, (C, ceil(N * to / from)) float32 out."""
    return np.concatenate(list(resampled([audio_CN], from_hz, to_hz, engine)) or [audio_CN[:, :0]], axis=1)


def resampled(
    blocks_CN: Iterable[np.ndarray], from_hz: int, to_hz: int, engine: str = "resampy"
) -> Iterator[np.ndarray]:
    """A stream of blocks at another rate. Memory stays at a few rounds however long the signal is.

    Args:
        blocks_CN: float32 blocks of any lengths that follow each other; outside the signal is silence.
        engine: a name of `RESAMPLERS`.

    Yields:
        float32 blocks whose lengths add up to ceil(n * to / from), the same whatever the blocks were.
    """
    if from_hz == to_hz:
        for block_CN in blocks_CN:  # not `yield from`: that would close the caller's blocks when it stops early
            yield block_CN
        return
    if engine == "soxr":
        yield from _by_soxr(blocks_CN, from_hz, to_hz)
        return
    ratio = ratio_of(from_hz, to_hz)
    num_in = num_out = 0
    pending_CN: np.ndarray | None = None
    for block_CN in blocks_CN:
        if pending_CN is None:
            pending_CN = np.zeros((block_CN.shape[0], ratio.reach), np.float32)
        num_in += block_CN.shape[1]
        longer_CN = np.empty((block_CN.shape[0], pending_CN.shape[1] + block_CN.shape[1]), np.float32)
        pending_CN = np.concatenate([pending_CN, block_CN], axis=1, out=longer_CN)  # rows whole, whatever blocks are
        while pending_CN.shape[1] >= _round_samples(ratio):
            yield _one_round(pending_CN, ratio)
            num_out += ratio.num_rows * ratio.num_outputs
            pending_CN = pending_CN[:, ratio.num_rows * ratio.num_inputs :]
    if pending_CN is not None:
        yield from _tail(pending_CN, ratio, resampled_length(num_in, from_hz, to_hz) - num_out)


def _by_soxr(blocks_CN: Iterable[np.ndarray], from_hz: int, to_hz: int) -> Iterator[np.ndarray]:
    """soxr's own filter under our rule of length: it rounds, so its end is cut or filled by a sample."""
    import soxr  # deferred: an optional package

    num_in = num_out = 0
    stream = soxr.ResampleStream(from_hz, to_hz, 2, dtype="float32", quality=RESAMPLERS["soxr"]["filter"])
    for block_CN in blocks_CN:
        num_in += block_CN.shape[1]
        out_CN = np.ascontiguousarray(stream.resample_chunk(np.ascontiguousarray(block_CN.T)).T)
        num_out += out_CN.shape[1]
        if out_CN.shape[1]:
            yield out_CN
    missing = resampled_length(num_in, from_hz, to_hz) - num_out
    rest_CN = stream.resample_chunk(np.zeros((0, 2), np.float32), last=True).T[:, :missing]
    if missing > 0:
        yield np.ascontiguousarray(np.pad(rest_CN, ((0, 0), (0, missing - rest_CN.shape[1]))))


def _tail(pending_CN: np.ndarray, ratio: Ratio, num_missing: int) -> Iterator[np.ndarray]:
    """The last outputs, with silence behind the signal."""
    while num_missing > 0:
        short = max(0, _round_samples(ratio) - pending_CN.shape[1])
        out_CN = _one_round(np.pad(pending_CN, ((0, 0), (0, short))), ratio)[:, :num_missing]
        yield out_CN
        num_missing -= out_CN.shape[1]
        pending_CN = pending_CN[:, ratio.num_rows * ratio.num_inputs :]


def _round_samples(ratio: Ratio) -> int:
    """Inputs that one round looks at."""
    return (ratio.num_rows - 1) * ratio.num_inputs + ratio.frame


def _one_round(pending_CN: np.ndarray, ratio: Ratio) -> np.ndarray:
    """`num_rows` periods of output from the first inputs of `pending_CN`; the matrix shapes never vary."""
    windows_CNK = np.lib.stride_tricks.sliding_window_view(pending_CN[:, : _round_samples(ratio)], ratio.frame, axis=1)
    frames_BRK = np.ascontiguousarray(windows_CNK[:, :: ratio.num_inputs]).reshape(-1, ratio.rows_at_once, ratio.frame)
    out_BRP = np.empty((*frames_BRK.shape[:2], ratio.num_outputs), np.float32)
    for phases in _phases(ratio):
        np.matmul(frames_BRK[..., phases.inputs], phases.taps_KP, out=out_BRP[..., phases.outputs])
    return out_BRP.reshape(pending_CN.shape[0], -1)


@lru_cache(maxsize=64)
def ratio_of(from_hz: int, to_hz: int) -> Ratio:
    """The reduced ratio and the block geometry it leads to."""
    divisor = math.gcd(from_hz, to_hz)
    up, down = to_hz // divisor, from_hz // divisor
    _, _, num_zeros = _window()
    reach = math.ceil(num_zeros * max(1.0, down / up)) + 1
    repeats = max(1, math.ceil(_SMALLEST_PERIOD / down))
    return Ratio(up=up, down=down, reach=reach, num_inputs=repeats * down, num_outputs=repeats * up)


def _phases(ratio: Ratio) -> Iterable[Phases]:
    """The taps of every phase, kept between rounds where that is affordable."""
    size = ratio.num_outputs * (2 * ratio.reach + math.ceil(_PHASES_AT_ONCE * ratio.down / ratio.up))
    return _kept_phases(ratio) if size <= _KEPT_TAPS else _fresh_phases(ratio)


@lru_cache(maxsize=4)
def _kept_phases(ratio: Ratio) -> tuple[Phases, ...]:
    return tuple(_fresh_phases(ratio))


def _fresh_phases(ratio: Ratio) -> Iterator[Phases]:
    for start in range(0, ratio.num_outputs, _PHASES_AT_ONCE):
        stop = min(start + _PHASES_AT_ONCE, ratio.num_outputs)
        first = start * ratio.down // ratio.up
        inputs = slice(first, (stop - 1) * ratio.down // ratio.up + 2 * ratio.reach + 1)
        # Index `reach` of the frame is the row's first own input, so an input's time is its index - reach.
        times_K1 = np.arange(inputs.start, inputs.stop, dtype=np.int64)[:, None] - ratio.reach
        # Exact in integers: the distance between input and output in units of 1/L input samples.
        distance_KP = np.abs(times_K1 * ratio.up - np.arange(start, stop, dtype=np.int64) * ratio.down)
        taps_KP = _filter(distance_KP / max(ratio.up, ratio.down)) * min(1.0, ratio.up / ratio.down)
        yield Phases(outputs=slice(start, stop), inputs=inputs, taps_KP=taps_KP.astype(np.float32))


def _filter(zeros: np.ndarray) -> np.ndarray:
    """The filter at a distance in zero crossings, float64; nothing beyond its last crossing."""
    half_window, table_step, _ = _window()
    place = zeros * table_step
    before = np.minimum(place.astype(np.int64), half_window.size - 2)
    between = half_window[before] + (half_window[before + 1] - half_window[before]) * (place - before)
    # The table stops short of zero (at -5e-8), so what lies beyond must be cut, not held.
    return np.where(place <= half_window.size - 1, between, 0.0)


@lru_cache(maxsize=1)
def _window() -> tuple[np.ndarray, int, int]:
    """Right half of the window, entries per zero crossing, zero crossings."""
    package = find_spec("resampy")  # found, not imported: that would compile for more than a second in every worker
    assert package is not None and package.submodule_search_locations, "resampy is a dependency"
    with np.load(Path(package.submodule_search_locations[0]) / "data" / f"{FILTER}.npz") as table:
        half_window, table_step = table["half_window"], int(table["precision"])
    return half_window, table_step, (half_window.size - 1) // table_step
