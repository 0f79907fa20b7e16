"""The autoencoder's transformer blocks on CUDA in 16 bits, with fused kernels between the matrix products.

B: rows of tokens that attend to each other (chunks, or whole signals with a sliding window).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from stages.models.nets.autoencoder.resampling_blocks import ResamplingBlock, ResamplingTransformer, run_block
from stages.processes import temporary_environment

TOLERANCE = 0.05
"""Relative error of a fused block against PyTorch on random tokens in 16 bits above which a kernel must be broken."""


def fused_block(block: ResamplingBlock, token_BNW: Tensor) -> Tensor:
    """The output of `block` for contiguous tokens, rounded less often than by PyTorch; no gradients."""
    from stages.models.nets.autoencoder import (
        fused_blocks_kernels as kernels,  # deferred: Triton comes with torch's CUDA builds only
    )

    attention: Any = block.self_attn
    feed: Any = block.ff.ff
    rotary, heads = block.rope(token_BNW.shape[1]), (block.num_heads, block.maps)
    qkv_BNO = attention.to_qkv(kernels.dynamic_tanh(token_BNW, block.pre_norm))
    kernels.norm_and_rotate_heads(qkv_BNO, attention.q_norm, attention.k_norm, rotary, *heads)
    attended_BNW = kernels.local_attention(qkv_BNO, *heads, block.window)
    token_MW = torch.addmm(token_BNW.flatten(0, 1), attended_BNW.flatten(0, 1), attention.to_out.weight.T)
    inner_MF = feed[0].proj(kernels.dynamic_tanh(token_MW, block.ff_norm))
    return token_MW.add_(feed[2](kernels.gated_silu(inner_MF))).view_as(token_BNW)


def use_fused_blocks(resampler: ResamplingTransformer, say: Callable[[str], None]) -> bool:
    """Run the blocks of a frozen encoder or decoder fused where its device and dtype allow it; returns whether they do.

    On a GPU where the kernels should work and do not, `say` gets the reason.
    """
    weight = resampler.new_tokens
    if weight.device.type != "cuda" or weight.dtype == torch.float32:
        return False
    why = reason_not_fusable(resampler)
    if not why:
        try:
            _self_test(resampler)
        except Exception as error:  # whatever Triton raises: PyTorch's ops compute the same
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
    if why:
        say(f"encoding without fused kernels, so more slowly ({why})")
        return False
    resampler.run_block = fused_block
    return True


def triton_cache_in(folder: Path) -> AbstractContextManager[None]:
    """Context in which Triton caches compiled kernels in `folder` instead of the user's home."""
    return temporary_environment({"TRITON_CACHE_DIR": str(folder)})


def reason_not_fusable(resampler: ResamplingTransformer) -> str:
    """Why these blocks cannot run fused; empty if they can."""
    config = resampler.config
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if config.num_sine_layers:
        return "its feed-forward layers have sine gates"
    if config.head_width not in (16, 32, 64, 128):
        return f"heads of {config.head_width} features are not a power of two from 16 to 128"
    return ""


@torch.inference_mode()
def _self_test(resampler: ResamplingTransformer) -> None:
    """Compile the kernels and compare one block with PyTorch.

    Raises:
        RuntimeError: they differ by more than 16-bit rounding explains.
    """
    block = cast(ResamplingBlock, resampler.transformers[0])
    num_tokens = resampler.config.chunk_tokens or 8 * resampler.config.group
    like = resampler.new_tokens
    token_BNW = torch.randn(2, num_tokens, resampler.config.width, device=like.device).to(like)
    plain, fused = (run(block, token_BNW).float() for run in (run_block, fused_block))
    difference = float((fused - plain).norm() / plain.norm())
    if not difference < TOLERANCE:
        raise RuntimeError(f"the kernels differ from PyTorch by {difference:.1%}")
