from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.encode.batching import batches_of, encoded_together
from stages.models._nets.autoencoder import Autoencoder
from tests.small_networks import config, randomised


@settings(deadline=None, max_examples=100)
@given(num_frames=st.lists(st.integers(1, 50), max_size=40), most=st.integers(1, 120))
def test_every_clip_is_in_one_batch_and_no_batch_is_too_large(num_frames, most):
    batches = batches_of(num_frames, most)
    assert sorted(place for batch in batches for place in batch) == list(range(len(num_frames)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(num_frames[place] for place in batch) <= most


def test_frames_come_back_in_the_order_of_the_group():
    audios = [lambda length=length: np.full((2, length), length) for length in (5, 1, 3)]
    frames = encoded_together(audios, [5, 1, 3], lambda places, read: [one.T for one in read], lambda: None)
    assert [len(one) for one in frames] == [5, 1, 3]


def test_the_next_batch_is_read_while_one_is_encoded():
    read = [threading.Event() for _ in range(2)]
    audios = [lambda event=event: (event.set(), np.zeros((2, 1)))[1] for event in read]

    def encode(places, audio):
        assert read[1].wait(5)
        return audio

    assert len(list(encoded_together(audios, [5000, 5000], encode, lambda: None))) == 2


def test_a_stop_is_seen_between_two_batches():
    encoded = []

    def check() -> None:
        if encoded:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        encoded_together(
            [lambda: np.zeros((2, 1))] * 3, [5000] * 3, lambda places, audio: encoded.append(1) or audio, check
        )
    assert encoded == [1]


def test_a_clip_that_cannot_be_read_is_an_error():
    def broken() -> np.ndarray:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        encoded_together([broken], [1], lambda places, audio: audio, lambda: None)


@pytest.mark.parametrize("windowed", [False, True])
def test_latents_depend_on_the_company_by_rounding_only(windowed):
    encoder = randomised(Autoencoder(config(windowed=windowed)))
    clips = [torch.randn(2, length, generator=torch.Generator().manual_seed(length)) for length in (30_000, 9_000)]
    for clip, together in zip(clips, encoder.encode_clips(clips), strict=True):
        torch.testing.assert_close(together, encoder.encode_clip(clip), rtol=0, atol=2e-5)
