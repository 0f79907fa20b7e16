"""Drum loops: patterns of sixteenths at a tempo, with sounds of single hits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stages.pretrain.synthesis.families.drums import Hit, clap_sound, hat_sound, kick_sound, snare_sound
from stages.pretrain.synthesis.families.family import Dry, Family
from stages.pretrain.synthesis.signal.context import SAMPLE_RATE_HZ, RenderContext
from stages.pretrain.synthesis.signal.envelopes import ending
from stages.pretrain.synthesis.signal.filtered_noise import repeated

_HIT_SECONDS = 0.7
SLOWEST_BPM, FASTEST_BPM = 70, 180

# Sixteenths of one bar: kick, snare, clap, hats.
PATTERNS = {
    "four on the floor": ("x...x...x...x...", "................", "....x.......x...", "..x...x...x...x."),
    "rock beat": ("x.......x.......", "....x.......x...", "................", "x.x.x.x.x.x.x.x."),
    "breakbeat": ("x.x.......xx....", "....x..x.x..x..x", "................", "x.x.x.x.x.x.x.x."),
    "half time": ("x.....x.........", "........x.......", "................", "x...x...x...x..."),
    "boom bap": ("x..x....x.x.....", "....x.......x..x", "................", "x.x.x.x.x.x.x.x."),
    "techno": ("x...x...x...x...", "................", "................", "..xx..xx..xx..xx"),
    "dembow": ("x...x...x...x...", "...x..x....x..x.", "................", "................"),
    "drum and bass": ("x.........x.....", "....x.......x...", "................", "x.xxx.x.x.xxx.x."),
    "trap": ("x......x..x.....", "................", "........x.......", "x.x.x.xxx.x.xxxx"),
    "disco": ("x...x...x...x...", "....x.......x...", "................", "x.xxx.xxx.xxx.xx"),
    "tribal": ("x..x..x.x..x..x.", "................", "....x.......x...", "................"),
    "train beat": ("x.......x.......", "xxxxxxxxxxxxxxxx", "................", "................"),
}
_SOUNDS: tuple[Hit, ...] = (kick_sound, snare_sound, clap_sound, hat_sound)
_LEVELS = (1.0, 0.7, 0.5, 0.25)


def drum_loop(context: RenderContext) -> Dry:
    """A pattern repeated to the end; hats a little to one side where the loop is wide."""
    names, pattern_B = context.choice(tuple(PATTERNS))
    tempo_B1 = context.integers(SLOWEST_BPM, FASTEST_BPM)
    swing_B1 = context.coin(0.25) * context.uniform(0.05, 0.3)
    end_B1 = context.duration(2.0, 20.0)
    starts_BE = _starts(context, tempo_B1, swing_B1)
    # Nothing begins where the loop already ends.
    heard_BE = (starts_BE < (end_B1 - 0.02) * SAMPLE_RATE_HZ).float()
    middle_BX = torch.zeros(context.num_clips, context.num_samples, device=context.device)
    side_BX = torch.zeros_like(middle_BX)
    for number, sound in enumerate(_SOUNDS):
        rows_BE = _rows(context, pattern_B, number, starts_BE.shape[1]) * heard_BE
        part_BX = repeated(
            _one_hit(context, sound), starts_BE, rows_BE * _accents(context, rows_BE), context.num_samples
        )
        middle_BX.add_(part_BX, alpha=_LEVELS[number])
        if number:
            side_BX.add_(part_BX, alpha=_LEVELS[number] * (-1) ** number)
    context.tell(variant=names, tempo_bpm=tempo_B1)
    fade_X = ending(context.time_X, end_B1, 0.03)
    return torch.stack([middle_BX * fade_X, side_BX * fade_X], dim=1), end_B1


def _starts(context: RenderContext, tempo_B1: Tensor, swing_B1: Tensor) -> Tensor:
    """(B, E) first samples of the sixteenths, the second of each pair late by the swing."""
    fastest_sixteenth = 15 / FASTEST_BPM
    count = int(context.window_seconds / fastest_sixteenth) + 1
    number_E = torch.arange(count, device=context.device)
    sixteenths_BE = number_E + swing_B1 * (number_E % 2)
    return (sixteenths_BE * (15 * SAMPLE_RATE_HZ) / tempo_B1).round().long()


def _rows(context: RenderContext, pattern_B: Tensor, number: int, count: int) -> Tensor:
    """(B, E) 1 where the pattern of each clip has a hit of this sound."""
    bars = [[float(step == "x") for step in parts[number]] for parts in PATTERNS.values()]
    row_B16 = context.table(bars, pattern_B)
    return row_B16.repeat(1, count // 16 + 1)[:, :count]


def _accents(context: RenderContext, rows_BE: Tensor) -> Tensor:
    """Gains that vary from hit to hit, the first sixteenth of each beat strongest."""
    beat_E = (torch.arange(rows_BE.shape[1], device=context.device) % 4 == 0).float()
    return 0.7 + 0.15 * beat_E + context.uniform(0, 0.15, rows_BE.shape[1])


def _one_hit(context: RenderContext, sound: Hit) -> Tensor:
    """(B, samples) one short hit of peak 1; its facts are not those of the loop."""
    length = min(context.num_samples, round(_HIT_SECONDS * SAMPLE_RATE_HZ))
    short = replace(context, num_samples=length, facts={})
    sound_BX, _ = sound(short)
    sound_BX = sound_BX * ending(short.time_X, torch.full((1, 1), length / SAMPLE_RATE_HZ, device=short.device), 0.1)
    return sound_BX / sound_BX.abs().amax(dim=1, keepdim=True).clamp_min(1e-9)


FAMILIES = (Family("drum loop", drum_loop, 8.0),)
