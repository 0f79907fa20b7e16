"""Samplers: which clips each step sees. Every epoch visits all clips in a new order, clips of similar length together.

An epoch visits each clip once, and a clip that is longer than the window `crops_per_clip` times. Epochs follow one
another without a break, so no visit is dropped and a batch may be larger than the dataset. (The reference drops the
clips at the end of each epoch that fill no batch.)

Sorting a whole epoch by length would save the most padding but always put the same clips together; so only windows of
some batches are sorted, and their batches are shuffled again. Everything follows from the seed and the step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from stages.train.dataset.clips import ClipLengths, all_excerpt_frames, window_frames
from stages.train.dataset.length_buckets import length_buckets_for
from stages.train.rng import StepRng, silence_extensions
from stages.train.stage import TrainParams

# B clips of a step. A visit is one occurrence of a clip in an epoch, given by its index there.

SORT_WINDOW_BATCHES = 16
"""Batches that are sorted by length together, where an epoch has so many."""
MIN_ROUND_VISITS = 1024
"""Least number of visits that `FrameBudgetSampler` batches at a time, so that few batches are cut short."""


@dataclass(frozen=True, kw_only=True)
class Visits:
    """The clips of one step."""

    clips_B: np.ndarray
    """int64, index of each clip."""
    microbatch_sizes: tuple[int, ...]
    """How many consecutive ones go through the network at a time."""
    frames_B: np.ndarray | None = None
    """int64, with the silence behind each; None where the step draws the silence itself."""


class Sampler(Protocol):
    """The clips of any step; steps may be requested in any order."""

    def visits(self, step: int) -> Visits: ...


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The visits of an epoch, before they are shuffled."""

    clips: np.ndarray
    """(visits,) int64, index of the clip."""
    frames: np.ndarray
    """(visits,) int64, frames of its excerpt."""
    window: int
    """Most frames of an excerpt, silence included."""
    mean_silence_frames: float
    """Mean frames of silence behind an excerpt."""

    def __len__(self) -> int:
        return len(self.clips)

    def lengths(self, visits: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Frames of some visits, int64, each with its random silence."""
        silence = silence_extensions(generator, len(visits), self.mean_silence_frames)
        return np.minimum(self.frames[visits] + silence, self.window)


def sampler_for(clips: ClipLengths, params: TrainParams, rng: StepRng) -> Sampler:
    """The sampler that params ask for: a fixed number of clips per batch, or a budget of frames."""
    times = np.where(clips.sizes > clips.window, params.crops_per_clip, 1)
    visited = np.repeat(np.arange(len(clips.sizes)), times)
    epoch = Epoch(
        clips=visited,
        frames=all_excerpt_frames(clips)[visited],
        window=window_frames(clips),
        mean_silence_frames=params.silence_extension_seconds * clips.sample_rate_hz / clips.samples_per_frame,
    )
    if params.frames_per_batch is None:
        return FixedSizeSampler(rng, epoch, params.batch_size, params.gradient_accumulation)
    lengths = np.array(length_buckets_for(clips).lengths)
    return FrameBudgetSampler(rng, epoch, lengths, params.frames_per_batch, params.gradient_accumulation)


class FixedSizeSampler:
    """Steps of a fixed number of clips: `batch_size` times `gradient_accumulation`.

    A step of several microbatches holds the clips of one batch as large as all of them. Where sort windows hold several
    batches, silence is drawn here, for all visits of a window: it adds as much to the length as a short clip does.
    """

    def __init__(self, rng: StepRng, epoch: Epoch, batch_size: int, num_microbatches: int = 1) -> None:
        self.rng, self.epoch = rng, epoch
        self.microbatch_sizes = (batch_size,) * num_microbatches
        self.size = batch_size * num_microbatches
        # Sorting more than an epoch at a time would make every clip its own neighbour in a batch.
        self.window_batches = max(1, min(SORT_WINDOW_BATCHES, len(epoch) // self.size)) if self.size > 1 else 1
        """Batches of a sort window; with 1 nothing is sorted."""
        self._permutation = lru_cache(4)(lambda number: rng.generator("order", number).permutation(len(epoch)))
        self._sort_window = lru_cache(4)(self.sort_window)

    def visits(self, step: int) -> Visits:
        """Clips of a step, counted from 0."""
        number, index = divmod(step, self.window_batches)
        visits, frames = self._sort_window(number)
        return Visits(
            clips_B=self.epoch.clips[visits[index]],
            microbatch_sizes=self.microbatch_sizes,
            frames_B=None if frames is None else frames[index],
        )

    def sort_window(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Visits of consecutive batches, (batches, B) int64, and their frames where they are sorted by them."""
        count = self.window_batches * self.size
        pieces = self._pieces(number * count, (number + 1) * count)
        visits = np.concatenate(pieces)
        if self.window_batches == 1:
            return visits[None], None
        frames = self.epoch.lengths(visits, self.rng.generator("silence", number))
        order = zigzag(np.split(frames, np.cumsum([len(piece) for piece in pieces])[:-1]))
        batches = order.reshape(self.window_batches, -1)
        shuffled = batches[self.rng.generator("batches", number).permutation(self.window_batches)]
        return visits[shuffled], frames[shuffled]

    def _pieces(self, start: int, stop: int) -> list[np.ndarray]:
        """Visits `start` to `stop` of all epochs concatenated, one piece per epoch."""
        num = len(self.epoch)
        epochs = range(start // num, -(-stop // num))
        return [self._permutation(number)[max(start - number * num, 0) : stop - number * num] for number in epochs]


class FrameBudgetSampler:
    """Batches of as many clips as fit: their number, times the longest of them, is at most `frames_per_batch`.

    Lengths include the silence behind a clip, and are rounded up to length buckets. A clip beyond the budget is a batch
    of its own.

    Args:
        lengths: bucket lengths in frames, ascending.
        budget: most frames of a batch.
        num_microbatches: batches of a step.
    """

    def __init__(self, rng: StepRng, epoch: Epoch, lengths: np.ndarray, budget: int, num_microbatches: int = 1) -> None:
        self.rng, self.epoch, self.lengths, self.budget = rng, epoch, lengths, budget
        self.num_microbatches = num_microbatches
        usual = self.rounded(np.minimum(epoch.frames + int(epoch.mean_silence_frames), epoch.window)).mean()
        self.clips_per_batch = max(1, int(budget / usual))
        """Approximate number of clips in a batch."""
        self.round_epochs = -(-max(MIN_ROUND_VISITS, SORT_WINDOW_BATCHES * self.clips_per_batch) // len(epoch))
        """Epochs of a round: whole epochs that are cut into batches together."""
        self._ends = [0]
        self._round = lru_cache(3)(self.round)

    def rounded(self, frames: np.ndarray) -> np.ndarray:
        """Frame counts rounded up to buckets."""
        return self.lengths[np.searchsorted(self.lengths, frames)]

    def visits(self, step: int) -> Visits:
        """Clips of a step, counted from 0: those of `num_microbatches` batches."""
        first = step * self.num_microbatches
        batches = [self.batch(number) for number in range(first, first + self.num_microbatches)]
        clips, frames = (np.concatenate(column) for column in zip(*batches, strict=True))
        return Visits(clips_B=clips, microbatch_sizes=tuple(len(batch) for batch, _ in batches), frames_B=frames)

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Clips of a batch and their frames. Rounds differ in their number of batches, so earlier ones are counted."""
        while self._ends[-1] <= number:
            self._ends.append(self._ends[-1] + len(self._round(len(self._ends) - 1)))
        found = bisect_right(self._ends, number) - 1
        return self._round(found)[number - self._ends[found]]

    def round(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The batches of some whole epochs: clips of each batch, and frames of each clip."""
        epochs = np.tile(np.arange(len(self.epoch)), (self.round_epochs, 1))
        visits = self.rng.generator("order", number).permuted(epochs, axis=1).ravel()
        frames = self.epoch.lengths(visits, self.rng.generator("silence", number))
        per_epoch = len(self.epoch) // self.clips_per_batch
        order = np.arange(len(visits))
        if per_epoch > 1:
            num_pieces = -(-per_epoch // SORT_WINDOW_BATCHES)
            by_epoch = np.split(frames, self.round_epochs)
            order = zigzag([piece for each in by_epoch for piece in np.array_split(each, num_pieces)])
        batches = np.split(order, batch_starts(self.rounded(frames[order]).tolist(), self.budget))
        window = min(SORT_WINDOW_BATCHES, max(per_epoch, 1))
        chosen = shuffled_in_windows(self.rng.generator("batches", number), len(batches), window)
        clips = self.epoch.clips[visits]
        return [(clips[batches[index]], frames[batches[index]]) for index in chosen]

    def budget_note(self) -> str | None:
        """One line for the user where clips are longer than the budget; None where all fit."""
        if self.rounded(np.array([self.epoch.window]))[0] <= self.budget:
            return None
        clips = self.epoch.clips
        beyond = len(np.unique(clips[self.rounded(self.epoch.frames) > self.budget]))
        total = len(np.unique(clips))
        return (
            f"frames_per_batch {self.budget} is less than the crop length ({self.epoch.window} frames): a longer "
            f"excerpt is a batch of its own; {beyond} of {total} clips always are, others when silence follows"
        )


def zigzag(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Indices into all pieces concatenated, each piece sorted, ascending and descending in turn; ties are stable.

    So the end of one piece and the beginning of the next are of similar length too.
    """
    starts = np.cumsum([0, *(len(piece) for piece in pieces)])
    orders = [np.argsort(-piece if index % 2 else piece, kind="stable") for index, piece in enumerate(pieces)]
    return np.concatenate([start + order for start, order in zip(starts, orders, strict=False)])


def batch_starts(frames: Sequence[int], budget: int) -> list[int]:
    """Where each batch but the first begins: a clip joins the batch before it while all fit into the budget."""
    found, start, longest = [], 0, 0
    for index, each in enumerate(frames):
        longest = max(longest, each)
        if index > start and (index - start + 1) * longest > budget:
            found.append(index)
            start, longest = index, each
    return found


def shuffled_in_windows(generator: np.random.Generator, count: int, window: int) -> list[int]:
    """0 to count - 1, shuffled within each `window` consecutive ones."""
    groups = [np.arange(start, min(start + window, count)) for start in range(0, count, window)]
    return [int(index) for group in groups for index in generator.permutation(group)]
