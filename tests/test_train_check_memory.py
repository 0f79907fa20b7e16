"""What people are told before a training begins."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from cache.shard_pool import ShardPool
from stages.contract import Inputs, Resources
from stages.errors import InsufficientMemory
from stages.train.dataset.clips import StoredLatents
from stages.train.dataset.length_buckets import bucket_lengths
from stages.train.dataset.sampler import FrameBudgetSampler, sampler_for
from stages.train.forecast import check_memory
from stages.train.forecast.batch_shapes import largest_batches
from stages.train.forecast.check_memory import duration_words, foreseen, line, prospect_of
from stages.train.forecast.dry_run import Size
from stages.train.forecast.estimate import GIB, MIB, Estimate
from stages.train.job import Job
from tests.small_training import CHANNELS, RATIO, Bench, params, weights


def job(bench: Bench, **changes: object) -> Job:
    """Of a base model whose weights are not there: whoever reads one fails."""
    absent = replace(weights(), folder=bench.root / "not there")
    inputs = Inputs(artifacts={bench.artifact.stage: bench.artifact}, weights=absent, files={})
    wanted = params(**{"pre_encode": bench.artifact.stage == "encode", **changes})
    return Job.of(inputs, wanted, bench.workspace())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.of_latents(tmp_path, lengths=(12, 20, 7))


def with_free(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(check_memory, "free_bytes", lambda device: free)


def test_one_line_says_memory_by_part_what_is_left_and_time(bench, monkeypatch):
    with_free(monkeypatch, 4 * GIB)
    assert foreseen(job(bench, number_of_steps=100)).params.number_of_steps == 100
    (said,) = bench.said
    assert said.startswith("estimate: about ") and " of 4.0 GiB left on cpu (weights " in said
    assert "activations" in said and "for 100 steps at " in said


def test_what_cannot_fit_is_refused_before_any_weight_is_read(bench, monkeypatch):
    with_free(monkeypatch, 10 * MIB)
    with pytest.raises(InsufficientMemory, match="10 MiB left"):
        foreseen(job(bench))
    assert bench.said == []


def test_blocks_are_recomputed_from_the_start_where_that_makes_it_fit(tmp_path, monkeypatch):
    bench = Bench.of_latents(tmp_path, lengths=(600,))
    wanted = job(bench, include=None, batch_size=4)
    plain = check_memory.estimated(prospect_of(wanted)).total_bytes
    with_free(monkeypatch, plain - MIB)
    assert foreseen(wanted).work.resources.gradient_checkpointing == "on"
    assert bench.said[1] == "memory would be short: gradient checkpointing is turned on"


def test_where_torch_cannot_rehearse_a_step_that_is_said_and_the_training_goes_on(bench, monkeypatch):
    def unknown(*rest: object) -> None:
        raise NotImplementedError("aten::new_thing has no meta kernel\nand much more")

    monkeypatch.setattr(check_memory, "settled", unknown)
    wanted = job(bench)
    assert foreseen(wanted) is wanted
    assert bench.said == ["no estimate of memory and time: aten::new_thing has no meta kernel"]


def test_memory_that_is_not_known_is_left_out(bench, monkeypatch):
    with_free(monkeypatch, None)
    foreseen(job(bench))
    assert "left" not in bench.said[0]


def test_a_setting_of_the_user_reaches_the_estimate(bench, monkeypatch):
    with_free(monkeypatch, None)
    asked = replace(bench, resources=Resources(device="cpu", gradient_checkpointing="on"))
    assert foreseen(job(asked)).work.resources.gradient_checkpointing == "on"


@pytest.mark.parametrize("fast_path", ["auto", "off"])
def test_a_fast_path_that_is_off_is_not_counted_on(bench, fast_path):
    asked = replace(bench, resources=Resources(device="cpu", fast_path=fast_path))
    assert prospect_of(job(asked)).plain is (fast_path == "off")


def test_the_largest_batch_is_as_long_as_the_window(bench):
    assert prospect_of(job(bench, batch_size=3)).size == Size(num_clips=3, num_frames=20)


def test_a_budget_of_frames_counts_the_batches_that_training_draws(tmp_path):
    bench = Bench.of_latents(tmp_path, lengths=(30, 34, 41, 90))
    for budget in (400, 95):
        wanted = job(bench, frames_per_batch=budget)
        clips = StoredLatents(wanted.artifact, ShardPool(wanted.work.shared / "latents"), wanted.model)
        order = sampler_for(clips, wanted.params, wanted.rng)
        assert isinstance(order, FrameBudgetSampler)
        drawn = {(len(clips_B), int(frames_B.max())) for clips_B, frames_B in order.round(0)}
        found = prospect_of(wanted).size
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
    alone = prospect_of(job(bench, frames_per_batch=40)).size
    assert alone.num_clips == 1 and 50 < alone.num_frames < 1290
    exactly = job(bench, frames_per_batch=40, silence_extension_seconds=0.0)
    assert prospect_of(exactly).size == Size(num_clips=1, num_frames=50)


def test_below_the_window_the_batch_that_takes_more_counts_be_it_one_long_clip_or_many_short_ones(tmp_path):
    many, few = (
        Bench.of_latents(tmp_path / name, lengths)
        for name, lengths in (("many", (*[2] * 19, 40)), ("few", (*[2] * 19, 400)))
    )
    quiet = {"frames_per_batch": 39, "silence_extension_seconds": 0.0}
    assert prospect_of(job(few, **quiet)).size == Size(num_clips=1, num_frames=400)
    found = prospect_of(job(many, **quiet))
    one_long = Size(num_clips=1, num_frames=40)
    others = [size for size in largest_batches(job(many, **quiet), recorded=False) if size != one_long]
    assert found.size in (one_long, *others)
    assert all(
        check_memory.estimated(found).total_bytes >= check_memory.estimated(replace(found, size=size)).total_bytes
        for size in (one_long, *others)
    )


def test_a_budget_of_a_million_frames_is_looked_at_in_seconds(bench):
    started = time.perf_counter()
    found = check_memory.estimated(prospect_of(job(bench, frames_per_batch=1_000_000)))
    assert found.activation_bytes > 20 * GIB
    assert time.perf_counter() - started < 20


def test_lengths_that_batches_may_have_are_counted_on_the_cpu(tmp_path):
    bench = Bench.of_latents(tmp_path, lengths=(10, 20, 20))
    many, quiet = {"number_of_steps": 100}, {"silence_extension_seconds": 0.0}
    assert prospect_of(job(bench, **many)).num_lengths == 11
    assert prospect_of(job(bench, **many, **quiet)).num_lengths == 2
    assert prospect_of(job(bench, number_of_steps=3)).num_lengths == 3


def test_the_time_is_that_of_the_steps_that_are_left(bench, monkeypatch):
    with_free(monkeypatch, None)
    bench.train(number_of_steps=4)
    longer = job(bench, number_of_steps=10)
    bench.said.clear()
    foreseen(longer)
    assert "for 6 steps at" in bench.said[0]


def test_steps_of_the_run_that_this_one_goes_on_from_are_done_too(bench, monkeypatch):
    with_free(monkeypatch, None)
    bench.train(number_of_steps=4)
    other = bench.at("longer")
    longer = job(other, number_of_steps=7)
    foreseen(replace(longer, work=other.workspace(continued_from=bench.directory)))
    assert "for 3 steps at" in other.said[0]


def test_nothing_is_said_or_refused_where_no_step_is_left(bench, monkeypatch):
    bench.train(number_of_steps=4)
    bench.said.clear()
    with_free(monkeypatch, 1)
    wanted = job(bench, number_of_steps=4)
    assert foreseen(wanted) is wanted
    assert bench.said == []


def test_batches_that_wait_on_a_host_too_small_for_them_are_refused_whatever_the_device(bench, monkeypatch):
    wanted = prospect_of(job(bench, gradient_accumulation=1000))
    on_cuda = replace(wanted, device=check_memory.torch.device("cuda"))
    monkeypatch.setattr(check_memory, "host_bytes", lambda: MIB)
    with pytest.raises(InsufficientMemory, match=r"the host has 1 MiB left.*\n.*--gradient-accumulation \d+"):
        check_memory.refuse_full_host(on_cuda)
    monkeypatch.setattr(check_memory, "host_bytes", lambda: GIB)
    check_memory.refuse_full_host(on_cuda)


def test_latents_kept_in_memory_are_counted_where_the_device_shares_it_with_the_host(bench, monkeypatch):
    stored = (12 + 20 + 7) * CHANNELS * 4
    assert prospect_of(job(bench)).clips_bytes == stored
    monkeypatch.setattr(check_memory, "LATENT_CACHE_BYTES", stored - 1)
    assert prospect_of(job(bench)).clips_bytes == stored - 1
    monkeypatch.setattr(check_memory, "usable_dtype", lambda dtype, *rest: dtype)
    elsewhere = replace(job(bench), device=check_memory.torch.device("cuda"))
    assert prospect_of(elsewhere).clips_bytes == 0


def test_audio_is_counted_as_read_ahead_only_where_that_happens(tmp_path, monkeypatch):
    bench = Bench.of_audio(tmp_path, lengths=(5 * RATIO, 9 * RATIO), window_samples=9 * RATIO)
    both_signs = 2 * (5 + 9) * CHANNELS * 4
    assert prospect_of(job(bench)).clips_bytes == both_signs
    asked = replace(bench, resources=Resources(device="cpu", workers=1))
    assert prospect_of(job(asked)).clips_bytes == both_signs + 14 * RATIO * 8
    monkeypatch.setattr(check_memory, "PREFETCH_BYTES", 1000)
    assert prospect_of(job(asked)).clips_bytes == both_signs + 1000


def test_crops_of_long_recordings_are_not_kept_and_are_read_ahead(tmp_path):
    bench = Bench.of_audio(tmp_path, lengths=(5 * RATIO, 90 * RATIO), window_samples=9 * RATIO)
    assert prospect_of(job(bench)).clips_bytes == 2 * 5 * CHANNELS * 4 + 14 * RATIO * 8


def test_what_the_clips_take_is_part_of_the_estimate(bench):
    wanted = prospect_of(job(bench))
    without = check_memory.estimated(replace(wanted, clips_bytes=0)).total_bytes
    estimate = check_memory.estimated(replace(wanted, clips_bytes=GIB))
    assert estimate.total_bytes == without + GIB
    assert "clips 1.0 GiB" in estimate.parts()


def test_encoding_inside_the_loop_counts_the_autoencoder(tmp_path):
    bench = Bench.of_audio(tmp_path, lengths=(5 * RATIO, 9 * RATIO))
    wanted = prospect_of(job(bench, frames_per_batch=20))
    assert wanted.clip_samples == 9 * RATIO
    assert wanted.size.num_clips * wanted.size.num_frames <= 20 and wanted.size.num_frames <= 9
    estimate = check_memory.estimated(wanted)
    assert estimate.encoding_bytes > 0
    assert "autoencoder" in line(estimate, wanted, None, 4)


@pytest.mark.parametrize(
    ("each", "steps", "words"),
    [
        (0.017, 1000, "about 0:17 for 1000 steps at 17 ms"),
        (1.25, 4000, "about 1:23:20 for 4000 steps at 1.2 s"),
        (0.5, 130, "about 1:05 for 130 steps at 500 ms"),
    ],
)
def test_time_is_said_as_a_clock_shows_it(each, steps, words):
    assert duration_words(each, steps) == words


def test_what_the_time_is_without_is_said(bench):
    wanted = replace(prospect_of(job(bench)), device=check_memory.torch.device("cuda"), clip_samples=5)
    estimate = Estimate(
        weights_bytes=3 * GIB,
        adapter_bytes=GIB // 2,
        activation_bytes=0,
        encoding_bytes=0,
        allowance_bytes=0,
        seconds_per_step=0.02,
    )
    assert line(estimate, wanted, 139 * GIB, 4) == (
        "estimate: about 3.5 GiB of 139.0 GiB left on cuda (weights 3.0 GiB, adapter 512 MiB); "
        "about 0:00 for 4 steps at 20 ms, compiling apart, encoding apart"
    )
