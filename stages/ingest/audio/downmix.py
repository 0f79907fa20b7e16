"""Mixes the channels of a recording down to two. Suffixes: A audio channels, X samples.

Source: ITU-R BS.775-3, annex 4 (centre and surround at -3 dB, low frequencies left out), scaled so that nothing clips.
"""

from __future__ import annotations

import math

import numpy as np

from stages.ingest.audio.channel_layout import Layout

_HALF_POWER = 2**-0.5
_GAINS: dict[str, tuple[float, float]] = {
    **{"FL": (1.0, 0.0), "FR": (0.0, 1.0), "FC": (_HALF_POWER, _HALF_POWER), "LFE": (0.0, 0.0), "BC": (0.5, 0.5)},
    **dict.fromkeys(("BL", "SL", "TFL", "TBL"), (_HALF_POWER, 0.0)),
    **dict.fromkeys(("BR", "SR", "TFR", "TBR"), (0.0, _HALF_POWER)),
    **{"FLC": (1.0, 0.0), "FRC": (0.0, 1.0)},
    **dict.fromkeys(("TC", "TFC", "TBC"), (0.5, 0.5)),
}
"""Gains to left and right."""


class StereoMixer:
    """Two channels from any number: mono doubled, stereo as it is, more mixed by their loudspeakers.

    Channels without a known arrangement are not mixed: the first two are kept.
    """

    def __init__(self, num_channels: int, layout: Layout | None) -> None:
        self._num_channels = num_channels
        is_known = num_channels > 2 and layout is not None and set(layout) <= _GAINS.keys()
        self.layout: Layout = layout if is_known and layout is not None else ()
        """The loudspeakers that are mixed; empty where nothing is mixed."""
        gains_A2 = np.array([_GAINS[name] for name in self.layout], np.float64).reshape(-1, 2)
        if not gains_A2.any():
            gains_A2 = np.eye(num_channels, 2)
            self.layout = ()
        scale = 1 / max(1.0, float(gains_A2.sum(axis=0).max()))
        self.gain_db = round(20 * math.log10(scale), 1)
        self._gains_A2 = (gains_A2 * scale).astype(np.float32)
        self._is_left_out_A = ~gains_A2.any(axis=1)
        self._power_A = np.zeros(num_channels)
        self.peak_left_out = 0.0
        """Peak of the channels that are left out; 1 is full scale."""

    def stereo(self, block_XA: np.ndarray) -> np.ndarray:
        """(X, 2) float32, contiguous, of (X, A)."""
        if self._num_channels <= 2:
            return np.ascontiguousarray(block_XA if self._num_channels == 2 else block_XA.repeat(2, axis=1))
        self._power_A += np.square(block_XA, dtype=np.float64).sum(axis=0)
        left_out = np.abs(block_XA[:, self._is_left_out_A]).max(initial=0.0)
        self.peak_left_out = max(self.peak_left_out, float(left_out))
        if not self.layout:
            return np.ascontiguousarray(block_XA[:, :2])
        mixed_X2 = np.zeros((len(block_XA), 2), np.float32)
        for channel, gains_2 in enumerate(self._gains_A2):
            mixed_X2 += block_XA[:, channel, None] * gains_2
        return mixed_X2

    @property
    def share_left_out(self) -> float:
        """Share of the sound's power that is in channels which are left out."""
        total = float(self._power_A.sum())
        return round(float(self._power_A[self._is_left_out_A].sum()) / total, 3) if total else 0.0
