"""Which clips are encoded together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.encode.batching import (
    FUSED_TOKEN_BYTES,
    MAX_BATCH_FRAMES,
    MIN_BATCH_FRAMES,
    batch_frames_for_memory,
    batches_of,
)
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from tests.small_networks import config, randomised


@settings(deadline=None, max_examples=100)
@given(num_frames=st.lists(st.integers(1, 50), max_size=40), most=st.integers(1, 120))
def test_every_clip_is_in_one_batch_and_no_batch_is_too_large(num_frames, most):
    batches = batches_of(num_frames, most)
    assert sorted(place for batch in batches for place in batch) == list(range(len(num_frames)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(num_frames[place] for place in batch) <= most


def test_a_batch_grows_with_memory_between_two_bounds_and_is_smaller_without_fused_kernels():
    encoder = Autoencoder(config())
    frame_bytes = 17 * 32 * FUSED_TOKEN_BYTES
    assert batch_frames_for_memory(0, encoder, fused=True) == MIN_BATCH_FRAMES
    assert batch_frames_for_memory(1 << 50, encoder, fused=False) == MAX_BATCH_FRAMES
    assert batch_frames_for_memory(1000 * frame_bytes, encoder, fused=True) == 1000
    assert batch_frames_for_memory(1000 * frame_bytes, encoder, fused=False) < 500


@pytest.mark.parametrize("windowed", [False, True])
def test_latents_depend_on_the_other_clips_of_a_batch_by_rounding_only(windowed):
    encoder = randomised(Autoencoder(config(windowed=windowed)))
    clips = [torch.randn(2, length, generator=torch.Generator().manual_seed(length)) for length in (30_000, 9_000)]
    for clip, together in zip(clips, encoder.encode_clips(clips), strict=True):
        torch.testing.assert_close(together, encoder.encode_clip(clip), rtol=0, atol=2e-5)
