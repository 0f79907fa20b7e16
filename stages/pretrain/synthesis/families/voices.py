"""Vowel-like tones and wind instruments: harmonics under formants, with breath."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.pretrain.synthesis.families.family import Dry, Family
from stages.pretrain.synthesis.signal.context import RenderContext
from stages.pretrain.synthesis.signal.envelopes import attack, ending, lfo, wander
from stages.pretrain.synthesis.signal.filtered_noise import band_noise
from stages.pretrain.synthesis.signal.oscillators import harmonics, hz, moving_phase

VOWELS = ("ah", "eh", "ee", "oh", "oo")
# Three formants each: Peterson and Barney (1952), means of men.
_FORMANTS_HZ = (
    (730.0, 1090.0, 2440.0),
    (530.0, 1840.0, 2480.0),
    (270.0, 2290.0, 3010.0),
    (570.0, 840.0, 2410.0),
    (300.0, 870.0, 2240.0),
)
_FORMANT_GAINS = (1.0, 0.6, 0.3)
WINDS = ("flute", "clarinet", "trumpet", "trombone")
_WIND_NOTES = ((64, 91), (52, 82), (58, 82), (40, 65))


def vowel(context: RenderContext) -> Dry:
    """A sung vowel; the second channel is another singer, slightly out of tune."""
    names, variant_B = context.choice(VOWELS)
    note_B1, vibrato_B1 = context.integers(41, 69), context.coin(0.7) * context.uniform(0.3, 1)
    brightness_B1, attack_B1 = context.uniform(0, 1), context.log_uniform(0.04, 0.4)
    end_B1 = context.duration(0.7, 8.0)
    formants_B3 = context.table(_FORMANTS_HZ, variant_B) * context.uniform(0.95, 1.2)
    singers = [_sung(context, hz(note_B1 + cents), formants_B3, vibrato_B1, brightness_B1) for cents in (0.0, 0.08)]
    fade_B1 = (0.25 * end_B1).clamp_max(0.3)
    shape_BX = attack(context.time_X, attack_B1.minimum(0.4 * end_B1)) * ending(context.time_X, end_B1, fade_B1)
    context.tell(variant=names, note=note_B1, brightness=brightness_B1, vibrato=vibrato_B1, attack_seconds=attack_B1)
    return torch.stack(singers, dim=1) * shape_BX[:, None], end_B1


def _sung(
    context: RenderContext, fundamental_B1: Tensor, formants_B3: Tensor, vibrato_B1: Tensor, brightness_B1: Tensor
) -> Tensor:
    depth_BX = 0.01 * vibrato_B1 * attack(context.time_X, 0.6)
    phase_BX = moving_phase(fundamental_B1 * (1 + depth_BX * lfo(context.time_X, context.uniform(4.8, 6.2))))

    def gain(k: int) -> Tensor:
        nearness_B3 = torch.exp(-(((k * fundamental_B1 - formants_B3) / (60 + 0.08 * formants_B3)) ** 2))
        peaks_B1 = (nearness_B3 * torch.tensor(_FORMANT_GAINS, device=context.device)).sum(dim=1, keepdim=True)
        floor = 0.12 if k == 1 else 0.03
        return (peaks_B1 + floor) * k ** (-0.9 + 0.7 * brightness_B1)

    breath_BX = band_noise(context, formants_B3[:, :1], formants_B3[:, 2:] * 1.5)[:, 0]
    return harmonics(phase_BX, fundamental_B1, 40, gain) + 0.02 * breath_BX


def wind_instrument(context: RenderContext) -> Dry:
    """Flute: few harmonics and breath; clarinet: odd ones; brass: louder is brighter."""
    names, variant_B = context.choice(WINDS)
    low_B, high_B = context.table(_WIND_NOTES, variant_B).unbind(dim=1)
    note_B1 = (low_B + context.uniform(0, 1)[:, 0] * (high_B - low_B)).round().long()[:, None]
    is_flute, is_clarinet = ((variant_B == index).float()[:, None] for index in (0, 1))
    is_brass = 1 - is_flute - is_clarinet
    brightness_B1, vibrato_B1 = context.uniform(0, 1), context.coin(0.5) * context.uniform(0.3, 1)
    attack_B1, end_B1 = context.log_uniform(0.02, 0.15), context.duration(0.6, 8.0)
    time_X, fundamental_B1 = context.time_X, hz(note_B1)
    loudness_BX = attack(time_X, attack_B1 * 2) * (0.85 + 0.15 * wander(context, 2.0))
    slope_BX = -1.2 - 1.8 * is_flute + 0.9 * brightness_B1 - 1.5 * is_brass * (1 - loudness_BX)

    def gain(k: int) -> Tensor:
        even = 1 - 0.85 * is_clarinet if k % 2 == 0 else 1.0
        return even * k**slope_BX

    depth_BX = 0.007 * vibrato_B1 * attack(time_X, 0.5)
    phase_BX = moving_phase(fundamental_B1 * (1 + depth_BX * lfo(time_X, context.uniform(4.5, 6.0))))
    tone_BX = harmonics(phase_BX, fundamental_B1, 24, gain)
    breath_BX = band_noise(context, fundamental_B1, 4 * fundamental_B1 + 3000)[:, 0]
    sound_BX = tone_BX + (0.01 + 0.07 * is_flute) * breath_BX
    fade_B1 = (0.2 * end_B1).clamp_max(0.15)
    shape_BX = attack(time_X, attack_B1) * ending(time_X, end_B1, fade_B1)
    context.tell(variant=names, note=note_B1, brightness=brightness_B1, vibrato=vibrato_B1, attack_seconds=attack_B1)
    return (sound_BX * shape_BX)[:, None], end_B1


FAMILIES = (Family("vowel", vowel, 1.2), Family("wind instrument", wind_instrument, 1.2))
