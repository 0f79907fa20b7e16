"""Where a network's own random numbers come from: nowhere, the caller's tensor, or a generator."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Noise = Tensor | torch.Generator | Literal["draw"] | None
"""Unit normals: none at all, a tensor of exactly the shape needed, a generator to draw from, or torch's own draw."""


def unit_normals(noise: Noise, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """The normals for `shape`, in the dtype and on the device of `like`; None where there is to be no noise.

    Raises:
        ValueError: a tensor of another shape.
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
