"""Stopped and continued trainings end with the bytes of uninterrupted ones."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from stages import catalogue
from stages.contract import Resources
from stages.errors import Stopped
from tests.small_training import Bench


@pytest.fixture
def bench(tmp_path):
    return Bench.of_latents(tmp_path)


def of_checkpoints(bench: Bench) -> list[str]:
    """Lines printed about checkpoints."""
    return [line for line in bench.said if re.search(r"resuming|step-\d", line)]


@pytest.fixture(params=["stored", "live"])
def either(request, tmp_path):
    """Stored latents, or audio encoded in the loop; some clips are longer than the window."""
    if request.param == "stored":
        return Bench.of_latents(tmp_path, (9, 14, 7), window=10)
    return Bench.of_audio(tmp_path, (30_000, 52_000, 20_000), window_samples=40_000)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["lora", "dora-rows"])
def test_a_training_stopped_anywhere_ends_as_an_uninterrupted_one(either, kind, precision):
    options = {"adapter_type": kind, "base_precision": precision, "number_of_steps": 5, "batch_size": 2}
    whole = either.at("whole")
    whole.train(**options)

    for steps in (3, 1):
        with pytest.raises(Stopped, match=r"at step [34] of 5"):
            either.train(stop_after=steps, **options)
    either.train(**options)

    assert either.results() == whole.results()
    assert "resuming from step 4" in either.said


@pytest.mark.parametrize("kind", ["lora", "dora-rows"])
def test_more_steps_resume_from_a_shorter_artifact_of_the_same_run(bench, kind):
    whole, short = bench.at("whole"), bench.at("short")
    whole.train(number_of_steps=6, adapter_type=kind)
    short.train(number_of_steps=3, adapter_type=kind)

    bench.train(number_of_steps=6, adapter_type=kind, continued_from=short.directory)

    assert of_checkpoints(bench) == ["resuming from step 3"]
    assert bench.results() == whole.results()


@pytest.mark.parametrize("kind", catalogue.adapter_kinds())
def test_every_adapter_kind_resumes_to_the_same_bits(bench, kind):
    whole = bench.at("whole")
    whole.train(number_of_steps=2, adapter_type=kind)
    with pytest.raises(Stopped):
        bench.train(stop_after=1, number_of_steps=2, adapter_type=kind)
    bench.train(number_of_steps=2, adapter_type=kind)
    assert bench.results() == whole.results()


def test_a_training_killed_between_checkpoints_ends_as_an_uninterrupted_one(bench, monkeypatch):
    whole = bench.at("whole")
    whole.train(number_of_steps=7)

    def die(done, total, note="", **_):
        if done == 6:
            raise KeyboardInterrupt

    workspace = bench.workspace()
    monkeypatch.setattr(bench, "workspace", lambda *_: replace(workspace, progress=die))
    with pytest.raises(KeyboardInterrupt):
        bench.train(number_of_steps=7)
    monkeypatch.undo()
    bench.train(number_of_steps=7)

    assert of_checkpoints(bench) == ["resuming from step 4"]
    assert bench.results() == whole.results()


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(bench):
    whole = bench.at("whole")
    whole.train(number_of_steps=6)
    with pytest.raises(Stopped):
        bench.train(stop_after=5, number_of_steps=6)
    newest = bench.directory / "checkpoints" / "step-00000005" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])

    bench.train(number_of_steps=6)

    damaged, resuming = of_checkpoints(bench)
    assert "step-00000005 is damaged" in damaged
    assert resuming == "resuming from step 4"
    assert bench.results() == whole.results()


def test_adapter_dropout_survives_a_stop_and_leaves_torch_s_own_randomness_alone(bench):
    options = {"adapter_dropout": 0.3, "number_of_steps": 4}
    whole = bench.at("whole")
    before = torch.random.get_rng_state()
    whole.train(**options)
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(Stopped):
        bench.train(stop_after=3, **options)
    bench.train(**options)
    assert bench.results() == whole.results()


def test_a_stop_before_the_first_step_leaves_no_checkpoint(bench):
    with pytest.raises(Stopped, match="at step 0 of 4"):
        bench.train(stop_after=0)
    assert list(bench.directory.rglob("step-*")) == []


def test_checkpoints_of_other_params_are_not_resumed_from(bench):
    other = bench.at("other")
    other.train(number_of_steps=2, seed=7)
    bench.train(continued_from=other.directory)
    assert "belongs to another training" in of_checkpoints(bench)[0]
    assert bench.losses[:2] != other.losses


def test_checkpoints_of_other_clips_are_not_resumed_from(bench, tmp_path):
    other = Bench.of_latents(tmp_path / "other store", (12, 20, 8))
    other.train(number_of_steps=2)
    bench.train(continued_from=other.directory)
    assert "belongs to another training" in of_checkpoints(bench)[0]


def test_fewer_steps_than_a_checkpoint_has_start_from_an_earlier_one(bench):
    with pytest.raises(Stopped):
        bench.train(stop_after=5, number_of_steps=6)
    bench.train(number_of_steps=4)
    assert "beyond the 4 steps" in of_checkpoints(bench)[0]
    assert bench.config["steps_done"] == 4
    assert [path.name for path in bench.directory.glob("checkpoints/*")] == ["step-00000004"]


def test_intervals_of_checkpoints_and_lines_change_no_result(bench):
    often, never = bench.at("often"), bench.at("never")
    often.resources = Resources(device="cpu", checkpoint_every=1, keep_checkpoints=3, log_every=1)
    never.resources = Resources(device="cpu", checkpoint_every=100, log_every=100)
    for one in (often, never):
        one.train(number_of_steps=5)
    assert often.results() == never.results()


def test_the_finished_artifact_keeps_its_last_checkpoint_only(bench):
    bench.train(number_of_steps=5)
    assert [path.name for path in bench.directory.glob("checkpoints/*")] == ["step-00000005"]


def test_a_training_that_resumes_with_another_number_of_threads_says_so(bench, monkeypatch):
    used = torch.get_num_threads()
    with pytest.raises(Stopped):
        bench.train(stop_after=1, number_of_steps=3)
    assert not [line for line in bench.said if "last bits" in line]
    monkeypatch.setattr(torch, "get_num_threads", lambda: used + 1)
    bench.train(number_of_steps=3)
    (line,) = [line for line in bench.said if "last bits" in line]
    assert line.startswith(f"earlier steps ran on cpu with --threads {used}, further ones run on cpu with --threads")
    assert bench.config["threads"] == used + 1
