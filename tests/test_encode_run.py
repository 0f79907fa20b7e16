"""Encode: latents of the valid length, encoded once per content, whatever stopped the run before."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from cache.errors import WriteFailed
from cache.location import Location
from cache.manifest import read_rows, write_rows
from cache.shard_pool import ShardPool
from stages import disk_space
from stages.contract import Artifact, Inputs, Resources, Weights, Workspace
from stages.encode import encode_latents as encoding
from stages.encode.run import encode
from stages.encode.stage import EncodeParams, item_key
from stages.errors import InsufficientDiskSpace, LatentsNotFinite, PreparedAudioMissing, Stopped
from stages.models.checkpoint_folder import open_folder
from stages.models.families import tiny
from stages.models.load_weights import load_autoencoder
from stages.records import Clip, EncodedClip, PromptRow
from tests.prepared_clips import write_prepared
from tests.small_networks import TINY

AUDIO_PARAMS = {"sample_rate_hz": 44_100}
FRAME = 4096


@pytest.fixture(scope="module")
def weights() -> Weights:
    return open_folder("tiny-base", tiny.FOLDER)


def clip(name: str, num_samples: int, prompt: str) -> Clip:
    return Clip(
        clip_id=name,
        audio=f"prepared/{name}.flac",
        digest=f"sha256:{name}",
        num_samples=num_samples,
        source_sample_rate_hz=44_100,
        num_channels=2,
        crop_start=0,
        num_samples_cut=0,
        num_samples_padded=0,
        seconds_total=-(-num_samples // 44_100),
        prompt=prompt,
        caption_source=f"{name}.txt",
    )


CLIPS = [clip("a", 3 * FRAME, "first"), clip("b", 2 * FRAME + 1, "second"), clip("c", 5 * FRAME, "first")]


def test_a_clip_of_one_sample_becomes_one_frame_of_finite_latents(tmp_path, weights):
    setup = EncodeSetup(tmp_path, weights, [clip("hit", 1, "a hit"), clip("hat", 100, "a hat"), CLIPS[0]])
    setup.encode()
    assert [row.num_valid_frames for row in setup.rows()] == [1, 1, 3]
    assert all(np.isfinite(setup.latents(row)).all() for row in setup.rows())


class EncodeSetup:
    """An ingest artifact, a shared folder and workspaces under one root."""

    def __init__(self, root: Path, weights: Weights, clips: list[Clip]) -> None:
        self.root, self.weights, self.clips = root, weights, clips
        self.said: list[str] = []
        self.shown: list[tuple[int, int, str]] = []
        self.shared = root / "shared"
        (self.shared / "prepared").mkdir(parents=True, exist_ok=True)
        for index, entry in enumerate(clips):
            noise = np.random.default_rng(index).uniform(-0.5, 0.5, (entry.num_samples, 2))
            write_prepared(self.shared / entry.audio, noise)
        (root / "ingest").mkdir(exist_ok=True)
        write_rows(root / "ingest" / "manifest.parquet", clips, Clip)

    def encode(self, params: EncodeParams | None = None, *, stop_after: int | None = None, device: str = "cpu"):
        directory = self.root / "encode"
        directory.mkdir(exist_ok=True)
        asked = iter(range(10_000))
        work = Workspace(
            directory=directory,
            shared=self.shared,
            resources=Resources(device=device, threads=1),
            say=self.said.append,
            progress=lambda done, total, note="", **_: self.shown.append((done, total, note)),
            should_stop=lambda: stop_after is not None and next(asked) >= stop_after,
        )
        facts = {
            "audio_params": AUDIO_PARAMS,
            "window_samples": 5 * FRAME,
            "window_frames": 5,
            "num_clips": len(self.clips),
        }
        ingest = Artifact(stage="ingest", fingerprint="f", directory=self.root / "ingest", facts=facts)
        inputs = Inputs(artifacts={"ingest": ingest}, weights=self.weights)
        return encode(inputs, params or EncodeParams(model="tiny-base"), work)

    def rows(self) -> list[EncodedClip]:
        return read_rows(self.root / "encode" / "manifest.parquet", EncodedClip)

    def latents(self, row: EncodedClip, format: str = "parquet") -> np.ndarray:
        location = Location(
            item_key=row.item_key, shard=row.shard, row=row.row, num_frames=row.num_frames, checksum=row.checksum
        )
        return ShardPool(self.shared / "latents", format).read(location)

    def files(self) -> dict[str, bytes]:
        found = [*self.shared.glob("*/*.parquet"), *(self.root / "encode").glob("*.parquet")]
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def place(tmp_path, weights) -> EncodeSetup:
    return EncodeSetup(tmp_path, weights, CLIPS)


def test_each_clip_has_latents_of_its_own_valid_length(place):
    place.encode()
    assert [(row.clip_id, row.num_frames, row.num_valid_frames) for row in place.rows()] == [
        ("a", 3, 3), ("b", 3, 3), ("c", 5, 5),
    ]  # fmt: skip
    assert [place.latents(row).shape for row in place.rows()] == [(3, 128), (3, 128), (5, 128)]


def test_stored_latents_are_the_autoencoders_own_in_half_precision(place):
    place.encode()
    audio = torch.from_numpy(soundfile.read(place.shared / CLIPS[1].audio, dtype="float32")[0].T.copy())
    expected = load_autoencoder(place.weights).encode_clip(audio).T.numpy()
    np.testing.assert_array_equal(place.latents(place.rows()[1]), expected.astype(np.float16))


def test_a_second_encode_makes_nothing(place):
    place.encode()
    facts = place.encode().facts
    assert (facts["num_encoded"], facts["num_reused"], facts["num_prompts_encoded"]) == (0, 3, 0)


def test_a_prompt_shared_by_two_clips_is_embedded_once(place):
    facts = place.encode().facts
    assert (facts["num_prompts"], facts["num_prompts_encoded"]) == (2, 2)
    rows = read_rows(place.root / "encode" / "prompts.parquet", PromptRow)
    assert [row.prompt for row in rows] == ["first", "second"]


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3, 4])
def test_a_stopped_encode_is_continued_to_the_same_bytes(tmp_path, weights, stop_after, monkeypatch):
    monkeypatch.setattr(encoding, "shard_ranges", lambda sizes: [range(i, i + 1) for i in range(len(sizes))])
    whole, stopped = (EncodeSetup(tmp_path / name, weights, CLIPS) for name in ("whole", "stopped"))
    whole.encode()
    with pytest.raises(Stopped):
        stopped.encode(stop_after=stop_after)
    stopped.encode()
    assert stopped.files() == whole.files()


def test_a_stopped_encode_encodes_no_stored_clip_twice(place, monkeypatch):
    monkeypatch.setattr(encoding, "shard_ranges", lambda sizes: [range(i, i + 1) for i in range(len(sizes))])
    seen, encode_clip_latents = [], encoding.encode_clip_latents
    monkeypatch.setattr(
        encoding,
        "encode_clip_latents",
        lambda task, *rest: (seen.append(task.clip_id), encode_clip_latents(task, *rest))[1],
    )
    with pytest.raises(Stopped):
        place.encode(stop_after=2)
    place.encode()
    assert seen == ["silence", "a", "b", "c"]


def test_a_stop_inside_a_shard_loses_no_encoded_clip_and_changes_no_byte(tmp_path, weights, monkeypatch):
    whole, stopped = (EncodeSetup(tmp_path / name, weights, CLIPS) for name in ("whole", "stopped"))
    whole.encode()
    seen, encode_clip_latents = [], encoding.encode_clip_latents
    monkeypatch.setattr(
        encoding,
        "encode_clip_latents",
        lambda task, *rest: (seen.append(task.clip_id), encode_clip_latents(task, *rest))[1],
    )
    with pytest.raises(Stopped):
        stopped.encode(stop_after=3)
    assert seen == ["silence", "a", "b"]
    assert not list((stopped.shared / "latents").glob("*.parquet"))
    stopped.encode()
    assert seen == ["silence", "a", "b", "c"]
    assert stopped.files() == whole.files()
    assert not (stopped.root / "encode" / "pieces").exists()


@pytest.fixture
def as_on_a_device(monkeypatch):
    """Encode on the CPU the way a GPU does: in batches, ahead, with shards written meanwhile."""
    monkeypatch.setattr(encoding, "encodes_singly", lambda device, params: False)


def test_clips_encoded_in_batches_have_the_latents_they_have_alone(tmp_path, weights, monkeypatch):
    params = EncodeParams(model="tiny-base", latent_dtype="float32")
    alone, together = (EncodeSetup(tmp_path / name, weights, CLIPS) for name in ("alone", "together"))
    alone.encode(params)
    monkeypatch.setattr(encoding, "encodes_singly", lambda device, params: False)
    assert together.encode(params).facts["num_encoded"] == 3
    for one, other in zip(alone.rows(), together.rows(), strict=True):
        np.testing.assert_allclose(together.latents(other), alone.latents(one), rtol=0, atol=1e-5)


@pytest.mark.parametrize("per_shard", [1, 2, 9])
@pytest.mark.parametrize("stop_after", [0, 2, 3, 5])
def test_a_stopped_encode_in_batches_is_continued_to_the_same_bytes(
    tmp_path, weights, as_on_a_device, monkeypatch, per_shard, stop_after
):
    def few(sizes):
        return [range(at, min(at + per_shard, len(sizes))) for at in range(0, len(sizes), per_shard)]

    monkeypatch.setattr(encoding, "shard_ranges", few)
    whole, stopped = (EncodeSetup(tmp_path / name, weights, CLIPS) for name in ("whole", "stopped"))
    whole.encode()
    with pytest.raises(Stopped):
        stopped.encode(stop_after=stop_after)
    stopped.encode()
    assert stopped.files() == whole.files()
    assert not (stopped.root / "encode" / "pieces").exists()


@pytest.mark.gpu
@pytest.mark.parametrize(("compute", "bound"), [("float32", 1e-5), ("bfloat16", 1.5e-2), ("float16", 2e-3)])
def test_a_gpu_encodes_what_the_cpu_does(tmp_path, compute, bound):
    # Torch's own operations differ by 0.8e-2 and 1.2e-3 from float32 with these weights.
    weights = open_folder("tiny-s", TINY)
    exact = EncodeParams(model="tiny-base", latent_dtype="float32")
    cpu, gpu = (EncodeSetup(tmp_path / name, weights, CLIPS) for name in ("cpu", "gpu"))
    cpu.encode(exact)
    gpu.encode(replace(exact, compute_dtype=compute), device="cuda")
    assert not [line for line in gpu.said if "without" in line]
    for one, other in zip(cpu.rows(), gpu.rows(), strict=True):
        expected = cpu.latents(one)
        assert np.linalg.norm(gpu.latents(other) - expected) < bound * np.linalg.norm(expected)


def test_a_shard_that_cannot_be_written_while_the_next_is_encoded_is_an_error(place, as_on_a_device, monkeypatch):
    def full(self, items, metadata):
        raise WriteFailed(place.shared, "no space left", 0)

    monkeypatch.setattr(ShardPool, "write", full)
    with pytest.raises(WriteFailed):
        place.encode()


def test_prepared_audio_that_is_shorter_than_its_row_says_is_an_error(place):
    short = place.shared / CLIPS[0].audio
    write_prepared(short, np.zeros((FRAME, 2)))
    with pytest.raises(PreparedAudioMissing, match=f"it ends after {FRAME} of {3 * FRAME} samples"):
        place.encode()


def test_latents_saved_before_a_kill_do_not_become_part_of_the_artifact(place, monkeypatch):
    monkeypatch.setattr(encoding.PartialLatents, "discard", lambda self, keys: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        place.encode()
    assert list((place.root / "encode" / "pieces").iterdir())
    place.encode()
    assert not (place.root / "encode" / "pieces").exists()


def test_another_format_gets_copies_of_the_same_latents_and_encodes_nothing(place):
    place.encode()
    parquet = [place.latents(row) for row in place.rows()]
    facts = place.encode(EncodeParams(model="tiny-base", latent_format="hdf5")).facts
    assert (facts["num_encoded"], facts["num_reused"]) == (0, 3)
    for row, expected in zip(place.rows(), parquet, strict=True):
        np.testing.assert_array_equal(place.latents(row, "hdf5"), expected)


def test_silence_is_stored_with_its_place_in_the_facts(place):
    silence = place.encode().facts["silence"]
    frames = ShardPool(place.shared / "latents").read(Location(**silence))
    assert frames.shape == (64, 128)
    # Silence repeats itself with the chunks of four frames: any longer silence follows from what is stored.
    np.testing.assert_allclose(frames[8:], np.tile(frames[8:12], (14, 1)), atol=2e-3)


def test_encoder_noise_is_a_param_and_drawn_from_the_clips_key(place):
    quiet = EncodeParams(model="tiny-base")
    noisy = replace(quiet, encoder_noise=True)
    keys = [item_key("sha256:a", 0, AUDIO_PARAMS, params, "same") for params in (quiet, noisy)]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    "change", [{"digest": "sha256:z"}, {"crop_start": 1}, {"audio": {"x": 1}}, {"autoencoder": "other"}], ids=str
)
def test_an_item_key_changes_with_everything_that_decides_the_latents(change):
    base = {"digest": "sha256:a", "crop_start": 0, "audio": AUDIO_PARAMS, "autoencoder": "same"}

    def key(digest, crop_start, audio, autoencoder):
        return item_key(digest, crop_start, audio, EncodeParams(model="tiny-base"), autoencoder)

    assert key(**base) != key(**{**base, **change})


def test_an_item_key_does_not_change_with_the_container_or_the_models_name():
    keys = {
        item_key("sha256:a", 0, AUDIO_PARAMS, EncodeParams(model=model, latent_format=kind), "same")
        for model in ("small-music-base", "small-sfx-base")
        for kind in ("parquet", "hdf5")
    }
    assert len(keys) == 1


def test_latents_beyond_half_precision_are_an_error_that_names_the_clip(tmp_path, weights):
    folder = tmp_path / "loud"
    shutil.copytree(weights.folder, folder)
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["pretransform.model.bottleneck.scaling_factor"].fill_(1e9)
    save_file(tensors, folder / "model.safetensors")
    place = EncodeSetup(tmp_path, open_folder("tiny-base", folder), CLIPS)
    with pytest.raises(LatentsNotFinite, match="--latent-dtype float32"):
        place.encode()


def test_a_truncated_prompt_is_reported(tmp_path, weights):
    place = EncodeSetup(tmp_path, weights, [clip("a", FRAME, "long " * 150)])
    place.encode()
    assert any(f"only the first {weights.sizes.max_prompt_tokens} of" in line for line in place.said)


def test_an_unknown_latent_format_is_refused_by_name():
    with pytest.raises(ValueError, match=r"encode.latent_format must be one of hdf5, parquet; got 'zarr'"):
        EncodeParams(model="tiny-base", latent_format="zarr")


def test_progress_counts_clips_and_not_the_silence_encoded_before_them(place):
    place.encode()
    assert place.shown == [(0, 3, "silence"), (1, 3, "a"), (2, 3, "b"), (3, 3, "c")]


def test_silence_alone_is_no_progress(place):
    place.encode()
    place.shown.clear()
    for file in place.shared.glob("latents/*"):
        file.unlink()
    place.clips = []
    write_rows(place.root / "ingest" / "manifest.parquet", [], Clip)
    place.encode()
    assert place.shown == []


def test_latents_that_do_not_fit_are_refused_before_any_clip_is_encoded(place, monkeypatch):
    num_bytes = (64 + 3 + 3 + 5) * 128 * 2  # of silence and the clips
    for free in (num_bytes - 1, num_bytes):
        monkeypatch.setattr(disk_space, "free_bytes", lambda folder, free=free: free)
        if free < num_bytes:
            with pytest.raises(InsufficientDiskSpace, match=r"this dataset needs at least 19 kB .* with --store"):
                place.encode()
            assert place.shown == []
    place.encode()


def test_latents_that_a_stop_left_need_no_further_room(place, monkeypatch):
    with pytest.raises(Stopped):
        place.encode(stop_after=2)
    saved = sum(path.stat().st_size for path in (place.root / "encode" / "pieces").iterdir())
    monkeypatch.setattr(disk_space, "free_bytes", lambda folder: 75 * 128 * 2 - saved)
    place.encode()
    assert len(place.rows()) == 3
