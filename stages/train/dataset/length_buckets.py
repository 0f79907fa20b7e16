"""Length buckets: the few frame counts that batches are padded up to, so that few CUDA graphs have to be captured."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from stages.train.dataset.batch import Batch, padded_to
from stages.train.dataset.clips import ClipLengths, all_excerpt_frames, window_frames

MAX_BUCKETS = 6
"""Each is compiled and captured once, at the price of some hundred steps."""
MIN_RATIO = 1.25
MIN_BUCKET_FRAMES = 256
"""Fewer frames take hardly less time: a step of medium-base on an H200 was measured at 12.6 ms with 108 frames and at
29.2 with 1024, which is about 15 with 256 on the line between, and each further length at 6 s to prepare."""
MIN_UNMASKED_FRAMES = 512
"""Frames from which attention without a mask is worth a graph of its own."""
FRAME_MULTIPLE = 8
"""Kernels want frame counts to be a multiple of it."""


def bucket_lengths(shortest: int, window: int) -> list[int]:
    """Ascending frame counts, the last of them the window.

    Geometric, so that the share of padding is the same for short and long clips, and as fine as `MAX_BUCKETS` allows.
    """
    least = min(max(shortest, MIN_BUCKET_FRAMES), window)
    ratio = max(MIN_RATIO, (window / least) ** (1 / MAX_BUCKETS))
    lengths, length = [window], window / ratio
    while length >= least and len(lengths) < MAX_BUCKETS:
        rounded = -(-int(length) // FRAME_MULTIPLE) * FRAME_MULTIPLE
        if least <= rounded < lengths[-1]:
            lengths.append(rounded)
        length /= ratio
    return lengths[::-1]


@dataclass
class LengthBuckets:
    """Bucket lengths, with counts of the frames computed so far (over all clips of all batches)."""

    lengths: list[int]
    mixed: bool = False
    """Whether some clips are shorter than the window, so that batches may or may not need a mask."""
    frames_real: int = 0
    """Frames of clips and of the silence that is trained on behind them."""
    frames_masked: int = 0
    """Frames behind clips that are shorter than the longest of their batch."""
    frames_padded: int = 0
    """Frames added by rounding up to a bucket."""

    def bucket(self, num_frames: int) -> int:
        """The smallest bucket that holds so many frames."""
        return self.lengths[bisect_left(self.lengths, num_frames)]

    def shape_of(self, batch: Batch) -> tuple[int, int, int, bool]:
        """Clips, channels, frames and whether all frames are real, of the batch once it is padded."""
        size, channels, num_frames = batch.latents_BCT.shape
        length = self.bucket(num_frames)
        masked = length > num_frames or (self.mixed and length < MIN_UNMASKED_FRAMES)
        return size, channels, length, batch.all_real and not masked

    def padded(self, batch: Batch) -> Batch:
        """The batch padded to its bucket, counted; added frames are masked and influence nothing."""
        num_frames, real = batch.latents_BCT.shape[-1], int(batch.real_BT.sum())
        size, _, length, all_real = self.shape_of(batch)
        self.frames_real += real
        self.frames_masked += size * num_frames - real
        self.frames_padded += size * (length - num_frames)
        return batch if length == num_frames and all_real == batch.all_real else padded_to(batch, length, all_real)

    @property
    def padding_share(self) -> float:
        """Share of all computed frames that rounding up to buckets has added."""
        return self.frames_padded / max(self.frames_computed, 1)

    @property
    def masked_share(self) -> float:
        """Share of all computed frames that lie behind clips shorter than the longest of their batch."""
        return self.frames_masked / max(self.frames_computed, 1)

    @property
    def frames_computed(self) -> int:
        return self.frames_real + self.frames_masked + self.frames_padded


def length_buckets_for(clips: ClipLengths) -> LengthBuckets:
    """Buckets for the lengths that batches of these clips can have."""
    shortest, window = int(all_excerpt_frames(clips).min()), window_frames(clips)
    return LengthBuckets(bucket_lengths(shortest, window), mixed=shortest < window)
