"""Short-time spectra of several resolutions and their mel bands, shared by losses and figures."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stages.pretrain.autoencoder.architecture import SAMPLE_RATE_HZ

RESOLUTIONS = ((2048, 80), (512, 40), (128, 16))
"""Samples of a window, a quarter of it is the hop; and the number of mel bands."""
SMALLEST_POWER = 1e-12
"""Keeps the gradient of a magnitude finite at zero; -120 dB."""


class Spectra(nn.Module):
    """Power spectra of one resolution, scaled so that a sine of amplitude 1 has a magnitude of 1/2."""

    window: Tensor
    bands: Tensor

    def __init__(self, size: int, num_bands: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        self.register_buffer("bands", mel_bands(size, num_bands), persistent=False)

    def powers(self, signal: Tensor) -> Tensor:
        """(..., F, N) of signals (..., X), N frames."""
        flat = signal.flatten(0, -2)
        spectrum = torch.stft(flat, self.size, self.size // 4, window=self.window, return_complex=True)
        parts = torch.view_as_real(spectrum)
        return (parts.square().sum(dim=-1) * (2 / self.size) ** 2).unflatten(0, signal.shape[:-1])


def mel_bands(size: int, num_bands: int, lowest_hz: float = 20.0, highest_hz: float = 20_000.0) -> Tensor:
    """(bands, F) triangles of equal width on the mel scale, each summing to 1; none is empty."""
    edges = torch.linspace(_mel(lowest_hz), _mel(highest_hz), num_bands + 2, dtype=torch.float64)
    edge_hz = 700 * (10 ** (edges / 2595) - 1)
    bin_hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, size // 2 + 1, dtype=torch.float64)[None]
    low, middle, high = edge_hz[:-2, None], edge_hz[1:-1, None], edge_hz[2:, None]
    weights = torch.minimum((bin_hz - low) / (middle - low), (high - bin_hz) / (high - middle)).clamp(min=0)
    # A band narrower than a bin takes the nearest one.
    nearest = (bin_hz - middle).abs().argmin(dim=1)
    rows = torch.arange(num_bands)
    weights[rows, nearest] = weights[rows, nearest].clamp(min=1e-2)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _mel(frequency_hz: float) -> float:
    return 2595 * math.log10(1 + frequency_hz / 700)
