"""Which clips a step sees: every epoch all of them, in a new order, clips of like length in one batch.

An epoch visits each clip once, and one that is longer than the window as often as `crops_per_clip` says. Epochs follow
one another without a break, so no visit is dropped and a batch may be larger than the dataset. (The reference drops
the rest of each epoch that fills no batch.)

Sorting a whole epoch by length would save the most padding but always put the same clips together; so only stretches
of some batches are sorted, and their batches are shuffled again. Everything follows from the seed and the step.
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

# V visits of an epoch, E epochs, N visits in the order they are made in, B those of a step.

SORT_WINDOW_BATCHES = 16
"""Batches that are sorted by length together, where an epoch has so many."""
MIN_ROUND_VISITS = 1024
"""Least number of visits that `FrameBudgetSampler` batches at a time, so that few batches are cut short."""


@dataclass(frozen=True, kw_only=True)
class Visits:
    """The clips of one step."""

    clips_B: np.ndarray
    """int64, which clip."""
    microbatch_sizes: tuple[int, ...]
    """How many consecutive ones go through the network at a time."""
    frames_B: np.ndarray | None = None
    """int64, with the silence behind each; None where that is for the step to draw."""


class Order(Protocol):
    """The clips of any step, at any time."""

    def visits(self, step: int) -> Visits: ...


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What an epoch visits, in no order yet."""

    clips_V: np.ndarray
    """int64, which clip."""
    frames_V: np.ndarray
    """int64, of its excerpt."""
    window: int
    """Most frames of an excerpt, silence included."""
    silence: float
    """Mean frames of silence behind an excerpt."""

    def __len__(self) -> int:
        return len(self.clips_V)

    def lengths(self, visits_N: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(N,) int64 frames of some visits, each with its random silence."""
        extra_N = silence_extensions(generator, len(visits_N), self.silence)
        return np.minimum(self.frames_V[visits_N] + extra_N, self.window)


def sampler_for(clips: ClipLengths, params: TrainParams, rng: StepRng) -> Order:
    """By a number of clips, or by a number of frames where `frames_per_batch` says so."""
    times = np.where(clips.sizes > clips.window, params.crops_per_clip, 1)
    clips_V = np.repeat(np.arange(len(clips.sizes)), times)
    epoch = Epoch(
        clips_V=clips_V,
        frames_V=all_excerpt_frames(clips)[clips_V],
        window=window_frames(clips),
        silence=params.silence_extension_seconds * clips.sample_rate_hz / clips.samples_per_frame,
    )
    if params.frames_per_batch is None:
        return FixedSizeSampler(rng, epoch, params.batch_size, params.gradient_accumulation)
    lengths = np.array(length_buckets_for(clips).lengths)
    return FrameBudgetSampler(rng, epoch, lengths, params.frames_per_batch, params.gradient_accumulation)


class FixedSizeSampler:
    """Steps of a fixed number of clips: `batch_size` times `gradient_accumulation`.

    A step of several parts holds the clips of a batch that is as large as all of them. Where stretches are sorted,
    silence is drawn here, for all visits of a stretch: it makes as much of a length as a short clip does.
    """

    def __init__(self, rng: StepRng, epoch: Epoch, batch_size: int, num_parts: int = 1) -> None:
        self.rng, self.epoch = rng, epoch
        self.microbatch_sizes = (batch_size,) * num_parts
        self.size = batch_size * num_parts
        # Sorting more than an epoch at a time would make every clip its own neighbour in a batch.
        self.num_sorted = max(1, min(SORT_WINDOW_BATCHES, len(epoch) // self.size)) if self.size > 1 else 1
        """Batches; 1 sorts nothing."""
        self._permutation = lru_cache(4)(lambda number: rng.generator("order", number).permutation(len(epoch)))
        self._stretch = lru_cache(4)(self.stretch)

    def visits(self, step: int) -> Visits:
        """Clips of a step, counted from 0."""
        number, place = divmod(step, self.num_sorted)
        visits_PB, frames_PB = self._stretch(number)
        frames_B = None if frames_PB is None else frames_PB[place]
        return Visits(
            clips_B=self.epoch.clips_V[visits_PB[place]], microbatch_sizes=self.microbatch_sizes, frames_B=frames_B
        )

    def stretch(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(batches, B) int64: consecutive batches of visits, as they are numbered in an epoch; and their frames."""
        count = self.num_sorted * self.size
        pieces = self._pieces(number * count, (number + 1) * count)
        visits_N = np.concatenate(pieces)
        if self.num_sorted == 1:
            return visits_N[None], None
        frames_N = self.epoch.lengths(visits_N, self.rng.generator("silence", number))
        way_N = zigzag(np.split(frames_N, np.cumsum([len(piece) for piece in pieces])[:-1]))
        shuffled_PB = way_N.reshape(self.num_sorted, -1)[
            self.rng.generator("batches", number).permutation(self.num_sorted)
        ]
        return visits_N[shuffled_PB], frames_N[shuffled_PB]

    def _pieces(self, start: int, stop: int) -> list[np.ndarray]:
        """Visits `start` to `stop` of all epochs laid end to end, a piece per epoch."""
        num = len(self.epoch)
        epochs = range(start // num, -(-stop // num))
        return [self._permutation(number)[max(start - number * num, 0) : stop - number * num] for number in epochs]


class FrameBudgetSampler:
    """Batches of as many clips as fit: their number, times the longest of them, is at most `frames_per_batch`.

    Lengths include the silence behind a clip, and are rounded up as batches are on the fast path. A clip beyond the
    budget is a batch of its own.

    Args:
        lengths: ascending frames that are rounded up to.
        num_parts: batches of a step.
    """

    def __init__(self, rng: StepRng, epoch: Epoch, lengths: np.ndarray, budget: int, num_parts: int = 1) -> None:
        self.rng, self.epoch, self.lengths, self.budget, self.num_parts = rng, epoch, lengths, budget, num_parts
        usual = self.rounded(np.minimum(epoch.frames_V + int(epoch.silence), epoch.window)).mean()
        self.clips_per_batch = max(1, int(budget / usual))
        """Clips that a batch holds, about."""
        self.num_epochs = -(-max(MIN_ROUND_VISITS, SORT_WINDOW_BATCHES * self.clips_per_batch) // len(epoch))
        """Of a round."""
        self._ends = [0]
        self._round = lru_cache(3)(self.round)

    def rounded(self, frames_N: np.ndarray) -> np.ndarray:
        """Lengths that are worked on."""
        return self.lengths[np.searchsorted(self.lengths, frames_N)]

    def visits(self, step: int) -> Visits:
        """Clips of a step, counted from 0: those of `num_parts` batches."""
        batches = [self.batch(number) for number in range(step * self.num_parts, (step + 1) * self.num_parts)]
        clips, frames = (np.concatenate(column) for column in zip(*batches, strict=True))
        return Visits(clips_B=clips, microbatch_sizes=tuple(len(batch) for batch, _ in batches), frames_B=frames)

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Clips of a batch and their frames. Rounds have as many batches as it happens: earlier ones are counted."""
        while self._ends[-1] <= number:
            self._ends.append(self._ends[-1] + len(self._round(len(self._ends) - 1)))
        place = bisect_right(self._ends, number) - 1
        return self._round(place)[number - self._ends[place]]

    def round(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Some whole epochs as batches of clips, with the frames of each clip."""
        order_EV = np.tile(np.arange(len(self.epoch)), (self.num_epochs, 1))
        visits_N = self.rng.generator("order", number).permuted(order_EV, axis=1).ravel()
        frames_N = self.epoch.lengths(visits_N, self.rng.generator("silence", number))
        per_epoch = len(self.epoch) // self.clips_per_batch
        way_N = np.arange(len(visits_N))
        if per_epoch > 1:
            num_pieces = -(-per_epoch // SORT_WINDOW_BATCHES)
            by_epoch = np.split(frames_N, self.num_epochs)
            way_N = zigzag([piece for frames in by_epoch for piece in np.array_split(frames, num_pieces)])
        batches = np.split(way_N, cuts(self.rounded(frames_N[way_N]).tolist(), self.budget))
        chosen = shuffled(
            self.rng.generator("batches", number), len(batches), min(SORT_WINDOW_BATCHES, max(per_epoch, 1))
        )
        clips_N = self.epoch.clips_V[visits_N]
        return [(clips_N[batches[place]], frames_N[batches[place]]) for place in chosen]

    def remark(self) -> str | None:
        """What a person should know about clips that are longer than the budget."""
        if self.rounded(np.array([self.epoch.window]))[0] <= self.budget:
            return None
        clips_V = self.epoch.clips_V
        beyond = len(np.unique(clips_V[self.rounded(self.epoch.frames_V) > self.budget]))
        total = len(np.unique(clips_V))
        return (
            f"frames_per_batch {self.budget} holds no excerpt of the full window ({self.epoch.window} frames): "
            f"a longer one is a batch of its own; {beyond} of {total} clips always are, others when silence follows"
        )


def zigzag(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Places of all pieces laid end to end, each piece sorted, in turn up and down; equal ones stay as they came.

    So what begins in one piece and ends in the next is of like length too.
    """
    starts = np.cumsum([0, *(len(piece) for piece in pieces)])
    ways = [np.argsort(-piece if place % 2 else piece, kind="stable") for place, piece in enumerate(pieces)]
    return np.concatenate([start + way for start, way in zip(starts, ways, strict=False)])


def cuts(frames: Sequence[int], budget: int) -> list[int]:
    """Where each batch but the first begins: a clip goes with those before it while all fit into the budget."""
    found, start, longest = [], 0, 0
    for place, each in enumerate(frames):
        longest = max(longest, each)
        if place > start and (place - start + 1) * longest > budget:
            found.append(place)
            start, longest = place, each
    return found


def shuffled(generator: np.random.Generator, count: int, together: int) -> list[int]:
    """0 to count - 1, shuffled among each `together` consecutive ones."""
    groups = [np.arange(start, min(start + together, count)) for start in range(0, count, together)]
    return [int(place) for group in groups for place in generator.permutation(group)]
