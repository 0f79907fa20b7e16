"""Timestep shifts: move timesteps towards noise, more for longer clips, in training and in sampling schedules.

All shifts keep 0 and 1. Timesteps and numbers of frames broadcast against each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stages.models.nets.config_checks import refuse_unknown, require

DEFAULT_SAMPLING_SHIFT: Mapping[str, Any] = {"type": "logsnr", "rate": 0.0}
"""Sampling shift of base models whose config has none; independent of the length."""


def shifted(timestep: Tensor, num_frames: Tensor, options: Mapping[str, Any] | None) -> Tensor:
    """The shifted timesteps, float32.

    Args:
        timestep: in [0, 1], 1 = noise.
        num_frames: effective length of each clip, in latent frames.
        options: a config's `distribution_shift_options`: `type` (full if missing, flux, logsnr or none) and the
            settings of that type. None leaves the timesteps alone.

    Raises:
        UnsupportedModelConfig: unknown type, or a setting that the type does not have.
    """
    if options is None:
        return timestep.float()
    where, kind = "distribution_shift_options", options.get("type", "full")
    require(where, {"type": kind}, "type", tuple(_SHIFTS))
    shift, settings = _SHIFTS[kind]
    chosen = {key: value for key, value in options.items() if key != "type"}
    refuse_unknown(where, chosen, settings)
    return shift(timestep.float(), num_frames.float(), **{key: chosen[key] for key in settings if key in chosen})


def full(
    timestep: Tensor,
    num_frames: Tensor,
    *,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    min_length: float = 256,
    max_length: float = 4096,
    use_sine: bool = False,
) -> Tensor:
    """Resolution-dependent shift, e^mu t / (1 + (e^mu - 1) t), with mu linear in the clamped length.

    Source: Esser et al. 2024, arXiv:2403.03206, section 5.3.2.

    Args:
        use_sine: then map t to sin(pi t / 2).
    """
    fraction = (num_frames.clamp(min_length, max_length) - min_length) / (max_length - min_length)
    moved = _odds_scaled(timestep, (base_shift + (max_shift - base_shift) * fraction).exp())
    return (moved * (math.pi / 2)).sin() if use_sine else moved


def flux(
    timestep: Tensor,
    num_frames: Tensor,
    *,
    alpha_min: float = 1.0,
    alpha_max: float = 3.5,
    min_length: float = 256,
    max_length: float = 4096,
) -> Tensor:
    """Config type `flux`: alpha t / (1 + (alpha - 1) t), with log alpha linear in the log of the clamped length."""
    span = math.log(max_length) - math.log(min_length)
    fraction = (num_frames.clamp(min_length, max_length).log() - math.log(min_length)) / span
    log_alpha = math.log(alpha_min) + (math.log(alpha_max) - math.log(alpha_min)) * fraction
    return _odds_scaled(timestep, log_alpha.exp())


def logsnr(
    timestep: Tensor,
    num_frames: Tensor,
    *,
    anchor_length: float = 2000,
    anchor_logsnr: float = -6.2,
    rate: float = 0.0,
    logsnr_end: float = 2.0,
) -> Tensor:
    """The timestep whose log-SNR is linear in t: `logsnr_end` at t = 0, a value that depends on the length at t = 1."""
    start = anchor_logsnr - rate * torch.log2(num_frames / anchor_length)
    moved = torch.sigmoid(-(logsnr_end - timestep * (logsnr_end - start)))
    moved = torch.where(timestep <= 0, torch.zeros_like(moved), moved)
    return torch.where(timestep >= 1, torch.ones_like(moved), moved)


def none(timestep: Tensor, num_frames: Tensor) -> Tensor:
    """No shift."""
    return timestep.expand(torch.broadcast_shapes(timestep.shape, num_frames.shape))


def _odds_scaled(timestep: Tensor, factor: Tensor) -> Tensor:
    """t with its odds, t / (1 - t), multiplied by `factor`."""
    return factor * timestep / (1 + (factor - 1) * timestep)


_SHIFTS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "full": (full, ("base_shift", "max_shift", "min_length", "max_length", "use_sine")),
    "flux": (flux, ("alpha_min", "alpha_max", "min_length", "max_length")),
    "logsnr": (logsnr, ("anchor_length", "anchor_logsnr", "rate", "logsnr_end")),
    "none": (none, ()),
}
