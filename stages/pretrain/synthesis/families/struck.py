"""Bells and mallets: a few inharmonic partials that decay."""

from __future__ import annotations

import torch

from stages.pretrain.synthesis.families.family import Dry, Family
from stages.pretrain.synthesis.signal.context import RenderContext
from stages.pretrain.synthesis.signal.envelopes import attack, decay, ending
from stages.pretrain.synthesis.signal.filtered_noise import band_noise
from stages.pretrain.synthesis.signal.oscillators import hz, partials
from stages.pretrain.synthesis.signal.placement import rate_of_decay

BELLS = ("church bell", "tubular bell", "glockenspiel", "music box")
# Frequencies over that of the note heard. A church bell's lowest partial, the hum, is an octave below.
_BELL_RATIOS = (
    (1.0, 0.5, 1.2, 1.5, 2.0, 2.5, 2.67, 3.0, 4.0),
    (1.0, 1.5, 2.0, 2.72, 3.5, 4.4, 5.4, 6.5, 7.7),
    (1.0, 2.76, 5.4, 8.93, 13.3, 1.003, 2.765, 5.41, 8.94),
    (1.0, 2.0, 3.01, 6.2, 1.002, 4.1, 8.4, 10.2, 12.0),
)
_BELL_GAINS = (
    (1.0, 0.4, 0.5, 0.35, 0.6, 0.25, 0.2, 0.2, 0.12),
    (1.0, 0.3, 0.6, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1),
    (1.0, 0.45, 0.25, 0.12, 0.06, 0.5, 0.2, 0.1, 0.06),
    (1.0, 0.35, 0.15, 0.1, 0.5, 0.1, 0.08, 0.05, 0.03),
)
_BELL_NOTES = ((52, 76), (58, 82), (79, 103), (72, 96))
_BELL_SECONDS = ((3.0, 10.0), (2.0, 7.0), (0.8, 3.0), (0.6, 2.2))

MALLETS = ("marimba", "xylophone", "vibraphone", "kalimba")
_MALLET_RATIOS = (
    (1.0, 3.98, 9.9, 16.0),
    (1.0, 3.0, 6.1, 9.2),
    (1.0, 4.0, 10.1, 1.002),
    (1.0, 5.4, 2.0, 14.2),
)
_MALLET_NOTES = ((45, 76), (67, 96), (53, 84), (57, 84))
_MALLET_SECONDS = ((0.4, 1.4), (0.2, 0.6), (1.5, 5.0), (0.6, 1.8))


def bell(context: RenderContext) -> Dry:
    names, variant_B = context.choice(BELLS)
    note_B1 = _note_within(context, _BELL_NOTES, variant_B)
    brightness_B1 = context.uniform(0, 1)
    seconds_B1 = _seconds_within(context, _BELL_SECONDS, variant_B)
    ratio_BK, gain_BK = context.table(_BELL_RATIOS, variant_B), context.table(_BELL_GAINS, variant_B)
    gain_BK = gain_BK * ratio_BK ** (1.2 * (brightness_B1 - 0.6)) * context.uniform(0.8, 1.25, ratio_BK.shape[1])
    rate_BK = rate_of_decay(seconds_B1) * ratio_BK.clamp_min(1.0) ** (0.9 - 0.5 * brightness_B1)
    sound_BX = partials(hz(note_B1) * ratio_BK, gain_BK, rate_BK, context.time_X) * attack(context.time_X, 0.0015)
    end_B1 = (0.8 * seconds_B1).clamp_min(0.5).clamp_max(context.window_seconds)
    context.tell(variant=names, note=note_B1, brightness=brightness_B1, decay_seconds=seconds_B1)
    return (sound_BX * ending(context.time_X, end_B1, 0.2 * end_B1))[:, None], end_B1


def mallet(context: RenderContext) -> Dry:
    """A struck bar: two or three partials and the knock of the mallet; a vibraphone's fans give it tremolo."""
    names, variant_B = context.choice(MALLETS)
    note_B1 = _note_within(context, _MALLET_NOTES, variant_B)
    brightness_B1 = context.uniform(0, 1)
    seconds_B1 = _seconds_within(context, _MALLET_SECONDS, variant_B)
    ratio_BK = context.table(_MALLET_RATIOS, variant_B)
    order_K = torch.arange(ratio_BK.shape[1], device=context.device)
    gain_BK = torch.exp(-order_K * (2.2 - 1.5 * brightness_B1))
    rate_BK = rate_of_decay(seconds_B1) * (1 + 1.5 * order_K)
    bar_BX = partials(hz(note_B1) * ratio_BK, gain_BK, rate_BK, context.time_X) * attack(context.time_X, 0.001)
    fans_B1 = 0.35 * (variant_B == MALLETS.index("vibraphone"))[:, None]
    turns_BX = context.uniform(4.0, 7.0) * context.time_X
    bar_BX = bar_BX * (1 - fans_B1 * (0.5 - 0.5 * torch.cos(2 * torch.pi * turns_BX)))
    knock_BX = band_noise(context, context.uniform(300.0, 900.0), context.uniform(2000.0, 6000.0))[:, 0]
    knock_BX = knock_BX * decay(context.time_X, context.uniform(0.02, 0.05)) * attack(context.time_X, 0.001)
    sound_BX = bar_BX + context.uniform(0.02, 0.12) * knock_BX
    end_B1 = seconds_B1.clamp_min(0.5).clamp_max(context.window_seconds)
    context.tell(variant=names, note=note_B1, brightness=brightness_B1, decay_seconds=seconds_B1)
    return (sound_BX * ending(context.time_X, end_B1, 0.2 * end_B1))[:, None], end_B1


def _note_within(context: RenderContext, ranges: tuple[tuple[int, int], ...], variant_B: torch.Tensor) -> torch.Tensor:
    """(B, 1) a MIDI note in the range of each clip's variant."""
    low_B, high_B = context.table(ranges, variant_B).unbind(dim=1)
    return (low_B + context.uniform(0, 1)[:, 0] * (high_B - low_B)).round().long()[:, None]


def _seconds_within(
    context: RenderContext, ranges: tuple[tuple[float, float], ...], variant_B: torch.Tensor
) -> torch.Tensor:
    """(B, 1) a decay time in the range of each clip's variant."""
    low_B, high_B = context.table(ranges, variant_B).unbind(dim=1)
    return (low_B * (high_B / low_B) ** context.uniform(0, 1)[:, 0])[:, None]


FAMILIES = (Family("bell", bell, 1.3), Family("mallet", mallet, 1.2))
