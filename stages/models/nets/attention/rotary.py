"""Rotary position embedding (RoPE) on the first features of each head (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

BASE = 10000.0


class RotaryAngles(NamedTuple):
    """Cosine and sine of the rotation angle per position and rotated feature, float32.

    D counts the rotated features only; the second half of them repeats the angles of the first.
    """

    cos_ND: Tensor
    sin_ND: Tensor


class RotaryEmbedding(nn.Module):
    """Rotation angles from a stored table of inverse frequencies.

    The table is a buffer that is cast with the network: in bfloat16 its frequencies are rounded. Published checkpoints
    are trained and used that way, so the angles are float32 products with the rounded values on purpose.
    """

    inv_freq: Tensor

    def __init__(self, num_rotated: int) -> None:
        super().__init__()
        # On the CPU even in a network built on the meta device, where `arange` would import torch's compiler.
        exponent = torch.arange(0, num_rotated, 2, dtype=torch.float32, device="cpu") / num_rotated
        self.register_buffer("inv_freq", BASE**-exponent)

    def forward(self, num_positions: int) -> RotaryAngles:
        """Angles of positions 0 to N - 1."""
        position_N = torch.arange(num_positions, dtype=torch.float32, device=self.inv_freq.device)
        angle = position_N[:, None] * self.inv_freq.float()
        angle_ND = torch.cat([angle, angle], dim=-1)
        return RotaryAngles(angle_ND.cos(), angle_ND.sin())


def rotated(features_BHND: Tensor, rotary: RotaryAngles) -> Tensor:
    """The rotary embedding applied to the first features of each head; the rest pass through. Float32.

    Feature k of the first half is paired with feature k of the second half; Su et al. 2021, section 3.4.2, interleave
    the pairs.
    """
    num_rotated = rotary.cos_ND.shape[-1]
    rotating, passed = features_BHND.float().split([num_rotated, features_BHND.shape[-1] - num_rotated], dim=-1)
    first, second = rotating.chunk(2, dim=-1)
    crossed = torch.cat([-second, first], dim=-1)
    return torch.cat([rotating * rotary.cos_ND + crossed * rotary.sin_ND, passed], dim=-1)
