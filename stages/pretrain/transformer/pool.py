"""The pool of encoded sounds that a training draws from: it grows to its size, then the oldest sounds are replaced."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future

import torch
from torch import Tensor

from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.pretrain.autoencoder.architecture import DOWNSAMPLING_RATIO, SAMPLE_RATE_HZ
from stages.pretrain.synthesis.synthesiser import Synthesiser
from stages.pretrain.transformer.generator import padded_ids
from stages.pretrain.transformer.latents import EncodedSounds, sounds
from stages.pretrain.transformer.prompts import VARIANTS, PromptWriter, Rows
from stages.pretrain.transformer.recipe import Length

TRAINED_TOKENS = 40
"""Most tokens of a prompt in training, room for the longest caption; a multiple of 8, as attention kernels like."""


class Shelf:
    """The sounds of one length of batches, in tensors of fixed size and place, as a CUDA graph needs them."""

    def __init__(self, length: Length, capacity: int, channels: int, device: torch.device) -> None:
        self.length, self.capacity = length, capacity
        self.latents_NCT = torch.zeros(capacity, channels, length.frames, dtype=torch.float16, device=device)
        self.ids_NVP = torch.zeros(capacity, VARIANTS, TRAINED_TOKENS, dtype=torch.int16, device=device)
        self.seconds_N = torch.zeros(capacity, device=device)
        self.count = torch.zeros((), device=device)
        """How many sounds there are, on the device."""
        self.held = self.stored = self.next_place = 0

    def put(self, latents_BCT: Tensor, seconds: list[float], rows: Rows) -> None:
        """Add sounds, in place of the oldest when all places are taken."""
        device, number = self.latents_NCT.device, len(seconds)
        places = (torch.arange(number) + self.next_place) % self.capacity
        ids = padded_ids([row for variants in rows for row in variants], TRAINED_TOKENS)
        places = places.to(device)
        self.latents_NCT[places] = latents_BCT.to(torch.float16)
        self.ids_NVP[places] = ids.view(number, VARIANTS, TRAINED_TOKENS).to(device, torch.int16)
        self.seconds_N[places] = torch.tensor(seconds, device=device)
        self.next_place = (self.next_place + number) % self.capacity
        self.held = min(self.capacity, self.held + number)
        self.count.fill_(self.held)
        self.stored += number


class LatentPool:
    """A shelf for each length, filled part by part; the prompts of a part are written while the next one is made."""

    def __init__(
        self,
        lengths: tuple[Length, ...],
        autoencoder: Autoencoder,
        writer: PromptWriter,
        device: torch.device,
        seed: int,
        *,
        num_sounds: int,
        part_size: int,
    ) -> None:
        """`lengths`: ascending; `num_sounds`: when full, on all shelves together."""
        self.autoencoder, self.writer, self.part_size = autoencoder, writer, part_size
        self.synthesiser = Synthesiser(device, seed)
        total, channels = sum(length.step_share for length in lengths), autoencoder.latent_channels
        capacities = [max(part_size, round(num_sounds * length.step_share / total)) for length in lengths]
        self.shelves = [
            Shelf(length, capacity, channels, device) for length, capacity in zip(lengths, capacities, strict=True)
        ]
        self.waiting: tuple[EncodedSounds, Future[Rows]] | None = None
        self.made = 0

    @property
    def held(self) -> int:
        """Sounds on all shelves."""
        return sum(shelf.held for shelf in self.shelves)

    def fill(self, num_sounds: int, most_seconds: float = math.inf) -> None:
        """Make parts until there are so many sounds, or the time is over; some of every length in any case."""
        end = time.monotonic() + most_seconds
        while (self.held < num_sounds and time.monotonic() < end) or any(shelf.held == 0 for shelf in self.shelves):
            self.grow()
            self.put_away()

    def grow(self) -> None:
        """Make a part as long as the least full shelf takes; the part made before it is put away."""
        shelf = min(self.shelves, key=lambda shelf: shelf.stored / shelf.capacity)
        made = sounds(self.synthesiser, self.autoencoder, shelf.length, self.part_size)
        rows = self.writer.rows(made.facts)
        self.put_away()
        self.waiting = (made, rows)
        self.made += self.part_size

    def put_away(self) -> None:
        """Put the sounds that wait for their prompts on the shelves of their lengths."""
        if self.waiting is None:
            return
        made, rows = self.waiting[0], self.waiting[1].result()
        self.waiting = None
        ends = [math.ceil(fact.seconds * SAMPLE_RATE_HZ / DOWNSAMPLING_RATIO) for fact in made.facts]
        shortest = 0
        for shelf in self.shelves:
            longest = shelf.length.content_frames
            which = [place for place, end in enumerate(ends) if shortest < end <= longest]
            if which and shelf.length.frames <= made.latents_BCT.shape[-1]:
                latents_BCT = made.latents_BCT[which, :, : shelf.length.frames]
                shelf.put(latents_BCT, [made.facts[place].seconds for place in which], [rows[place] for place in which])
            shortest = longest
