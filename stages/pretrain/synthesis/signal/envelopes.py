"""Gains over time: attacks, decays, ends, slow random movement. Times in seconds, (B, 1); gains (B, X)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.pretrain.synthesis.signal.context import RenderContext

DECAY_60_DB = math.log(1000.0)
"""A gain exp(-r t) has fallen by 60 dB at t = DECAY_60_DB / r."""


def smooth_step(value: Tensor) -> Tensor:
    """From 0 to 1 along half a cosine while the value goes from 0 to 1."""
    return 0.5 - 0.5 * torch.cos(math.pi * value.clamp(0, 1))


def attack(time_X: Tensor, seconds_B1: Tensor | float) -> Tensor:
    return smooth_step(time_X / seconds_B1)


def ending(time_X: Tensor, end_B1: Tensor, fade_B1: Tensor | float) -> Tensor:
    """1, falling to 0 at the end, and 0 from there on."""
    return smooth_step((end_B1 - time_X) / fade_B1)


def decay(time_X: Tensor, seconds_B1: Tensor) -> Tensor:
    """Exponential, -60 dB after the seconds given."""
    return torch.exp(-time_X * (DECAY_60_DB / seconds_B1))


def lfo(time_X: Tensor, rate_hz_B1: Tensor, phase_turns_B1: Tensor | float = 0.0) -> Tensor:
    """Sine from -1 to 1."""
    return torch.sin(2 * math.pi * (rate_hz_B1 * time_X + phase_turns_B1))


def wander(context: RenderContext, rate_hz: float) -> Tensor:
    """Slow random movement within [0, 1], (B, X), smooth, with new values `rate_hz` times a second."""
    points = max(4, math.ceil(context.window_seconds * rate_hz) + 3)
    values_B1P = torch.rand(context.num_clips, 1, points, generator=context.parameters).to(context.device)
    return F.interpolate(smooth_step(values_B1P), size=context.num_samples, mode="linear", align_corners=True)[:, 0]
