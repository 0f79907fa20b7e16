"""The tempo of drum loops, from how their onsets repeat."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.pretrain.autoencoder.architecture import SAMPLE_RATE_HZ
from stages.pretrain.synthesis.families.drum_loops import FASTEST_BPM, SLOWEST_BPM

_WINDOW, _HOP = 1024, 256
_BEATS = ((0.25, 0.5), (0.5, 0.7), (1.0, 1.0), (2.0, 1.0), (4.0, 1.0))
"""Distances at which a loop repeats itself, in beats, and their weights."""
TOLERANCE = 0.04
"""Share by which an estimate may differ."""


def tempos(audio_BAX: Tensor) -> Tensor:
    """(B,) beats per minute, between the synthesiser's slowest and fastest."""
    onset_BT = _onsets(audio_BAX.mean(dim=1))
    size = onset_BT.shape[1]
    spectrum = torch.fft.rfft(onset_BT, n=2 * size)
    repeats_BT = torch.fft.irfft(spectrum.abs().square(), n=2 * size)[:, :size]
    # A lag has the fewer pairs the longer it is.
    repeats_BT = repeats_BT / (size - torch.arange(size, device=onset_BT.device)).clamp(min=size // 8)
    repeats_BT = repeats_BT / repeats_BT[:, :1].clamp(min=1e-12)
    candidates = torch.arange(SLOWEST_BPM, FASTEST_BPM + 1, device=onset_BT.device)
    score = torch.zeros(len(onset_BT), len(candidates), device=onset_BT.device)
    weights = torch.zeros(len(candidates), device=onset_BT.device)
    for beats, weight in _BEATS:
        lag = beats * 60 / candidates * SAMPLE_RATE_HZ / _HOP
        inside = lag < size - 2
        lag = lag.clamp(max=size - 2)
        below = lag.long()
        here = torch.lerp(repeats_BT[:, below], repeats_BT[:, below + 1], lag - below)
        score += weight * here * inside
        weights += weight * inside
    return candidates[(score / weights).argmax(dim=1)]


def _onsets(audio_BX: Tensor) -> Tensor:
    """(B, T) rise of the logarithmic spectrum, without its local mean."""
    window_X = torch.hann_window(_WINDOW, device=audio_BX.device)
    spectrum = torch.stft(audio_BX.float(), _WINDOW, _HOP, window=window_X, return_complex=True).abs()
    rise_BT = (spectrum + 1e-2).log().diff(dim=-1).clamp(min=0).mean(dim=1)
    mean_BT = F.avg_pool1d(rise_BT[:, None], 65, 1, 32, count_include_pad=False)[:, 0]
    return (rise_BT - mean_BT).clamp(min=0)


def follows(found_B: Tensor, wanted_B: Tensor) -> tuple[float, float]:
    """Share of loops at the tempo wanted, and at that or its half or double."""
    ratio_B = found_B / wanted_B
    near = [(ratio_B / factor - 1).abs() < TOLERANCE for factor in (1, 0.5, 2)]
    exact_B, any_B = near[0], torch.stack(near).any(dim=0)
    return float(exact_B.float().mean()), float(any_B.float().mean())
