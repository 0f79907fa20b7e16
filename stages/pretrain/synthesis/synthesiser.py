"""Batches of captioned sounds from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.pretrain.synthesis.facts import SoundFacts
from stages.pretrain.synthesis.families import (
    drum_loops,
    drums,
    harmony,
    keys_and_synths,
    noises,
    strings,
    struck,
    sweeps,
    voices,
)
from stages.pretrain.synthesis.families.family import Family
from stages.pretrain.synthesis.signal.context import RenderContext
from stages.pretrain.synthesis.signal.placement import placed

_MODULES = (strings, struck, drums, drum_loops, keys_and_synths, harmony, voices, sweeps, noises)
FAMILIES: dict[str, Family] = {family.name: family for module in _MODULES for family in module.FAMILIES}
_MOST_SAMPLES = 2**26
"""Samples of one channel rendered at a time: some 0.3 GB for each intermediate result."""


@dataclass(frozen=True)
class SynthBatch:
    """Rendered sounds and what is known of each."""

    audio_BAX: Tensor
    """(B, 2, X) float32 within [-1, 1] on the synthesiser's device; zero from each sound's end on."""
    facts: list[SoundFacts]


class Synthesiser:
    """Renders batches; the same calls after the same seed give the same batches, bit by bit on one device."""

    def __init__(self, device: str | torch.device = "cpu", seed: int = 0) -> None:
        self.device = torch.device(device)
        self._parameters = torch.Generator().manual_seed(seed)
        self._noise = torch.Generator(self.device).manual_seed(seed)

    @torch.no_grad()
    def batch(self, num_clips: int, num_samples: int, families: Sequence[str] | None = None) -> SynthBatch:
        """Sounds at 44.1 kHz, of families drawn by their shares.

        Args:
            num_samples: length of every clip; sounds are made to end within it.
            families: names from `FAMILIES` to draw from; all of them by default.
        """
        chosen = [FAMILIES[name] for name in families or FAMILIES]
        shares = torch.tensor([family.share for family in chosen])
        which_B = torch.multinomial(shares, num_clips, replacement=True, generator=self._parameters)
        audio_BAX = torch.zeros(num_clips, 2, num_samples, device=self.device)
        facts: list[SoundFacts | None] = [None] * num_clips
        for number, family in enumerate(chosen):
            places_B = (which_B == number).nonzero()[:, 0]
            for part_B in places_B.split(max(1, _MOST_SAMPLES // num_samples)):
                sounds_BAX, their_facts = self._rendered(family, len(part_B), num_samples)
                audio_BAX[part_B.to(self.device)] = sounds_BAX
                for place, fact in zip(part_B.tolist(), their_facts, strict=True):
                    facts[place] = fact
        return SynthBatch(audio_BAX, [fact for fact in facts if fact is not None])

    def _rendered(self, family: Family, num_clips: int, num_samples: int) -> tuple[Tensor, list[SoundFacts]]:
        if num_clips == 0:
            return torch.zeros(0, 2, num_samples, device=self.device), []
        context = RenderContext(num_clips, num_samples, self.device, self._parameters, self._noise)
        sounds_BAX = placed(context, *family.render(context))
        rows = ({name: values[row] for name, values in context.facts.items()} for row in range(num_clips))
        return sounds_BAX, [SoundFacts(family=family.name, **row) for row in rows]
