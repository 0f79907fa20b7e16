"""Sounds whose pitch or filter rises or falls."""

from __future__ import annotations

import torch

from stages.pretrain.synthesis.families.family import Dry, Family
from stages.pretrain.synthesis.signal.context import RenderContext
from stages.pretrain.synthesis.signal.envelopes import attack, ending
from stages.pretrain.synthesis.signal.filtered_noise import moving_noise
from stages.pretrain.synthesis.signal.oscillators import harmonics, moving_phase

SWEEPS = ("sine", "sawtooth", "noise")
DIRECTIONS = ("rising", "falling")


def sweep(context: RenderContext) -> Dry:
    """From a low to a high frequency or back, at a constant number of octaves a second."""
    names, variant_B = context.choice(SWEEPS)
    directions, direction_B = context.choice(DIRECTIONS)
    is_saw, is_noise = ((variant_B == index).float()[:, None] for index in (1, 2))
    low_B1, high_B1 = context.log_uniform(80, 400), context.log_uniform(1500, 8000)
    end_B1 = context.duration(0.7, 10.0)
    progress_BX = (context.time_X / end_B1).clamp_max(1.0)
    rise_BX = torch.where(direction_B[:, None] == 0, progress_BX, 1 - progress_BX)
    frequency_BX = low_B1 * (high_B1 / low_B1) ** rise_BX
    tone_BX = harmonics(moving_phase(frequency_BX), frequency_BX, 16, lambda k: 1.0 if k == 1 else is_saw / k)
    noise_BX = moving_noise(context, lambda hz: torch.exp(-(((frequency_BX / hz).log2() / 0.6) ** 2)))[:, 0]
    sound_BX = (1 - is_noise) * tone_BX + 3 * is_noise * noise_BX
    swell_B1 = context.coin(0.4)
    level_BX = (1 - swell_B1) + swell_B1 * (0.1 + 0.9 * torch.where(direction_B[:, None] == 0, progress_BX, rise_BX))
    shape_BX = attack(context.time_X, 0.02) * ending(context.time_X, end_B1, (0.15 * end_B1).clamp_max(0.08)) * level_BX
    context.tell(variant=names, direction=directions)
    return (sound_BX * shape_BX)[:, None], end_B1


FAMILIES = (Family("sweep", sweep, 1.6),)
