"""Sample-rate conversion: resampy's `kaiser_best` filter evaluated exactly at the rational phases, as matrix products.

With to/from reduced to L/M, output m lies at input position m M/L. The positions between inputs repeat every M inputs,
so L columns of taps serve the whole signal: output = frames of input @ taps. This holds for any two rates.

Suffixes: A audio channels, X samples.
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
"""Least inputs per frame: a shorter period is repeated, as thin matrix products are slow."""
_PHASES_AT_ONCE = 48
"""Outputs of one matrix product. Neighbouring phases share most of their inputs; distant phases share none."""
_CHUNK_SAMPLES = 1 << 16
"""Input samples per round and channel. Fixed, so that the same signal has the same matrix shapes and rounding."""
_KEPT_TAPS = 1 << 23
"""Most taps (float32) that are kept between rounds; a ratio that needs more computes them again in each round."""
_PRODUCT_SIZE = 1 << 18
"""Most multiplications of one matrix product. BLAS libraries compute products this small in the calling thread, so the
samples do not depend on the number of threads or workers."""


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Some neighbouring outputs of a period, and the part of the input frame that they depend on."""

    outputs: slice
    inputs: slice
    taps: np.ndarray
    """(inputs, outputs) float32."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The geometry of one conversion, in samples."""

    up: int
    """L: outputs per `down` inputs."""
    down: int
    """M: inputs per `up` outputs."""
    reach: int
    """Inputs on each side of a position that the filter covers."""
    num_inputs: int
    """Inputs from one row of the matrix product to the next: a multiple of M."""
    num_outputs: int
    """Outputs of one row: the same multiple of L."""

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
        """Inputs that one row depends on: its own and the filter's reach on both sides."""
        return self.num_inputs + 2 * self.reach


