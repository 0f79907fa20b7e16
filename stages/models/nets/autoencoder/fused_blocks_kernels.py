"""Triton kernels for the element-wise steps and the attention between the matrix products of the autoencoder's blocks.

PyTorch's own ops read and write every token a dozen times there; these do so once per norm, once for the rotary
embedding, once for the attention and once for the gate. They compute in float32 and round once, at the end. Lengths are
run-time arguments, not compile-time constants: one compilation serves every batch.

A fused projection (O output features) holds q, k, v and, for differential attention, q', k', each W wide.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.models.nets.attention.rotary import RotaryAngles
from stages.models.nets.norms import DynamicTanh

BLOCK = 1024
"""Elements per program of the element-wise kernels."""
ROTATED_TOKENS = 32
"""Tokens per program of the rotary kernel."""
QUERIES = 64
"""Queries per program of the attention kernel; with a window of 17 tokens on each side they reach 98 keys: 128 fit."""


def dynamic_tanh(x: Tensor, norm: DynamicTanh) -> Tensor:
    """Dynamic tanh, gamma tanh(alpha x) + beta, of a contiguous tensor, in its dtype."""
    out = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), BLOCK),)
    _dynamic_tanh[grid](x, norm.alpha, norm.gamma, norm.beta, out, x.numel(), x.shape[-1], BLOCK)
    return out


def gated_silu(value_and_gate_MO: Tensor) -> Tensor:
    """SwiGLU gate, a silu(g), of a contiguous (..., 2 F) that holds a, then g."""
    inner = value_and_gate_MO.shape[-1] // 2
    out = value_and_gate_MO.new_empty(*value_and_gate_MO.shape[:-1], inner)
    _gated_silu[(out.numel() // inner, triton.cdiv(inner, BLOCK))](value_and_gate_MO, out, inner, BLOCK)
    return out


def norm_and_rotate_heads(
    qkv_BNO: Tensor, q_norm: DynamicTanh, k_norm: DynamicTanh, rotary: RotaryAngles, num_heads: int, maps: int
) -> None:
    """Apply the norm and the rotary embedding to queries and keys, in place; values are left alone.

    Args:
        qkv_BNO: contiguous fused projection.
        rotary: angles of positions 0 to N - 1.
        maps: 2 for differential attention, else 1.
    """
    num_tokens, fused = qkv_BNO.shape[1:]
    width, total = fused // (2 * maps + 1), qkv_BNO.numel() // fused
    head, rotated = width // num_heads, rotary.cos_ND.shape[-1]
    grid = (triton.cdiv(total, ROTATED_TOKENS), num_heads, 2 * maps)
    norms = (q_norm.alpha, q_norm.gamma, q_norm.beta, k_norm.alpha, k_norm.gamma, k_norm.beta)
    _norm_and_rotate_heads[grid](
        qkv_BNO,
        *norms,
        rotary.cos_ND,
        rotary.sin_ND,
        total,
        num_tokens,
        width,
        fused,
        head,
        rotated // 2,
        ROTATED_TOKENS,
    )


def local_attention(qkv_BNO: Tensor, num_heads: int, maps: int, window: tuple[int, int] | None) -> Tensor:
    """Banded (differential) attention, (B, N, W), heads concatenated.

    Args:
        qkv_BNO: contiguous fused projection, after `norm_and_rotate_heads`.
        window: how many tokens before and after itself a query attends to, ends clipped; None = the whole row.
    """
    batch, num_tokens, fused = qkv_BNO.shape
    before, after = (num_tokens, num_tokens) if window is None else window
    width = fused // (2 * maps + 1)
    out_BNW = qkv_BNO.new_empty(batch, num_tokens, width)
    num_blocks = triton.cdiv(num_tokens, QUERIES)
    keys = max(16, triton.next_power_of_2(min(num_tokens, QUERIES + before + after)))
    sizes = (width, fused, width // num_heads, QUERIES, keys, maps)
    scale = (width // num_heads) ** -0.5
    _local_attention[(num_blocks * batch, num_heads)](
        qkv_BNO, out_BNW, num_tokens, num_blocks, before, after, scale, *sizes
    )
    return out_BNW


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit(do_not_specialize=["total"])
def _dynamic_tanh(
    x_ptr: tl.tensor,
    alpha_ptr: tl.tensor,
    gamma_ptr: tl.tensor,
    beta_ptr: tl.tensor,
    out_ptr: tl.tensor,
    total: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column, exists = (at % WIDTH).to(tl.int32), at < total
    x = tl.load(x_ptr + at, mask=exists, other=0.0).to(tl.float32)
    y = _tanh(tl.load(alpha_ptr).to(tl.float32) * x)
    y = tl.load(gamma_ptr + column).to(tl.float32) * y + tl.load(beta_ptr + column).to(tl.float32)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _gated_silu(both_ptr: tl.tensor, out_ptr: tl.tensor, INNER: tl.constexpr, BLOCK: tl.constexpr) -> None:
    row, feature = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = feature < INNER
    value = tl.load(both_ptr + row * 2 * INNER + feature, mask=exists).to(tl.float32)
    gate = tl.load(both_ptr + row * 2 * INNER + INNER + feature, mask=exists).to(tl.float32)
    out = value * gate * tl.sigmoid(gate)
    tl.store(out_ptr + row * INNER + feature, out.to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _normed(
    ptr: tl.tensor,
    at: tl.tensor,
    feature: tl.tensor,
    exists: tl.tensor,
    alpha: tl.tensor,
    gamma_ptr: tl.tensor,
    beta_ptr: tl.tensor,
) -> tl.tensor:
    """Loads (tokens, features) and applies dynamic tanh, in float32."""
    x = tl.load(ptr + at + feature[None, :], mask=exists, other=0.0).to(tl.float32)
    gamma, beta = tl.load(gamma_ptr + feature).to(tl.float32), tl.load(beta_ptr + feature).to(tl.float32)
    return gamma[None, :] * _tanh(alpha * x) + beta[None, :]


@triton.jit(do_not_specialize=["total", "num_tokens"])
def _norm_and_rotate_heads(
    qkv_ptr: tl.tensor,
    q_alpha_ptr: tl.tensor,
    q_gamma_ptr: tl.tensor,
    q_beta_ptr: tl.tensor,
    k_alpha_ptr: tl.tensor,
    k_gamma_ptr: tl.tensor,
    k_beta_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    total: tl.tensor,
    num_tokens: tl.tensor,
    WIDTH: tl.constexpr,
    FUSED: tl.constexpr,
    HEAD: tl.constexpr,
    HALF: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    side = tl.program_id(2)  # q, k, q', k'
    slot = side + side // 2  # v lies between the maps
    alpha_ptr, gamma_ptr, beta_ptr = q_alpha_ptr, q_gamma_ptr, q_beta_ptr
    if side % 2 == 1:
        alpha_ptr, gamma_ptr, beta_ptr = k_alpha_ptr, k_gamma_ptr, k_beta_ptr
    alpha = tl.load(alpha_ptr).to(tl.float32)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    exists = (token < total)[:, None]
    at = token[:, None].to(tl.int64) * FUSED + slot * WIDTH + tl.program_id(1) * HEAD
    low, high = tl.arange(0, HALF), HALF + tl.arange(0, HALF)
    angle = (token % num_tokens)[:, None] * (2 * HALF) + low[None, :]
    cos = tl.load(cos_ptr + angle, mask=exists, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=exists, other=0.0)
    # Both halves of a pair lie in one thread, which reads them before it writes either.
    first = _normed(qkv_ptr, at, low, exists, alpha, gamma_ptr, beta_ptr)
    second = _normed(qkv_ptr, at, high, exists, alpha, gamma_ptr, beta_ptr)
    dtype = qkv_ptr.dtype.element_ty
    tl.store(qkv_ptr + at + low[None, :], (first * cos - second * sin).to(dtype), mask=exists)
    tl.store(qkv_ptr + at + high[None, :], (second * cos + first * sin).to(dtype), mask=exists)
    passed = 2 * HALF + tl.arange(0, HEAD - 2 * HALF)
    rest = _normed(qkv_ptr, at, passed, exists, alpha, gamma_ptr, beta_ptr)
    tl.store(qkv_ptr + at + passed[None, :], rest.to(dtype), mask=exists)


@triton.jit(do_not_specialize=["num_tokens", "num_blocks", "before", "after"])
def _local_attention(
    qkv_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_tokens: tl.tensor,
    num_blocks: tl.tensor,
    before: tl.tensor,
    after: tl.tensor,
    scale: tl.tensor,
    WIDTH: tl.constexpr,
    FUSED: tl.constexpr,
    HEAD: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    MAPS: tl.constexpr,
) -> None:
    row, block = (tl.program_id(0) // num_blocks).to(tl.int64), tl.program_id(0) % num_blocks
    query_N = block * QUERIES + tl.arange(0, QUERIES)
    key_S = tl.maximum(block * QUERIES - before, 0) + tl.arange(0, KEYS)
    feature_D = tl.program_id(1) * HEAD + tl.arange(0, HEAD)
    query_at = (row * num_tokens + query_N)[:, None] * FUSED + feature_D[None, :]
    key_at = (row * num_tokens + key_S)[:, None] * FUSED + feature_D[None, :]
    query_exists, key_exists = (query_N < num_tokens)[:, None], (key_S < num_tokens)[:, None]
    in_band = (key_S[None, :] >= query_N[:, None] - before) & (key_S[None, :] <= query_N[:, None] + after)
    visible_NS = in_band & (key_S < num_tokens)[None, :]
    value_SD = tl.load(qkv_ptr + 2 * WIDTH + key_at, mask=key_exists, other=0.0)
    out_ND = tl.zeros((QUERIES, HEAD), tl.float32)
    for map_index in tl.static_range(MAPS):
        query_ND = tl.load(qkv_ptr + 3 * map_index * WIDTH + query_at, mask=query_exists, other=0.0)
        key_SD = tl.load(qkv_ptr + (3 * map_index + 1) * WIDTH + key_at, mask=key_exists, other=0.0)
        score_NS = tl.where(visible_NS, tl.dot(query_ND, tl.trans(key_SD)) * scale, -1e30)
        probability_NS = tl.exp(score_NS - tl.max(score_NS, axis=1)[:, None])
        map_out_ND = tl.dot(probability_NS.to(value_SD.dtype), value_SD) / tl.sum(probability_NS, axis=1)[:, None]
        out_ND += map_out_ND * (1 - 2 * map_index)
    out_at = (row * num_tokens + query_N)[:, None] * WIDTH + feature_D[None, :]
    tl.store(out_ptr + out_at, out_ND.to(out_ptr.dtype.element_ty), mask=query_exists)
