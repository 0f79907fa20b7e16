"""The few lengths that batches are rounded up to, so that a step need not be prepared for every length."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F

from stages.train.dataset.batch import Batch
from stages.train.dataset.clips import ClipLengths, all_excerpt_frames, window_frames

# B clips, C latent channels, T frames.

MOST_LENGTHS = 6
"""Each is compiled and captured once, at the price of some hundred steps."""
LEAST_RATIO = 1.25
SHORTEST = 256
"""Frames. Fewer take hardly less time: a step of medium-base on an H200 was measured at 12.6 ms with 108 frames and at
29.2 with 1024, which is about 15 with 256 on the line between, and each further length at 6 s to prepare."""
UNMASKED = 512
"""Frames from which attention without a mask is worth a recording of its own."""
UNIT = 8
"""Frames; kernels want a multiple of it."""


def bucket_lengths(shortest: int, window: int) -> list[int]:
    """Ascending frame counts, the last of them the window, one of which every batch is rounded up to.

    Geometric, so that the share of padding is the same for short and long clips, and as fine as `MOST_LENGTHS` allows.
    """
    least = min(max(shortest, SHORTEST), window)
    ratio = max(LEAST_RATIO, (window / least) ** (1 / MOST_LENGTHS))
    lengths, length = [window], window / ratio
    while length >= least and len(lengths) < MOST_LENGTHS:
        rounded = -(-int(length) // UNIT) * UNIT
        if least <= rounded < lengths[-1]:
            lengths.append(rounded)
        length /= ratio
    return lengths[::-1]


@dataclass
class LengthBuckets:
    """Lengths, and what the frames worked on so far were, those of all clips of a batch counted."""

    lengths: list[int]
    mixed: bool = False
    """Whether some clips are shorter than the window, so that batches may or may not need a mask."""
    frames_real: int = 0
    """Of clips, and the silence that is trained on behind them."""
    frames_masked: int = 0
    """Behind clips that are shorter than the longest of their batch."""
    frames_padded: int = 0
    """Added by rounding up."""

    def of(self, num_frames: int) -> int:
        """The least length that holds so many frames."""
        return self.lengths[bisect_left(self.lengths, num_frames)]

    def shape_of(self, batch: Batch) -> tuple[int, int, int, bool]:
        """Clips, channels, frames and whether all are real, of the batch as it is worked on."""
        size, channels, num_frames = batch.latents_BCT.shape
        length = self.of(num_frames)
        masked = length > num_frames or (self.mixed and length < UNMASKED)
        return size, channels, length, batch.all_real and not masked

    def padded(self, batch: Batch) -> Batch:
        """The batch at its bucket's length; what is added is masked and reaches nothing."""
        num_frames, real = batch.latents_BCT.shape[-1], int(batch.real_BT.sum())
        size, _, length, all_real = self.shape_of(batch)
        self.frames_real += real
        self.frames_masked += size * num_frames - real
        self.frames_padded += size * (length - num_frames)
        return batch if length == num_frames and all_real == batch.all_real else padded_to(batch, length, all_real)

    @property
    def padding_share(self) -> float:
        """Share of all frames worked on that rounding up has added."""
        return self.frames_padded / max(self.frames_worked_on, 1)

    @property
    def masked_share(self) -> float:
        """Share of all frames worked on that lie behind clips shorter than the longest of their batch."""
        return self.frames_masked / max(self.frames_worked_on, 1)

    @property
    def frames_worked_on(self) -> int:
        return self.frames_real + self.frames_masked + self.frames_padded


def length_buckets_for(clips: ClipLengths) -> LengthBuckets:
    """For the lengths that batches of these clips can have."""
    shortest, window = int(all_excerpt_frames(clips).min()), window_frames(clips)
    return LengthBuckets(bucket_lengths(shortest, window), mixed=shortest < window)


def padded_to(batch: Batch, num_frames: int, all_real: bool = False) -> Batch:
    """The same clips, with padding behind the longest of them, if they are shorter."""
    missing = num_frames - batch.latents_BCT.shape[-1]
    names = ("latents_BCT", "noise_BCT", "real_BT", "given_BT")
    longer: dict[str, Any] = {name: F.pad(getattr(batch, name), (0, missing)) for name in names}
    return replace(batch, **longer, all_real=all_real)
