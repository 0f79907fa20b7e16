"""What does not fit is refused, with the settings that would; on a device with a made-up amount of memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import InsufficientMemory
from stages.train.forecast import remedies as fitting
from stages.train.forecast.estimate import ERROR, MIB, MemoryEstimate, TrainingSetup, memory_estimate
from stages.train.forecast.network_size import BatchSize
from stages.train.forecast.remedies import Change, decide, remedies
from stages.train.stage import MOST_ACCUMULATED, TrainParams
from tests.small_networks import config

BASE, FRAME = 1000, 10
"""Bytes of a made-up base, and of a frame of one clip."""


def made_up(setup: TrainingSetup) -> MemoryEstimate:
    """Needs that are easy to work out: activations by the frame, a base by its precision."""
    batch = setup.batch
    activations = FRAME * batch.num_clips * batch.num_frames // (5 if setup.checkpointing else 1)
    weights = BASE // 4 if setup.params.base_quantization != "none" else BASE * setup.dtype.itemsize // 4
    autoencoder = 0 if setup.clip_samples is None else 500
    return MemoryEstimate(bytes_by_part={"weights": weights, "activations": activations, "autoencoder": autoencoder})


@pytest.fixture(autouse=True)
def _made_up_needs(request, monkeypatch):
    if "a_real_training" not in request.node.name:
        monkeypatch.setattr(fitting, "memory_estimate", made_up)


def asked(clips: int = 1, frames: int = 100, **changes: object) -> TrainingSetup:
    params = TrainParams(**{"model": "tiny-base", "batch_size": clips, "base_precision": "fp32", **changes})  # type: ignore[arg-type]
    return TrainingSetup(
        config=config(),
        params=params,
        batch=BatchSize(num_clips=clips, num_frames=frames),
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[params.base_precision],
        device=torch.device("cpu"),
    )


def refused(wanted: TrainingSetup, free: int, setting: str = "off") -> InsufficientMemory:
    with pytest.raises(InsufficientMemory) as caught:
        decide(wanted, free, setting)
    return caught.value


def test_what_fits_is_left_as_it_is():
    found, said = decide(asked(), 2000, "auto")
    assert not found.checkpointing and said == []


def test_unknown_memory_refuses_nothing():
    assert decide(asked(clips=8, frames=10_000), None, "off")[1] == []


def test_recomputation_is_turned_on_where_it_is_left_to_us_and_makes_it_fit():
    found, said = decide(asked(), 1500, "auto")
    assert found.checkpointing
    assert said == ["memory would be short: gradient checkpointing is turned on"]


def test_recomputation_that_is_forbidden_stays_off_and_is_offered():
    error = refused(asked(frames=200), 1500, "off")
    assert any("--gradient-checkpointing on" in line for line in error.alone)


def test_recomputation_that_is_asked_for_is_on_even_where_memory_is_plenty():
    assert decide(asked(), 10**9, "on")[0].checkpointing


def test_between_the_estimate_and_its_low_end_there_is_a_warning_and_no_refusal():
    needed = made_up(asked()).total_bytes
    _, (said,) = decide(asked(), int(needed * (1 - ERROR / 2)), "off")
    assert said.startswith("it may not fit") and "--base-precision bf16" in said
    refused(asked(), int(needed * (1 - ERROR)) - 1, "off")


def test_the_refusal_names_what_is_needed_what_there_is_and_each_setting_that_is_enough():
    error = refused(asked(clips=4, frames=200), 4600, "off")
    assert error.alone == (
        "--gradient-checkpointing on  (about 2.6 kB)",
        "--batch-size 1 --gradient-accumulation 4  (about 3.0 kB)",
        "--duration 8  (about 4.5 kB)",
    )
    text = str(error)
    assert "cpu has 4.6 kB left" in text and "activations" in text and "Nothing was loaded" in text
    assert "Any one of these makes it fit" in text


def test_the_smallest_change_of_the_batch_is_named_and_keeps_its_clips_per_step():
    alone, _ = remedies(asked(clips=8, frames=100, gradient_accumulation=2), 1000 + 4 * 1000)
    chosen = next(remedy for remedy in alone if "--batch-size" in remedy.flags)
    assert chosen.flags == "--batch-size 4 --gradient-accumulation 4"


def test_settings_that_are_enough_only_together_are_named_in_one_line_each():
    error = refused(asked(clips=4, frames=100), 500, "off")
    assert error.alone == ()
    assert error.together == (
        "--gradient-checkpointing on",
        "--batch-size 1 --gradient-accumulation 4",
        "--base-precision bf16",
        "--base-quantization int8",
    )
    assert "These together make it fit" in str(error)


def test_clips_are_cut_shorter_last_and_then_no_more_than_needed():
    _, together = remedies(asked(clips=4, frames=2000), 400)
    assert together[-1].flags == "--duration 6"
    assert made_up(together[-1].setup).total_bytes <= 400


def test_where_no_setting_helps_another_model_or_device_is_named():
    error = refused(asked(), 10, "off")
    assert (error.alone, error.together) == ((), ())
    assert "smaller --model" in str(error)


def test_an_autoencoder_inside_the_loop_can_be_left_to_the_encode_stage():
    alone, _ = remedies(replace(asked(), clip_samples=44_100), 2000)
    assert "--pre-encode" in [remedy.flags for remedy in alone]


def test_a_budget_of_frames_is_lowered_by_whole_clips():
    wanted = replace(asked(frames_per_batch=800), batch=BatchSize(num_clips=8, num_frames=100))
    alone, _ = remedies(wanted, 1000 + 5 * 1000 + 50)
    assert "--frames-per-batch 500" in [remedy.flags for remedy in alone]
    assert not [remedy for remedy in alone if "--batch-size" in remedy.flags]


def test_a_smaller_budget_is_no_help_where_the_longest_clip_alone_is_too_much():
    wanted = asked(frames_per_batch=800)
    wanted = replace(
        wanted, batch=BatchSize(num_clips=80, num_frames=10), longest=BatchSize(num_clips=1, num_frames=600)
    )
    for free, flags in ((1000 + 7000, "--frames-per-batch 700"), (1000 + 5999, None)):
        alone, _ = remedies(wanted, free)
        assert next((remedy.flags for remedy in alone if "--frames-per-batch" in remedy.flags), None) == flags


def test_a_base_in_8_bits_is_named_only_where_loading_it_leaves_memory(monkeypatch):
    def loaded_wide(setup: TrainingSetup) -> MemoryEstimate:
        found = made_up(setup)
        return replace(found, loading_bytes=BASE * setup.dtype.itemsize // 4 + found.bytes_by_part["activations"] // 2)

    monkeypatch.setattr(fitting, "memory_estimate", loaded_wide)
    alone, together = remedies(asked(frames=100), 1200)
    assert "--base-quantization int8" not in [remedy.flags for remedy in (*alone, *together)]
    alone, _ = remedies(asked(frames=100), 1500)
    assert "--base-quantization int8" in [remedy.flags for remedy in alone]
    assert fitting.base_in_8_bits(asked(frames=1)).values
    monkeypatch.setattr(fitting, "memory_estimate", lambda one: replace(loaded_wide(one), loading_bytes=10**6))
    assert not fitting.base_in_8_bits(asked(frames=1)).values


@settings(deadline=None, max_examples=60)
@given(
    clips=st.integers(1, 8),
    frames=st.integers(2, 4000),
    free=st.integers(200, 400_000),
    precision=st.sampled_from(["fp32", "bf16"]),
    quantization=st.sampled_from(["none", "int8"]),
)
def test_every_setting_that_is_named_really_fits(clips, frames, free, precision, quantization):
    wanted = asked(clips, frames, base_precision=precision, base_quantization=quantization)
    alone, together = remedies(wanted, free)
    assert all(made_up(remedy.setup).total_bytes <= free for remedy in alone)
    if together:
        assert made_up(together[-1].setup).total_bytes <= free
    for remedy in alone:
        passes = remedy.setup.params.gradient_accumulation
        assert remedy.setup.params.batch_size * passes == clips


def test_a_step_is_never_divided_into_more_batches_than_there_may_be():
    wanted = asked(clips=6, frames=100, gradient_accumulation=MOST_ACCUMULATED // 2)
    assert list(fitting.smaller_batches(wanted).values) == [3]
    alone, _ = remedies(wanted, 4000)
    assert f"--batch-size 3 --gradient-accumulation {MOST_ACCUMULATED}" in [remedy.flags for remedy in alone]
    fixed = replace(wanted, params=replace(wanted.params, gradient_accumulation=MOST_ACCUMULATED))
    assert not fitting.smaller_batches(fixed).values


@settings(deadline=None, max_examples=50)
@given(most=st.integers(1, 60), free=st.integers(0, 100_000))
def test_the_least_change_that_fits_is_found(most, free):
    change = Change(range(most, 0, -1), str, lambda frames: asked(frames=frames))
    fitting_frames = [frames for frames in range(1, most + 1) if made_up(asked(frames=frames)).total_bytes <= free]
    assert change.remedy(free).flags == str(max(fitting_frames, default=1))


def test_a_real_training_is_refused_and_what_is_named_fits_by_its_own_estimate():
    wanted = asked(clips=4, frames=2000)
    free = 250 * MIB
    error = refused(wanted, free, "off")
    alone, _ = remedies(wanted, free)
    assert len(error.alone) == len(alone) > 0
    assert all(memory_estimate(remedy.setup).total_bytes <= free for remedy in alone)
    assert "262.1 MB left" in str(error)


def test_where_a_real_training_in_bf16_keeps_kernels_of_every_length_fp32_may_fit():
    wanted = replace(asked(base_precision="bf16"), num_lengths=100)
    assert "--base-precision fp32" in [remedy.flags for remedy in remedies(wanted, 500 * MIB)[0]]
    one_length = replace(wanted, num_lengths=1, batch=BatchSize(num_clips=4, num_frames=2000))
    assert not fitting.other_precision(one_length).values


def test_a_real_training_whose_batches_wait_on_the_host_is_refused_and_fewer_are_suggested():
    wanted = asked(frames=2000, gradient_accumulation=1024)
    (remedy,) = [remedy for remedy in remedies(wanted, 600 * MIB)[0] if "accumulation" in remedy.flags]
    assert 1 <= remedy.setup.params.gradient_accumulation < 1024
    assert memory_estimate(remedy.setup).total_bytes <= 600 * MIB
