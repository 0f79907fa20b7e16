"""Fused autoencoder blocks: the latents of PyTorch's own ops up to 16-bit rounding."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from stages.models.nets.autoencoder import fused_blocks
from stages.models.nets.autoencoder.autoencoder import Autoencoder
from stages.models.nets.autoencoder.fused_blocks import reason_not_fusable, triton_cache_in, use_fused_blocks
from stages.models.nets.autoencoder.resampling_blocks import run_block
from tests.small_networks import config, randomised

ROUNDING = {torch.bfloat16: 4e-2, torch.float16: 5e-3}
"""Norm of the difference to float32 over the norm that torch's own operations come to on these networks (measured: up
to 3.9e-2 and 5.0e-3), whose weights let 16-bit rounding grow further than those of full size do."""


def small(*, windowed: bool, differential: bool = True, head_width: int = 16) -> Autoencoder:
    read = config(windowed=windowed)
    options: dict[str, Any] = read["model"]["pretransform"]["config"]["encoder"]["config"]
    options |= {"differential": differential, "dim_heads": head_width, "channels": max(16, head_width)}
    return randomised(Autoencoder(read))


def clip(num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, num_samples, generator=torch.Generator().manual_seed(seed)) / 4


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float().cpu() - expected).norm() / expected.norm())


def test_on_the_cpu_or_in_float32_blocks_are_not_fused_and_nothing_is_reported():
    stage, said = small(windowed=True).encoder.downsampling, []
    assert not use_fused_blocks(stage, said.append)
    assert not use_fused_blocks(stage.bfloat16(), said.append)
    assert (stage.run_block, said) == (run_block, [])


def test_the_reason_why_blocks_cannot_be_fused_is_named(monkeypatch):
    monkeypatch.setattr(fused_blocks, "find_spec", lambda name: None)
    assert reason_not_fusable(small(windowed=True).encoder.downsampling) == "the package triton is not installed"
    monkeypatch.setattr(fused_blocks, "find_spec", lambda name: name)
    assert reason_not_fusable(small(windowed=True).encoder.downsampling) == ""
    assert "heads of 8 features" in reason_not_fusable(small(windowed=True, head_width=8).encoder.downsampling)


@pytest.mark.parametrize("before", [None, "elsewhere"])
def test_triton_caches_in_the_given_folder_only_within_the_context(tmp_path, monkeypatch, before):
    if before is None:
        monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    else:
        monkeypatch.setenv("TRITON_CACHE_DIR", before)
    with pytest.raises(KeyError), triton_cache_in(tmp_path):
        assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path)
        raise KeyError
    assert os.environ.get("TRITON_CACHE_DIR") == before


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize(("differential", "head_width"), [(True, 16), (True, 64), (False, 32)])
@torch.inference_mode()
def test_fused_batches_give_the_latents_of_one_clip_at_a_time_in_float32(dtype, windowed, differential, head_width):
    network = small(windowed=windowed, differential=differential, head_width=head_width)
    clips = [clip(length, length) for length in (30_000, 9_000, 150_001)]
    expected = torch.cat([network.encode_clip(audio) for audio in clips], dim=1)
    network, clips = network.to("cuda", dtype), [audio.cuda() for audio in clips]
    plain = difference(torch.cat([network.encode_clip(audio) for audio in clips], dim=1), expected)
    said: list[str] = []
    assert use_fused_blocks(network.encoder.downsampling, said.append), said
    fused = difference(torch.cat(network.encode_clips(clips), dim=1), expected)
    assert fused < ROUNDING[dtype]
    # Measured: 0.6 to 1.3 of it for single clips, as the kernels round less often.
    assert fused < 1.5 * plain


@pytest.mark.gpu
@pytest.mark.parametrize("windowed", [False, True])
@torch.inference_mode()
def test_fused_latents_do_not_depend_on_the_neighbours_to_the_bit_at_one_batch_shape(windowed):
    network = small(windowed=windowed, head_width=64).to("cuda", torch.bfloat16)
    assert use_fused_blocks(network.encoder.downsampling, print)
    audio = clip(30_000).cuda()
    first, second = (network.encode_clips([audio, clip(90_000, seed).cuda()])[0] for seed in (1, 2))
    assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize("windowed", [False, True])
@torch.inference_mode()
def test_encoding_in_chunks_equals_encoding_whole_with_fused_blocks(windowed):
    network = small(windowed=windowed, head_width=64)
    audio = clip(200 * 4096 + 9)
    expected = network.encode_clip(audio)
    network = network.to("cuda", torch.bfloat16)
    assert use_fused_blocks(network.encoder.downsampling, print)
    (pieces,) = network.encode_clips([audio.cuda()], chunk_frames=64)
    assert difference(pieces, expected) < ROUNDING[torch.bfloat16]


@pytest.mark.gpu
def test_kernels_that_fail_are_reported_and_not_used(monkeypatch):
    def fails(*args: Any) -> None:
        raise RuntimeError("no such instruction\nmore")

    monkeypatch.setattr(fused_blocks, "fused_block", fails)
    stage, said = small(windowed=True).to("cuda", torch.bfloat16).encoder.downsampling, []
    assert not use_fused_blocks(stage, said.append)
    assert stage.run_block is run_block
    assert said == ["encoding without fused kernels, so more slowly (RuntimeError: no such instruction)"]


@pytest.mark.gpu
@torch.inference_mode()
def test_float32_on_the_gpu_is_float32_on_the_cpu():
    network = small(windowed=True, head_width=64)
    audio = clip(150_001)
    expected = network.encode_clip(audio)
    # Measured 3e-6. A convolution or product that rounded its inputs to TensorFloat-32 would be off by a thousandth.
    assert difference(network.cuda().encode_clip(audio.cuda()), expected) < 1e-5
