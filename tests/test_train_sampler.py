"""Samplers: each clip once per epoch, similar lengths together, the same for the same seed."""

from __future__ import annotations

import time
from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.train.dataset.sampler import (
    Epoch,
    FixedSizeSampler,
    FrameBudgetSampler,
    batch_starts,
    sampler_for,
    shuffled_in_windows,
    zigzag,
)
from stages.train.rng import StepRng
from stages.train.stage import TrainParams
from tests.test_train_collate import CountedClips

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)


def epoch(lengths, silence=0.0, window=None):
    window = window or max(lengths)
    frames = np.minimum(lengths, window)
    return Epoch(clips=np.arange(len(lengths)), frames=frames, window=window, mean_silence_frames=silence)


def by_size(lengths, batch_size, *, parts=1, seed=0, silence=0.0):
    return FixedSizeSampler(StepRng(seed), epoch(lengths, silence), batch_size, parts)


def by_frames(lengths, budget, *, parts=1, seed=0, silence=0.0, rounding=None):
    rounding = np.array(rounding or range(1, max(lengths) + 1))
    return FrameBudgetSampler(StepRng(seed), epoch(lengths, silence), rounding, budget, parts)


def mixed_lengths(count, seed=3):
    """Log-uniform from a second to two minutes, as frames."""
    return np.exp(np.random.default_rng(seed).uniform(np.log(11), np.log(1292), count)).astype(int).tolist()


def joined(lists):
    return list(chain.from_iterable(lists))


def seen(sampler, steps):
    return [sampler.visits(step).clips_B.tolist() for step in range(steps)]


def padding(lengths, batches):
    """Share of all frames that lie behind clips shorter than the longest of their batch."""
    computed = sum(len(batch) * max(lengths[clip] for clip in batch) for batch in batches)
    return 1 - sum(lengths[clip] for batch in batches for clip in batch) / computed


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, batch_size=st.integers(1, 8), parts=st.integers(1, 3), seed=st.integers(0, 99))
def test_each_clip_is_seen_once_per_epoch_and_none_is_dropped(lengths, batch_size, parts, seed):
    sampler = by_size(lengths, batch_size, parts=parts, seed=seed)
    # As many steps as make whole epochs of whole sort windows: then every clip was seen as often as there were epochs.
    sort_window = sampler.window_batches
    steps = sort_window * len(lengths)
    counts = Counter(clip for batch in seen(sampler, steps) for clip in batch)
    assert counts == dict.fromkeys(range(len(lengths)), sort_window * batch_size * parts)


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, batch_size=st.integers(1, 8), seed=st.integers(0, 99))
def test_epochs_meet_only_inside_one_sort_window(lengths, batch_size, seed):
    sampler = by_size(lengths, batch_size, seed=seed)
    sort_window = sampler.window_batches * batch_size
    visits = [clip for batch in seen(sampler, 8 * sampler.window_batches) for clip in batch]
    for end in range(sort_window, len(visits) + 1, sort_window):
        counts = Counter(visits[:end])
        assert {counts[clip] for clip in range(len(lengths))} <= {end // len(lengths), -(-end // len(lengths))}


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, batch_size=st.integers(2, 8), seed=st.integers(0, 99))
def test_no_clip_is_its_own_neighbour_unless_epochs_meet(lengths, batch_size, seed):
    sampler = by_size(lengths, batch_size, seed=seed)
    for step, batch in enumerate(seen(sampler, 20)):
        assert len(batch) == batch_size
        sort_window = sampler.window_batches * batch_size
        start = step // sampler.window_batches * sort_window
        within_one_epoch = start // len(lengths) == (start + sort_window - 1) // len(lengths)
        assert not within_one_epoch or len(set(batch)) == batch_size


@settings(deadline=None, max_examples=40)
@given(num_clips=st.integers(1, 40), seed=st.integers(0, 99), step=st.integers(0, 200))
def test_a_batch_of_one_follows_the_permutations_of_the_epochs(num_clips, seed, step):
    epoch, index = divmod(step, num_clips)
    expected = StepRng(seed).generator("order", epoch).permutation(num_clips)[index]
    assert by_size(list(range(1, num_clips + 1)), 1, seed=seed).visits(step).clips_B.tolist() == [expected]


