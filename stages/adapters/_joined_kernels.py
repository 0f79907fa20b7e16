"""Around the joined product [W; A] x on CUDA: what `_joined` writes in torch, with as few launches as can be.

L layers, M tokens, O out features, R rank (R' of a tile), J = O + R' columns of a joined product. Every sum is taken in
a fixed order: parts first, then the parts. Imported on CUDA only.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.adapters._joined import LONG
from stages.adapters._norm_kernels import _put, _tile

MOVED = {"TOKENS": 32, "ROWS": 128, "num_warps": 4}
SPLIT = {"TOKENS": 64, "ROWS": 64, "num_warps": 4, "num_stages": 2}
SPLIT_LONG = {"TOKENS": 64, "ROWS": 128, "num_warps": 4, "num_stages": 1}
THIN = {"PLACES": 32, "AT_ONCE": 64, "num_warps": 2}
GATHERED = {"PLACES": 32, "AT_ONCE": 16, "num_warps": 2}
"""Sizes of tiles: the fastest of some eight to eighteen for each on an H200, at 172 to 4155 tokens."""
MOST_PARTS = 16


@triton.jit(do_not_specialize=["tokens"])
def _moved_kernel(
    joined, left, scale, bias, out, tokens, num_out, rank,
    left_l, left_o, left_r,
    HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(2).to(tl.int64)
    token, feature, thin = (
        tl.program_id(0) * TOKENS + tl.arange(0, TOKENS),
        tl.program_id(1) * ROWS + tl.arange(0, ROWS),
        tl.arange(0, WIDTH),
    )
    row = num_out + WIDTH
    here = joined + layer * tokens * row
    base = _tile(here, row, 1, token, feature, tokens, num_out)
    thin_MR = _tile(here + num_out, row, 1, token, thin, tokens, WIDTH)
    left_OR = _tile(left + layer * left_l, left_o, left_r, feature, thin, num_out, rank)
    whole = base.to(tl.float32) + tl.dot(thin_MR, tl.trans(left_OR))
    inside = feature < num_out
    if HAS_SCALE:
        scale_O = tl.load(scale + layer * num_out + feature, mask=inside, other=0.0)
        whole = whole * scale_O[None, :]
        if HAS_BIAS:
            bias_O = tl.load(bias + layer * row + feature, mask=inside, other=0.0).to(tl.float32)
            whole += (bias_O * (1.0 - scale_O))[None, :]
    place = out + layer * tokens * num_out
    _put(place, num_out, 1, token, feature, tokens, num_out, whole.to(out.dtype.element_ty))


def moved(joined_LMJ: Tensor, left_LOR: Tensor, scale_LO: Tensor | None, bias_LJ: Tensor | None, width: int) -> Tensor:
    """(L, M, O): see `_joined.moved`."""
    layers, tokens, num_joined = joined_LMJ.shape
    num_out = num_joined - width
    out_LMO = joined_LMJ.new_empty(layers, tokens, num_out)
    tiles = MOVED
    _moved_kernel[(triton.cdiv(tokens, tiles["TOKENS"]), triton.cdiv(num_out, tiles["ROWS"]), layers)](
        joined_LMJ, left_LOR, scale_LO, bias_LJ, out_LMO, tokens, num_out, left_LOR.shape[-1], *left_LOR.stride(),
        HAS_SCALE=scale_LO is not None, HAS_BIAS=bias_LJ is not None, WIDTH=width, **tiles,
    )  # fmt: skip
    return out_LMO


@triton.jit(do_not_specialize=["tokens", "tokens_each"])
def _split_kernel(
    d_out, joined, left, scale, bias, d_joined, d_thin, d_left, d_scale,
    tokens, num_out, rank, tokens_each, left_l, left_o, left_r,
    HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    layer, part, block = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.program_id(0)
    feature, thin = block * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside, row = feature < num_out, num_out + WIDTH
    left_OR = _tile(left + layer * left_l, left_o, left_r, feature, thin, num_out, rank)
    scale_O = tl.zeros((ROWS,), dtype=tl.float32)
    bias_O = tl.zeros((ROWS,), dtype=tl.float32)
    if HAS_SCALE:
        scale_O = tl.load(scale + layer * num_out + feature, mask=inside, other=0.0)
        if HAS_BIAS:
            bias_O = tl.load(bias + layer * row + feature, mask=inside, other=0.0).to(tl.float32)
    d_left_OR = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    d_scale_O = tl.zeros((ROWS,), dtype=tl.float32)
    here, there = joined + layer * tokens * row, d_joined + layer * tokens * row
    partial = d_thin + (layer * tl.num_programs(0) + block) * tokens * WIDTH
    for start in range(part * tokens_each, tl.minimum((part + 1) * tokens_each, tokens), TOKENS):
        token = start + tl.arange(0, TOKENS)
        given = _tile(d_out + layer * tokens * num_out, num_out, 1, token, feature, tokens, num_out)
        thin_MR = _tile(here + num_out, row, 1, token, thin, tokens, WIDTH)
        d_left_OR += tl.dot(tl.trans(given), thin_MR)
        scaled = given
        if HAS_SCALE:
            base = _tile(here, row, 1, token, feature, tokens, num_out).to(tl.float32)
            d_scale_O += tl.sum(given.to(tl.float32) * (base - bias_O[None, :]), axis=0)
            scaled = (given.to(tl.float32) * scale_O[None, :]).to(given.dtype)
        _put(there, row, 1, token, feature, tokens, num_out, scaled)
        _put(partial, WIDTH, 1, token, thin, tokens, WIDTH, tl.dot(scaled, left_OR))
    place = layer * tl.num_programs(1) + part
    if HAS_SCALE:
        # What the thin part of the product adds to the scale's gradient: the sum over tokens is in d_left already.
        d_scale_O += tl.sum(d_left_OR * left_OR.to(tl.float32), axis=1)
        d_left_OR = d_left_OR * scale_O[:, None]
        tl.store(d_scale + place * num_out + feature, d_scale_O, mask=inside)
    _put(d_left + place * num_out * rank, rank, 1, feature, thin, num_out, rank, d_left_OR)


@triton.jit
def _total(parts, num_parts, size, places, AT_ONCE: tl.constexpr, PLACES: tl.constexpr):
    """Sums over parts, many loads under way at once: one after the other each would wait for memory."""
    sums = tl.zeros((PLACES,), dtype=tl.float32)
    for first in range(0, num_parts, AT_ONCE):
        which = first + tl.arange(0, AT_ONCE)
        sums += tl.sum(_tile(parts, size, 1, which, places, num_parts, size), axis=0)
    return sums


@triton.jit(do_not_specialize=["tokens", "blocks"])
def _thin_kernel(
    d_thin, d_joined, tokens, num_out, blocks, WIDTH: tl.constexpr, PLACES: tl.constexpr, AT_ONCE: tl.constexpr
):  # fmt: skip
    layer = tl.program_id(1).to(tl.int64)
    places, size, row = tl.program_id(0) * PLACES + tl.arange(0, PLACES), tokens * WIDTH, num_out + WIDTH
    sums = _total(d_thin + layer * blocks * size, blocks, size, places, AT_ONCE, PLACES)
    there = d_joined + layer * tokens * row + places // WIDTH * row + num_out + places % WIDTH
    tl.store(there, sums.to(d_joined.dtype.element_ty), mask=places < size)


@triton.jit(do_not_specialize=["parts", "left_programs"])
def _gathered_kernel(
    d_left_parts, d_scale_parts, d_left, d_scale, num_out, rank, parts, left_programs,
    HAS_SCALE: tl.constexpr, PLACES: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    layer, job = tl.program_id(1).to(tl.int64), tl.program_id(0)
    if job < left_programs:
        places, size = job * PLACES + tl.arange(0, PLACES), num_out * rank
        sums = _total(d_left_parts + layer * parts * size, parts, size, places, AT_ONCE, PLACES)
        tl.store(d_left + layer * size + places, sums.to(d_left.dtype.element_ty), mask=places < size)
    elif HAS_SCALE:
        places = (job - left_programs) * PLACES + tl.arange(0, PLACES)
        sums = _total(d_scale_parts + layer * parts * num_out, parts, num_out, places, AT_ONCE, PLACES)
        tl.store(d_scale + layer * num_out + places, sums, mask=places < num_out)


class Split(NamedTuple):
    """What is left of the gradient of a result when its token's part is made: sums over parts of the tokens."""

    d_joined_LMJ: Tensor
    """Gradient of the joined product, whole."""
    d_left_LNOR: Tensor
    """Of the left factor, from each of N parts of the tokens."""
    d_scale_LNO: Tensor | None


