"""Sources of the noise that a network adds itself: none, a given tensor, a generator, or torch's default generator."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Noise = Tensor | torch.Generator | Literal["draw"] | None
"""Standard normal noise: None, a tensor of the exact shape, a generator, or "draw" for the default generator."""


def unit_normals(noise: Noise, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """Standard normal values of `shape`, in the dtype and on the device of `like`; None if `noise` is None.

    Raises:
        ValueError: `noise` is a tensor of another shape.
    """
    if noise is None:
        return None
    if isinstance(noise, Tensor):
        if tuple(noise.shape) != shape:
            raise ValueError(f"noise must have shape {shape}; got {tuple(noise.shape)}")
        return noise.to(like)
    if noise == "draw":
        return torch.randn(shape, dtype=like.dtype, device=like.device)
    assert isinstance(noise, torch.Generator)
    return torch.randn(shape, generator=noise, dtype=like.dtype, device=noise.device).to(like.device)