def test_datasets_smaller_than_two_batches_are_not_sorted():
    for num_clips in (1, 3, 5):
        sampler = by_size(list(range(1, num_clips + 1)), 3)
        walked = np.concatenate([StepRng(0).generator("order", epoch).permutation(num_clips) for epoch in range(12)])
        assert np.concatenate(seen(sampler, 4)).tolist() == walked[:12].tolist()


def test_each_epoch_has_its_own_order():
    sampler = by_size([5] * 12, 3)
    assert len({tuple(joined(seen(sampler, 20)[4 * epoch : 4 * epoch + 4])) for epoch in range(5)}) == 5


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, batch_size=st.integers(1, 6), parts=st.integers(2, 4), step=st.integers(0, 40))
def test_a_step_of_several_microbatches_holds_the_clips_of_the_larger_batch(lengths, batch_size, parts, step):
    divided, whole = by_size(lengths, batch_size, parts=parts), by_size(lengths, batch_size * parts)
    assert divided.visits(step).clips_B.tolist() == whole.visits(step).clips_B.tolist()
    assert divided.visits(step).microbatch_sizes == (batch_size,) * parts


@pytest.mark.parametrize("make", [lambda lengths: by_size(lengths, 4), lambda lengths: by_frames(lengths, 900)])
def test_any_step_can_be_drawn_alone(make):
    lengths = mixed_lengths(50)
    expected = seen(make(lengths), 120)
    for step in (119, 40, 0, 77):
        assert make(lengths).visits(step).clips_B.tolist() == expected[step]


