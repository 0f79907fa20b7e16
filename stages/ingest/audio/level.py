"""Measures clipping, dropouts and DC offset of a recording. Suffixes: A audio channels (two), X samples."""

from __future__ import annotations

import numpy as np

_NEARLY_FULL = 1 - 2.0**-14
"""The two highest 16-bit values and above; decoded lossy audio overshoots full scale."""
_MIN_CLIPPED_SAMPLES = 4
"""Shorter runs at full scale are what a peak normaliser leaves."""
_MIN_DROPOUT_SAMPLES = 256
_LOUD = 0.02
"""Peak of the last sample before a dropout, at least; before silence after a fade or a gate, audio is quieter."""


def _is_sound(block_AX: np.ndarray) -> np.ndarray:
    """(X,) bool, False where both channels are exactly zero."""
    # A sample pair read as one double is zero when both halves are; adding zero turns -0.0 into it.
    pairs_X = np.ascontiguousarray(block_AX.T + np.float32(0.0)).view(np.float64)[:, 0]
    return np.not_equal(pairs_X, 0.0)


def _is_loud(sample_A: np.ndarray) -> bool:
    return bool(np.abs(sample_A).max() > _LOUD)


class LevelMeter:
    """Measures a recording block by block. Block boundaries are fixed, so results are reproducible."""

    def __init__(self) -> None:
        self.num_clipped = 0
        """Samples of both channels in runs of at least four at full scale, of one sign."""
        self.num_runs = 0
        self.num_dropouts = 0
        """Stretches of at least 256 samples of exact silence that follow loud audio directly."""
        self._num_zeros = 0
        self._last_loud = False
        self._sum_A = np.zeros(2)
        self._num_samples = 0

    def add(self, block_AX: np.ndarray, peak: float) -> None:
        """Add one block, (A, X), and its peak."""
        # Channel by channel: numpy is slow at summing over the longer axis of interleaved samples.
        self._sum_A += [channel_X.sum() for channel_X in block_AX]
        self._num_samples += block_AX.shape[1]
        if peak >= _NEARLY_FULL:
            for sign in (1, -1):
                self._count_clipped(block_AX * sign >= _NEARLY_FULL)
        self._find_dropouts(block_AX)

    def _find_dropouts(self, block_AX: np.ndarray) -> None:
        """Count runs of exact zeros in both channels after loud audio; a run may continue into the next block."""
        sounds_X = _is_sound(block_AX)
        if sounds_X.all():
            self._num_zeros, self._last_loud = 0, _is_loud(block_AX[:, -1])
            return
        sound_indices = np.flatnonzero(sounds_X)
        if not sound_indices.size:
            self._extend_silence(block_AX.shape[1])
            return
        self._extend_silence(int(sound_indices[0]))
        for before in sound_indices[np.flatnonzero(np.diff(sound_indices) > _MIN_DROPOUT_SAMPLES)]:
            self.num_dropouts += _is_loud(block_AX[:, before])
        self._num_zeros, self._last_loud = 0, _is_loud(block_AX[:, sound_indices[-1]])
        self._extend_silence(block_AX.shape[1] - 1 - int(sound_indices[-1]))

    def _extend_silence(self, num_zeros: int) -> None:
        """Add zeros to the current run, which counts once, as soon as it is long enough."""
        before, self._num_zeros = self._num_zeros, self._num_zeros + num_zeros
        self.num_dropouts += self._last_loud and before < _MIN_DROPOUT_SAMPLES <= self._num_zeros

    def _count_clipped(self, full_AX: np.ndarray) -> None:
        """Count the runs of True that are long enough."""
        edges_AX = np.diff(full_AX.astype(np.int8), axis=1, prepend=0, append=0)
        # Starts and ends come in the same order, row by row.
        lengths = np.nonzero(edges_AX == -1)[1] - np.nonzero(edges_AX == 1)[1]
        runs = lengths[lengths >= _MIN_CLIPPED_SAMPLES]
        self.num_clipped += int(runs.sum())
        self.num_runs += int(runs.size)

    @property
    def dc_offset(self) -> float:
        """The larger of the channels' means, rounded because its last digits depend on the processor."""
        means_A = self._sum_A / max(1, self._num_samples)
        return round(float(means_A[np.argmax(np.abs(means_A))]), 5)
