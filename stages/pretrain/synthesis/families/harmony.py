"""Chords and arpeggios in a key and mode."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stages.pretrain.synthesis.families.family import Dry, Family
from stages.pretrain.synthesis.signal.context import SAMPLE_RATE_HZ, RenderContext
from stages.pretrain.synthesis.signal.envelopes import attack, ending
from stages.pretrain.synthesis.signal.filtered_noise import repeated
from stages.pretrain.synthesis.signal.oscillators import hz, partials
from stages.pretrain.synthesis.signal.placement import rate_of_decay

MODES = {
    "major": (0, 4, 7, 12),
    "minor": (0, 3, 7, 12),
    "diminished": (0, 3, 6, 12),
    "augmented": (0, 4, 8, 12),
    "suspended second": (0, 2, 7, 12),
    "suspended fourth": (0, 5, 7, 12),
    "dominant seventh": (0, 4, 7, 10),
    "major seventh": (0, 4, 7, 11),
    "minor seventh": (0, 3, 7, 10),
}
CHORD_SOUNDS = ("organ", "electric piano", "strummed strings", "synth stab")
ARPEGGIO_SOUNDS = ("plucked", "music box", "synth")
DIRECTIONS = ("up", "down", "up and down")
# Which of four chord tones sounds, over one round of six steps; `up` and `down` use four of them.
_ORDERS = ((0, 1, 2, 3), (3, 2, 1, 0), (0, 1, 2, 3, 2, 1))
_ORGAN_GAINS = (1.0, 0.8, 0.5, 0.6, 0.2, 0.3, 0.1, 0.25)
SLOWEST_BPM, FASTEST_BPM = 60, 160


def chord(context: RenderContext) -> Dry:
    names, variant_B = context.choice(CHORD_SOUNDS)
    modes, mode_B = context.choice(tuple(MODES))
    root_B1, brightness_B1 = context.integers(46, 67), context.uniform(0, 1)
    is_organ = (variant_B == 0).float()[:, None]
    is_strummed = (variant_B == 2).float()[:, None]
    is_stab = (variant_B == 3).float()[:, None]
    seconds_B1 = context.log_uniform(1.5, 6.0) * (1 - 0.7 * is_stab)
    time_X, sum_BX = context.time_X, torch.zeros(context.num_clips, context.num_samples, device=context.device)
    intervals_BK = context.table(tuple(MODES.values()), mode_B)
    late_B1 = context.uniform(0.012, 0.035) * is_strummed
    for number in range(4):
        note_BX = _chord_note(
            context, root_B1 + intervals_BK[:, number, None], brightness_B1, is_organ, seconds_B1, is_stab
        )
        delay_B1 = (number * late_B1 * SAMPLE_RATE_HZ).long()
        sum_BX = sum_BX + repeated(note_BX, delay_B1, torch.ones_like(late_B1), context.num_samples)
    end_B1 = is_organ * context.duration(0.7, 8.0) + (1 - is_organ) * (0.8 * seconds_B1)
    end_B1 = end_B1.clamp_min(0.4).clamp_max(context.window_seconds)
    shape_BX = attack(time_X, 0.003 + 0.015 * is_organ) * ending(time_X, end_B1, (0.2 * end_B1).clamp_max(0.15))
    context.tell(variant=names, key=root_B1 % 12, mode=modes, brightness=brightness_B1)
    return (sum_BX * shape_BX)[:, None], end_B1


def _chord_note(
    context: RenderContext,
    note_B1: Tensor,
    brightness_B1: Tensor,
    is_organ: Tensor,
    seconds_B1: Tensor,
    is_stab: Tensor,
) -> Tensor:
    """(B, X) one note: an organ's stops held, or harmonics that decay."""
    k_K = torch.arange(1, 9, device=context.device, dtype=torch.float32)
    falling_BK = k_K ** (-2.6 + 1.3 * brightness_B1 + 0.5 * is_stab)
    gain_BK = is_organ * torch.tensor(_ORGAN_GAINS, device=context.device) + (1 - is_organ) * falling_BK
    rate_BK = (1 - is_organ) * rate_of_decay(seconds_B1) * (1 + 0.4 * (k_K - 1))
    return partials(hz(note_B1) * k_K, gain_BK, rate_BK, context.time_X)


