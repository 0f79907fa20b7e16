"""Noise with a spectrum, still or moving, and sounds repeated at given times."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stages.pretrain.synthesis.signal.context import SAMPLE_RATE_HZ, RenderContext


def band_gain(frequency_hz_F: Tensor, low_hz_B1: Tensor, high_hz_B1: Tensor, edge_octaves: float = 0.5) -> Tensor:
    """(B, frequencies) 1 between low and high, with soft edges."""
    slope = 6.0 / edge_octaves
    rising = torch.sigmoid((frequency_hz_F / low_hz_B1).log2() * slope)
    return rising * torch.sigmoid((high_hz_B1 / frequency_hz_F).log2() * slope)


def band_noise(
    context: RenderContext,
    low_hz_B1: Tensor,
    high_hz_B1: Tensor,
    edge_octaves: float = 0.5,
    tilt_B1: Tensor | float = 0.0,
    channels: int = 1,
) -> Tensor:
    """(B, channels, X) independent noise of unit root mean square between two frequencies.

    Args:
        tilt_B1: exponent of the power spectrum over frequency: 0 white, -1 pink, -2 brown.
    """
    frequency_F = frequencies(context.num_samples, context.device)
    gain_BF = band_gain(frequency_F, low_hz_B1, high_hz_B1, edge_octaves)
    gain_BF = gain_BF * (frequency_F / 1000.0) ** (torch.as_tensor(tilt_B1, device=context.device) / 2)
    white_BAX = context.white_noise(context.num_clips, channels, context.num_samples)
    noise_BAX = filtered(white_BAX, gain_BF[:, None])
    return noise_BAX / noise_BAX.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-9)


def moving_noise(context: RenderContext, gain: Callable[[float], Tensor], channels: int = 1) -> Tensor:
    """(B, channels, X) noise whose spectrum moves: third-octave bands, each with its gain over time, (B, X)."""
    frequency_F = frequencies(context.num_samples, context.device)
    spectrum_BAF = torch.fft.rfft(context.white_noise(context.num_clips, channels, context.num_samples))
    sum_BAX = torch.zeros(context.num_clips, channels, context.num_samples, device=context.device)
    distance_F = (frequency_F / 50.0).log2() * 2
    for number in range(17):  # two bands an octave from 50 Hz to 12.8 kHz; triangles that add up to one
        weight_F = (1 - (distance_F - number).abs()).clamp_min(0)
        band_BAX = torch.fft.irfft(spectrum_BAF * weight_F, n=context.num_samples)
        sum_BAX.addcmul_(band_BAX, gain(50.0 * 2 ** (number / 2))[:, None].expand_as(band_BAX))
    return sum_BAX


def filtered(audio_BAX: Tensor, gain_BAF: Tensor) -> Tensor:
    """Audio with each frequency multiplied by a gain."""
    return torch.fft.irfft(torch.fft.rfft(audio_BAX) * gain_BAF, n=audio_BAX.shape[-1])


def frequencies(num_samples: int, device: torch.device) -> Tensor:
    """Frequencies in Hz of a real Fourier transform, that of the constant part raised to 1 Hz."""
    return torch.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ, device=device).clamp_min(1.0)


def convolved(audio_BAX: Tensor, response_BAX: Tensor) -> Tensor:
    """Linear convolution, cut to the length of the audio."""
    length = audio_BAX.shape[-1]
    size = length + response_BAX.shape[-1]
    spectrum = torch.fft.rfft(audio_BAX, n=size) * torch.fft.rfft(response_BAX, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :length]


def repeated(hit_BX: Tensor, start_samples_BE: Tensor, gain_BE: Tensor, num_samples: int) -> Tensor:
    """(B, X) a sound played at each of E starts with its gain; starts behind the end are left out.

    Starts of one row that are played must differ, so that the sum does not depend on its order.
    """
    inside_BE = (start_samples_BE < num_samples) & (gain_BE != 0)
    impulses_BX = torch.zeros(hit_BX.shape[0], num_samples + 1, device=hit_BX.device)
    place_BE = start_samples_BE.where(inside_BE, torch.full_like(start_samples_BE, num_samples))
    impulses_BX.scatter_add_(1, place_BE, gain_BE * inside_BE)
    return convolved(impulses_BX[:, :num_samples], hit_BX)
