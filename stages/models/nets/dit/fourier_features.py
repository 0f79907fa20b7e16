"""Sinusoidal features of one number, exponentially spaced: for timesteps and durations.

B batch, F features, K = F/2 frequencies.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

LOWEST, HIGHEST = 0.5, 10000.0
"""Frequencies in cycles per unit of the number."""


@lru_cache(maxsize=16)
def _frequencies(num_features: int, device: torch.device) -> Tensor:
    # Always computed on the CPU: an exponential that differs in its last bit moves the phase at the top by 0.04 rad,
    # and all devices should see the same. Kept for later calls, so never as a tensor of inference mode.
    with torch.inference_mode(False):
        ramp_K = torch.linspace(0, 1, num_features // 2, dtype=torch.float32, device="cpu")
        frequency_K = (ramp_K * (math.log(HIGHEST) - math.log(LOWEST)) + math.log(LOWEST)).exp()
        return frequency_K.to(device)


def fourier_features(number_B: Tensor, num_features: int) -> Tensor:
    """(B, F): cosines of 2 pi f u, then sines, for F/2 frequencies f from 0.5 to 10000; in the dtype of `number_B`.

    Arguments reach 6e4 rad, so the order of the float32 products is part of the definition.
    """
    frequency_K = _frequencies(num_features, number_B.device)
    # Twice a float32 is exact, so this is u f * 2 * pi, rounded as often.
    angle_BK = number_B.float()[:, None] * frequency_K * (2 * math.pi)
    return torch.cat([angle_BK.cos(), angle_BK.sin()], dim=-1).to(number_B.dtype)


class FourierFeatures(nn.Module):
    """`fourier_features` as a layer without parameters."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, number_B: Tensor) -> Tensor:
        return fourier_features(number_B, self.num_features)