def _multiple(number: int, of: int) -> int:
    """The least multiple of `of` that is at least `number`."""
    return -(-number // of) * of


def resampled_length(num_samples: int, from_hz: int, to_hz: int) -> int:
    """ceil(n * to / from): the number of outputs whose position lies inside the signal."""
    return -(-num_samples * to_hz // from_hz)


def resample(audio_AX: np.ndarray, from_hz: int, to_hz: int, engine: str = "resampy") -> np.ndarray:
    """A whole signal at another rate: (A, X) float32 in, (A, ceil(X * to / from)) float32 out."""
    return np.concatenate(list(resampled([audio_AX], from_hz, to_hz, engine)) or [audio_AX[:, :0]], axis=1)


def resampled(
    blocks_AX: Iterable[np.ndarray], from_hz: int, to_hz: int, engine: str = "resampy"
) -> Iterator[np.ndarray]:
    """A stream of blocks at another rate. Memory use is a few rounds, however long the signal is.

    Args:
        blocks_AX: consecutive float32 blocks of any lengths; the signal is preceded and followed by silence.
        engine: a name of `RESAMPLERS`.

    Yields:
        float32 blocks whose lengths add up to ceil(n * to / from); the samples do not depend on the input's blocks.
    """
    if from_hz == to_hz:
        for (
            block_AX
        ) in blocks_AX:  # not `yield from`, which would close the caller's iterator when this one stops early
            yield block_AX
        return
    if engine == "soxr":
        yield from _by_soxr(blocks_AX, from_hz, to_hz)
        return
    ratio = ratio_of(from_hz, to_hz)
    num_in = num_out = 0
    pending_AX: np.ndarray | None = None
    for block_AX in blocks_AX:
        if pending_AX is None:
            pending_AX = np.zeros((block_AX.shape[0], ratio.reach), np.float32)
        num_in += block_AX.shape[1]
        longer_AX = np.empty((block_AX.shape[0], pending_AX.shape[1] + block_AX.shape[1]), np.float32)
        pending_AX = np.concatenate(
            [pending_AX, block_AX], axis=1, out=longer_AX
        )  # C-contiguous whatever the blocks are
        while pending_AX.shape[1] >= _round_samples(ratio):
            yield _one_round(pending_AX, ratio)
            num_out += ratio.num_rows * ratio.num_outputs
            pending_AX = pending_AX[:, ratio.num_rows * ratio.num_inputs :]
    if pending_AX is not None:
        yield from _tail(pending_AX, ratio, resampled_length(num_in, from_hz, to_hz) - num_out)


def _by_soxr(blocks_AX: Iterable[np.ndarray], from_hz: int, to_hz: int) -> Iterator[np.ndarray]:
    """Resampled by soxr, whose length is rounded, so its end is cut or padded by a sample to the length used here."""
    import soxr  # deferred: an optional package

    num_in = num_out = 0
    stream = soxr.ResampleStream(from_hz, to_hz, 2, dtype="float32", quality=RESAMPLERS["soxr"]["filter"])
    for block_AX in blocks_AX:
        num_in += block_AX.shape[1]
        out_AX = np.ascontiguousarray(stream.resample_chunk(np.ascontiguousarray(block_AX.T)).T)
        num_out += out_AX.shape[1]
        if out_AX.shape[1]:
            yield out_AX
    missing = resampled_length(num_in, from_hz, to_hz) - num_out
    rest_AX = stream.resample_chunk(np.zeros((0, 2), np.float32), last=True).T[:, :missing]
    if missing > 0:
        yield np.ascontiguousarray(np.pad(rest_AX, ((0, 0), (0, missing - rest_AX.shape[1]))))


def _tail(pending_AX: np.ndarray, ratio: Ratio, num_missing: int) -> Iterator[np.ndarray]:
    """The last outputs, with silence after the signal."""
    while num_missing > 0:
        short = max(0, _round_samples(ratio) - pending_AX.shape[1])
        out_AX = _one_round(np.pad(pending_AX, ((0, 0), (0, short))), ratio)[:, :num_missing]
        yield out_AX
        num_missing -= out_AX.shape[1]
        pending_AX = pending_AX[:, ratio.num_rows * ratio.num_inputs :]


def _round_samples(ratio: Ratio) -> int:
    """Inputs that one round depends on."""
    return (ratio.num_rows - 1) * ratio.num_inputs + ratio.frame


def _one_round(pending_AX: np.ndarray, ratio: Ratio) -> np.ndarray:
    """`num_rows` periods of output from the first inputs of `pending_AX`; the matrix shapes are always the same."""
    # windows: (A, inputs, frame); frames: (products, rows, frame); out: (products, rows, outputs).
    windows = np.lib.stride_tricks.sliding_window_view(pending_AX[:, : _round_samples(ratio)], ratio.frame, axis=1)
    frames = np.ascontiguousarray(windows[:, :: ratio.num_inputs]).reshape(-1, ratio.rows_at_once, ratio.frame)
    out = np.empty((*frames.shape[:2], ratio.num_outputs), np.float32)
    for phases in _phases(ratio):
        np.matmul(frames[..., phases.inputs], phases.taps, out=out[..., phases.outputs])
    return out.reshape(pending_AX.shape[0], -1)


@lru_cache(maxsize=64)
def ratio_of(from_hz: int, to_hz: int) -> Ratio:
    """The reduced ratio and the geometry of its matrix products."""
    divisor = math.gcd(from_hz, to_hz)
    up, down = to_hz // divisor, from_hz // divisor
    _, _, num_zeros = _window()
    reach = math.ceil(num_zeros * max(1.0, down / up)) + 1
    repeats = max(1, math.ceil(_SMALLEST_PERIOD / down))
    return Ratio(up=up, down=down, reach=reach, num_inputs=repeats * down, num_outputs=repeats * up)


def _phases(ratio: Ratio) -> Iterable[Phases]:
    """The taps of every phase, kept between rounds if they are few enough."""
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
        times = np.arange(inputs.start, inputs.stop, dtype=np.int64)[:, None] - ratio.reach
        # The distance between input and output in units of 1/L input samples: exact in integers.
        distance = np.abs(times * ratio.up - np.arange(start, stop, dtype=np.int64) * ratio.down)
        taps = _filter(distance / max(ratio.up, ratio.down)) * min(1.0, ratio.up / ratio.down)
        yield Phases(outputs=slice(start, stop), inputs=inputs, taps=taps.astype(np.float32))


def _filter(zeros: np.ndarray) -> np.ndarray:
    """The filter at a distance in zero crossings, float64; zero beyond the last crossing."""
    half_window, table_step, _ = _window()
    place = zeros * table_step
    before = np.minimum(place.astype(np.int64), half_window.size - 2)
    between = half_window[before] + (half_window[before + 1] - half_window[before]) * (place - before)
    # The table's last entry is -5e-8, not zero, so positions beyond must be set to zero, not clamped.
    return np.where(place <= half_window.size - 1, between, 0.0)


@lru_cache(maxsize=1)
def _window() -> tuple[np.ndarray, int, int]:
    """Right half of the window, entries per zero crossing, zero crossings."""
    package = find_spec("resampy")  # not imported: that would compile for more than a second in every worker
    assert package is not None and package.submodule_search_locations, "resampy is a dependency"
    with np.load(Path(package.submodule_search_locations[0]) / "data" / f"{FILTER}.npz") as table:
        half_window, table_step = table["half_window"], int(table["precision"])
    return half_window, table_step, (half_window.size - 1) // table_step
