"""Samplers of rectified flow, their timestep schedules, and the length of a generation.

x_t = (1 - t) data + t noise, velocity = noise - data. A schedule is (B, number of steps + 1).
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
"""(velocity, noise_BCT, schedule) to latents_BCT."""

HEADROOM_SECONDS = 6.0
"""Generated beyond the requested duration, so that an ending can fade out."""
LAST_TIMESTEP = 1e-5
"""Timestep of the fourth Runge-Kutta slope in the last step, in place of 0."""


def generation_frames(
    seconds: Sequence[float],
    sample_rate_hz: int,
    downsampling_ratio: int,
    max_samples: int,
    headroom_seconds: float = HEADROOM_SECONDS,
) -> int:
    """Latent frames T of a batch: the longest duration plus headroom, rounded up to an even number.

    At most what `max_samples` hold.
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
    """(B, T) padding mask: True on the frames of each clip's duration plus headroom."""
    headroom = int(headroom_seconds * sample_rate_hz / downsampling_ratio)
    valid = [math.ceil(int(clip_seconds * sample_rate_hz) / downsampling_ratio) + headroom for clip_seconds in seconds]
    return torch.arange(num_frames) < torch.tensor(valid)[:, None]


def sampling_schedule(
    num_steps: int, num_frames_B: Tensor, options: Mapping[str, Any] | None = DEFAULT_SAMPLING_SHIFT, start: float = 1.0
) -> Tensor:
    """Timesteps (B, num_steps + 1), float32, decreasing from `start` to 0.

    Args:
        num_frames_B: effective length of each clip in latent frames, for shifts that depend on it.
        options: a timestep shift, see `shifted`.
        start: the first timestep; below 1 to start from noised audio instead of noise.
    """
    even = torch.linspace(start, 0, num_steps + 1, device=num_frames_B.device)
    schedule = shifted(even.expand(len(num_frames_B), -1), num_frames_B[:, None], options).clone()
    schedule[:, 0] = start
    return schedule


def euler(velocity: Velocity, noise_BCT: Tensor, schedule: Tensor) -> Tensor:
    """Euler: x <- x + (t' - t) v."""
    x_BCT = noise_BCT
    for timestep_B, next_B in _steps(schedule):
        x_BCT = x_BCT + _per_clip(next_B - timestep_B) * velocity(x_BCT, timestep_B)
    return x_BCT


def runge_kutta_4(velocity: Velocity, noise_BCT: Tensor, schedule: Tensor) -> Tensor:
    """Classical fourth-order Runge-Kutta. Guidance divides by t, so the last slope is taken just above 0."""
    x_BCT = noise_BCT
    for timestep_B, next_B in _steps(schedule):
        step_B11, middle_B = _per_clip(next_B - timestep_B), (timestep_B + next_B) / 2
        first = velocity(x_BCT, timestep_B)
        second = velocity(x_BCT + step_B11 / 2 * first, middle_B)
        third = velocity(x_BCT + step_B11 / 2 * second, middle_B)
        fourth = velocity(x_BCT + step_B11 * third, next_B.clamp(min=LAST_TIMESTEP))
        x_BCT = x_BCT + step_B11 / 6 * (first + 2 * second + 2 * third + fourth)
    return x_BCT


def dpm_solver_plus_plus(velocity: Velocity, noise_BCT: Tensor, schedule: Tensor) -> Tensor:
    """DPM-Solver++(2M): second-order multistep solver on the denoised prediction, first order at both ends.

    Source: Lu et al. 2022, arXiv:2211.01095.
    """
    x_BCT, previous_BCT = noise_BCT, noise_BCT
    half_logsnr = ((1 - schedule).clamp(min=1e-10) / schedule.clamp(min=1e-10)).log()
    logsnr_steps = half_logsnr.diff(dim=1)
    steps = _steps(schedule)
    for index, (timestep_B, next_B) in enumerate(steps):
        denoised_BCT = x_BCT - _per_clip(timestep_B) * velocity(x_BCT, timestep_B)
        extrapolated_BCT = denoised_BCT
        if 0 < index < len(steps) - 1:
            weight_B11 = _per_clip(logsnr_steps[:, index] / logsnr_steps[:, index - 1]) / 2
            extrapolated_BCT = (1 + weight_B11) * denoised_BCT - weight_B11 * previous_BCT
        ratio_B11 = _per_clip(next_B / timestep_B)
        x_BCT, previous_BCT = ratio_B11 * x_BCT + (1 - ratio_B11) * extrapolated_BCT, denoised_BCT
    return x_BCT


def ping_pong(
    velocity: Velocity, noise_BCT: Tensor, schedule: Tensor, fresh_noise: Callable[[Tensor], Tensor] = torch.randn_like
) -> Tensor:
    """Denoise fully, then add fresh noise for the next timestep: for few-step (distilled) models.

    Args:
        fresh_noise: standard normal values like the tensor that it is given.
    """
    x_BCT = noise_BCT
    for timestep_B, next_B in _steps(schedule):
        denoised_BCT = x_BCT - _per_clip(timestep_B) * velocity(x_BCT, timestep_B)
        x_BCT = (1 - _per_clip(next_B)) * denoised_BCT + _per_clip(next_B) * fresh_noise(x_BCT)
    return x_BCT


SAMPLERS: Mapping[str, Sampler] = {
    "euler": euler,
    "rk4": runge_kutta_4,
    "dpmpp": dpm_solver_plus_plus,
    "pingpong": ping_pong,
}


def _steps(schedule: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Timesteps before and after each step, (B,) each."""
    columns = schedule.unbind(dim=1)
    return list(pairwise(columns))


def _per_clip(value_B: Tensor) -> Tensor:
    """(B, 1, 1), to broadcast over channels and frames."""
    return value_B[:, None, None]
