"""Sources of clips: stored latents and encoded audio, their crops, lengths and caches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cache.manifest import read_rows, write_rows
from cache.shard_pool import ShardPool
from stages import catalogue
from stages.models.load_weights import load_autoencoder
from stages.prepared_audio import read_prepared
from stages.records import EncodedClip
from stages.train.dataset import clips as clips_module
from stages.train.dataset.clips import LiveLatents, StoredLatents, excerpt_frames, excerpt_seconds, num_cached
from tests.small_training import encoded, ingested, random_audio, random_hidden, random_latents, weights

MODEL = catalogue.models()["tiny-base"]


def stored(root, lengths, window=None):
    latents = random_latents(lengths)
    artifact = encoded(root / "shared", root / "encoded", latents, random_hidden(len(lengths)), window=window)
    return latents, StoredLatents(artifact, ShardPool(root / "shared" / "latents"), MODEL)


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
    latents = random_latents((12,))
    artifact = encoded(tmp_path / "shared", tmp_path / "encoded", latents, random_hidden(1))
    manifest = artifact.directory / "manifest.parquet"
    write_rows(manifest, [replace(row, num_valid_frames=9) for row in read_rows(manifest, EncodedClip)], EncodedClip)
    clips = StoredLatents(artifact, ShardPool(tmp_path / "shared" / "latents"), MODEL)
    np.testing.assert_array_equal(clips.read(0, 0, False).numpy().T, latents[0][:9])


@pytest.fixture
def reads(monkeypatch):
    """Items and ranges of frames that are read from a pool."""
    seen, read = [], ShardPool.read

    def counted(pool, location, start=0, stop=None):
        seen.append((location.row, start, stop))
        return read(pool, location, start, stop)

    monkeypatch.setattr(ShardPool, "read", counted)
    return seen


def test_latents_that_fit_into_memory_are_read_once_and_whole(tmp_path, reads):
    latents, clips = stored(tmp_path, (12, 20), window=8)
    reads.clear()
    for index, start in ((0, 0), (1, 5), (1, 12), (0, 4), (0, 3), (1, 5)):
        np.testing.assert_array_equal(clips.read(index, start, False).numpy().T, latents[index][start : start + 8])
    assert reads == [(0, 0, 12), (1, 0, 20)]


def test_where_latents_do_not_fit_into_memory_each_crop_is_read_alone(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(clips_module, "LATENT_CACHE_BYTES", 12 * 16 * 4)
    latents, clips = stored(tmp_path, (12, 20), window=8)
    reads.clear()
    for index, start in ((0, 1), (1, 5), (1, 12), (0, 4)):
        np.testing.assert_array_equal(clips.read(index, start, False).numpy().T, latents[index][start : start + 8])
    assert reads == [(0, 0, 12), (1, 5, 13), (1, 12, 20)]


def test_cached_latents_cannot_be_changed(tmp_path):
    latents, clips = stored(tmp_path, (12,))
    clips.read(0, 0, False).zero_()
    np.testing.assert_array_equal(clips.read(0, 0, False).numpy().T, latents[0])


def test_clips_are_cached_while_their_sum_fits():
    assert [num_cached(np.array([5, 5, 1]), limit) for limit in (0, 4, 5, 9, 10, 11, 99)] == [0, 0, 1, 1, 2, 3, 3]


def test_live_latents_beyond_memory_are_encoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(clips_module, "LATENT_CACHE_BYTES", 2 * 8 * 16 * 4)
    clips = live(tmp_path, (30_000, 20_000))
    assert [clips.is_cacheable(index) for index in (0, 1)] == [True, False]
    for index in (0, 0, 1, 1):
        clips.read(index, 0, False)
    assert [clips.is_cached(index, False) for index in (0, 1)] == [True, False]


def test_prefetched_samples_are_not_read_again(tmp_path):
    clips = live(tmp_path, (30_000,))
    expected = clips.read(0, 0, False)
    again = live(tmp_path, (30_000,))
    samples = again.sample_range(0, 0)
    again.prefetched = {samples: samples.read()}
    samples.path.unlink()
    assert torch.equal(again.read(0, 0, False), expected)


def test_an_excerpt_s_duration_is_rounded_up_to_seconds(tmp_path):
    clips = live(tmp_path, (44_100, 44_101, 500_000), window=100_000)
    assert [excerpt_seconds(clips, index) for index in range(3)] == [1, 2, 3]
    assert [entry.seconds_total for entry in clips.entries] == [1, 2, 12]


def test_a_stored_excerpt_is_never_longer_than_its_recording_or_the_window_in_samples(tmp_path):
    artifact = encoded(tmp_path / "shared", tmp_path / "encoded", random_latents((11, 40)), random_hidden(2), window=22)
    manifest = artifact.directory / "manifest.parquet"
    first, second = read_rows(manifest, EncodedClip)
    # A second of audio begins an eleventh frame; two seconds a twenty-second.
    write_rows(manifest, [replace(first, seconds_total=1), second], EncodedClip)
    in_samples = replace(artifact, facts={**artifact.facts, "window_samples": 2 * 44_100})
    clips = StoredLatents(in_samples, ShardPool(tmp_path / "shared" / "latents"), MODEL)
    assert [excerpt_seconds(clips, index) for index in range(2)] == [1, 2]


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
def test_an_excerpt_s_length_is_rounded_up_to_frames(tmp_path, length):
    clips = live(tmp_path, (length,))
    assert clips.read(0, 0, False).shape[1] == excerpt_frames(clips, 0) == -(-length // 4096)


@pytest.mark.parametrize("length", [1, 100])
def test_a_clip_of_a_few_samples_is_one_frame_live_and_stored(tmp_path, length):
    clips = live(tmp_path, (length, 9000), window=4096)
    assert excerpt_frames(clips, 0) == clips.read(0, 0, False).shape[1] == 1
    assert torch.equal(clips.read(0, 0, False), encoded_file(tmp_path, 0, 0, length))
    _, kept = stored(tmp_path / "cached", (1, 3), window=1)
    assert excerpt_frames(kept, 0) == kept.read(0, 0, False).shape[1] == 1


def test_an_excerpt_is_at_most_the_window(tmp_path):
    assert excerpt_frames(stored(tmp_path, (12,), window=8)[1], 0) == 8
    assert excerpt_frames(live(tmp_path, (50_000,), window=20_000), 0) == 5
