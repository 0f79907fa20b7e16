"""Exporting an encode artifact as the reference's pre-encoded folder."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import ItemNotFound, WriteFailed
from cache.shard_pool import ShardPool
from stages import disk_space
from stages.contract import Weights
from stages.encode.encode_latents import silence_task
from stages.encode.pre_encoded.exporting import export_folder, period, timestamps
from stages.encode.stage import EncodeParams
from stages.errors import InsufficientDiskSpace
from stages.models.checkpoint_folder import open_folder
from stages.records import EncodedClip
from tests.pre_encoded import SPEC, ImportSetup, copied
from tests.small_networks import TINY


@pytest.fixture(scope="module")
def weights() -> Weights:
    return open_folder("tiny-s", TINY)


@pytest.fixture
def place(tmp_path, weights) -> ImportSetup:
    return copied(tmp_path, weights, "nopad")


def test_what_is_written_and_read_again_is_written_the_same(place):
    first = place.write(place.read(), "first")
    again = ImportSetup(place.root / "other", place.weights, place.root / "first")
    again.root.mkdir()
    second = again.write(again.read(), "second")
    assert [path.name for path in first] == [path.name for path in second]
    assert {path.name: path.read_bytes() for path in first} == {path.name: path.read_bytes() for path in second}


def test_silence_that_is_not_periodic_is_written_as_it_is_and_reported(place):
    # The tool encoded it with nothing behind its last frame, so nothing tells how it would go on.
    files = place.write(place.read())
    np.testing.assert_array_equal(np.load(files[-1]), np.load(place.folder / "silence.npy"))
    assert "silence.npy has only the 12 frames of the artifact: its latents of silence are not periodic" in place.said


def test_every_field_of_the_tool_is_written_in_its_order(place):
    files = place.write(place.read())
    written = json.loads(files[0].read_text("utf-8"))
    theirs = place.metadata("0000000000")
    assert list(written) == list(theirs)
    assert {**theirs, "path": "clip0.wav", "load_time": 0.0} == written


def test_files_are_numbered_as_batches_of_one_beside_silence(place):
    names = [path.name for path in place.write(place.read())]
    stems = ["0000000000", "0000010000", "0000020000", "0000030000"]
    assert names == sorted([f"{stem}{suffix}" for stem in stems for suffix in (".json", ".npy")] + ["silence.npy"])


def test_rounding_by_the_storage_precision_is_reported(place):
    place.write(place.read(latent_dtype="float16"))
    assert "latents are stored as float16; the exported float32 files hold those values" in place.said


def test_a_folder_that_holds_something_is_left_alone(place):
    (place.root / "written").mkdir()
    (place.root / "written" / "mine.txt").write_text("mine")
    with pytest.raises(WriteFailed):
        place.write(place.read())
    assert [path.name for path in (place.root / "written").iterdir()] == ["mine.txt"]


def test_an_export_that_fails_leaves_nothing(place):
    artifact = place.read()
    for shard in (place.root / "shared" / "latents").glob("*.parquet"):
        shard.unlink()
    before = set(place.root.iterdir())
    with pytest.raises(ItemNotFound):
        place.write(artifact)
    assert set(place.root.iterdir()) == before


def test_silence_that_was_encoded_here_is_extended_by_its_period_to_the_native_length(place):
    artifact = place.read()
    # The import has also stored our own silence, to compare with.
    own = silence_task(EncodeParams(model="tiny-s", latent_dtype="float32"), place.weights)
    pool = ShardPool(place.root / "shared" / "latents")
    where = pool.locate([own.key])[own.key]
    facts = {**artifact.facts, "silence": {name: getattr(where, name) for name in artifact.facts["silence"]}}
    spec = replace(SPEC, max_seconds=20)
    files = export_folder(
        replace(artifact, facts=facts), place.root / "shared", spec, place.root / "long", place.said.append
    )
    written = np.load(files[-1])
    assert written.shape == (1, 16, spec.num_frames(spec.native_samples))
    stored = pool.read(where).T
    np.testing.assert_array_equal(written[0, :, :64], stored)
    np.testing.assert_array_equal(written[0, :, 64:214], np.tile(stored[:, 62:], 75))


@given(frames=st.integers(1, 8), start=st.integers(0, 10), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_the_period_of_silence_is_found_after_an_uneven_start(frames, start, seed):
    generator = np.random.default_rng(seed)
    repeated = np.tile(generator.standard_normal((4, frames)), 64 // frames + 1)
    silence = np.concatenate([generator.standard_normal((4, start)), repeated], axis=1)[:, :64]
    assert period(silence.astype(np.float32)) == frames


def test_silence_that_never_repeats_has_no_period():
    assert period(np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)) is None


@pytest.mark.parametrize(
    ("num_frames", "start", "total", "expected"),
    [(4, 0, 1, (0.0, 1.0)), (108, 0, 10, (0.0, 1.0)), (108, 0, 20, (0.0, 0.5016)), (108, 10, 20, (0.5, 1.0))],
)
def test_timestamps_are_parts_of_the_recording(num_frames, start, total, expected):
    row = EncodedClip(
        clip_id="a", item_key="", prompt_key="", shard="", row=0, num_frames=num_frames, num_valid_frames=num_frames,
        seconds_start=start, seconds_total=total, prompt="", checksum="",
    )  # fmt: skip
    assert timestamps(row, SPEC) == pytest.approx(expected, abs=1e-4)


def test_an_export_that_does_not_fit_is_refused_before_it_begins(place, monkeypatch):
    artifact = place.read()
    before = set(place.root.iterdir())
    monkeypatch.setattr(disk_space, "free_bytes", lambda folder: 100)
    with pytest.raises(InsufficientDiskSpace, match=r"the export needs at least .* with --export"):
        place.write(artifact)
    assert set(place.root.iterdir()) == before
