"""Blocks with fused kernels: the same latents as torch's own operations make, but for rounding in 16 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stages.models._nets import local_fused
from stages.models._nets.autoencoder import Autoencoder
from stages.models._nets.local_fused import not_fusable, use_fused_blocks
from stages.models._nets.resampling import run_block
from tests.small_networks import config, randomised

ROUNDING = {torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Norm of the difference to float32 over the norm, after all layers; each rounds to 8 or 11 bits a dozen times."""


def small(*, windowed: bool, differential: bool = True, head_width: int = 16) -> Autoencoder:
    read = config(windowed=windowed)
    options: dict[str, Any] = read["model"]["pretransform"]["config"]["encoder"]["config"]
    options |= {"differential": differential, "dim_heads": head_width, "channels": max(16, head_width)}
    return randomised(Autoencoder(read))


def clip(num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, num_samples, generator=torch.Generator().manual_seed(seed)) / 4


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float().cpu() - expected).norm() / expected.norm())


def test_a_network_on_the_cpu_or_in_float32_runs_as_it_is_and_nothing_is_said():
    stage, said = small(windowed=True).encoder.stage, []
    assert not use_fused_blocks(stage, said.append)
    assert not use_fused_blocks(stage.bfloat16(), said.append)
    assert (stage.run_block, said) == (run_block, [])


def test_why_a_stage_cannot_run_fused_is_named(monkeypatch):
    monkeypatch.setattr(local_fused, "find_spec", lambda name: None)
    assert not_fusable(small(windowed=True).encoder.stage) == "the package triton is not installed"
    monkeypatch.setattr(local_fused, "find_spec", lambda name: name)
    assert not_fusable(small(windowed=True).encoder.stage) == ""
    assert "heads of 8 features" in not_fusable(small(windowed=True, head_width=8).encoder.stage)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize(("differential", "head_width"), [(True, 16), (True, 64), (False, 32)])
@torch.inference_mode()
def test_fused_batches_give_the_latents_of_one_clip_at_a_time_in_float32(dtype, windowed, differential, head_width):
    network = small(windowed=windowed, differential=differential, head_width=head_width)
    clips = [clip(length, length) for length in (30_000, 9_000, 150_001)]
    expected = [network.encode_clip(audio) for audio in clips]
    network = network.to("cuda", dtype)
    unfused = [difference(network.encode_clip(audio.cuda()), want) for audio, want in zip(clips, expected, strict=True)]
    said: list[str] = []
    assert use_fused_blocks(network.encoder.stage, said.append), said
    fused = network.encode_clips([audio.cuda() for audio in clips])
    for latents, want, plain in zip(fused, expected, unfused, strict=True):
        assert difference(latents, want) < ROUNDING[dtype]
        assert difference(latents, want) < 1.5 * plain, "it rounds less often than torch's operations do"


@pytest.mark.gpu
@pytest.mark.parametrize("windowed", [False, True])
@torch.inference_mode()
def test_fused_latents_do_not_depend_on_the_neighbours_to_the_bit_at_one_batch_shape(windowed):
    network = small(windowed=windowed, head_width=64).to("cuda", torch.bfloat16)
    assert use_fused_blocks(network.encoder.stage, print)
    audio = clip(30_000).cuda()
    first, second = (network.encode_clips([audio, clip(90_000, seed).cuda()])[0] for seed in (1, 2))
    assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize("windowed", [False, True])
@torch.inference_mode()
def test_a_clip_in_chunks_is_the_clip_as_a_whole_with_fused_blocks(windowed):
    network = small(windowed=windowed, head_width=64)
    audio = clip(200 * 4096 + 9)
    expected = network.encode_clip(audio)
    network = network.to("cuda", torch.bfloat16)
    assert use_fused_blocks(network.encoder.stage, print)
    (pieces,) = network.encode_clips([audio.cuda()], chunk_frames=64)
    assert difference(pieces, expected) < ROUNDING[torch.bfloat16]


@pytest.mark.gpu
def test_kernels_that_fail_are_said_and_left_out(monkeypatch):
    def fails(*args: Any) -> None:
        raise RuntimeError("no such instruction\nmore")

    monkeypatch.setattr(local_fused, "fused_block", fails)
    stage, said = small(windowed=True).to("cuda", torch.bfloat16).encoder.stage, []
    assert not use_fused_blocks(stage, said.append)
    assert stage.run_block is run_block
    assert said == ["encoding without fused kernels, so more slowly (RuntimeError: no such instruction)"]


@pytest.mark.gpu
@torch.inference_mode()
def test_float32_on_the_gpu_is_float32_on_the_cpu():
    network = small(windowed=True, head_width=64)
    audio = clip(150_001)
    expected = network.encode_clip(audio)
    assert difference(network.cuda().encode_clip(audio.cuda()), expected) < 2e-6
