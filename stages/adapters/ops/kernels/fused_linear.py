"""Triton kernels around the joined product [W; A] x: the output from it, and its gradients, in few launches.

They compute what `ops.fused_linear` writes in torch. Sums have a fixed order: within parts, then over parts. Imported
on CUDA only.
Letters: L layers of one shape, M tokens, O output features, R rank, J = O + width columns of a joined product, Z parts.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.adapters.ops.kernels.norms import _load_tile, _store_tile

COMBINED = {"TOKENS": 32, "ROWS": 128, "num_warps": 4}
GATED_COMBINED = {"TOKENS": 32, "ROWS": 64, "num_warps": 4}
GRADIENTS = {"TOKENS": 64, "ROWS": 64, "num_warps": 4, "num_stages": 1}
THIN = {"ELEMENTS": 32, "PARTS_PER_LOAD": 64, "num_warps": 2}
THIN_MANY_BLOCKS = {"ELEMENTS": 16, "PARTS_PER_LOAD": 256, "num_warps": 4}
SUM_PARTS = {"ELEMENTS": 32, "PARTS_PER_LOAD": 16, "num_warps": 2}
"""Tile sizes: the fastest, or as good, of some eight to eighteen tried for each on an H200, at 172 to 4155 tokens."""
MAX_PARTS = 16
MANY_TOKENS = 512
"""Tokens from which sums of many parts fill the device with small programs as well."""


@triton.jit
def _factors(
    left, scale, bias, layer, feature, num_out, rank, left_l, left_o, left_r,
    HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """L, p and b of some output features; without a scale p is 1 and b is 0."""
    inside = feature < num_out
    left_OR = _load_tile(left + layer * left_l, left_o, left_r, feature, tl.arange(0, WIDTH), num_out, rank)
    scale_O = tl.full((ROWS,), 1.0, dtype=tl.float32)
    bias_O = tl.zeros((ROWS,), dtype=tl.float32)
    if HAS_SCALE:
        scale_O = tl.load(scale + layer * num_out + feature, mask=inside, other=0.0)
        if HAS_BIAS:
            bias_O = tl.load(bias + layer * (num_out + WIDTH) + feature, mask=inside, other=0.0).to(tl.float32)
    return left_OR, scale_O, bias_O


@triton.jit
def _output_scaled(sums, scale_O, bias_O, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr):
    """p s + (1 - p) b in float32, for sums s."""
    whole = sums.to(tl.float32)
    if HAS_SCALE:
        whole = whole * scale_O[None, :]
        if HAS_BIAS:
            whole += (bias_O * (1.0 - scale_O))[None, :]
    return whole


@triton.jit(do_not_specialize=["tokens"])
def _combined_output_kernel(
    joined, left, scale, bias, out, tokens, num_out, num_made, rank,
    left_l, left_o, left_r, GATED: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(2).to(tl.int64)
    token, feature = (
        tl.program_id(0) * TOKENS + tl.arange(0, TOKENS),
        tl.program_id(1) * ROWS + tl.arange(0, ROWS),
    )
    row = num_out + WIDTH
    dtype = out.dtype.element_ty
    here = joined + layer * tokens * row
    thin_MR = _load_tile(here + num_out, row, 1, token, tl.arange(0, WIDTH), tokens, WIDTH)
    left_OR, scale_O, bias_O = _factors(
        left, scale, bias, layer, feature, num_out, rank, left_l, left_o, left_r, HAS_SCALE, HAS_BIAS, WIDTH, ROWS
    )
    base = _load_tile(here, row, 1, token, feature, tokens, num_made)
    if GATED:
        # All loads come before the first store, which goes to the same memory and would delay them.
        other = num_made + feature
        gate_base = _load_tile(here, row, 1, token, other, tokens, num_out)
        gate_left_OR, gate_scale_O, gate_bias_O = _factors(
            left, scale, bias, layer, other, num_out, rank, left_l, left_o, left_r, HAS_SCALE, HAS_BIAS, WIDTH, ROWS
        )
    sums = base.to(tl.float32) + tl.dot(thin_MR, tl.trans(left_OR))
    made = _output_scaled(sums, scale_O, bias_O, HAS_SCALE, HAS_BIAS).to(dtype)
    if GATED:
        gate_sums = gate_base.to(tl.float32) + tl.dot(thin_MR, tl.trans(gate_left_OR))
        _store_tile(here, row, 1, token, feature, tokens, num_made, sums.to(dtype))
        _store_tile(here, row, 1, token, other, tokens, num_out, gate_sums.to(dtype))
        gate = _output_scaled(gate_sums, gate_scale_O, gate_bias_O, HAS_SCALE, HAS_BIAS).to(dtype).to(tl.float32)
        made = (made.to(tl.float32) * (gate * tl.sigmoid(gate))).to(dtype)
    _store_tile(out + layer * tokens * num_made, num_made, 1, token, feature, tokens, num_made, made)


def combined_output(
    joined_LMJ: Tensor,
    left_LOR: Tensor,
    scale_LO: Tensor | None,
    bias_LJ: Tensor | None,
    width: int,
    *,
    gated: bool = False,
) -> Tensor:
    """`ops.fused_linear.combined_output`, (L, M, O); gated, its `gated_silu`, (L, M, O / 2), which stores the sums."""
    layers, tokens, num_joined = joined_LMJ.shape
    num_out = num_joined - width
    num_made = num_out // 2 if gated else num_out
    out_LMO = joined_LMJ.new_empty(layers, tokens, num_made)
    tiles = GATED_COMBINED if gated else COMBINED
    _combined_output_kernel[(triton.cdiv(tokens, tiles["TOKENS"]), triton.cdiv(num_made, tiles["ROWS"]), layers)](
        joined_LMJ, left_LOR, scale_LO, bias_LJ, out_LMO, tokens, num_out, num_made, left_LOR.shape[-1],
        *left_LOR.stride(), GATED=gated,
        HAS_SCALE=scale_LO is not None, HAS_BIAS=bias_LJ is not None, WIDTH=width, **tiles,
    )  # fmt: skip
    return out_LMO


@triton.jit
def _silu_slope(half, base, scale_O, bias_O, other_base, other_scale_O, other_bias_O, HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Derivative of a silu(g) by a, in the first half, or by g, from the rounded sums that the forward pass stored."""
    dtype = base.dtype
    other = _output_scaled(other_base, other_scale_O, other_bias_O, HAS_SCALE, HAS_BIAS).to(dtype).to(tl.float32)
    if half == 0:
        slope = other * tl.sigmoid(other)
    else:
        gate = _output_scaled(base, scale_O, bias_O, HAS_SCALE, HAS_BIAS).to(dtype).to(tl.float32)
        share = tl.sigmoid(gate)
        slope = other * share * (1.0 + gate * (1.0 - share))
    return slope


