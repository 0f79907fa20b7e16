"""Plucked and bowed strings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stages.pretrain.synthesis.families.family import Dry, Family
from stages.pretrain.synthesis.signal.context import RenderContext
from stages.pretrain.synthesis.signal.envelopes import attack, decay, ending, lfo, wander
from stages.pretrain.synthesis.signal.filtered_noise import band_noise
from stages.pretrain.synthesis.signal.oscillators import harmonics, hz, moving_phase, partials
from stages.pretrain.synthesis.signal.placement import rate_of_decay

PLUCKED = ("guitar", "harp", "banjo", "zither")
_PLUCKED_DECAY_FACTOR = ((1.0,), (1.5,), (0.4,), (1.2,))
_PLUCKED_POSITION = ((0.22,), (0.45,), (0.1,), (0.16,))
BOWED = ("violin", "viola", "cello", "double bass")
_BOWED_LOWEST_NOTE = (60, 52, 38, 29)


def pluck(context: RenderContext) -> Dry:
    """A stiff string: harmonics slightly sharp, the upper ones dying first, some missing by where it is plucked."""
    names, variant_B = context.choice(PLUCKED)
    note_B1 = context.integers(38, 84)
    brightness_B1 = context.uniform(0, 1)
    seconds_B1 = context.log_uniform(0.9, 5.0) * context.table(_PLUCKED_DECAY_FACTOR, variant_B)
    string_BX = plucked_string(context, note_B1, brightness_B1, seconds_B1, context.table(_PLUCKED_POSITION, variant_B))
    pick_BX = band_noise(context, context.uniform(1200.0, 2000.0), context.uniform(6000.0, 9000.0))[:, 0]
    pick_BX = pick_BX * decay(context.time_X, context.uniform(0.01, 0.03)) * attack(context.time_X, 0.0008)
    sound_BX = string_BX + 0.15 * brightness_B1 * string_BX.abs().amax(dim=1, keepdim=True) * pick_BX
    end_B1 = (0.8 * seconds_B1).clamp(0.4, 8.0).clamp_max(context.window_seconds)
    context.tell(variant=names, note=note_B1, brightness=brightness_B1, decay_seconds=seconds_B1)
    return (sound_BX * ending(context.time_X, end_B1, 0.2 * end_B1))[:, None], end_B1


def plucked_string(
    context: RenderContext, note_B1: Tensor, brightness_B1: Tensor, seconds_B1: Tensor, position_B1: Tensor
) -> Tensor:
    """(B, X) one pluck."""
    k_K = torch.arange(1, 45, device=context.device, dtype=torch.float32)
    stiffness_B1 = context.log_uniform(1e-5, 2e-4)
    frequency_BK = hz(note_B1) * k_K * torch.sqrt((1 + stiffness_B1 * k_K**2) / (1 + stiffness_B1))
    gain_BK = (torch.sin(math.pi * k_K * position_B1).abs() + 0.02) / k_K ** (1.9 - 1.3 * brightness_B1)
    rate_BK = rate_of_decay(seconds_B1) * (1 + (0.25 - 0.22 * brightness_B1) * (k_K - 1) ** 1.2)
    onset_X = attack(context.time_X, 0.0008)
    return partials(frequency_BK, gain_BK, rate_BK, context.time_X) * onset_X


def bowed(context: RenderContext) -> Dry:
    """A sawtooth with vibrato and bow noise behind a soft filter; it swells and ends slowly."""
    names, variant_B = context.choice(BOWED)
    lowest_B1 = torch.tensor(_BOWED_LOWEST_NOTE, device=context.device)[variant_B][:, None]
    note_B1 = lowest_B1 + context.integers(0, 24)
    brightness_B1, vibrato_B1 = context.uniform(0, 1), context.coin(0.7) * context.uniform(0.3, 1)
    attack_B1, end_B1 = context.log_uniform(0.04, 0.6), context.duration(0.8, 12.0)
    fundamental_B1 = hz(note_B1)
    rate_B1 = context.uniform(4.5, 6.5)
    depth_BX = 0.008 * vibrato_B1 * attack(context.time_X, 0.4 + attack_B1)
    phase_BX = moving_phase(fundamental_B1 * (1 + depth_BX * lfo(context.time_X, rate_B1)))
    tone_BX = harmonics(phase_BX, fundamental_B1, 28, lambda k: k ** (-1.8 + 1.1 * brightness_B1))
    bow_BX = band_noise(context, fundamental_B1 * 2, fundamental_B1 * 2 + 6000)[:, 0]
    pressure_BX = 0.8 + 0.2 * wander(context, 3.0)
    fade_B1 = (0.25 * end_B1).clamp_max(0.4)
    shape_BX = attack(context.time_X, attack_B1.minimum(0.5 * end_B1)) * ending(context.time_X, end_B1, fade_B1)
    sound_BX = (tone_BX + 0.03 * bow_BX) * pressure_BX * shape_BX
    context.tell(variant=names, note=note_B1, brightness=brightness_B1, vibrato=vibrato_B1, attack_seconds=attack_B1)
    return sound_BX[:, None], end_B1


FAMILIES = (Family("pluck", pluck, 1.6), Family("bowed string", bowed))
