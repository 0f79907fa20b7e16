from __future__ import annotations

import numpy as np
import pytest
import torch

from cache.shelf import Shelf
from stages import catalogue
from stages.models._weights import load_autoencoder
from stages.prepared import read_prepared
from stages.train.clips import LiveLatents, StoredLatents, excerpt_frames
from tests.small_training import encoded, ingested, random_audio, random_hidden, random_latents, weights

MODEL = catalogue.models()["tiny-base"]


def stored(root, lengths, window=None):
    latents = random_latents(lengths)
    artifact = encoded(root / "shared", root / "encoded", latents, random_hidden(len(lengths)), window=window)
    return latents, StoredLatents(artifact, Shelf(root / "shared" / "latents"), MODEL)


def live(root, lengths, window=None):
    artifact = ingested(root / "shared", root / "ingested", random_audio(lengths), window)
    return LiveLatents(artifact, root / "shared", MODEL, load_autoencoder(weights()))


def encoded_file(root, number, start, stop, sign=1):
    audio = read_prepared(root / "shared" / "prepared" / f"{number}.flac", start, stop)
    return load_autoencoder(weights()).encode_clip(torch.from_numpy(sign * audio))


def test_stored_latents_are_read_from_the_crop_s_start(tmp_path):
    latents, clips = stored(tmp_path, (12, 20), window=8)
    for index, start in ((0, 0), (1, 5), (1, 12)):
        np.testing.assert_array_equal(clips.read(index, start, False).numpy().T, latents[index][start : start + 8])


def test_stored_latents_come_as_channels_by_frames_in_fp32(tmp_path):
    _, clips = stored(tmp_path, (12,))
    excerpt = clips.read(0, 0, False)
    assert (excerpt.shape, excerpt.dtype) == ((16, 12), torch.float32)
    assert clips.silence_CT.shape == (16, 8)
    assert (clips.silence_CT == 0.25).all()


def test_frames_beyond_the_valid_ones_are_not_read(tmp_path):
    latents, clips = stored(tmp_path, (12,))
    from dataclasses import replace

    clips.rows[0] = replace(clips.rows[0], num_valid_frames=9)
    np.testing.assert_array_equal(clips.read(0, 0, False).numpy().T, latents[0][:9])


def test_live_latents_are_those_of_the_prepared_audio(tmp_path):
    clips = live(tmp_path, (30_000, 20_000))
    for index, length in ((0, 30_000), (1, 20_000)):
        torch.testing.assert_close(clips.read(index, 0, False), encoded_file(tmp_path, index, 0, length))


def test_live_latents_of_a_crop_are_those_of_its_samples(tmp_path):
    clips = live(tmp_path, (50_000,), window=20_000)
    torch.testing.assert_close(clips.read(0, 7_001, False), encoded_file(tmp_path, 0, 7_001, 27_001))


def test_a_flipped_clip_is_the_latents_of_the_flipped_audio(tmp_path):
    clips = live(tmp_path, (30_000,))
    torch.testing.assert_close(clips.read(0, 0, True), encoded_file(tmp_path, 0, 0, 30_000, sign=-1))
    assert not torch.allclose(clips.read(0, 0, True), clips.read(0, 0, False))


def test_crops_are_not_mistaken_for_one_another(tmp_path):
    clips = live(tmp_path, (50_000,), window=20_000)
    assert not torch.allclose(clips.read(0, 0, False), clips.read(0, 20_000, False))


@pytest.mark.parametrize("length", [4096, 4097, 30_000])
def test_an_excerpt_has_as_many_frames_as_it_begins(tmp_path, length):
    clips = live(tmp_path, (length,))
    assert clips.read(0, 0, False).shape[1] == excerpt_frames(clips, 0) == -(-length // 4096)


def test_an_excerpt_is_counted_no_longer_than_the_window(tmp_path):
    assert excerpt_frames(stored(tmp_path, (12,), window=8)[1], 0) == 8
    assert excerpt_frames(live(tmp_path, (50_000,), window=20_000), 0) == 5
