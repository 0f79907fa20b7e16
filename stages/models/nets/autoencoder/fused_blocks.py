"""The autoencoder's blocks on CUDA in 16 bits: the same layers with one kernel for each step between the products.

B rows, N tokens of a row, W width of a token.
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
"""Between one block's output from both ways, norm over norm, on random tokens in 16 bits: more is a broken kernel."""


def fused_block(block: ResamplingBlock, token_BNW: Tensor) -> Tensor:
    """What `block` makes of contiguous tokens, rounded less often; without gradients."""
    from stages.models.nets.autoencoder import (
        fused_blocks_kernels as kernels,  # deferred: Triton comes with torch's CUDA builds only
    )

    attention: Any = block.self_attn
    feed: Any = block.ff.ff
    rotary, heads = block.rope(token_BNW.shape[1]), (block.num_heads, block.maps)
    qkv_BNF = attention.to_qkv(kernels.dynamic_tanh(token_BNW, block.pre_norm))
    kernels.turn_heads(qkv_BNF, attention.q_norm, attention.k_norm, rotary, *heads)
    mixed_BNW = kernels.local_attention(qkv_BNF, *heads, block.window)
    token_MW = torch.addmm(token_BNW.flatten(0, 1), mixed_BNW.flatten(0, 1), attention.to_out.weight.T)
    inner_MF = feed[0].proj(kernels.dynamic_tanh(token_MW, block.ff_norm))
    return token_MW.add_(feed[2](kernels.gated_silu(inner_MF))).view_as(token_BNW)


def use_fused_blocks(stage: ResamplingTransformer, say: Callable[[str], None]) -> bool:
    """Let a frozen stage run its blocks so where its device and its dtype allow it; True if it does.

    A GPU that should be able to and is not, is said.
    """
    weight = stage.new_tokens
    if weight.device.type != "cuda" or weight.dtype == torch.float32:
        return False
    why = reason_not_fusable(stage)
    if not why:
        try:
            _try_out(stage)
        except Exception as error:  # whatever Triton raises: without its kernels the result is the same
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
    if why:
        say(f"encoding without fused kernels, so more slowly ({why})")
        return False
    stage.run_block = fused_block
    return True


def triton_cache_in(folder: Path) -> AbstractContextManager[None]:
    """Within, compiled kernels are looked for and kept there; elsewhere they go to the user's home."""
    return temporary_environment({"TRITON_CACHE_DIR": str(folder)})


def reason_not_fusable(stage: ResamplingTransformer) -> str:
    """Why this stage's blocks cannot run fused; empty if they can."""
    config = stage.config
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if config.num_sine_layers:
        return "its gates are periodic"
    if config.head_width not in (16, 32, 64, 128):
        return f"heads of {config.head_width} features are not a power of two from 16 to 128"
    return ""


@torch.inference_mode()
def _try_out(stage: ResamplingTransformer) -> None:
    """Compile the kernels and run one block both ways.

    Raises:
        RuntimeError: they differ by more than rounding in 16 bits explains.
    """
    block = cast(ResamplingBlock, stage.transformers[0])
    num_tokens = stage.config.chunk_tokens or 8 * stage.config.group
    token_BNW = torch.randn(2, num_tokens, stage.config.width, device=stage.new_tokens.device).to(stage.new_tokens)
    plain, fused = (run(block, token_BNW).float() for run in (run_block, fused_block))
    difference = float((fused - plain).norm() / plain.norm())
    if not difference < TOLERANCE:
        raise RuntimeError(f"its kernels differ from torch's by {difference:.1%}")
