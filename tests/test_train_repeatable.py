"""Ordered kernels where they are asked for, the fastest where they are not, and a line where two runs may differ."""

from __future__ import annotations

import os

import pytest
import torch

from stages.train.repeatable import repeatable
from tests.small_training import Bench

CUDA, MPS, CPU = (torch.device(name) for name in ("cuda", "mps", "cpu"))


@pytest.fixture(params=[False, True])
def already(request, monkeypatch):
    """Whether the process asked for ordered kernels before."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("deterministic", [True, False])
def test_on_cuda_the_switch_is_as_asked_for_inside_and_as_before_outside(already, deterministic):
    said: list[str] = []
    with repeatable(CUDA, deterministic, said.append):
        assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.are_deterministic_algorithms_enabled() is already
    assert [line for line in said if "differ in their last bits" in line] == said
    assert len(said) == (0 if deterministic else 1)


def test_it_is_put_back_after_an_error_too(already):
    with pytest.raises(KeyboardInterrupt), repeatable(CUDA, not already):
        raise KeyboardInterrupt
    assert torch.are_deterministic_algorithms_enabled() is already


def test_a_workspace_that_was_chosen_is_left_alone(already):
    with repeatable(CUDA):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_cpu_adds_in_a_fixed_order_anyhow_and_nothing_is_said(already, deterministic):
    said: list[str] = []
    with repeatable(CPU, deterministic, said.append):
        assert torch.are_deterministic_algorithms_enabled() is already
    assert said == []


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_was_never_tried_on_mps_is_not_promised(deterministic):
    said: list[str] = []
    with repeatable(MPS, deterministic, said.append):
        pass
    assert said == ["not tested on mps: two runs with one seed may differ in their last bits"]


def test_a_training_with_it_off_gives_the_same_adapter_on_the_cpu(tmp_path):
    bench = Bench.of_latents(tmp_path)
    on, off = bench.at("on"), bench.at("off")
    on.train(number_of_steps=2)
    off.train(number_of_steps=2, deterministic=False)
    name = "adapter_fp32.safetensors"
    assert off.bytes_of(name) == on.bytes_of(name)
    assert not [line for line in off.said if "deterministic" in line]
