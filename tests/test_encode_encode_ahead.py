"""Latents made ahead: read by threads, encoded in batches, the same as those of one clip at a time."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.encode.device_batches import DeviceEncoder
from stages.encode.encode_ahead import EncodeAhead, num_readers
from stages.encode.partial_shards import PartialLatents
from stages.errors import Stopped
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from tests.small_networks import config, randomised

RATIO = 4096
SAME = 2e-5
"""Two ways to compute the same latents (of size about 1) in float32."""


@dataclass(frozen=True)
class Clip:
    key: str
    num_samples: int

    @property
    def num_frames(self) -> int:
        return -(-self.num_samples // RATIO)

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_samples, 2

    def fill(self, out: np.ndarray) -> None:
        out[:] = np.random.default_rng(self.num_samples).normal(0, 0.25, self.shape)


CLIPS = [Clip(f"c{number}", length) for number, length in enumerate((30_000, 9_000, 70_001, 12_000, 8_192, 50_000))]
GROUPS = [CLIPS[:3], CLIPS[3:]]


@pytest.fixture(scope="module", params=[False, True], ids=["chunked attention", "sliding window"])
def encoder(request) -> Autoencoder:
    return randomised(Autoencoder(config(windowed=request.param)))


def ahead(encoder, folder: Path, *, groups=GROUPS, max_frames=60, check_stop=lambda: None, checked=None) -> EncodeAhead:
    on_device = DeviceEncoder(encoder, "float32", max_frames, lambda line: None)
    return EncodeAhead(
        groups, on_device, PartialLatents(folder), 2, checked or (lambda task, frames: frames), check_stop
    )


def alone(encoder: Autoencoder, clip: Clip) -> np.ndarray:
    audio = np.empty(clip.shape, np.float32)
    clip.fill(audio)
    return encoder.encode_clip(torch.from_numpy(audio.T.copy())).T.numpy()


def test_each_clip_gets_the_latents_it_has_alone(encoder, tmp_path):
    with ahead(encoder, tmp_path) as frames:
        for clip in CLIPS:
            np.testing.assert_allclose(frames(clip), alone(encoder, clip), rtol=0, atol=SAME)


def test_a_clip_longer_than_a_batch_is_encoded_in_chunks_to_the_same_latents(encoder, tmp_path):
    long = Clip("long", 150 * RATIO + 5)
    with ahead(encoder, tmp_path, groups=[[long]], max_frames=64) as frames:
        np.testing.assert_allclose(frames(long), alone(encoder, long), rtol=0, atol=SAME)


def test_no_batch_holds_clips_of_two_shards_nor_more_frames_than_allowed(encoder, tmp_path, monkeypatch):
    batches, launch = [], DeviceEncoder.launch
    monkeypatch.setattr(
        DeviceEncoder, "launch", lambda self, audios: batches.append([len(a) for a in audios]) or launch(self, audios)
    )
    with ahead(encoder, tmp_path) as frames:
        for clip in CLIPS:
            frames(clip)
    lengths = [{clip.num_samples for clip in group} for group in GROUPS]
    assert all(any(set(batch) <= group for group in lengths) for batch in batches)
    assert sorted(length for batch in batches for length in batch) == sorted(clip.num_samples for clip in CLIPS)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (-(-max(batch) // RATIO) + encoder.silence_frames) <= 60


def test_the_next_batch_is_read_while_one_is_encoded(encoder, tmp_path, monkeypatch):
    began, launch = {clip.key: threading.Event() for clip in CLIPS}, DeviceEncoder.launch
    monkeypatch.setattr(Clip, "fill", lambda self, out: began[self.key].set())
    launched = []

    def waiting(self, audios):
        # Nobody asks for the second batch until this one is done, and its clips are read all the same.
        assert began["c2" if not launched else "c0"].wait(5)
        launched.append(len(audios))
        return launch(self, audios)

    monkeypatch.setattr(DeviceEncoder, "launch", waiting)
    with ahead(encoder, tmp_path, groups=[CLIPS[:3]], max_frames=40) as frames:
        frames(CLIPS[1])
    assert launched


def test_a_stop_keeps_every_clip_that_was_encoded_and_the_next_run_encodes_the_rest_only(
    encoder, tmp_path, monkeypatch
):
    whole = {}
    with ahead(encoder, tmp_path / "whole") as frames:
        for clip in CLIPS:
            whole[clip.key] = frames(clip)
    seen, encode_batch = [], Autoencoder.encode_batch

    def counting(self, audios, **more):
        seen.extend(audio.shape[1] for audio in audios)
        return encode_batch(self, audios, **more)

    monkeypatch.setattr(Autoencoder, "encode_batch", counting)

    def stop_after_two_batches() -> None:
        if len(seen) >= 2:
            raise Stopped("here")

    (tmp_path / "run").mkdir()
    with pytest.raises(Stopped), ahead(encoder, tmp_path / "run", check_stop=stop_after_two_batches) as frames:
        for clip in CLIPS:
            frames(clip)
    stopped = list(seen)
    assert 0 < len(stopped) < len(CLIPS)
    with ahead(encoder, tmp_path / "run") as frames:
        for clip in CLIPS:
            np.testing.assert_array_equal(frames(clip), whole[clip.key])
    assert sorted(seen) == sorted(clip.num_samples for clip in CLIPS)


def test_long_work_is_kept_in_files_before_any_shard_is_sealed_and_let_go_once_it_is(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.encode.encode_ahead.SAVE_INTERVAL_SECONDS", 0.0)
    with ahead(encoder, tmp_path, groups=[CLIPS[:3]]) as frames:
        for clip in CLIPS[:3]:
            frames(clip)
        assert len(list((tmp_path / "pieces").iterdir())) == 3
    monkeypatch.setattr("stages.encode.encode_ahead.SAVE_INTERVAL_SECONDS", 1e9)
    with pytest.raises(Stopped), ahead(encoder, tmp_path / "sealed") as frames:
        for clip in CLIPS:
            frames(clip)
        frames.sealed(clip.key for clip in CLIPS)
        raise Stopped("here")
    assert not (tmp_path / "sealed").exists()


def test_a_clip_that_cannot_be_read_is_an_error(encoder, tmp_path, monkeypatch):
    def broken(self, out) -> None:
        raise OSError("gone")

    monkeypatch.setattr(Clip, "fill", broken)
    with pytest.raises(OSError, match="gone"), ahead(encoder, tmp_path) as frames:
        frames(CLIPS[0])


def test_latents_are_checked_by_clip_before_they_are_returned(encoder, tmp_path):
    def refuse(task, frames):
        raise ValueError(task.key)

    with pytest.raises(ValueError, match="c1"), ahead(encoder, tmp_path, checked=refuse) as frames:
        frames(CLIPS[0])


@pytest.mark.parametrize(
    "told",
    [torch.OutOfMemoryError(), RuntimeError("CUDA error: out of memory"), MemoryError()],
    ids=["torch", "CUDA", "numpy"],
)
def test_short_memory_halves_the_batch_then_the_chunk_and_reports_it(encoder, monkeypatch, told):
    clips = [Clip("a", 120 * RATIO), Clip("b", 90 * RATIO)]
    expected = [alone(encoder, clip) for clip in clips]
    said, encode_batch = [], Autoencoder.encode_batch

    def short(self, audios, *, chunk_frames=None, **more):
        if len(audios) * (chunk_frames or max(audio.shape[1] for audio in audios) // RATIO) > 100:
            raise told
        return encode_batch(self, audios, chunk_frames=chunk_frames, **more)

    monkeypatch.setattr(Autoencoder, "encode_batch", short)
    on_device = DeviceEncoder(encoder, "float32", 400, said.append)
    buffers = [on_device.host_buffer(clip.shape) for clip in clips]
    for clip, buffer in zip(clips, buffers, strict=True):
        clip.fill(buffer.numpy())
    parts = on_device.launch(buffers)
    for latents, whole in zip([one for part in parts for one in part.latents()], expected, strict=True):
        np.testing.assert_allclose(latents, whole, rtol=0, atol=SAME)
    assert ["two batches" in line or "in chunks of" in line for line in said] == [True] * len(said)
    assert {"two batches" in line for line in said} == {True, False}


def test_memory_that_suffices_for_nothing_is_an_error(encoder, monkeypatch):
    def never(self, audios, **more):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Autoencoder, "encode_batch", never)
    with pytest.raises(torch.OutOfMemoryError):
        DeviceEncoder(encoder, "float32", 4096, lambda line: None).launch([torch.zeros(RATIO, 2)])


def test_any_other_error_is_not_taken_for_short_memory(encoder, monkeypatch):
    def broken(self, audios, **more):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(Autoencoder, "encode_batch", broken)
    with pytest.raises(RuntimeError, match="sizes"):
        DeviceEncoder(encoder, "float32", 4096, pytest.fail).launch([torch.zeros(RATIO, 2), torch.zeros(RATIO, 2)])


def test_as_many_threads_read_as_asked_for():
    assert num_readers(3) == 3
    assert num_readers(0) >= 2
