"""Timesteps that training looks at: t in [0, 1], 1 = noise.

t = 1 - r with r from a truncated logistic normal, then shifted towards noise for long clips.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def truncated_logistic_normal(normals_B: np.ndarray, truncation: float = 0.075) -> np.ndarray:
    """Draws r in [0, 1] from unit normals: logit(truncation + (1 - truncation) r) is a normal truncated below.

    With c the truncation and lo = Phi(logit(c)): u = lo + (1 - lo) Phi(z), r = (sigmoid(Phi^-1(u)) - c) / (1 - c).
    In float64, where no draw rounds to u = 1.

    Args:
        normals_B: unit normals of any shape.
    """
    z = torch.from_numpy(np.asarray(normals_B, dtype=np.float64))
    low = torch.special.ndtr(torch.tensor(math.log(truncation / (1 - truncation)), dtype=torch.float64))
    u = low + (1 - low) * torch.special.ndtr(z)
    y = torch.sigmoid(torch.special.ndtri(u))
    return ((y - truncation) / (1 - truncation)).clamp(0, 1).numpy()


def timesteps(generator: np.random.Generator, count: int, truncation: float) -> Tensor:
    """(count,) float32 timesteps before the shift for length."""
    draws = truncated_logistic_normal(generator.standard_normal(count), truncation)
    return torch.from_numpy(1.0 - draws).float()


def effective_frames(seconds_total: float, sample_rate_hz: int, downsampling_ratio: int) -> int:
    """Latent frames of the whole recording rather than the crop: what the shift for length is based on."""
    return math.ceil(int(seconds_total * sample_rate_hz) / downsampling_ratio)
