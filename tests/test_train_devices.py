"""Every device gives the same training: the CPU always, CUDA and MPS where present; precisions used are printed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.contract import Resources
from stages.models import device as _device
from stages.models.device import slow_on
from tests.small_training import Bench

THERE = [
    "cpu",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]
TOLERANCE = {"cpu": 0.0, "cuda": 1e-3, "mps": 1e-3}
"""Largest relative difference of a loss from the CPU's, in float32. Measured on a CPU only."""
CPU = torch.device("cpu")


def on(device: str, tmp_path: Path) -> Bench:
    return Bench.of_latents(tmp_path).at(device, resources=Resources(device=device, checkpoint_every=2, log_every=2))


@pytest.mark.parametrize("device", THERE)
@pytest.mark.parametrize("kind", ["lora", "dora-rows", "bora-xs"])
def test_a_training_has_the_losses_of_the_cpu(device, kind, tmp_path):
    here, reference = on(device, tmp_path / "here"), on("cpu", tmp_path / "reference")
    for bench in (here, reference):
        bench.train(adapter_type=kind, include=None, number_of_steps=3)
    assert here.losses == pytest.approx(reference.losses, rel=TOLERANCE[device], abs=0)
    assert here.config["device"].startswith(device)


@pytest.mark.parametrize("device", THERE)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_the_precision_of_the_base_is_printed_and_a_fallback_names_the_one_requested(device, precision, tmp_path):
    bench = on(device, tmp_path)
    bench.train(number_of_steps=1, base_precision=precision)
    used = bench.config["base_precision_used"]
    fallback = "" if used == precision else f" ({precision} was requested)"
    assert [line for line in bench.said if line.startswith("base model")] == [
        f"base model in {used}{fallback}, adapter in fp32"
    ]


def test_a_precision_that_the_device_lacks_is_never_replaced_silently(tmp_path, monkeypatch):
    def refuses(*given, **named):
        raise RuntimeError("no such product")

    bench = on("cpu", tmp_path)
    monkeypatch.setattr(_device.torch.nn.functional, "linear", refuses)
    used = _device.usable_dtype(torch.bfloat16, CPU, bench.said.append)
    assert used is torch.float32
    assert bench.said == ["cpu cannot compute in torch.bfloat16 (no such product); using float32"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_precision_of_the_autoencoder_in_the_loop_is_printed_too(precision, tmp_path):
    bench = Bench.of_audio(tmp_path, (30_000, 20_000))
    bench.train(number_of_steps=1, autoencoder_precision=precision)
    assert f"autoencoder in {precision}" in bench.said


@pytest.mark.parametrize(
    ("dtype", "flags", "slow"),
    [
        (torch.bfloat16, {"avx512_bf16": True, "amx_bf16": False}, False),
        (torch.bfloat16, {"avx512_bf16": False, "amx_bf16": True}, False),
        (torch.bfloat16, {"avx512_f": True, "avx512_bf16": False}, True),
        (torch.float16, {"avx512_bf16": True, "avx512_fp16": False}, True),
        (torch.float16, {"amx_fp16": True}, False),
        (torch.float32, {}, False),
    ],
    ids=str,
)
def test_slow_precisions_are_known_by_the_processor_s_capabilities(dtype, flags, slow, monkeypatch):
    found = {"architecture": "x86_64", **flags}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert slow_on(CPU, dtype) is slow
    assert not slow_on(torch.device("cuda"), dtype)
    found["architecture"] = "aarch64"
    assert not slow_on(CPU, dtype)


def test_a_torch_without_capabilities_calls_nothing_slow(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not slow_on(CPU, torch.bfloat16)


@pytest.mark.parametrize("slow", [True, False])
def test_a_slow_precision_is_used_as_requested_with_a_hint_what_is_faster(slow, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.train.job.slow_on", lambda device, dtype: slow and dtype is torch.bfloat16)
    bench = on("cpu", tmp_path)
    bench.train(number_of_steps=1, base_precision="bf16")
    assert bench.config["base_precision_used"] == "bf16"
    assert bool([line for line in bench.said if "no bf16 arithmetic: fp32 is faster" in line]) is slow
