"""Evaluations and loading where the device is out of memory."""

from __future__ import annotations

import pytest
import torch

from stages.errors import OutOfMemory
from stages.train.model import evaluation, frozen_base
from tests.small_training import Bench


def full(*rest: object, **named: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")


@pytest.fixture
def bench(tmp_path):
    return Bench.of_latents(tmp_path)


def test_an_evaluation_that_does_not_fit_is_an_error_that_says_what_helps(bench, monkeypatch):
    monkeypatch.setattr(evaluation, "batch_losses", full)
    with pytest.raises(OutOfMemory, match=r"cpu ran out of memory while evaluating\. .*--base-precision bf16"):
        bench.train()


@pytest.mark.parametrize(("how", "what"), [("none", "loading the base"), ("int8", "loading the unquantised base")])
def test_a_base_that_does_not_fit_is_an_error_that_says_what_helps(bench, monkeypatch, how, what):
    monkeypatch.setattr(frozen_base, "load_denoiser", full)
    with pytest.raises(OutOfMemory, match=rf"cpu ran out of memory while {what}\. .*--base-precision bf16"):
        bench.train(base_quantization=how)


def test_after_a_full_device_the_same_command_evaluates_what_was_trained(bench, monkeypatch):
    whole = bench.at("whole")
    whole.train(number_of_steps=2)
    real = evaluation.batch_losses
    calls: list[int] = []

    def full_after_training(*rest, **named):
        calls.append(1)
        return full() if len(calls) > 3 else real(*rest, **named)

    monkeypatch.setattr(evaluation, "batch_losses", full_after_training)
    with pytest.raises(OutOfMemory, match="Checkpoints are kept"):
        bench.train(number_of_steps=2)
    monkeypatch.setattr(evaluation, "batch_losses", real)
    bench.train(number_of_steps=2)
    assert bench.results() == whole.results()