@pytest.mark.parametrize(("batch_size", "most"), [(2, 0.08), (4, 0.11), (8, 0.14)])
@pytest.mark.parametrize("silence", [0.0, 43.0])
def test_sorting_saves_most_of_the_padding(batch_size, most, silence):
    lengths = mixed_lengths(500)
    sampler, unsorted = (by_size(lengths, batch_size, silence=silence) for _ in range(2))
    unsorted.window_batches = 1
    steps = range(4 * len(lengths) // batch_size)
    assert padding(lengths, [unsorted.visits(step).clips_B for step in steps]) > 0.3
    frames = [sampler.visits(step).frames_B for step in steps]
    assert 1 - sum(each.sum() for each in frames) / sum(batch_size * each.max() for each in frames) < most


def test_silence_behind_sorted_clips_is_exponential_and_ends_at_the_window():
    lengths, steps = [10] * 400 + [1000], range(1000)
    visits = [by_size(lengths, 4, silence=43.07).visits(step) for step in steps]
    clips, frames = (np.concatenate([getattr(each, name) for each in visits]) for name in ("clips_B", "frames_B"))
    assert (frames[clips == 400] == 1000).all()
    extra = np.sort(frames[clips != 400] - 10)
    law = 1 - np.exp(-(np.arange(300) + 1) / 43.07)
    assert np.abs(np.searchsorted(extra, np.arange(300), side="right") / len(extra) - law).max() < 0.04


def test_batches_of_a_sort_window_are_not_ordered_by_length():
    lengths = mixed_lengths(64)
    longest = [max(lengths[clip] for clip in batch) for batch in seen(by_size(lengths, 4), 16)]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


@settings(deadline=None, max_examples=100)
@given(
    lengths=LENGTHS,
    budget=st.integers(1, 1000),
    silence=st.sampled_from([0.0, 20.0]),
    seed=st.integers(0, 99),
    step=st.integers(0, 60),
    parts=st.integers(1, 3),
)
def test_a_frame_budget_is_exceeded_only_by_a_single_clip(lengths, budget, silence, seed, step, parts):
    rounding = sorted({*range(8, max(lengths), 24), max(lengths)})
    sampler = by_frames(lengths, budget, parts=parts, seed=seed, silence=silence, rounding=rounding)
    visits = sampler.visits(step)
    assert len(visits.microbatch_sizes) == parts
    ends = np.cumsum(visits.microbatch_sizes)
    assert ends[-1] == len(visits.clips_B) == len(visits.frames_B)
    for count, end in zip(visits.microbatch_sizes, ends, strict=True):
        longest = sampler.rounded(visits.frames_B[end - count : end]).max()
        assert count == 1 or count * longest <= budget
    assert (visits.frames_B >= np.array(lengths)[visits.clips_B]).all()
    assert (visits.frames_B <= max(lengths)).all()


@settings(deadline=None, max_examples=50)
@given(lengths=LENGTHS, budget=st.integers(1, 2000), seed=st.integers(0, 99))
def test_a_round_holds_every_clip_once_per_epoch(lengths, budget, seed):
    sampler = by_frames(lengths, budget, seed=seed)
    counts = Counter(clip for clips, _ in sampler.round(1) for clip in clips.tolist())
    assert counts == dict.fromkeys(range(len(lengths)), sampler.round_epochs)


@pytest.mark.parametrize(("count", "budget"), [(400, 2000), (400, 20_000), (30, 3000), (3, 8000), (1, 5000)])
def test_a_budget_is_nearly_used_up(count, budget):
    lengths = mixed_lengths(count)
    sampler = by_frames(lengths, budget)
    batches = [sampler.visits(step) for step in range(200)]
    computed = [len(visits.clips_B) * visits.frames_B.max() for visits in batches]
    assert np.mean(computed) > (0.8 if budget > 2000 else 0.7) * budget


def test_few_clips_fill_a_large_budget_in_varying_batches():
    visits = by_frames([10, 20, 30], 600).visits(0)
    assert len(visits.clips_B) == 20
    assert {*Counter(visits.clips_B.tolist()).values()} <= {6, 7}


def test_frame_budget_batches_have_clips_of_similar_length():
    lengths = mixed_lengths(500)
    as_they_come = np.random.default_rng(0).integers(0, 500, 4000)
    unsorted = np.split(as_they_come, batch_starts([lengths[clip] for clip in as_they_come], 5000))
    assert padding(lengths, unsorted) > 0.45
    assert padding(lengths, seen(by_frames(lengths, 5000), 300)) < 0.15


def test_resuming_at_a_late_step_with_a_frame_budget_is_fast():
    for lengths, budget in (([40], 40), ([40] * 3, 40), (mixed_lengths(2000), 5000)):
        sampler = by_frames(lengths, budget, silence=43.0)
        started = time.process_time()
        sampler.visits(10_000)
        assert time.process_time() - started < 2.0


def test_accumulated_steps_with_a_frame_budget_are_consecutive_batches():
    lengths = mixed_lengths(100)
    alone, together = by_frames(lengths, 2000), by_frames(lengths, 2000, parts=3)
    for step in range(30):
        batches = seen(alone, 3 * step + 3)[3 * step :]
        assert together.visits(step).clips_B.tolist() == joined(batches)
        assert together.visits(step).microbatch_sizes == tuple(len(batch) for batch in batches)


def test_clips_beyond_the_budget_are_counted_in_a_note():
    assert by_frames([10, 20, 200], 200).budget_note() is None
    assert "1 of 3 clips always are" in by_frames([10, 20, 200], 50).budget_note()


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12), window=st.integers(1, 60), times=st.integers(1, 4)
)
def test_clips_longer_than_the_window_are_visited_as_often_as_asked(lengths, window, times):
    clips = CountedClips(lengths, window)
    expected = {number: times if length > window else 1 for number, length in enumerate(lengths)}
    params = TrainParams(model="tiny-base", crops_per_clip=times)
    sampler = sampler_for(clips, params, StepRng(0))
    assert Counter(joined(seen(sampler, sum(expected.values())))) == expected

    budget = sampler_for(clips, TrainParams(model="tiny-base", crops_per_clip=times, frames_per_batch=100), StepRng(0))
    counts = Counter(clip for batch, _ in budget.round(0) for clip in batch.tolist())
    assert counts == {clip: count * budget.round_epochs for clip, count in expected.items()}


@settings(deadline=None, max_examples=100)
@given(frames=st.lists(st.integers(1, 50), min_size=1, max_size=40), budget=st.integers(1, 200))
def test_batches_take_as_many_clips_as_fit(frames, budget):
    ends = [0, *batch_starts(frames, budget), len(frames)]
    batches = [frames[start:stop] for start, stop in pairwise(ends)]
    assert all(batches) and joined(batches) == frames
    for batch, after in pairwise(batches):
        assert (len(batch) + 1) * max(*batch, after[0]) > budget


def test_pieces_are_sorted_up_and_down_in_turn():
    assert zigzag([np.array([5, 1, 3]), np.array([2, 9, 4])]).tolist() == [1, 2, 0, 4, 5, 3]


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 50), together=st.integers(1, 20))
def test_shuffling_stays_within_windows(count, together):
    numbers = shuffled_in_windows(StepRng(0).generator("batches", 0), count, together)
    assert sorted(numbers) == list(range(count))
    assert all(number // together == index // together for index, number in enumerate(numbers))
