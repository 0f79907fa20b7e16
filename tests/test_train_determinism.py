"""Deterministic kernels on request, the fastest otherwise, and a line where two runs may differ."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
import torch

from stages.train import run
from stages.train.determinism import deterministic_algorithms
from stages.train.model.evaluation import evaluate
from stages.train.output import quantization_loss
from tests.small_training import Bench

CUDA, MPS, CPU = (torch.device(name) for name in ("cuda", "mps", "cpu"))


@pytest.fixture(params=[False, True])
def already(request, monkeypatch):
    """Whether the process had asked for deterministic kernels before."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("deterministic", [True, False])
def test_on_cuda_the_setting_is_as_requested_inside_and_as_before_outside(already, deterministic):
    said: list[str] = []
    with deterministic_algorithms(CUDA, deterministic, said.append):
        assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.are_deterministic_algorithms_enabled() is already
    assert [line for line in said if "differ in their last bits" in line] == said
    assert len(said) == (0 if deterministic else 1)


def test_the_setting_is_restored_after_an_error_too(already):
    with pytest.raises(KeyboardInterrupt), deterministic_algorithms(CUDA, not already):
        raise KeyboardInterrupt
    assert torch.are_deterministic_algorithms_enabled() is already


def test_a_cublas_workspace_setting_of_the_user_is_kept(already):
    with deterministic_algorithms(CUDA):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_cpu_always_adds_in_a_fixed_order_and_an_option_without_effect_is_named(already, deterministic):
    said: list[str] = []
    with deterministic_algorithms(CPU, deterministic, said.append):
        assert torch.are_deterministic_algorithms_enabled() is already
    wanted = [] if deterministic else ["deterministic off has no effect on cpu, which always adds in a fixed order"]
    assert said == wanted


@pytest.mark.parametrize("deterministic", [True, False])
def test_determinism_is_not_promised_on_mps(deterministic):
    said: list[str] = []
    with deterministic_algorithms(MPS, deterministic, said.append):
        pass
    assert said == ["not tested on mps: two runs with one seed may differ in their last bits"]


def test_a_training_with_it_off_gives_the_same_adapter_on_the_cpu(tmp_path):
    bench = Bench.of_latents(tmp_path)
    on, off = bench.at("on"), bench.at("off")
    on.train(number_of_steps=2)
    off.train(number_of_steps=2, deterministic=False)
    name = "adapter_fp32.safetensors"
    assert off.bytes_of(name) == on.bytes_of(name)
    assert [len([line for line in one.said if "deterministic" in line]) for one in (on, off)] == [0, 1]


def test_every_evaluation_uses_the_kernels_that_training_uses(tmp_path, monkeypatch):
    inside: list[int] = []
    depth = [0]

    @contextmanager
    def counted(*rest):
        depth[0] += 1
        yield
        depth[0] -= 1

    def evaluated(*rest):
        inside.append(depth[0])
        return evaluate(*rest)

    for module in (run, quantization_loss):
        monkeypatch.setattr(module, "deterministic_algorithms", counted)
        monkeypatch.setattr(module, "evaluate", evaluated)
    Bench.of_latents(tmp_path).train(number_of_steps=1, base_quantization="int8", ema_decay=0.5)
    assert inside == [1, 1, 1, 1]
