"""Training examples: tables name the clips and crops that batches are made of."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cache.manifest import read_rows
from cache.shard_pool import ShardPool
from stages import catalogue
from stages.train.dataset import length_buckets
from stages.train.dataset.clips import StoredLatents
from stages.train.dataset.examples import Examples, options_without_effect
from stages.train.dataset.prompt_embeddings import PromptEmbeddings
from stages.train.record.metrics import ClipRow
from tests.small_training import RATE, RATIO, Bench, encoded, params, random_hidden, random_latents

LENGTHS = (9, 80, 30, 22, 7, 50)
WINDOW = 40
OPTIONS = [
    {"batch_size": 1, "crops_per_clip": 3},
    {"batch_size": 3},
    {"batch_size": 2, "gradient_accumulation": 2},
    {"frames_per_batch": 100, "crops_per_clip": 2, "silence_extension_seconds": 0.2},
    {"frames_per_batch": 100, "gradient_accumulation": 3, "silence_extension_seconds": 0.2},
]


@pytest.fixture(autouse=True)
def _short_clips_have_lengths_of_their_own(monkeypatch):
    monkeypatch.setattr(length_buckets, "MIN_BUCKET_FRAMES", 1)


def examples(root, **changes):
    hidden = random_hidden(len(LENGTHS))
    artifact = encoded(root / "shared", root / "encoded", random_latents(LENGTHS), hidden, window=WINDOW)
    clips = StoredLatents(artifact, ShardPool(root / "shared" / "latents"), catalogue.models()["tiny-base"])
    prompts = PromptEmbeddings({entry.prompt_key: torch.zeros(2, 4) for entry in clips.entries})
    return Examples(clips=clips, prompts=prompts, params=params(**changes), shift_options=None)


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_clips_and_crops_of_a_step_are_known_without_making_its_batch(tmp_path, changes):
    made = examples(tmp_path, **changes)
    for step in (0, 1, 2, 17):
        batch = made.batch(step)
        assert made.clips_and_starts(step) == (list(batch.clip_ids), list(batch.crop_starts))
        assert sum(batch.microbatch_sizes) == len(batch.clip_ids)
        assert batch.real_BT.sum(dim=1).tolist() == list(made.excerpts(step).frames)


@pytest.mark.parametrize("changes", OPTIONS[3:], ids=str)
def test_tables_have_a_row_for_every_clip_of_steps_of_any_size(tmp_path, changes):
    bench = Bench.of_latents(tmp_path, LENGTHS, WINDOW)
    bench.train(number_of_steps=6, **changes)
    rows = read_rows(bench.directory / "metrics.parquet", ClipRow)
    made = examples(tmp_path / "again", **changes)
    expected = [(step + 1, *row) for step in range(6) for row in zip(*made.clips_and_starts(step), strict=True)]
    assert [(row.step, row.clip_id, row.crop_start) for row in rows] == expected
    assert len(set(Counter(row.step for row in rows).values())) > 1


def test_clips_longer_than_the_budget_are_reported_once_and_trained_alone(tmp_path):
    bench = Bench.of_latents(tmp_path, LENGTHS, WINDOW)
    bench.train(number_of_steps=12, frames_per_batch=24, silence_extension_seconds=0.0)
    lines = [line for line in bench.said if "frames_per_batch" in line]
    assert len(lines) == 1 and "3 of 6 clips always are" in lines[0]
    rows = read_rows(bench.directory / "metrics.parquet", ClipRow)
    assert {row.clip_id for row in rows} == {f"clip{number}" for number in range(6)}
    alone = {row.clip_id for row in rows if sum(row.step == other.step for other in rows) == 1}
    assert alone >= {"clip1", "clip2", "clip5"}


def test_a_budget_that_holds_every_clip_is_not_reported(tmp_path):
    bench = Bench.of_latents(tmp_path, LENGTHS, WINDOW)
    bench.train(number_of_steps=2, frames_per_batch=WINDOW)
    assert not [line for line in bench.said if "frames_per_batch" in line]


@pytest.mark.parametrize("option", [{"crops_per_clip": 3}, {"crop_seconds": True}], ids=str)
def test_an_option_for_cropped_clips_is_named_where_no_clip_is_cropped(tmp_path, option):
    (name,) = option
    whole = Bench.of_latents(tmp_path / "whole", LENGTHS, max(LENGTHS))
    whole.train(number_of_steps=1, **option)
    (line,) = [line for line in whole.said if name in line]
    assert line.startswith(f"{name} {'on' if option[name] is True else option[name]} has no effect: ")
    cropped = Bench.of_latents(tmp_path / "cropped", LENGTHS, 12)
    cropped.train(number_of_steps=1, **option)
    assert not [line for line in cropped.said if name in line]


def test_the_end_of_a_split_recording_counts_as_an_excerpt_although_nothing_is_cropped(tmp_path):
    made = examples(tmp_path, crop_seconds=True)
    rows = [replace(made.clips.entries[0], seconds_total=60.0)]
    clips = SimpleNamespace(
        entries=rows, sizes=made.clips.sizes[:1], window=WINDOW, window_samples=WINDOW * RATIO,
        samples_per_unit=RATIO, sample_rate_hz=RATE,
    )  # fmt: skip
    assert list(options_without_effect(clips, made.params)) == []
    clips.entries = [replace(rows[0], seconds_total=1.0)]
    assert len(list(options_without_effect(clips, made.params))) == 1


def test_crop_seconds_changes_the_losses_of_cropped_clips(tmp_path):
    whole, own = (Bench.of_latents(tmp_path / name, (60, 80), 12) for name in ("whole", "own"))
    whole.train()
    own.train(crop_seconds=True)
    assert whole.losses[0] != own.losses[0]
