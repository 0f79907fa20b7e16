"""What the memory check prints before a training begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cache.shard_pool import ShardPool
from stages.contract import Inputs, Resources
from stages.errors import InsufficientMemory
from stages.train.dataset.clips import StoredLatents
from stages.train.dataset.length_buckets import bucket_lengths
from stages.train.dataset.sampler import FrameBudgetSampler, sampler_for
from stages.train.forecast import check_memory as checking
from stages.train.forecast.batch_shapes import largest_batches
from stages.train.forecast.check_memory import check_memory, estimate_line, training_setup
from stages.train.forecast.estimate import GIB, MIB
from stages.train.forecast.network_size import BatchSize
from stages.train.job import Job
from tests.small_training import CHANNELS, RATIO, Bench, params, weights


def job(bench: Bench, **changes: object) -> Job:
    """A job of a base model whose weights do not exist: reading one fails."""
    absent = replace(weights(), folder=bench.root / "not there")
    inputs = Inputs(artifacts={bench.artifact.stage: bench.artifact}, weights=absent, files={})
    wanted = params(**{"pre_encode": bench.artifact.stage == "encode", **changes})
    return Job.of(inputs, wanted, bench.workspace())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.of_latents(tmp_path, lengths=(12, 20, 7))


def with_free(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(checking, "free_bytes", lambda device: free)


def test_one_line_says_memory_by_part_and_what_is_left(bench, monkeypatch):
    with_free(monkeypatch, 4 * GIB)
    assert check_memory(job(bench, number_of_steps=100)).params.number_of_steps == 100
    (said,) = bench.said
    assert said.startswith("memory: about ") and " needed, 4.3 GB left on cpu (weights " in said
    assert "activations" in said and "step" not in said


def test_what_cannot_fit_is_refused_before_any_weight_is_read(bench, monkeypatch):
    with_free(monkeypatch, 10 * MIB)
    with pytest.raises(InsufficientMemory, match=r"10\.5 MB left"):
        check_memory(job(bench))
    assert bench.said == []


def test_blocks_are_recomputed_from_the_start_where_that_makes_it_fit(tmp_path, monkeypatch):
    bench = Bench.of_latents(tmp_path, lengths=(600,))
    wanted = job(bench, include=None, batch_size=4)
    plain = checking.memory_estimate(training_setup(wanted)).total_bytes
    with_free(monkeypatch, plain - MIB)
    assert check_memory(wanted).work.resources.gradient_checkpointing == "on"
    assert bench.said[1] == "memory would be short: gradient checkpointing is turned on"


def test_memory_that_is_not_known_is_left_out(bench, monkeypatch):
    with_free(monkeypatch, None)
    check_memory(job(bench))
    assert "left" not in bench.said[0]


def test_a_setting_of_the_user_reaches_the_estimate(bench, monkeypatch):
    with_free(monkeypatch, None)
    asked = replace(bench, resources=Resources(device="cpu", gradient_checkpointing="on"))
    assert check_memory(job(asked)).work.resources.gradient_checkpointing == "on"


@pytest.mark.parametrize("fast_path", ["auto", "off"])
def test_a_fast_path_that_is_off_is_not_counted_on(bench, fast_path):
    asked = replace(bench, resources=Resources(device="cpu", fast_path=fast_path))
    assert training_setup(job(asked)).eager is (fast_path == "off")


def test_the_largest_batch_is_as_long_as_the_window(bench):
    assert training_setup(job(bench, batch_size=3)).batch == BatchSize(num_clips=3, num_frames=20)


def test_a_budget_of_frames_counts_the_batches_that_training_draws(tmp_path):
    bench = Bench.of_latents(tmp_path, lengths=(30, 34, 41, 90))
    for budget in (400, 95):
        wanted = job(bench, frames_per_batch=budget)
        clips = StoredLatents(wanted.artifact, ShardPool(wanted.work.shared / "latents"), wanted.model)
        order = sampler_for(clips, wanted.params, wanted.rng)
        assert isinstance(order, FrameBudgetSampler)
        drawn = {(len(clips_B), int(frames_B.max())) for clips_B, frames_B in order.round(0)}
        found = training_setup(wanted).batch
        assert (found.num_clips, found.num_frames) in drawn
        assert found.num_clips * found.num_frames <= budget
        assert found.num_clips * found.num_frames == max(clips * frames for clips, frames in drawn)


def test_steps_that_are_recorded_count_the_length_that_batches_are_filled_up_to(tmp_path):
    wanted = job(Bench.of_latents(tmp_path, lengths=(300, 900)), frames_per_batch=2000)
    plain, recorded = (largest_batches(wanted, recorded=recorded)[0] for recorded in (False, True))
    assert recorded.num_frames in bucket_lengths(300, 900)
    assert plain.num_clips * plain.num_frames <= recorded.num_clips * recorded.num_frames <= 2000


def test_silence_makes_the_longest_clip_longer_but_not_as_long_as_a_window_it_never_fills(tmp_path):
    bench = Bench.of_latents(tmp_path, lengths=(30, 50), window=1290)
    alone = training_setup(job(bench, frames_per_batch=40)).batch
    assert alone.num_clips == 1 and 50 < alone.num_frames < 1290
    exactly = job(bench, frames_per_batch=40, silence_extension_seconds=0.0)
    assert training_setup(exactly).batch == BatchSize(num_clips=1, num_frames=50)


def test_below_the_window_the_batch_that_takes_more_counts_be_it_one_long_clip_or_many_short_ones(tmp_path):
    many, few = (
        Bench.of_latents(tmp_path / name, lengths)
        for name, lengths in (("many", (*[2] * 19, 40)), ("few", (*[2] * 19, 400)))
    )
    quiet = {"frames_per_batch": 39, "silence_extension_seconds": 0.0}
    assert training_setup(job(few, **quiet)).batch == BatchSize(num_clips=1, num_frames=400)
    found = training_setup(job(many, **quiet))
    one_long = BatchSize(num_clips=1, num_frames=40)
    others = [size for size in largest_batches(job(many, **quiet), recorded=False) if size != one_long]
    assert found.batch in (one_long, *others)
    assert all(
        checking.memory_estimate(found).total_bytes >= checking.memory_estimate(replace(found, batch=size)).total_bytes
        for size in (one_long, *others)
    )


def test_lengths_that_batches_may_have_are_counted_on_the_cpu(tmp_path):
    bench = Bench.of_latents(tmp_path, lengths=(10, 20, 20))
    many, quiet = {"number_of_steps": 100}, {"silence_extension_seconds": 0.0}
    assert training_setup(job(bench, **many)).num_lengths == 11
    assert training_setup(job(bench, **many, **quiet)).num_lengths == 2
    assert training_setup(job(bench, number_of_steps=3)).num_lengths == 3


def test_steps_that_a_checkpoint_has_are_not_left_nor_those_of_the_run_that_this_one_goes_on_from(bench):
    bench.train(number_of_steps=4)
    assert checking.steps_left(job(bench, number_of_steps=10)) == 6
    other = bench.at("longer")
    longer = job(other, number_of_steps=7)
    assert checking.steps_left(longer) == 7
    assert checking.steps_left(replace(longer, work=other.workspace(continued_from=bench.directory))) == 3


def test_nothing_is_said_or_refused_where_no_step_is_left(bench, monkeypatch):
    bench.train(number_of_steps=4)
    bench.said.clear()
    with_free(monkeypatch, 1)
    wanted = job(bench, number_of_steps=4)
    assert check_memory(wanted) is wanted
    assert bench.said == []


def test_batches_that_wait_on_a_host_too_small_for_them_are_refused_whatever_the_device(bench, monkeypatch):
    wanted = training_setup(job(bench, gradient_accumulation=1000))
    on_cuda = replace(wanted, device=checking.torch.device("cuda"))
    monkeypatch.setattr(checking, "host_bytes", lambda: MIB)
    with pytest.raises(InsufficientMemory, match=r"the host has 1.0 MB left.*\n.*--gradient-accumulation \d+"):
        checking.refuse_full_host(on_cuda)
    monkeypatch.setattr(checking, "host_bytes", lambda: GIB)
    checking.refuse_full_host(on_cuda)


def test_latents_kept_in_memory_are_counted_where_the_device_shares_it_with_the_host(bench, monkeypatch):
    stored = (12 + 20 + 7) * CHANNELS * 4
    assert training_setup(job(bench)).clips_bytes == stored
    monkeypatch.setattr(checking, "LATENT_CACHE_BYTES", stored - 1)
    assert training_setup(job(bench)).clips_bytes == stored - 1
    monkeypatch.setattr(checking, "usable_dtype", lambda dtype, *rest: dtype)
    elsewhere = replace(job(bench), device=checking.torch.device("cuda"))
    assert training_setup(elsewhere).clips_bytes == 0


def test_audio_is_counted_as_read_ahead_only_where_that_happens(tmp_path, monkeypatch):
    bench = Bench.of_audio(tmp_path, lengths=(5 * RATIO, 9 * RATIO), window_samples=9 * RATIO)
    both_signs = 2 * (5 + 9) * CHANNELS * 4
    assert training_setup(job(bench)).clips_bytes == both_signs
    asked = replace(bench, resources=Resources(device="cpu", workers=1))
    assert training_setup(job(asked)).clips_bytes == both_signs + 14 * RATIO * 8
    monkeypatch.setattr(checking, "PREFETCH_BYTES", 1000)
    assert training_setup(job(asked)).clips_bytes == both_signs + 1000


def test_crops_of_long_recordings_are_not_kept_and_are_read_ahead(tmp_path):
    bench = Bench.of_audio(tmp_path, lengths=(5 * RATIO, 90 * RATIO), window_samples=9 * RATIO)
    assert training_setup(job(bench)).clips_bytes == 2 * 5 * CHANNELS * 4 + 14 * RATIO * 8


def test_what_the_clips_take_is_part_of_the_estimate(bench):
    wanted = training_setup(job(bench))
    without = checking.memory_estimate(replace(wanted, clips_bytes=0)).total_bytes
    estimate = checking.memory_estimate(replace(wanted, clips_bytes=GIB))
    assert estimate.total_bytes == without + GIB
    assert "clips 1.1 GB" in estimate.breakdown()


def test_encoding_inside_the_loop_counts_the_autoencoder(tmp_path):
    bench = Bench.of_audio(tmp_path, lengths=(5 * RATIO, 9 * RATIO))
    wanted = training_setup(job(bench, frames_per_batch=20))
    assert wanted.clip_samples == 9 * RATIO
    assert wanted.batch.num_clips * wanted.batch.num_frames <= 20 and wanted.batch.num_frames <= 9
    estimate = checking.memory_estimate(wanted)
    assert estimate.bytes_by_part["autoencoder"] > 0
    assert "autoencoder" in estimate_line(wanted, None)
