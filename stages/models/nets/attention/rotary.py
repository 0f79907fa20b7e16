"""Rotary position embedding on part of the head features (Su et al. 2021, arXiv:2104.09864).

B batch, H heads, N tokens, D features of a head, R rotated features, K = R/2 frequencies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

BASE = 10000.0


class RotaryAngles(NamedTuple):
    """How far each feature of each position is turned; float32, the second half of R repeats the first."""

    cos_ND: Tensor
    sin_ND: Tensor


class RotaryEmbedding(nn.Module):
    """Angles from a stored table of frequencies.

    The table is a buffer that is cast with the network: in bfloat16 its frequencies are rounded. Published checkpoints
    are trained and used so, hence the angles below are float32 products with the rounded values on purpose.
    """

    inv_freq: Tensor

    def __init__(self, num_rotated: int) -> None:
        super().__init__()
        # On the CPU even in a network built on the meta device, where `arange` would import torch's compiler.
        exponent_K = torch.arange(0, num_rotated, 2, dtype=torch.float32, device="cpu") / num_rotated
        self.register_buffer("inv_freq", BASE**-exponent_K)

    def forward(self, num_positions: int) -> RotaryAngles:
        """Positions 0 to N-1."""
        position_N = torch.arange(num_positions, dtype=torch.float32, device=self.inv_freq.device)
        angle_NK = position_N[:, None] * self.inv_freq.float()
        angle_NR = torch.cat([angle_NK, angle_NK], dim=-1)
        return RotaryAngles(angle_NR.cos(), angle_NR.sin())


def rotated(features_BHND: Tensor, rotary: RotaryAngles) -> Tensor:
    """Features 0 to R-1 turned pairwise (k with k + R/2) in float32, the rest passed through; float32.

    Source: Su et al. 2021, section 3.4.2, with the pairs split in halves instead of interleaved.
    """
    num_rotated = rotary.cos_ND.shape[-1]
    turning, still = features_BHND.float().split([num_rotated, features_BHND.shape[-1] - num_rotated], dim=-1)
    first, second = turning.chunk(2, dim=-1)
    across = torch.cat([-second, first], dim=-1)
    return torch.cat([turning * rotary.cos_ND + across * rotary.sin_ND, still], dim=-1)
