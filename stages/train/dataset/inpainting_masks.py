"""Inpainting masks: which frames of a clip are given to the network and which it must generate.

Every mask is (num_frames,) bool, True = given. Frames from `num_real` on (padding) are never given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

MAX_SEGMENTS = 10
MAX_SPANS = 4
MAX_PLACEMENT_TRIES = 50


def full(generator: np.random.Generator, num_real: int) -> np.ndarray:
    """No frame given: plain generation."""
    return np.zeros(num_real, dtype=bool)


def segments(generator: np.random.Generator, num_real: int) -> np.ndarray:
    """One to ten segments to generate, each up to 1/n of the clip long; they may overlap."""
    given = np.ones(num_real, dtype=bool)
    count = uniform_int(generator, 1, MAX_SEGMENTS)
    longest = max(1, num_real // count)
    for _ in range(count):
        length = uniform_int(generator, 1, longest)
        start = uniform_int(generator, 0, num_real - length)
        given[start : start + length] = False
    return given


def causal(generator: np.random.Generator, num_real: int) -> np.ndarray:
    """The beginning is given, the rest is to be generated; either may be empty."""
    given = np.ones(num_real, dtype=bool)
    given[uniform_int(generator, 0, num_real) :] = False
    return given


def spans(generator: np.random.Generator, num_real: int) -> np.ndarray:
    """One to four spans to generate, not overlapping, together about 20 to 100 % of the clip."""
    given = np.ones(num_real, dtype=bool)
    for length in sorted(span_lengths(generator, num_real), reverse=True):
        start = free_start(generator, given, length)
        # A span that fits into no remaining gap is left out; longer ones are placed first.
        if start is not None:
            given[start : start + length] = False
    return given


def span_lengths(generator: np.random.Generator, num_real: int) -> list[int]:
    """Lengths of the spans: random shares of the frames to generate, at least one frame each."""
    target = max(1, int(generator.uniform(0.2, 1.0) * num_real))
    count = min(int(generator.choice(MAX_SPANS, p=np.array([4, 2, 1, 1]) / 8)) + 1, num_real)
    weights = generator.random(count)
    lengths = [max(1, int(weight / weights.sum() * target)) for weight in weights]
    excess = sum(lengths) - target
    if excess < 0:
        lengths[0] -= excess
    for index in range(count):
        cut = min(max(excess, 0), lengths[index] - 1)
        lengths[index] -= cut
        excess -= cut
    return lengths


def free_start(generator: np.random.Generator, given: np.ndarray, length: int) -> int | None:
    """A start where a span overlaps no other: random, else the first that fits; None if there is none."""
    last = len(given) - length
    for _ in range(MAX_PLACEMENT_TRIES):
        start = uniform_int(generator, 0, last)
        if given[start : start + length].all():
            return start
    return next((start for start in range(last + 1) if given[start : start + length].all()), None)


def uniform_int(generator: np.random.Generator, low: int, high: int) -> int:
    """A random integer from low to high, both included."""
    return int(generator.integers(low, high, endpoint=True))


KINDS: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (segments, full, causal, spans)
"""Kinds of masks, in the order of the `mask_probabilities` param."""


def inpainting_mask(
    generator: np.random.Generator, num_frames: int, num_real: int, probabilities: Sequence[float]
) -> np.ndarray:
    """(num_frames,) bool, True = given: a mask whose kind is drawn with the given probabilities.

    Args:
        num_real: frames that are trained on, at least 1 and at most num_frames.
        probabilities: of segments, full, causal and, if there are four, spans.
    """
    kind = KINDS[generator.choice(len(probabilities), p=np.asarray(probabilities) / sum(probabilities))]
    given = np.zeros(num_frames, dtype=bool)
    given[:num_real] = kind(generator, num_real)
    return given
