"""Fourier features of a scalar with exponentially spaced frequencies, for timesteps and durations."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

LOWEST, HIGHEST = 0.5, 10000.0
"""Range of frequencies, in cycles per unit of the number."""


@lru_cache(maxsize=16)
def _frequencies(num_features: int, device: torch.device) -> Tensor:
    # Always computed on the CPU: an exponential that differs in its last bit moves the highest phase by 0.04 rad, and
    # all devices should use the same. Cached for later calls, so it must not be an inference-mode tensor.
    with torch.inference_mode(False):
        ramp = torch.linspace(0, 1, num_features // 2, dtype=torch.float32, device="cpu")
        frequencies = (ramp * (math.log(HIGHEST) - math.log(LOWEST)) + math.log(LOWEST)).exp()
        return frequencies.to(device)


def fourier_features(number_B: Tensor, num_features: int) -> Tensor:
    """(B, F): cos(2 pi f u), then sin(2 pi f u), for F/2 frequencies f from 0.5 to 10000; in the dtype of `number_B`.

    Angles reach 6e4 rad, so the order of the float32 products is part of the definition.
    """
    frequencies = _frequencies(num_features, number_B.device)
    # Doubling a float32 is exact, so this rounds exactly as u * f * 2 * pi does.
    angle = number_B.float()[:, None] * frequencies * (2 * math.pi)
    return torch.cat([angle.cos(), angle.sin()], dim=-1).to(number_B.dtype)


class FourierFeatures(nn.Module):
    """`fourier_features` as a parameter-free layer."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, number_B: Tensor) -> Tensor:
        return fourier_features(number_B, self.num_features)
