"""What a level meter shows of a whole recording: clipping and direct current. Suffixes: N samples, C channels (two)."""

from __future__ import annotations

import numpy as np

_NEARLY_FULL = 1 - 2.0**-14
"""The two highest of the 16 bit values and above; decoded lossy audio overshoots full scale."""
_SHORTEST_RUN = 4
"""Samples: a shorter run at full scale is what a peak normaliser leaves."""

_SHORTEST_DROPOUT = 256
_LOUD = 0.02
"""A sound that fades, or a gate that closes, is quieter than this where silence begins."""


def _is_sound(block_CN: np.ndarray) -> np.ndarray:
    """(n,) bool, False where both channels are exactly zero."""
    # A sample pair read as one double is zero when both halves are; adding zero turns -0.0 into it.
    pairs_N = np.ascontiguousarray(block_CN.T + np.float32(0.0)).view(np.float64)[:, 0]
    return np.not_equal(pairs_N, 0.0)


def _is_loud(sample_C: np.ndarray) -> bool:
    return bool(np.abs(sample_C).max() > _LOUD)


class Level:
    """Grows block by block; the blocks' boundaries are fixed, so the same recording always measures the same."""

    def __init__(self) -> None:
        self.num_clipped = 0
        """Samples of both channels in runs of at least four at full scale, of one sign."""
        self.num_runs = 0
        self.num_dropouts = 0
        """Stretches of at least 256 samples of exact silence right behind something loud."""
        self._num_zeros = 0
        self._last_loud = False
        self._sum_C = np.zeros(2)
        self._num_samples = 0

    def add(self, block_CN: np.ndarray, peak: float) -> None:
        """Look at one block, whose peak is known already."""
        # Channel by channel: numpy is slow at summing over the longer axis of interleaved samples.
        self._sum_C += [channel_N.sum() for channel_N in block_CN]
        self._num_samples += block_CN.shape[1]
        if peak >= _NEARLY_FULL:
            for sign in (1, -1):
                self._count(block_CN * sign >= _NEARLY_FULL)
        self._find_dropouts(block_CN)

    def _find_dropouts(self, block_CN: np.ndarray) -> None:
        """Runs of exact zeros in both channels behind something loud; one may go on from block to block."""
        sounds_N = _is_sound(block_CN)
        if sounds_N.all():
            self._num_zeros, self._last_loud = 0, _is_loud(block_CN[:, -1])
            return
        places = np.flatnonzero(sounds_N)
        if not places.size:
            self._go_on(block_CN.shape[1])
            return
        self._go_on(int(places[0]))
        for before in places[np.flatnonzero(np.diff(places) > _SHORTEST_DROPOUT)]:
            self.num_dropouts += _is_loud(block_CN[:, before])
        self._num_zeros, self._last_loud = 0, _is_loud(block_CN[:, places[-1]])
        self._go_on(block_CN.shape[1] - 1 - int(places[-1]))

    def _go_on(self, num_zeros: int) -> None:
        """More zeros behind the last sound; the run counts once, as soon as it is long enough."""
        before, self._num_zeros = self._num_zeros, self._num_zeros + num_zeros
        self.num_dropouts += self._last_loud and before < _SHORTEST_DROPOUT <= self._num_zeros

    def _count(self, full_CN: np.ndarray) -> None:
        """Add the runs of True that are long enough."""
        edges_CN = np.diff(full_CN.astype(np.int8), axis=1, prepend=0, append=0)
        # Row by row, the beginnings and the ends come in the same order.
        lengths = np.nonzero(edges_CN == -1)[1] - np.nonzero(edges_CN == 1)[1]
        runs = lengths[lengths >= _SHORTEST_RUN]
        self.num_clipped += int(runs.sum())
        self.num_runs += int(runs.size)

    @property
    def dc_offset(self) -> float:
        """The mean of the channel that is further off centre; rounded, as its last digits depend on the processor."""
        means_C = self._sum_C / max(1, self._num_samples)
        return round(float(means_C[np.argmax(np.abs(means_C))]), 5)
