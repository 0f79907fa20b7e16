"""Gated feed-forward layers and small MLPs, shared by the diffusion transformer and the autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


def sine(x: Tensor) -> Tensor:
    """sin(pi x), the gate activation of the autoencoder's last decoder layers."""
    return torch.sin(math.pi * x)


class GatedProjection(nn.Module):
    """Gated linear unit, a * act(g) with [a, g] = W x + b: value first, gate second.

    Source: Shazeer 2020, arXiv:2002.05202.
    """

    def __init__(self, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        # An adapted layer may fuse projection and gate.
        gated_silu: Activation | None = getattr(self.proj, "gated_silu", None)
        if gated_silu is not None and self.activation is F.silu:
            return gated_silu(x)
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * self.activation(gate)


class FeedForward(nn.Module):
    """Feed-forward layer of a transformer block: gated projection to `inner`, then back to `width`."""

    def __init__(self, width: int, inner: int, activation: Activation = F.silu) -> None:
        super().__init__()
        # Position 1 has no parameters: in published names the gated projection is 0 and the output projection 2.
        self.ff = nn.Sequential(GatedProjection(width, inner, activation), nn.Identity(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


def mlp(num_in: int, width: int, num_out: int, *, bias: bool = True) -> nn.Sequential:
    """Two-layer MLP: Linear, SiLU, Linear."""
    return nn.Sequential(nn.Linear(num_in, width, bias=bias), nn.SiLU(), nn.Linear(width, num_out, bias=bias))
