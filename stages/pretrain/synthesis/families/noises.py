"""Noise textures and sounds of weather, water, fire and machines."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.pretrain.synthesis.families.family import Dry, Family
from stages.pretrain.synthesis.signal.context import SAMPLE_RATE_HZ, RenderContext
from stages.pretrain.synthesis.signal.envelopes import attack, decay, ending, lfo, wander
from stages.pretrain.synthesis.signal.filtered_noise import band_noise, convolved, moving_noise
from stages.pretrain.synthesis.signal.oscillators import harmonics, moving_phase

NOISES = ("white noise", "pink noise", "brown noise", "hiss", "rumble")
_NOISE_BANDS_HZ = ((30.0, 17000.0), (30.0, 17000.0), (20.0, 17000.0), (5000.0, 16000.0), (25.0, 160.0))
_NOISE_TILTS = ((0.0,), (-1.0,), (-2.0,), (0.0,), (-0.5,))
WINDS = ("breeze", "wind", "howling wind")
RAINS = ("light rain", "rain", "heavy rain")
ENGINES = ("idling", "running", "revving up", "slowing down")


def noise(context: RenderContext) -> Dry:
    names, variant_B = context.choice(NOISES)
    low_B1, high_B1 = context.table(_NOISE_BANDS_HZ, variant_B).split(1, dim=1)
    scale_B1 = context.log_uniform(0.85, 1.2)
    tilt_B1 = context.table(_NOISE_TILTS, variant_B)
    noise_BAX = band_noise(context, low_B1 * scale_B1, (high_B1 * scale_B1).clamp_max(18000), 1.0, tilt_B1, channels=2)
    context.tell(variant=names)
    return _held(context, noise_BAX, 0.6, 12.0)


def _held(context: RenderContext, sound_BAX: Tensor, shortest: float, longest: float) -> Dry:
    """A texture that fades in and out."""
    end_B1 = context.duration(shortest, longest)
    attack_B1 = context.log_uniform(0.01, 0.6).minimum(0.3 * end_B1)
    fade_B1 = context.log_uniform(0.05, 0.8).minimum(0.3 * end_B1)
    shape_BX = attack(context.time_X, attack_B1) * ending(context.time_X, end_B1, fade_B1)
    return sound_BAX * shape_BX[:, None], end_B1


def wind(context: RenderContext) -> Dry:
    """Noise in a band that wanders with the strength of gusts; howling is a narrow band."""
    names, variant_B = context.choice(WINDS)
    middle_hz, span, octaves = context.table(
        ((900.0, 0.7, 1.4), (450.0, 1.2, 1.2), (520.0, 1.6, 0.35)), variant_B
    ).split(1, dim=1)
    gust_BX = wander(context, 0.9)
    centre_BX = middle_hz * 2 ** (span * (gust_BX - 0.5) * 2)
    noise_BAX = moving_noise(context, lambda hz: torch.exp(-(((centre_BX / hz).log2() / octaves) ** 2)), channels=2)
    context.tell(variant=names)
    return _held(context, noise_BAX * (0.25 + 0.75 * gust_BX)[:, None], 1.5, 16.0)


def rain(context: RenderContext) -> Dry:
    """Drops at random times above a bed of hiss; the heavier, the more of both."""
    names, variant_B = context.choice(RAINS)
    drops_per_second, bed = context.table(((18.0, 0.03), (80.0, 0.12), (300.0, 0.35)), variant_B).split(1, dim=1)
    bed_BAX = band_noise(context, context.uniform(500, 1500), context.uniform(9000, 14000), 1.0, channels=2)
    drop_B1X = _short_click(context, 1500, 9000, 0.02)[:, None]
    drops_BAX = convolved(_random_impulses(context, drops_per_second, channels=2), drop_B1X)
    context.tell(variant=names)
    return _held(context, bed_BAX * bed[:, :, None] + drops_BAX, 1.5, 16.0)


def fire(context: RenderContext) -> Dry:
    """Crackles of very different loudness above a low flutter."""
    flutter_BX = band_noise(context, context.uniform(40, 80), context.uniform(250, 600), 1.0)[:, 0]
    flutter_BX = flutter_BX * (0.4 + 0.6 * wander(context, 6.0))
    hiss_BX = band_noise(context, context.uniform(1500, 3000), context.uniform(7000, 10000), 1.0)[:, 0]
    impulses_BAX = _random_impulses(context, context.log_uniform(6, 25), channels=2, power=4)
    crackle_BAX = convolved(impulses_BAX, _short_click(context, 1000, 12000, 0.012)[:, None])
    bed_B1X = (0.12 * flutter_BX + 0.012 * hiss_BX)[:, None]
    return _held(context, 2 * crackle_BAX + bed_B1X, 1.5, 16.0)


def _random_impulses(context: RenderContext, per_second_B1: Tensor, channels: int, power: int = 2) -> Tensor:
    """(B, channels, X) impulses at random samples, small ones more often than large ones."""
    shape = (context.num_clips, channels, context.num_samples)
    draw_BAX = torch.rand(shape, generator=context.noise, device=context.device)
    chance_B11 = (per_second_B1 / SAMPLE_RATE_HZ)[:, :, None]
    # Where an impulse falls, the draw over the chance is uniform again: it gives the size.
    return (draw_BAX < chance_B11) * (draw_BAX / chance_B11).clamp_max(1.0) ** power


def _short_click(context: RenderContext, low_hz: float, high_hz: float, seconds: float) -> Tensor:
    """(B, samples) a short decaying burst of noise of peak 1."""
    length = min(context.num_samples, 4096)
    time_X = context.time_X[:length]
    noise_BX = band_noise(context, context.uniform(low_hz, 1.5 * low_hz), context.uniform(0.7 * high_hz, high_hz))[:, 0]
    click_BX = noise_BX[:, :length] * decay(time_X, context.uniform(0.6 * seconds, 2 * seconds))
    return click_BX / click_BX.abs().amax(dim=1, keepdim=True).clamp_min(1e-9)


def waves(context: RenderContext) -> Dry:
    """Surf: broad noise that swells and recedes, brightest at its crest."""
    period_B1, phase_B1 = context.log_uniform(2.0, 7.0), context.uniform(0, 1)
    crest_BX = (0.5 + 0.5 * lfo(context.time_X, 1 / period_B1, phase_B1)) ** 2
    top_BX = 500 + 7000 * crest_BX
    noise_BAX = moving_noise(context, lambda hz: 1 / (1 + (hz / top_BX) ** 2) / max(hz / 200, 1) ** 0.3, channels=2)
    return _held(context, noise_BAX * (0.08 + 0.92 * crest_BX)[:, None], 3.0, 20.0)


def engine(context: RenderContext) -> Dry:
    """Uneven pulses at the firing rate with exhaust noise in their rhythm."""
    names, variant_B = context.choice(ENGINES)
    start_hz, ratio = context.table(((24.0, 1.0), (60.0, 1.0), (30.0, 3.5), (100.0, 0.3)), variant_B).split(1, dim=1)
    start_hz = start_hz * context.log_uniform(0.8, 1.3)
    end_B1 = context.duration(1.0, 12.0)
    progress_BX = (context.time_X / end_B1).clamp_max(1.0)
    speed_BX = start_hz * ratio**progress_BX * (0.98 + 0.04 * wander(context, 8.0))
    phase_BX = moving_phase(speed_BX)
    brightness_B1 = context.uniform(0, 1)
    uneven_B24 = context.uniform(0.4, 1.3, 24)
    tone_BX = harmonics(
        phase_BX, speed_BX, 24, lambda k: uneven_B24[:, k - 1, None] * k ** (-1.2 + 0.7 * brightness_B1)
    )
    pulse_BX = (0.5 + 0.5 * harmonics(phase_BX, speed_BX, 1, lambda k: 1.0)) ** 3
    exhaust_BX = band_noise(context, context.uniform(80, 200), 800 + 3000 * brightness_B1, 1.0)[:, 0] * pulse_BX
    shape_BX = attack(context.time_X, 0.05) * ending(context.time_X, end_B1, (0.2 * end_B1).clamp_max(0.3))
    directions = ["rising" if n == ENGINES[2] else "falling" if n == ENGINES[3] else None for n in names]
    context.tell(variant=names, direction=directions, brightness=brightness_B1)
    return ((tone_BX + 0.5 * exhaust_BX) * shape_BX)[:, None], end_B1


FAMILIES = (
    Family("noise", noise, 1.6),
    Family("wind", wind),
    Family("rain", rain),
    Family("fire", fire, 0.8),
    Family("waves", waves),
    Family("engine", engine),
)