def arpeggio(context: RenderContext) -> Dry:
    """The tones of a chord one after another in eighths or sixteenths."""
    names, variant_B = context.choice(ARPEGGIO_SOUNDS)
    modes, mode_B = context.choice(tuple(MODES))
    directions, direction_B = context.choice(DIRECTIONS)
    root_B1, brightness_B1 = context.integers(48, 72), context.uniform(0, 1)
    tempo_B1, notes_per_beat_B1 = context.integers(SLOWEST_BPM, FASTEST_BPM), 2 + 2 * context.coin(0.4)
    end_B1 = context.duration(2.0, 16.0)
    step_B1 = 60 * SAMPLE_RATE_HZ / (tempo_B1 * notes_per_beat_B1)
    count = int(context.window_seconds * FASTEST_BPM / 60 * 4) + 1
    starts_BE = (torch.arange(count, device=context.device) * step_B1).round().long()
    heard_BE = (starts_BE < (end_B1 - 0.05) * SAMPLE_RATE_HZ).float()
    tone_BE = _tone_numbers(context, direction_B, count)
    intervals_BK = context.table(tuple(MODES.values()), mode_B)
    sum_BX = torch.zeros(context.num_clips, context.num_samples, device=context.device)
    seconds_B1 = context.log_uniform(0.5, 1.4)
    for number in range(4):
        note_BX = _arpeggio_note(context, root_B1 + intervals_BK[:, number, None], variant_B, brightness_B1, seconds_B1)
        gain_BE = (tone_BE == number) * heard_BE * context.uniform(0.85, 1.0)
        sum_BX += repeated(note_BX, starts_BE, gain_BE, context.num_samples)
    context.tell(variant=names, key=root_B1 % 12, mode=modes, direction=directions, tempo_bpm=tempo_B1)
    context.tell(brightness=brightness_B1)
    return (sum_BX * ending(context.time_X, end_B1, 0.04))[:, None], end_B1


def _tone_numbers(context: RenderContext, direction_B: Tensor, count: int) -> Tensor:
    """(B, E) which chord tone each step sounds."""
    rounds = [(order * (count // len(order) + 1))[:count] for order in _ORDERS]
    return torch.tensor(rounds, device=context.device)[direction_B]


def _arpeggio_note(
    context: RenderContext, note_B1: Tensor, variant_B: Tensor, brightness_B1: Tensor, seconds_B1: Tensor
) -> Tensor:
    """(B, samples) one short note."""
    length = min(context.num_samples, round(1.2 * SAMPLE_RATE_HZ))
    short = replace(context, num_samples=length, facts={})
    is_box = (variant_B == ARPEGGIO_SOUNDS.index("music box")).float()[:, None]
    is_synth = (variant_B == ARPEGGIO_SOUNDS.index("synth")).float()[:, None]
    k_K = torch.arange(1, 17, device=context.device, dtype=torch.float32)
    gain_BK = k_K ** (-2.2 + 1.2 * brightness_B1) * torch.where(k_K > 3, 1 - is_box, torch.ones_like(is_box))
    rate_BK = rate_of_decay(seconds_B1) * (1 + (0.35 - 0.3 * is_synth) * (k_K - 1))
    shift_BK = 1 + is_box * 0.008 * (k_K - 1)  # a comb's tines are not quite harmonic
    note_BX = partials(hz(note_B1) * k_K * shift_BK, gain_BK, rate_BK, short.time_X)
    end_11 = torch.full((1, 1), length / SAMPLE_RATE_HZ, device=context.device)
    return note_BX * attack(short.time_X, 0.002) * ending(short.time_X, end_11, 0.2)


FAMILIES = (Family("chord", chord, 1.8), Family("arpeggio", arpeggio, 2.4))
