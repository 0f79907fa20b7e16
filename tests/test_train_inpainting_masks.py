"""Inpainting masks: shares, positions and probabilities of each kind."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.train.dataset.inpainting_masks import KINDS, causal, full, inpainting_mask, segments, span_lengths, spans
from stages.train.rng import StepRng

STEPS = st.integers(0, 10_000)
FRAMES = st.integers(1, 200)


def at(step):
    return StepRng(3).generator("mask", step)


def stretches(given_T):
    """Lengths of the runs to be generated."""
    return [len(list(run)) for kept, run in groupby(given_T) if not kept]


@settings(deadline=None, max_examples=100)
@given(step=STEPS, num_real=FRAMES, padding=st.integers(0, 20), four=st.booleans())
def test_a_mask_has_the_length_of_the_batch_and_gives_no_padding(step, num_real, padding, four):
    shares = (0.25, 0.25, 0.25, 0.25) if four else (0.3, 0.3, 0.4)
    mask = inpainting_mask(at(step), num_real + padding, num_real, shares)
    assert mask.shape == (num_real + padding,)
    assert mask.dtype == bool
    assert not mask[num_real:].any()


@settings(deadline=None, max_examples=60)
@given(step=STEPS, num_real=FRAMES)
def test_a_full_mask_gives_nothing(step, num_real):
    assert not full(at(step), num_real).any()


@settings(deadline=None, max_examples=100)
@given(step=STEPS, num_real=FRAMES)
def test_segments_leave_something_to_generate_in_at_most_ten_runs(step, num_real):
    mask = segments(at(step), num_real)
    assert 1 <= len(stretches(mask)) <= 10
    assert mask.shape == (num_real,)


@settings(deadline=None, max_examples=100)
@given(step=STEPS, num_real=FRAMES)
def test_a_causal_mask_gives_a_beginning(step, num_real):
    mask = causal(at(step), num_real)
    assert np.array_equal(mask, np.arange(num_real) < mask.sum())


def test_a_causal_mask_may_give_all_or_nothing():
    given_frames = {int(causal(at(step), 3).sum()) for step in range(200)}
    assert given_frames == {0, 1, 2, 3}


@settings(deadline=None, max_examples=100)
@given(step=STEPS, num_real=FRAMES)
def test_spans_are_one_to_four_runs_that_do_not_overlap(step, num_real):
    lengths = span_lengths(at(step), num_real)
    mask = spans(at(step), num_real)
    assert 1 <= len(lengths) <= min(4, num_real)
    assert min(lengths) >= 1
    # What was placed is a part of what was drawn; touching spans make one run.
    assert sum(stretches(mask)) <= sum(lengths)
    assert len(stretches(mask)) <= len(lengths)


@settings(deadline=None, max_examples=100)
@given(step=STEPS, num_real=st.integers(20, 200))
def test_spans_together_are_a_fifth_to_all_of_the_clip(step, num_real):
    assert int(0.2 * num_real) <= sum(span_lengths(at(step), num_real)) <= num_real


@pytest.mark.parametrize("number", range(4))
def test_only_the_kind_with_all_the_probability_is_drawn(number):
    shares = tuple(float(place == number) for place in range(4))
    for step in range(20):
        generator = at(step)
        generator.choice(4, p=np.array(shares))
        expected = KINDS[number](generator, 30)
        assert np.array_equal(inpainting_mask(at(step), 30, 30, shares), expected)


def test_kinds_are_drawn_as_often_as_asked():
    draws = 2000
    all_generated = sum(not inpainting_mask(at(step), 40, 40, (0.1, 0.8, 0.1)).any() for step in range(draws))
    # full, and causal at its first frame (1 in 41); segments hardly ever cover everything.
    assert abs(all_generated / draws - (0.8 + 0.1 / 41)) < 5 * 0.4 / draws**0.5
