"""Logarithmic mel spectra of clips, free of their level. Letters beside those of the house: Q mel bands."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

SAMPLE_RATE_HZ = 44_100
WINDOW, HOP = 2048, 512
FRAMES_PER_SECOND = SAMPLE_RATE_HZ / HOP
NUM_BANDS = 48
LOWEST_HZ, HIGHEST_HZ = 40.0, 16_000.0
FLOOR_DB = -60.0
"""Below a band of a signal at the clip's own level; what is quieter counts as silence."""
QUIETEST = 1e-4
"""Level below which a clip is silent and is not made louder."""


def mel_powers(audio_BAX: Tensor) -> Tensor:
    """(B, Q, T) power in mel bands of the channels' mean, of clips brought to a root mean square of 1."""
    mid_BX = audio_BAX.float().mean(dim=1)
    mid_BX = mid_BX / mid_BX.square().mean(dim=1, keepdim=True).sqrt().clamp_min(QUIETEST)
    window_X = torch.hann_window(WINDOW, device=audio_BAX.device)
    spectrum = torch.stft(mid_BX, WINDOW, HOP, window=window_X, pad_mode="constant", return_complex=True)
    return _bands().to(audio_BAX.device) @ (spectrum.abs().square() * (2 / WINDOW) ** 2)


def decibels(power: Tensor) -> Tensor:
    """From FLOOR_DB upwards."""
    return 10 * torch.log10(power + 10 ** (FLOOR_DB / 10))


@cache
def _bands() -> Tensor:
    """(Q, F) triangles of equal width on the mel scale (O'Shaughnessy 1987), each summing to 1."""
    edge_hz = 700 * (10 ** (torch.linspace(_mel(LOWEST_HZ), _mel(HIGHEST_HZ), NUM_BANDS + 2).double() / 2595) - 1)
    bin_hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, WINDOW // 2 + 1).double()[None]
    low, middle, high = edge_hz[:-2, None], edge_hz[1:-1, None], edge_hz[2:, None]
    weights = torch.minimum((bin_hz - low) / (middle - low), (high - bin_hz) / (high - middle)).clamp_min(0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _mel(frequency_hz: float) -> float:
    return 2595 * math.log10(1 + frequency_hz / 700)