@triton.jit(do_not_specialize=["tokens", "tokens_each"])
def _output_gradients_kernel(
    d_out, joined, left, scale, bias, d_joined, d_thin, d_left, d_scale,
    tokens, num_out, num_made, rank, tokens_each, left_l, left_o, left_r, GATED: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    layer, part, block = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.program_id(0)
    # Gated, a program has features of the values a or of the gates g; corresponding ones run side by side.
    half = block % 2 if GATED else 0
    made = (block // 2 if GATED else block) * ROWS + tl.arange(0, ROWS)
    feature, end = half * num_made + made, (half + 1) * num_made
    thin, row = tl.arange(0, WIDTH), num_out + WIDTH
    left_OR, scale_O, bias_O = _factors(
        left, scale, bias, layer, feature, num_out, rank, left_l, left_o, left_r, HAS_SCALE, HAS_BIAS, WIDTH, ROWS
    )
    scaled_OR = (left_OR.to(tl.float32) * scale_O[:, None]).to(left_OR.dtype)
    d_left_OR, d_scale_MO = tl.zeros((ROWS, WIDTH), dtype=tl.float32), tl.zeros((TOKENS, ROWS), dtype=tl.float32)
    if GATED:
        other = num_made - half * num_made + made
        _, other_scale_O, other_bias_O = _factors(
            left, scale, bias, layer, other, num_out, rank, left_l, left_o, left_r, HAS_SCALE, HAS_BIAS, WIDTH, ROWS
        )
    here, there = joined + layer * tokens * row, d_joined + layer * tokens * row
    partial = d_thin + (layer * tl.num_programs(0) + block) * tokens * WIDTH
    for start in range(part * tokens_each, tl.minimum((part + 1) * tokens_each, tokens), TOKENS):
        token = start + tl.arange(0, TOKENS)
        given = _load_tile(d_out + layer * tokens * num_made, num_made, 1, token, made, tokens, num_made)
        thin_MR = _load_tile(here + num_out, row, 1, token, thin, tokens, WIDTH)
        base = given
        if HAS_SCALE or GATED:
            base = _load_tile(here, row, 1, token, feature, tokens, end)
        if GATED:
            other_base = _load_tile(here, row, 1, token, other, tokens, num_out)
            slope = _silu_slope(
                half, base, scale_O, bias_O, other_base, other_scale_O, other_bias_O, HAS_SCALE, HAS_BIAS
            )
            given = (given.to(tl.float32) * slope).to(given.dtype)
        d_left_OR += tl.dot(tl.trans(given), thin_MR)
        scaled = given
        if HAS_SCALE:
            wide = given.to(tl.float32)
            d_scale_MO += wide * (base.to(tl.float32) - bias_O[None, :])
            scaled = (wide * scale_O[None, :]).to(given.dtype)
        _store_tile(there, row, 1, token, feature, tokens, end, scaled)
        _store_tile(partial, WIDTH, 1, token, thin, tokens, WIDTH, tl.dot(given, scaled_OR))
    place = layer * tl.num_programs(1) + part
    if HAS_SCALE:
        d_scale_O = tl.sum(d_scale_MO, axis=0)
        if not GATED:
            # The share of L A x, whose sum over tokens is in d_left already; gated sums include it.
            d_scale_O += tl.sum(d_left_OR * left_OR.to(tl.float32), axis=1)
        d_left_OR = d_left_OR * scale_O[:, None]
        tl.store(d_scale + place * num_out + feature, d_scale_O, mask=feature < end)
    _store_tile(d_left + place * num_out * rank, rank, 1, feature, thin, end, rank, d_left_OR)


@triton.jit
def _sum_elements(parts, num_parts, size, elements, PARTS_PER_LOAD: tl.constexpr, ELEMENTS: tl.constexpr):
    """Sums over parts, many read at a time, so that loads overlap."""
    sums = tl.zeros((ELEMENTS,), dtype=tl.float32)
    for first in range(0, num_parts, PARTS_PER_LOAD):
        which = first + tl.arange(0, PARTS_PER_LOAD)
        sums += tl.sum(_load_tile(parts, size, 1, which, elements, num_parts, size), axis=0)
    return sums


@triton.jit(do_not_specialize=["tokens", "blocks"])
def _thin_kernel(
    d_thin, d_joined, tokens, num_out, blocks, WIDTH: tl.constexpr, ELEMENTS: tl.constexpr, PARTS_PER_LOAD: tl.constexpr
):  # fmt: skip
    layer = tl.program_id(1).to(tl.int64)
    elements, size, row = tl.program_id(0) * ELEMENTS + tl.arange(0, ELEMENTS), tokens * WIDTH, num_out + WIDTH
    sums = _sum_elements(d_thin + layer * blocks * size, blocks, size, elements, PARTS_PER_LOAD, ELEMENTS)
    there = d_joined + layer * tokens * row + elements // WIDTH * row + num_out + elements % WIDTH
    tl.store(there, sums.to(d_joined.dtype.element_ty), mask=elements < size)


@triton.jit(do_not_specialize=["parts", "left_programs"])
def _sum_parts_kernel(
    d_left_parts, d_scale_parts, d_left, d_scale, num_out, rank, parts, left_programs,
    HAS_SCALE: tl.constexpr, ELEMENTS: tl.constexpr, PARTS_PER_LOAD: tl.constexpr,
):  # fmt: skip
    layer, job = tl.program_id(1).to(tl.int64), tl.program_id(0)
    if job < left_programs:
        elements, size = job * ELEMENTS + tl.arange(0, ELEMENTS), num_out * rank
        sums = _sum_elements(d_left_parts + layer * parts * size, parts, size, elements, PARTS_PER_LOAD, ELEMENTS)
        tl.store(d_left + layer * size + elements, sums.to(d_left.dtype.element_ty), mask=elements < size)
    elif HAS_SCALE:
        elements = (job - left_programs) * ELEMENTS + tl.arange(0, ELEMENTS)
        sums = _sum_elements(
            d_scale_parts + layer * parts * num_out, parts, num_out, elements, PARTS_PER_LOAD, ELEMENTS
        )
        tl.store(d_scale + layer * num_out + elements, sums, mask=elements < num_out)


class OutputGradients(NamedTuple):
    """Gradients of the joined product, and those of the left factor and the scale in Z parts of the tokens."""

    d_joined_LMJ: Tensor
    """Gradient of the joined product, complete."""
    d_left_LZOR: Tensor
    """Gradient of the left factor, from each of Z parts of the tokens."""
    d_scale_LZO: Tensor | None


def output_gradients(
    d_out_LMO: Tensor,
    joined_LMJ: Tensor,
    left_LOR: Tensor,
    scale_LO: Tensor | None,
    bias_LJ: Tensor | None,
    width: int,
    *,
    gated: bool = False,
) -> OutputGradients:
    """Gradients of the joined product (L, M, J), and, in parts, of the left factor and the scale."""
    layers, tokens, num_made = d_out_LMO.shape
    num_out, rank = left_LOR.shape[1:]
    blocks = (2 if gated else 1) * triton.cdiv(num_made, GRADIENTS["ROWS"])
    each = triton.cdiv(triton.cdiv(tokens, MAX_PARTS), GRADIENTS["TOKENS"]) * GRADIENTS["TOKENS"]
    parts = triton.cdiv(tokens, each)
    wide = partial(torch.empty, device=joined_LMJ.device)
    d_thin = wide(layers, blocks, tokens, width)
    made = OutputGradients(
        joined_LMJ.new_empty(layers, tokens, num_out + width),
        wide(layers, parts, num_out, rank),
        None if scale_LO is None else wide(layers, parts, num_out),
    )
    _output_gradients_kernel[(blocks, parts, layers)](
        d_out_LMO, joined_LMJ, left_LOR, scale_LO, bias_LJ, made.d_joined_LMJ, d_thin, made.d_left_LZOR,
        made.d_scale_LZO, tokens, num_out, num_made, rank, each, *left_LOR.stride(), GATED=gated,
        HAS_SCALE=scale_LO is not None, HAS_BIAS=bias_LJ is not None, WIDTH=width, **GRADIENTS,
    )  # fmt: skip
    tiles = THIN_MANY_BLOCKS if blocks > THIN["PARTS_PER_LOAD"] and tokens < MANY_TOKENS else THIN
    _thin_kernel[(triton.cdiv(tokens * width, tiles["ELEMENTS"]), layers)](
        d_thin, made.d_joined_LMJ, tokens, num_out, blocks, WIDTH=width, **tiles
    )
    return made


def sum_parts(parts: OutputGradients, d_left_LOR: Tensor, d_scale_LO: Tensor | None) -> None:
    """Sum the parts into the gradients of the left factor (L, O, R) and of the scale (L, O)."""
    layers, num_parts, num_out, rank = parts.d_left_LZOR.shape
    left_programs = triton.cdiv(num_out * rank, SUM_PARTS["ELEMENTS"])
    scale_programs = 0 if d_scale_LO is None else triton.cdiv(num_out, SUM_PARTS["ELEMENTS"])
    _sum_parts_kernel[(left_programs + scale_programs, layers)](
        parts.d_left_LZOR, parts.d_scale_LZO, d_left_LOR, d_scale_LO, num_out, rank, num_parts, left_programs,
        HAS_SCALE=d_scale_LO is not None, **SUM_PARTS,
    )  # fmt: skip