def split(
    d_out_LMO: Tensor,
    joined_LMJ: Tensor,
    left_LOR: Tensor,
    scale_LO: Tensor | None,
    bias_LJ: Tensor | None,
    width: int,
) -> Split:
    """Gradient of the joined product (L, M, J), and parts of those of the left factor and of the scale."""
    layers, tokens, num_out = d_out_LMO.shape
    rank, tiles = left_LOR.shape[-1], SPLIT if tokens < LONG else SPLIT_LONG
    tiles = tiles | ({} if width <= 16 else {"num_warps": 8})
    blocks = triton.cdiv(num_out, tiles["ROWS"])
    each = triton.cdiv(triton.cdiv(tokens, MOST_PARTS), tiles["TOKENS"]) * tiles["TOKENS"]
    parts = triton.cdiv(tokens, each)
    wide = partial(torch.empty, device=joined_LMJ.device)
    d_thin = wide(layers, blocks, tokens, width)
    made = Split(
        joined_LMJ.new_empty(layers, tokens, num_out + width),
        wide(layers, parts, num_out, rank),
        None if scale_LO is None else wide(layers, parts, num_out),
    )
    _split_kernel[(blocks, parts, layers)](
        d_out_LMO, joined_LMJ, left_LOR, scale_LO, bias_LJ, made.d_joined_LMJ, d_thin, made.d_left_LNOR,
        made.d_scale_LNO, tokens, num_out, rank, each, *left_LOR.stride(),
        HAS_SCALE=scale_LO is not None, HAS_BIAS=bias_LJ is not None, WIDTH=width, **tiles,
    )  # fmt: skip
    _thin_kernel[(triton.cdiv(tokens * width, THIN["PLACES"]), layers)](
        d_thin, made.d_joined_LMJ, tokens, num_out, blocks, WIDTH=width, **THIN
    )
    return made


def gathered(parts: Split, d_left_LOR: Tensor, d_scale_LO: Tensor | None) -> None:
    """Add up the parts into the gradients of the left factor (L, O, R) and of the scale (L, O)."""
    layers, num_parts, num_out, rank = parts.d_left_LNOR.shape
    left_programs = triton.cdiv(num_out * rank, GATHERED["PLACES"])
    scale_programs = 0 if d_scale_LO is None else triton.cdiv(num_out, GATHERED["PLACES"])
    _gathered_kernel[(left_programs + scale_programs, layers)](
        parts.d_left_LNOR, parts.d_scale_LNO, d_left_LOR, d_scale_LO, num_out, rank, num_parts, left_programs,
        HAS_SCALE=d_scale_LO is not None, **GATHERED,
    )  # fmt: skip
