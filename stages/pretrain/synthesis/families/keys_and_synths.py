"""Bass, leads and pads."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.pretrain.synthesis.families.family import Dry, Family
from stages.pretrain.synthesis.signal.context import RenderContext
from stages.pretrain.synthesis.signal.envelopes import attack, decay, ending, lfo
from stages.pretrain.synthesis.signal.oscillators import harmonics, hz, moving_phase, partials

BASSES = ("sub", "saw", "square", "wobble", "plucked")
LEADS = ("saw", "square", "sine", "detuned")
PAD_MODES = ("major", "minor", "suspended fourth", "open fifth")
_PAD_INTERVALS = ((0, 4, 7, 12), (0, 3, 7, 12), (0, 5, 7, 12), (0, 7, 12, 19))


def bass(context: RenderContext) -> Dry:
    """A sawtooth or square through a low-pass filter that closes, or swings (wobble); a sub is nearly a sine."""
    names, variant_B = context.choice(BASSES)
    is_sub, is_square, is_wobble, is_plucked = (
        (variant_B == BASSES.index(name)).float()[:, None] for name in ("sub", "square", "wobble", "plucked")
    )
    note_B1, brightness_B1 = context.integers(26, 48), context.uniform(0, 1)
    fundamental_B1, end_B1 = hz(note_B1), context.duration(0.5, 6.0)
    seconds_B1 = is_plucked * context.log_uniform(0.5, 1.5) + (1 - is_plucked) * context.log_uniform(4.0, 20.0)
    time_X = context.time_X
    cutoff_BX = 120 * 12**brightness_B1 * (1 + 3 * is_plucked * decay(time_X, seconds_B1))
    swing_BX = 0.5 + 0.5 * lfo(time_X, context.uniform(1.5, 6.0), -0.25)
    cutoff_BX = cutoff_BX * (1 + is_wobble * (5 * swing_BX - 0.4))

    def gain(k: int) -> Tensor:
        even = 1.0 - is_square if k % 2 == 0 else 1.0
        upper = 1.0 - is_sub if k > 1 else 1.0
        return even * upper / k / (1 + (k * fundamental_B1 / cutoff_BX) ** 4).sqrt()

    phase_BX = moving_phase(fundamental_B1.expand(-1, time_X.numel()))
    tone_BX = harmonics(phase_BX, fundamental_B1, 36, gain)
    fade_B1 = (0.2 * end_B1).clamp_max(0.08)
    shape_BX = attack(time_X, 0.004) * decay(time_X, seconds_B1) * ending(time_X, end_B1, fade_B1)
    context.tell(variant=names, note=note_B1, brightness=brightness_B1, decay_seconds=seconds_B1)
    return (tone_BX * shape_BX)[:, None], end_B1


def lead(context: RenderContext) -> Dry:
    """A held synthesiser tone, with or without vibrato; detuned ones have a second voice beside the first."""
    names, variant_B = context.choice(LEADS)
    is_square, is_sine, is_detuned = (
        (variant_B == LEADS.index(name)).float()[:, None] for name in ("square", "sine", "detuned")
    )
    note_B1, brightness_B1 = context.integers(55, 88), context.uniform(0, 1)
    vibrato_B1 = context.coin(0.5) * context.uniform(0.3, 1)
    fundamental_B1, end_B1 = hz(note_B1), context.duration(0.5, 8.0)
    attack_B1 = context.log_uniform(0.004, 0.15)
    time_X = context.time_X
    bend_BX = 1 + 0.01 * vibrato_B1 * attack(time_X, 0.5) * lfo(time_X, context.uniform(4.5, 7.0))

    def voice(detune: Tensor) -> Tensor:
        def gain(k: int) -> Tensor:
            even = 1.0 - is_square if k % 2 == 0 else 1.0
            upper = (1.0 - is_sine) if k > 1 else 1.0
            return even * upper * k ** (-2.2 + 1.3 * brightness_B1)

        return harmonics(moving_phase(fundamental_B1 * detune * bend_BX), fundamental_B1, 20, gain)

    tone_BX = voice(1 - 0.003 * is_detuned) + is_detuned * voice(1 + 0.003 * is_detuned)
    fade_B1 = (0.2 * end_B1).clamp_max(0.12)
    shape_BX = attack(time_X, attack_B1) * ending(time_X, end_B1, fade_B1)
    context.tell(variant=names, note=note_B1, brightness=brightness_B1, vibrato=vibrato_B1, attack_seconds=attack_B1)
    return (tone_BX * shape_BX)[:, None], end_B1


def pad(context: RenderContext) -> Dry:
    """Slow chords of detuned voices; the second channel holds the same chord detuned the other way."""
    modes, mode_B = context.choice(PAD_MODES)
    root_B1, brightness_B1 = context.integers(40, 63), context.uniform(0, 1)
    attack_B1, end_B1 = context.log_uniform(0.15, 2.0), context.duration(1.5, 20.0)
    attack_B1 = attack_B1.minimum(0.4 * end_B1)
    notes_BK = root_B1 + context.table(_PAD_INTERVALS, mode_B)
    detune_B1 = context.log_uniform(0.02, 0.12)
    twins_BAX = torch.stack(
        [_held_notes(context, notes_BK + sign * detune_B1, brightness_B1) for sign in (-1, 1)], dim=1
    )
    time_X = context.time_X
    breath_BX = 1 + context.uniform(0, 0.25) * lfo(time_X, context.uniform(0.15, 2.0), context.uniform(0, 1))
    fade_B1 = (0.35 * end_B1).clamp_max(1.5)
    shape_BX = attack(time_X, attack_B1) * ending(time_X, end_B1, fade_B1) * breath_BX
    context.tell(key=root_B1 % 12, mode=modes, brightness=brightness_B1, attack_seconds=attack_B1)
    return twins_BAX * shape_BX[:, None], end_B1


def _held_notes(context: RenderContext, notes_BK: Tensor, brightness_B1: Tensor) -> Tensor:
    """(B, X) notes of ten harmonics each."""
    k_K = torch.arange(1, 11, device=context.device, dtype=torch.float32)
    frequency_BNK = hz(notes_BK)[:, :, None] * k_K
    gain_BNK = (k_K ** (-2.4 + 1.6 * brightness_B1))[:, None].expand_as(frequency_BNK)
    phase_BK = context.uniform(0, 1, frequency_BNK[0].numel())
    return partials(frequency_BNK.flatten(1), gain_BNK.flatten(1), None, context.time_X, phase_BK)


FAMILIES = (Family("bass", bass, 1.4), Family("lead", lead, 1.4), Family("pad", pad, 1.4))
