"""Triton kernels that scale the inputs of a stack of layers per feature, forward and backward: see `ops.input_scale`.

Imported on CUDA only. Letters: L layers of one shape, M tokens, I input features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.adapters.ops.kernels.norms import _load_tile, _store_tile

TILES = {"TOKENS": 32, "COLUMNS": 64, "num_warps": 4}


@triton.jit(do_not_specialize=["tokens"])
def _scaled_inputs_kernel(
    x, scale, out, tokens, num_in, x_l, x_m, x_i, TOKENS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    layer = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    feature = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    scale_I = tl.load(scale + layer * num_in + feature, mask=feature < num_in, other=0.0)
    given = _load_tile(x + layer * x_l, x_m, x_i, token, feature, tokens, num_in).to(tl.float32)
    made = (given * scale_I[None, :]).to(out.dtype.element_ty)
    _store_tile(out + layer * tokens * num_in, num_in, 1, token, feature, tokens, num_in, made)


def scaled_inputs(tokens_LMI: Tensor, scale_LI: Tensor) -> Tensor:
    """x diag(q), (L, M, I), rounded once to the dtype of the tokens."""
    layers, tokens, num_in = tokens_LMI.shape
    out_LMI = tokens_LMI.new_empty(tokens_LMI.shape)
    grid = (triton.cdiv(tokens, TILES["TOKENS"]), triton.cdiv(num_in, TILES["COLUMNS"]), layers)
    _scaled_inputs_kernel[grid](tokens_LMI, scale_LI, out_LMI, tokens, num_in, *tokens_LMI.stride(), **TILES)
    return out_LMI


@triton.jit(do_not_specialize=["tokens"])
def _scaled_inputs_backward_kernel(
    d_out, x, scale, d_x, d_scale, tokens, num_in, x_l, x_m, x_i,
    HAS_TOKENS: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    layer, feature = tl.program_id(1).to(tl.int64), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside, there = feature < num_in, layer * tokens * num_in
    scale_I = tl.load(scale + layer * num_in + feature, mask=inside, other=0.0)
    d_scale_MI = tl.zeros((TOKENS, COLUMNS), dtype=tl.float32)
    for start in range(0, tokens, TOKENS):
        token = start + tl.arange(0, TOKENS)
        given = _load_tile(d_out + there, num_in, 1, token, feature, tokens, num_in).to(tl.float32)
        d_scale_MI += given * _load_tile(x + layer * x_l, x_m, x_i, token, feature, tokens, num_in).to(tl.float32)
        if HAS_TOKENS:
            made = (given * scale_I[None, :]).to(d_x.dtype.element_ty)
            _store_tile(d_x + there, num_in, 1, token, feature, tokens, num_in, made)
    tl.store(d_scale + layer * num_in + feature, tl.sum(d_scale_MI, axis=0), mask=inside)


def scaled_inputs_backward(
    d_out_LMI: Tensor, tokens_LMI: Tensor, scale_LI: Tensor, *, needs_tokens: bool
) -> tuple[Tensor | None, Tensor]:
    """Gradients of the tokens (L, M, I) and of the scale (L, I)."""
    layers, tokens, num_in = tokens_LMI.shape
    d_tokens_LMI = tokens_LMI.new_empty(tokens_LMI.shape) if needs_tokens else None
    d_scale_LI = torch.empty_like(scale_LI)
    _scaled_inputs_backward_kernel[(triton.cdiv(num_in, TILES["COLUMNS"]), layers)](
        d_out_LMI, tokens_LMI, scale_LI, d_tokens_LMI, d_scale_LI, tokens, num_in, *tokens_LMI.stride(),
        HAS_TOKENS=needs_tokens, **TILES,
    )  # fmt: skip
    return d_tokens_LMI, d_scale_LI
