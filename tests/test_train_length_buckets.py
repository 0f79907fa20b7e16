"""Length buckets: padding up to them changes no result and is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.bench.cases import Case, new_batch, new_training
from stages.train.dataset.length_buckets import (
    FRAME_MULTIPLE,
    MAX_BUCKETS,
    MIN_BUCKET_FRAMES,
    MIN_RATIO,
    MIN_UNMASKED_FRAMES,
    LengthBuckets,
    bucket_lengths,
    padded_to,
)
from stages.train.model.network import batch_losses
from tests.small_networks import config


@settings(deadline=None, max_examples=200)
@given(shortest=st.integers(1, 5000), more=st.integers(0, 5000), data=st.data())
def test_every_batch_length_has_a_bucket_that_is_not_much_longer(shortest, more, data):
    window = shortest + more
    lengths = bucket_lengths(shortest, window)
    num_frames = data.draw(st.integers(shortest, window))

    length = LengthBuckets(lengths).bucket(num_frames)

    assert lengths == sorted(set(lengths)) and lengths[-1] == window and len(lengths) <= MAX_BUCKETS
    assert num_frames <= length <= window
    least = min(max(shortest, MIN_BUCKET_FRAMES), window)
    ratio = max(MIN_RATIO, (window / least) ** (1 / MAX_BUCKETS))
    assert length <= max(num_frames, least) * ratio**2 + 2 * FRAME_MULTIPLE


def test_clips_of_one_length_need_one_bucket():
    assert bucket_lengths(108, 108) == [108]


def test_short_clips_of_any_length_share_one_bucket():
    assert bucket_lengths(3, 200) == [200]
    assert bucket_lengths(3, 4092)[0] >= MIN_BUCKET_FRAMES


@pytest.mark.parametrize(
    ("length", "mixed", "unmasked"),
    [(9, False, True), (9, True, False), (MIN_UNMASKED_FRAMES, True, True), (MIN_UNMASKED_FRAMES, False, True)],
)
def test_short_batches_of_mixed_clips_are_all_masked_so_that_one_graph_serves_them(length, mixed, unmasked):
    batch, _ = batch_and_training()
    batch = padded_to(batch, length)
    whole = replace(batch, real_BT=torch.ones_like(batch.real_BT), all_real=True)
    assert LengthBuckets([length], mixed=mixed).padded(whole).all_real is unmasked


def batch_and_training():
    case = Case(model="tiny-base", num_frames=9, rank=2, base_precision="fp32", batch_size=2)
    training = new_training(case, config(), torch.device("cpu"))
    return new_batch(case, training), training


def test_padding_up_to_a_bucket_changes_no_loss():
    batch, training = batch_and_training()
    alone, padded = (
        batch_losses(training.network, one, paired=True).total(1.0) for one in (batch, padded_to(batch, 16))
    )
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-6)


def test_values_in_the_padding_influence_nothing():
    batch, training = batch_and_training()
    padded = padded_to(batch, 16)
    clean = batch_losses(training.network, padded, paired=False).per_clip(1.0)
    padded.latents_BCT[..., 9:] = 1e3
    padded.noise_BCT[..., 9:] = -1e3
    soiled = batch_losses(training.network, padded, paired=False).per_clip(1.0)
    torch.testing.assert_close(soiled, clean, rtol=1e-5, atol=1e-6)


def test_padding_up_to_buckets_and_masked_frames_behind_shorter_clips_are_counted_separately():
    batch, _ = batch_and_training()
    buckets = LengthBuckets([9, 12])
    assert buckets.padded(batch) is batch
    assert (buckets.padding_share, buckets.masked_share) == (0, 0)
    # Two clips, of 9 and 10 frames, in a batch that is 10 long and padded to 12; before it two of 9.
    longer = padded_to(batch, 10)
    longer.real_BT[1, 9] = True
    buckets.padded(longer)
    assert buckets.frames_computed == 2 * 9 + 2 * 12
    assert buckets.padding_share == pytest.approx(2 * 2 / 42)
    assert buckets.masked_share == pytest.approx(1 / 42)
