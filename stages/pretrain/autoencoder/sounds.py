"""Crops of synthesised sounds, for training: a pool of sounds, part of it replaced from time to time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.pretrain.autoencoder.architecture import SAMPLE_RATE_HZ
from stages.pretrain.synthesis.synthesiser import FAMILIES, Synthesiser

LEAD = 8192
"""Samples of silence that a crop may start with."""
QUIETEST_GAIN = 0.3
NOISY_WORDS = ("noise", "hat", "cymbal", "snare", "drum", "clap", "wind", "rain")
"""In the names of the families of drums and noises."""

LOWEST_HZ = 40.0
BAND_EDGES = 9
"""Frequencies from 40 Hz to half the rate, at equal steps of the logarithm, between which the gain is interpolated."""
EQUALISER_DB = 7.0
MIXED_SHARE = 0.4
EQUALISED_SHARE = 0.6


class SoundPool:
    """Random crops (B, 2, X) of a pool of sounds.

    A part of the pool is made anew after every `batches_per_part` batches, so that the cost of synthesis is small and
    no sound is seen often.
    """

    def __init__(
        self,
        device: torch.device,
        seed: int,
        *,
        num_sounds: int = 1024,
        num_parts: int = 8,
        seconds: float = 6.0,
        batches_per_part: int = 100,
        noisy_share: float = 0.25,
        varied: bool = False,
    ) -> None:
        """`noisy_share`: share of sounds from the families of drums and noises; `varied`: see `varied`."""
        self.varied = varied
        self.synthesiser = Synthesiser(device, seed)
        self.device, self.batches_per_part, self.part_size = device, batches_per_part, num_sounds // num_parts
        self.num_samples, self.noisy_share = int(seconds * SAMPLE_RATE_HZ), noisy_share
        self.noisy = [name for name in FAMILIES if any(word in name for word in NOISY_WORDS)]
        parts = [self._part() for _ in range(num_parts)]
        self.sounds = torch.cat([sounds for sounds, _ in parts])
        self.ends = torch.cat([ends for _, ends in parts])
        self.next_part = self.batches = 0

    def _part(self) -> tuple[Tensor, Tensor]:
        num_noisy = round(self.part_size * self.noisy_share) if self.noisy else 0
        batches = [self.synthesiser.batch(self.part_size - num_noisy, self.num_samples)]
        if num_noisy:
            batches.append(self.synthesiser.batch(num_noisy, self.num_samples, self.noisy))
        audio = F.pad(torch.cat([batch.audio_BAX for batch in batches]), (LEAD, 0))
        ends = [LEAD + fact.seconds * SAMPLE_RATE_HZ for batch in batches for fact in batch.facts]
        return audio, torch.tensor(ends, device=self.device)

    def crops(self, batch_size: int, num_samples: int) -> Tensor:
        """Crops that start anywhere from the silence before a sound to half a crop before its end."""
        self.batches += 1
        if self.batches % self.batches_per_part == 0:
            self._renew()
        which = torch.randint(len(self.sounds), (batch_size, 1), device=self.device)
        latest = (self.ends[which] - num_samples / 2).clamp(0, self.sounds.shape[-1] - num_samples)
        start = (torch.rand(batch_size, 1, device=self.device) * latest).long()
        place = start + torch.arange(num_samples, device=self.device)
        crop = torch.stack([self.sounds[which, channel, place] for channel in (0, 1)], dim=1)
        gain = QUIETEST_GAIN + (1 - QUIETEST_GAIN) * torch.rand(batch_size, 1, 1, device=self.device)
        swapped = torch.rand(batch_size, 1, 1, device=self.device) < 0.5
        crop = torch.where(swapped, crop.flip(1), crop) * gain
        return varied(crop) if self.varied else crop

    def _renew(self) -> None:
        rows = slice(self.next_part * self.part_size, (self.next_part + 1) * self.part_size)
        self.sounds[rows], self.ends[rows] = self._part()
        self.next_part = (self.next_part + 1) % (len(self.sounds) // self.part_size)


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
