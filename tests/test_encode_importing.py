"""Importing the reference's pre-encoded folder as an artifact that trains."""

from __future__ import annotations

import numpy as np
import pytest

from cache.manifest import read_rows
from cache.shard_pool import ShardPool
from stages.contract import Inputs, Resources, Weights, Workspace
from stages.encode import encode_latents as encoding
from stages.encode.prompts import prompt_keys
from stages.errors import Stopped
from stages.ingest.source.listing import open_source
from stages.models.checkpoint_folder import open_folder
from stages.records import PromptRow
from stages.train.record.metrics import StepRow
from stages.train.run import train
from stages.train.stage import TrainParams
from tests.pre_encoded import ImportSetup, copied, rows
from tests.small_networks import TINY


@pytest.fixture(scope="module")
def weights() -> Weights:
    return open_folder("tiny-s", TINY)


@pytest.fixture
def place(tmp_path, weights) -> ImportSetup:
    return copied(tmp_path, weights, "nopad")


@pytest.mark.parametrize("way", ["nopad", "pad_batch2"])
def test_every_clip_comes_with_its_valid_frames_its_times_and_its_prompt(tmp_path, weights, way):
    place = copied(tmp_path, weights, way)
    artifact = place.read()
    stems = sorted(path.stem for path in place.folder.glob("*.json"))
    for stem, row in zip(stems, rows(artifact), strict=True):
        about = place.metadata(stem)
        valid = sum(about["padding_mask"])
        assert (row.clip_id, row.num_frames, row.num_valid_frames) == (about["relpath"], valid, valid)
        assert (row.seconds_start, row.seconds_total) == (about["seconds_start"], about["seconds_total"])
        assert row.prompt == about["prompt"]
        np.testing.assert_array_equal(place.latents(row), np.load(place.folder / f"{stem}.npy")[:, :valid].T)


def test_padding_that_is_left_out_is_reported(tmp_path, weights):
    place = copied(tmp_path, weights, "pad_batch2")
    place.read()
    assert [line for line in place.said if "28 frames of padding left out, after 4 clips: clip0.wav" in line]


def test_prompts_are_embedded_under_the_names_of_our_own(place):
    artifact = place.read()
    key_of = prompt_keys(place.weights)
    prompts = read_rows(artifact.directory / "prompts.parquet", PromptRow)
    assert [row.prompt_key for row in rows(artifact)] == [key_of(row.prompt) for row in rows(artifact)]
    assert {row.prompt_key for row in prompts} == {row.prompt_key for row in rows(artifact)}


def test_silence_is_the_folder_s_own(place):
    silence = place.read().facts["silence"]
    pool = ShardPool(place.root / "shared" / "latents")
    stored = pool.read(pool.locate([silence["item_key"]])[silence["item_key"]])
    np.testing.assert_array_equal(stored, np.load(place.folder / "silence.npy")[0].T)


def test_items_are_named_by_their_values_wherever_they_lie(place):
    before = rows(place.read())
    for stem in [path.stem for path in place.folder.glob("*.json")]:
        place.change(stem, relpath=f"moved/{stem}.wav", prompt=f"other words for {stem}", load_time=3.0)
    files = set((place.root / "shared" / "latents").glob("*.parquet"))
    after = rows(place.read())
    assert [row.item_key for row in after] == [row.item_key for row in before]
    assert set((place.root / "shared" / "latents").glob("*.parquet")) == files


def test_latents_in_half_precision_are_other_items(place):
    assert {row.item_key for row in rows(place.read())}.isdisjoint(
        row.item_key for row in rows(place.read(latent_dtype="float16"))
    )
    np.testing.assert_array_equal(
        place.latents(rows(place.read(latent_dtype="float16"))[0]),
        np.load(place.folder / "0000000000.npy").T.astype(np.float16),
    )


def test_several_crops_of_one_file_are_numbered(place):
    for stem in ("0000010000", "0000020000"):
        place.change(stem, relpath="clip0.wav")
    assert [row.clip_id for row in rows(place.read())] == ["clip0.wav", "clip0.wav#2", "clip0.wav#3", "clip3.wav"]


@pytest.mark.parametrize(("duration", "samples", "frames"), [(None, 9 * 4096, 9), (0.5, 22_050, 6), (60.0, 88_200, 22)])
def test_the_window_is_the_longest_clip_or_as_asked_but_at_most_the_native_length(place, duration, samples, frames):
    facts = place.read(duration_seconds=duration).facts
    assert (facts["window_samples"], facts["window_frames"]) == (samples, frames)


def test_the_receipt_says_where_the_latents_come_from_and_what_is_not_known(place):
    facts = place.read().facts
    assert facts["dataset"] == open_source(place.folder).fingerprint
    assert (facts["num_clips"], facts["num_encoded"]) == (4, 0)
    assert facts["origin"]["kind"] == "pre-encoded folder"
    assert facts["origin"]["autoencoder"] == "not known"
    assert facts["origin"]["compared_with_autoencoder"] == place.weights.digests["autoencoder"]
    assert facts["origin"]["silence_difference"] < 0.01
    assert "the folder does not say which autoencoder made it" in "\n".join(place.said)


def test_files_and_fields_that_are_ignored_are_reported(place):
    (place.folder / "details.json").write_text("{}")
    (place.folder / "notes.txt").write_text("mine")
    place.change("0000000000", genre="ambient")
    place.read()
    assert "not read: details.json, notes.txt" in place.said
    assert "metadata that is ignored: genre" in place.said


def test_a_stopped_import_goes_on_to_the_same_bytes(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(encoding, "shard_ranges", lambda sizes: [range(i, i + 1) for i in range(len(sizes))])
    (tmp_path / "straight").mkdir()
    (tmp_path / "stopped").mkdir()
    straight, stopped = (copied(tmp_path / name, weights, "nopad") for name in ("straight", "stopped"))
    straight.read()
    with pytest.raises(Stopped):
        stopped.read(stop_after=4)
    assert 0 < len(list((stopped.root / "shared" / "latents").glob("*.parquet"))) < 6
    stopped.read()
    assert stopped.files() == straight.files()


def test_imported_latents_train(place):
    artifact = place.read()
    (place.root / "trained").mkdir()
    work = Workspace(
        directory=place.root / "trained", shared=place.root / "shared", resources=Resources(device="cpu", threads=1)
    )
    params = TrainParams(model="tiny-base", number_of_steps=2, rank=2, pre_encode=True, include=("layers.0.self_attn",))
    train(Inputs(artifacts={"encode": artifact}, weights=place.weights), params, work)
    assert len(read_rows(work.directory / "steps.parquet", StepRow)) == 2


def test_progress_counts_the_clips_of_the_folder_and_not_its_silence(place):
    artifact = place.read()
    total = len(rows(artifact))
    assert [shown[:2] for shown in place.shown if shown[1]] == [(done, total) for done in range(total + 1)]
