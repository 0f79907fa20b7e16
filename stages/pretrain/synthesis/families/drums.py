"""Single hits of drums and cymbals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stages.pretrain.synthesis.families.family import Dry, Family
from stages.pretrain.synthesis.signal.context import RenderContext
from stages.pretrain.synthesis.signal.envelopes import attack, decay, ending
from stages.pretrain.synthesis.signal.filtered_noise import band_noise
from stages.pretrain.synthesis.signal.oscillators import partials

# Partials of struck metal, over a base of some 400 Hz.
_METAL_RATIOS = (1.0, 1.342, 1.231, 1.652, 1.967, 2.544, 3.16, 4.37, 5.2, 6.94, 8.61, 11.3)


def falling_tone(context: RenderContext, start_hz: Tensor, end_hz: Tensor, fall_rate: Tensor) -> Tensor:
    """(B, X) a sine whose frequency falls exponentially from start to end."""
    time_X = context.time_X
    turns_BX = end_hz * time_X + (start_hz - end_hz) / fall_rate * (1 - torch.exp(-fall_rate * time_X))
    return torch.sin(2 * torch.pi * turns_BX)


def kick_sound(context: RenderContext) -> tuple[Tensor, dict[str, Tensor]]:
    """A bright kick falls from higher, is driven harder and has a louder click."""
    end_hz, brightness_B1 = context.log_uniform(38, 68), context.uniform(0, 1)
    seconds_B1, start_hz = context.log_uniform(0.25, 1.5), context.log_uniform(110, 200) * 3**brightness_B1
    body_BX = falling_tone(context, start_hz, end_hz, context.log_uniform(18, 70)) * decay(context.time_X, seconds_B1)
    body_BX = torch.tanh(body_BX * (0.7 + 5 * brightness_B1))
    click_BX = band_noise(context, context.uniform(1200, 2500), context.uniform(5000, 9000))[:, 0]
    sound_BX = body_BX + 0.6 * brightness_B1 * click_BX * decay(context.time_X, context.uniform(0.03, 0.08))
    return sound_BX * attack(context.time_X, 0.0005), {"brightness": brightness_B1, "decay_seconds": seconds_B1}


def snare_sound(context: RenderContext) -> tuple[Tensor, dict[str, Tensor]]:
    tone_hz, brightness_B1 = context.log_uniform(150, 260), context.uniform(0, 1)
    seconds_B1, wires_B1 = context.log_uniform(0.15, 0.7), context.uniform(0.35, 1)
    shell_BX = falling_tone(context, 1.6 * tone_hz, tone_hz, context.uniform(40, 90)) * decay(
        context.time_X, 0.7 * seconds_B1
    )
    rim_BX = falling_tone(context, 2.6 * tone_hz, 1.8 * tone_hz, context.uniform(40, 90))
    noise_BX = band_noise(context, context.log_uniform(500, 2000), 5000 + 9000 * brightness_B1)[:, 0]
    skin_BX = (shell_BX + 0.5 * rim_BX * decay(context.time_X, 0.5 * seconds_B1)) * (1 - 0.6 * wires_B1)
    sound_BX = skin_BX + 0.6 * wires_B1 * noise_BX * decay(context.time_X, seconds_B1)
    return sound_BX * attack(context.time_X, 0.0005), {"brightness": brightness_B1, "decay_seconds": seconds_B1}


def _metal(context: RenderContext, base_hz: Tensor) -> Tensor:
    """(B, X) steady clang of inharmonic partials."""
    ratio_BK = torch.tensor(_METAL_RATIOS, device=context.device).expand(context.num_clips, -1)
    frequency_BK = base_hz * ratio_BK * context.uniform(0.97, 1.03, ratio_BK.shape[1])
    phase_BK = context.uniform(0, 1, ratio_BK.shape[1])
    return partials(frequency_BK, torch.full_like(frequency_BK, 0.3), None, context.time_X, phase_BK)


def hat_sound(context: RenderContext) -> tuple[Tensor, dict[str, object]]:
    open_B1, brightness_B1 = context.coin(0.4), context.uniform(0, 1)
    seconds_B1 = open_B1 * context.log_uniform(0.5, 1.4) + (1 - open_B1) * context.log_uniform(0.05, 0.18)
    noise_BX = band_noise(context, 3500 + 5000 * brightness_B1, context.uniform(13000, 17000))[:, 0]
    sound_BX = noise_BX + context.uniform(0, 0.6) * _metal(context, context.uniform(2800, 3800))
    names = ["open" if is_open else "closed" for is_open in open_B1[:, 0].tolist()]
    facts = {"brightness": brightness_B1, "decay_seconds": seconds_B1, "variant": names}
    return sound_BX * decay(context.time_X, seconds_B1) * attack(context.time_X, 0.0005), facts


def tom_sound(context: RenderContext) -> tuple[Tensor, dict[str, object]]:
    end_hz, seconds_B1 = context.log_uniform(65, 240), context.log_uniform(0.4, 1.5)
    fall_rate, brightness_B1 = context.uniform(10, 25), context.uniform(0, 1)
    body_BX = falling_tone(context, end_hz * context.uniform(1.25, 1.7), end_hz, fall_rate)
    upper_BX = falling_tone(context, 2.4 * end_hz, 1.6 * end_hz, fall_rate) * decay(context.time_X, 0.5 * seconds_B1)
    stick_BX = band_noise(context, context.uniform(500, 900), 3000 + 4000 * brightness_B1)[:, 0]
    sound_BX = body_BX * decay(context.time_X, seconds_B1) + 0.3 * upper_BX
    sound_BX = sound_BX + 0.2 * brightness_B1 * stick_BX * decay(context.time_X, context.uniform(0.06, 0.15))
    names = ["low" if low else "high" if high else "mid" for low, high in _bounds(end_hz, 100, 160)]
    facts = {"brightness": brightness_B1, "decay_seconds": seconds_B1, "variant": names}
    return sound_BX * attack(context.time_X, 0.0008), facts


def _bounds(value_B1: Tensor, low: float, high: float) -> list[tuple[bool, bool]]:
    return [(value < low, value > high) for value in value_B1[:, 0].tolist()]


def clap_sound(context: RenderContext) -> tuple[Tensor, dict[str, Tensor]]:
    """Three or four short bursts of noise some 10 ms apart, the last one with a tail."""
    brightness_B1, seconds_B1 = context.uniform(0, 1), context.log_uniform(0.15, 0.6)
    noise_BX = band_noise(context, 600 + 500 * brightness_B1, 2500 + 6000 * brightness_B1)[:, 0]
    gap_B1, gain_BX = context.uniform(0.008, 0.014), torch.zeros_like(noise_BX)
    for burst in range(4):
        since_BX = context.time_X - burst * gap_B1
        tail_B1 = seconds_B1 if burst == 3 else torch.full_like(seconds_B1, 0.03)
        burst_BX = attack(since_BX, 0.0008) * decay(since_BX.clamp_min(0), tail_B1)
        gain_BX = torch.maximum(gain_BX, burst_BX * (since_BX >= 0))
    return noise_BX * gain_BX, {"brightness": brightness_B1, "decay_seconds": seconds_B1}


CYMBALS = ("crash", "ride", "splash", "china")
_CYMBAL_SECONDS = ((2.5,), (2.0,), (0.8,), (1.6,))
_CYMBAL_BASE_HZ = ((420.0,), (620.0,), (800.0,), (330.0,))
_CYMBAL_METAL = ((0.5,), (1.6,), (0.5,), (0.9,))


def cymbal_sound(context: RenderContext) -> tuple[Tensor, dict[str, object]]:
    names, variant_B = context.choice(CYMBALS)
    brightness_B1 = context.uniform(0, 1)
    seconds_B1 = context.table(_CYMBAL_SECONDS, variant_B) * context.log_uniform(0.6, 2.0)
    base_hz = context.table(_CYMBAL_BASE_HZ, variant_B) * context.uniform(0.9, 1.1)
    wash_BX = band_noise(context, 1200 + 3000 * brightness_B1, context.uniform(12000, 17000), edge_octaves=1.5)[:, 0]
    metal_BX = _metal(context, base_hz) * context.table(_CYMBAL_METAL, variant_B)
    shape_BX = decay(context.time_X, seconds_B1) * attack(context.time_X, context.uniform(0.001, 0.012))
    facts = {"brightness": brightness_B1, "decay_seconds": seconds_B1, "variant": names}
    return (wash_BX + metal_BX) * shape_BX, facts


Hit = Callable[[RenderContext], tuple[Tensor, dict]]


def _hit(sound: Hit) -> Callable[[RenderContext], Dry]:
    """A family of single hits."""

    def render(context: RenderContext) -> Dry:
        sound_BX, facts = sound(context)
        context.tell(**facts)
        end_B1 = facts["decay_seconds"].clamp(0.5, 6.0).clamp_max(context.window_seconds)
        return (sound_BX * ending(context.time_X, end_B1, 0.25 * end_B1))[:, None], end_B1

    return render


FAMILIES = (
    Family("kick", _hit(kick_sound), 0.8),
    Family("snare", _hit(snare_sound), 1.1),
    Family("hat", _hit(hat_sound), 1.1),
    Family("tom", _hit(tom_sound), 0.8),
    Family("clap", _hit(clap_sound), 0.9),
    Family("cymbal", _hit(cymbal_sound), 1.2),
)
