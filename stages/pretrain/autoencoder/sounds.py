"""Crops of synthesised sounds, for training: a pool of sounds, part of it replaced from time to time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.pretrain.autoencoder.architecture import SAMPLE_RATE_HZ
from stages.pretrain.autoencoder.variety import as_recorded, speeds, varied
from stages.pretrain.synthesis.synthesiser import FAMILIES, Synthesiser

LEAD = 8192
"""Samples of silence that a crop may start with."""
QUIETEST_GAIN = 0.3
NOISY_WORDS = ("noise", "hat", "cymbal", "snare", "drum", "clap", "wind", "rain")
"""In the names of the families of drums and noises."""


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
        recorded: bool = False,
    ) -> None:
        """`noisy_share`: share of sounds from the families of drums and noises; the rest see `variety`."""
        self.varied, self.recorded = varied, recorded
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
        crop = self._read(which, start, num_samples)
        gain = QUIETEST_GAIN + (1 - QUIETEST_GAIN) * torch.rand(batch_size, 1, 1, device=self.device)
        swapped = torch.rand(batch_size, 1, 1, device=self.device) < 0.5
        crop = torch.where(swapped, crop.flip(1), crop) * gain
        crop = varied(crop) if self.varied else crop
        return as_recorded(crop) if self.recorded else crop

    def _read(self, which: Tensor, start: Tensor, num_samples: int) -> Tensor:
        """(B, 2, X) of sounds `which` from samples `start` on, at other speeds if they are to be `recorded`."""
        steps = torch.arange(num_samples, device=self.device)
        if not self.recorded:
            return self._samples(which, start + steps)
        place = steps * speeds(len(which), self.device)
        below = place.long()
        # Past its end a sound is silent; the last sample of the pool's row is repeated there.
        first, second = (
            self._samples(which, (start + below + more).clamp_max(self.sounds.shape[-1] - 1)) for more in (0, 1)
        )
        return first.lerp(second, (place - below)[:, None])

    def _samples(self, which: Tensor, place: Tensor) -> Tensor:
        return torch.stack([self.sounds[which, channel, place] for channel in (0, 1)], dim=1)

    def _renew(self) -> None:
        rows = slice(self.next_part * self.part_size, (self.next_part + 1) * self.part_size)
        self.sounds[rows], self.ends[rows] = self._part()
        self.next_part = (self.next_part + 1) % (len(self.sounds) // self.part_size)
