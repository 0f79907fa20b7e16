"""Ways to make synthesised sounds more various than they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stages.pretrain.autoencoder.architecture import SAMPLE_RATE_HZ

LOWEST_HZ = 40.0
BAND_EDGES = 9
"""Frequencies from 40 Hz to half the rate, at equal steps of the logarithm, between which the gain is interpolated."""
EQUALISER_DB = 7.0
MIXED_SHARE = 0.4
EQUALISED_SHARE = 0.6

SPED_SHARE = 0.4
MOST_SPEED = 1.6
"""And its inverse: the slowest and the fastest that a sound is played."""
DRIVEN_SHARE = 0.3
MOST_DRIVE = 8.0
FLOOR_SHARE = 0.5
FLOOR_DB = (-85.0, -40.0)
"""Level of a noise floor, below full scale."""
DULL_SHARE = 0.4
LOWEST_EDGE_HZ, EDGE_OCTAVES = 3000.0, 2.5
"""Above some frequency from 3 to 17 kHz a dull sound has nothing."""


def varied(audio_BAX: Tensor) -> Tensor:
    """Sounds made more various: most with random gains over frequency, some mixed with another of the batch."""
    batch, device = audio_BAX.shape[0], audio_BAX.device
    equalised = _equalised(audio_BAX)
    peak, allowed = (signal.abs().amax(dim=(1, 2), keepdim=True) for signal in (equalised, audio_BAX))
    equalised = equalised * (allowed / peak.clamp(min=1e-4)).clamp(max=3)
    is_mixed = torch.rand(batch, 1, 1, device=device) < MIXED_SHARE
    share = torch.rand(batch, 1, 1, device=device) * is_mixed
    return (equalised + share * equalised.roll(1, dims=0)) / (1 + share / 2)


def _equalised(audio_BAX: Tensor) -> Tensor:
    batch, device, num_samples = audio_BAX.shape[0], audio_BAX.device, audio_BAX.shape[-1]
    hz = torch.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ, device=device).clamp(min=LOWEST_HZ)
    octaves = math.log2(SAMPLE_RATE_HZ / 2 / LOWEST_HZ)
    place = (torch.log2(hz / LOWEST_HZ) / octaves * (BAND_EDGES - 1)).clamp(max=BAND_EDGES - 1.001)
    low = place.long()
    gain_db = EQUALISER_DB * torch.randn(batch, BAND_EDGES, device=device)
    gain_db = gain_db * (torch.rand(batch, 1, device=device) < EQUALISED_SHARE)
    gain = 10 ** (torch.lerp(gain_db[:, low], gain_db[:, low + 1], place - low) / 20)
    return torch.fft.irfft(torch.fft.rfft(audio_BAX) * gain[:, None], n=num_samples)


def speeds(batch: int, device: torch.device) -> Tensor:
    """(B, 1) speeds at which sounds are read: 1 for most."""
    octaves = math.log2(MOST_SPEED) * (2 * torch.rand(batch, 1, device=device) - 1)
    return torch.exp2(octaves * (torch.rand(batch, 1, device=device) < SPED_SHARE))


def as_recorded(audio_BAX: Tensor) -> Tensor:
    """Sounds with what recordings have and synthesised sounds lack: some overdriven, some on a floor of faint noise."""
    return _driven(audio_BAX) + _noise_floor(audio_BAX)


def worn(audio_BAX: Tensor) -> Tensor:
    """Poor copies of sounds: equalised at random, some without highs, some on a noise floor."""
    return _without_highs(_equalised(audio_BAX)) + _noise_floor(audio_BAX)


def _without_highs(audio_BAX: Tensor) -> Tensor:
    """Some of the sounds faded out above a random frequency, within an octave."""
    batch, device, num_samples = audio_BAX.shape[0], audio_BAX.device, audio_BAX.shape[-1]
    hz = torch.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ, device=device).clamp(min=LOWEST_HZ)
    edge_hz = LOWEST_EDGE_HZ * 2 ** (EDGE_OCTAVES * torch.rand(batch, 1, 1, device=device))
    kept = (1 - torch.log2(hz / edge_hz)).clamp(0, 1)
    is_dull = torch.rand(batch, 1, 1, device=device) < DULL_SHARE
    return torch.fft.irfft(torch.fft.rfft(audio_BAX) * torch.where(is_dull, kept, 1.0), n=num_samples)


def _driven(audio_BAX: Tensor) -> Tensor:
    """Soft clipping that keeps the peak."""
    batch, device = audio_BAX.shape[0], audio_BAX.device
    drive = MOST_DRIVE ** torch.rand(batch, 1, 1, device=device)
    peak = audio_BAX.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-4)
    driven = peak * torch.tanh(drive * audio_BAX / peak) / torch.tanh(drive)
    return torch.where(torch.rand(batch, 1, 1, device=device) < DRIVEN_SHARE, driven, audio_BAX)


def _noise_floor(like_BAX: Tensor) -> Tensor:
    """Coloured noise, between one signal for both channels and two independent ones."""
    batch, device = like_BAX.shape[0], like_BAX.device
    lowest_db, highest_db = FLOOR_DB
    noise = torch.randn_like(like_BAX)
    noise = noise.lerp(noise[:, :1].expand_as(noise), torch.rand(batch, 1, 1, device=device))
    level = 10 ** ((lowest_db + (highest_db - lowest_db) * torch.rand(batch, 1, 1, device=device)) / 20)
    return _equalised(noise) * level * (torch.rand(batch, 1, 1, device=device) < FLOOR_SHARE)
