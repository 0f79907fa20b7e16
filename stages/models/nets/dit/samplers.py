"""From noise to latents: lengths, schedules and samplers of rectified flow.

B batch, C latent channels, T latent frames, K steps. x_t = (1 - t) data + t noise; the velocity is noise - data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from stages.models.nets.dit.timestep_shift import DEFAULT_SAMPLING_SHIFT, shifted

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(noised_BCT, timestep_B) to velocity_BCT."""
Sampler = Callable[[Velocity, Tensor, Tensor], Tensor]
"""(velocity, noise_BCT, schedule_BK1) to latents_BCT."""

HEADROOM_SECONDS = 6.0
"""Room behind the asked duration, so that an ending can ring out."""
LAST_TIMESTEP = 1e-5
"""Where the fourth Runge-Kutta slope of the last step is taken instead of at 0."""


def generation_frames(
    seconds: Sequence[float],
    sample_rate_hz: int,
    downsampling_ratio: int,
    max_samples: int,
    headroom_seconds: float = HEADROOM_SECONDS,
) -> int:
    """Latent frames T of a batch: the longest duration and headroom, rounded up to an even number.

    Never more than `max_samples` hold.
    """
    num_samples = int((max(seconds) + headroom_seconds) * sample_rate_hz)
    even_frames = 2 * math.ceil(math.ceil(num_samples / downsampling_ratio) / 2)
    return min(even_frames, max_samples // downsampling_ratio)


def generation_mask(
    seconds: Sequence[float],
    num_frames: int,
    sample_rate_hz: int,
    downsampling_ratio: int,
    headroom_seconds: float = HEADROOM_SECONDS,
) -> Tensor:
    """(B, T) bool, True on the frames of each item's own duration and headroom."""
    headroom = int(headroom_seconds * sample_rate_hz / downsampling_ratio)
    valid = [math.ceil(int(one * sample_rate_hz) / downsampling_ratio) + headroom for one in seconds]
    return torch.arange(num_frames) < torch.tensor(valid)[:, None]


def sampling_schedule(
    num_steps: int, num_frames_B: Tensor, options: Mapping[str, Any] | None = DEFAULT_SAMPLING_SHIFT, start: float = 1.0
) -> Tensor:
    """(B, K + 1) timesteps, float32, falling from `start` to 0.

    Args:
        num_frames_B: effective lengths, for shifts that depend on them.
        options: a shift as `shifted` takes it.
        start: the first timestep; below 1 when sampling starts from noised audio instead of noise.
    """
    even_K1 = torch.linspace(start, 0, num_steps + 1, device=num_frames_B.device)
    schedule_BK1 = shifted(even_K1.expand(len(num_frames_B), -1), num_frames_B[:, None], options).clone()
    schedule_BK1[:, 0] = start
    return schedule_BK1


def euler(velocity: Velocity, noise_BCT: Tensor, schedule_BK1: Tensor) -> Tensor:
    """x <- x + (t' - t) v."""
    x_BCT = noise_BCT
    for now_B, next_B in _steps(schedule_BK1):
        x_BCT = x_BCT + _wide(next_B - now_B) * velocity(x_BCT, now_B)
    return x_BCT


def runge_kutta_4(velocity: Velocity, noise_BCT: Tensor, schedule_BK1: Tensor) -> Tensor:
    """The classical fourth-order method. Guidance divides by t, so the last slope is taken just above 0."""
    x_BCT = noise_BCT
    for now_B, next_B in _steps(schedule_BK1):
        step_B11, middle_B = _wide(next_B - now_B), (now_B + next_B) / 2
        first = velocity(x_BCT, now_B)
        second = velocity(x_BCT + step_B11 / 2 * first, middle_B)
        third = velocity(x_BCT + step_B11 / 2 * second, middle_B)
        fourth = velocity(x_BCT + step_B11 * third, next_B.clamp(min=LAST_TIMESTEP))
        x_BCT = x_BCT + step_B11 / 6 * (first + 2 * second + 2 * third + fourth)
    return x_BCT


def dpm_solver_plus_plus(velocity: Velocity, noise_BCT: Tensor, schedule_BK1: Tensor) -> Tensor:
    """Second-order multistep solver on the predicted data, first order at both ends.

    Source: Lu et al. 2022, arXiv:2211.01095, DPM-Solver++(2M).
    """
    x_BCT, before_BCT = noise_BCT, noise_BCT
    half_logsnr_BK1 = ((1 - schedule_BK1).clamp(min=1e-10) / schedule_BK1.clamp(min=1e-10)).log()
    width_BK = half_logsnr_BK1.diff(dim=1)
    steps = _steps(schedule_BK1)
    for index, (now_B, next_B) in enumerate(steps):
        data_BCT = x_BCT - _wide(now_B) * velocity(x_BCT, now_B)
        ahead_BCT = data_BCT
        if 0 < index < len(steps) - 1:
            weight_B11 = _wide(width_BK[:, index] / width_BK[:, index - 1]) / 2
            ahead_BCT = (1 + weight_B11) * data_BCT - weight_B11 * before_BCT
        kept_B11 = _wide(next_B / now_B)
        x_BCT, before_BCT = kept_B11 * x_BCT + (1 - kept_B11) * ahead_BCT, data_BCT
    return x_BCT


def ping_pong(
    velocity: Velocity, noise_BCT: Tensor, schedule_BK1: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Predict the data, then noise it anew to the next timestep: for few-step models."""
    x_BCT = noise_BCT
    for now_B, next_B in _steps(schedule_BK1):
        data_BCT = x_BCT - _wide(now_B) * velocity(x_BCT, now_B)
        device = noise_BCT.device if generator is None else generator.device
        fresh_BCT = torch.randn(x_BCT.shape, generator=generator, device=device, dtype=x_BCT.dtype).to(x_BCT.device)
        x_BCT = (1 - _wide(next_B)) * data_BCT + _wide(next_B) * fresh_BCT
    return x_BCT


SAMPLERS: Mapping[str, Sampler] = {
    "euler": euler,
    "rk4": runge_kutta_4,
    "dpmpp": dpm_solver_plus_plus,
    "pingpong": ping_pong,
}


def _steps(schedule_BK1: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Timesteps before and after each step, (B,) each."""
    columns = schedule_BK1.unbind(dim=1)
    return list(pairwise(columns))


def _wide(value_B: Tensor) -> Tensor:
    return value_B[:, None, None]
