"""Normalisation layers: RMSNorm and dynamic tanh, over tokens or attention heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm, y = x / sqrt(mean(x^2) + eps) * gamma, computed in float32, returned in the dtype of x.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Input and gain are cast to float32: a 16-bit network keeps its norms exact.
        return F.rms_norm(x.float(), self.gamma.shape, self.gamma.float(), self.eps).to(x.dtype)


class DynamicTanh(nn.Module):
    """Dynamic tanh (DyT), y = gamma * tanh(alpha * x) + beta: a norm without statistics.

    Source: Zhu et al. 2025, arXiv:2503.10622.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 4.0))
        self.gamma = nn.Parameter(torch.ones(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * torch.tanh(self.alpha * x) + self.beta
