"""Triton kernels of differential attention: one launch forward, two backward. The same in PyTorch ops: `differential`.

Both maps are computed in one pass over the keys (or queries), so values and the output's gradient are read once, and of
the 14 matrix products in the backward of two separate attentions 11 remain: the score gradients of both maps share
dO V^T, and dV is (P1 - P2)^T dO. The backward is two launches instead of one whose programs split the work: each gets
the tile sizes and registers that suit it, and the first computes the row sums (delta) that the second needs.

Deterministic: every sum is taken in a fixed order by one program. Scores are exponents of two: `factor` is
log2(e) / sqrt(D). Saved for the backward: the output, the output of the first map, and lse, the log2-sum-exp of both
maps. The last block of keys, which may be partial, has a loop of its own: placed after the loop over whole blocks, or
as a branch within it, it makes ptxas serialise the tensor-core instructions of both.

Imported on CUDA only. G = 2 H: heads of the first map, then of the second. W = H * D.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

MASKED_SCORE = tl.constexpr(-float("inf"))
"""Score of a masked key."""
INITIAL_MAXIMUM = tl.constexpr(-1e30)
"""Initial running maximum of a row: finite, since -inf would give inf - inf in a block of masked keys only."""

LOG2_E = 1.4426950408889634

TileSizes = Mapping[str, int]
NARROW_HEAD_WIDTH = 64
"""Features of a head up to which the first entry of each table below is used; the second is for wider heads."""
FORWARD: tuple[TileSizes, TileSizes] = (
    {"QUERIES": 64, "KEYS": 64, "num_warps": 4, "num_stages": 3},
    {"QUERIES": 64, "KEYS": 32, "num_warps": 4, "num_stages": 2},
)
D_QUERY: tuple[TileSizes, TileSizes] = (
    {"QUERIES": 64, "KEYS": 64, "num_warps": 4, "num_stages": 3},
    {"QUERIES": 64, "KEYS": 32, "num_warps": 4, "num_stages": 2},
)
D_KEY: tuple[TileSizes, TileSizes] = (
    {"QUERIES": 64, "KEYS": 64, "num_warps": 4, "num_stages": 3},
    {"QUERIES": 32, "KEYS": 64, "num_warps": 8, "num_stages": 2},
)
"""Tile sizes. The first of each was the fastest of some ten on an H200, or close to it, from 172 to 4155 tokens."""


@triton.jit
def _load_rows(base, row, limit, stride, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """Loads (rows, WIDTH); with MASKED, zeros from row `limit` on."""
    place = base + row[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    if MASKED:
        return tl.load(place, mask=row[:, None] < limit, other=0.0)
    return tl.load(place)


@triton.jit
def _load_pair(base, row, limit):
    """Loads the adjacent float32 values of both maps as one 64-bit word: half the loads; zeros from row `limit` on."""
    pair = tl.load(base.to(tl.pointer_type(tl.int64)) + row, mask=row < limit, other=0)
    return pair.to(tl.int32).to(tl.float32, bitcast=True), (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _store_pair(base, row, limit, one, other):
    tl.store(base + 2 * row, one, mask=row < limit)
    tl.store(base + 2 * row + 1, other, mask=row < limit)


@triton.jit
def _store_rows(base, row, limit, stride, values, WIDTH: tl.constexpr):
    place = base + row[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    tl.store(place, values.to(base.dtype.element_ty), mask=row[:, None] < limit)


@triton.jit
def _visible(valid, key, num_keys, HAS_VALID: tl.constexpr):
    """True where a key exists and is not masked."""
    if HAS_VALID:
        return tl.load(valid + key, mask=key < num_keys, other=0) != 0
    return key < num_keys


@triton.jit
def _online_softmax(score, factor, running_max, running_sum):
    """A step of online softmax: exponentials of the block, factor that rescales earlier sums, new maximum and sum."""
    new_max = tl.maximum(running_max, tl.max(score, axis=1) * factor)
    rescale = tl.exp2(running_max - new_max)
    exponent = tl.exp2(score * factor - new_max[:, None])
    return exponent, rescale, new_max, running_sum * rescale + tl.sum(exponent, axis=1)


@triton.jit
def _forward_step(
    start, query1, query2, key1, key2, value, valid, num_keys, factor,
    out1, out2, max1, max2, sum1, sum2,
    HAS_VALID: tl.constexpr, MASKED: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Accumulates one block of keys; MASKED where it may extend past the last key."""
    key = start + tl.arange(0, KEYS)
    score1 = tl.dot(query1, tl.trans(_load_rows(key1, key, num_keys, WIDTH, WIDTH, MASKED)))
    score2 = tl.dot(query2, tl.trans(_load_rows(key2, key, num_keys, WIDTH, WIDTH, MASKED)))
    value_SD = _load_rows(value, key, num_keys, WIDTH, WIDTH, MASKED)
    if HAS_VALID or MASKED:
        visible = _visible(valid, key, num_keys, HAS_VALID)[None, :]
        score1, score2 = tl.where(visible, score1, MASKED_SCORE), tl.where(visible, score2, MASKED_SCORE)
    exponent1, rescale1, max1, sum1 = _online_softmax(score1, factor, max1, sum1)
    out1 = tl.dot(exponent1.to(value_SD.dtype), value_SD, out1 * rescale1[:, None])
    exponent2, rescale2, max2, sum2 = _online_softmax(score2, factor, max2, sum2)
    out2 = tl.dot(exponent2.to(value_SD.dtype), value_SD, out2 * rescale2[:, None])
    return out1, out2, max1, max2, sum1, sum2


@triton.jit(do_not_specialize=["num_queries", "num_keys", "heads"])
def _forward_kernel(
    query, key, value, valid, out, first, lse, num_queries, num_keys, heads, factor,
    HAS_VALID: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    map1, map2 = batch * 2 * heads + head, (batch * 2 + 1) * heads + head
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    query1 = _load_rows(query + map1 * num_queries * WIDTH, row, num_queries, WIDTH, WIDTH, True)
    query2 = _load_rows(query + map2 * num_queries * WIDTH, row, num_queries, WIDTH, WIDTH, True)
    key1, key2 = key + map1 * num_keys * WIDTH, key + map2 * num_keys * WIDTH
    value += (batch * heads + head) * num_keys * WIDTH
    if HAS_VALID:
        valid += batch * num_keys
    out1, out2 = tl.zeros((QUERIES, WIDTH), tl.float32), tl.zeros((QUERIES, WIDTH), tl.float32)
    max1, max2 = tl.full((QUERIES,), INITIAL_MAXIMUM, tl.float32), tl.full((QUERIES,), INITIAL_MAXIMUM, tl.float32)
    sum1, sum2 = tl.zeros((QUERIES,), tl.float32), tl.zeros((QUERIES,), tl.float32)
    last = (num_keys - 1) // KEYS * KEYS
    for start in range(0, last, KEYS):
        out1, out2, max1, max2, sum1, sum2 = _forward_step(
            start, query1, query2, key1, key2, value, valid, num_keys, factor,
            out1, out2, max1, max2, sum1, sum2, HAS_VALID, False, KEYS, WIDTH,
        )  # fmt: skip
    for start in tl.range(last, num_keys, KEYS, num_stages=1):
        out1, out2, max1, max2, sum1, sum2 = _forward_step(
            start, query1, query2, key1, key2, value, valid, num_keys, factor,
            out1, out2, max1, max2, sum1, sum2, HAS_VALID, True, KEYS, WIDTH,
        )  # fmt: skip
    out1, out2 = out1 / sum1[:, None], out2 / sum2[:, None]
    place, stride = batch * num_queries * heads * WIDTH + head * WIDTH, heads * WIDTH
    _store_rows(out + place, row, num_queries, stride, out1 - out2, WIDTH)
    _store_rows(first + place, row, num_queries, stride, out1, WIDTH)
    pair_start = lse + 2 * (batch * heads + head) * num_queries
    _store_pair(pair_start, row, num_queries, max1 + tl.log2(sum1), max2 + tl.log2(sum2))


@triton.jit
def _d_query_step(
    start, query1, query2, d_out, key1, key2, value, valid, num_keys, factor,
    lse1, lse2, delta1, delta2, d_query1, d_query2,
    HAS_VALID: tl.constexpr, MASKED: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Accumulates one block of keys; MASKED where it may extend past the last key."""
    key = start + tl.arange(0, KEYS)
    key1_SD = _load_rows(key1, key, num_keys, WIDTH, WIDTH, MASKED)
    key2_SD = _load_rows(key2, key, num_keys, WIDTH, WIDTH, MASKED)
    score1, score2 = tl.dot(query1, tl.trans(key1_SD)), tl.dot(query2, tl.trans(key2_SD))
    d_probability = tl.dot(d_out, tl.trans(_load_rows(value, key, num_keys, WIDTH, WIDTH, MASKED)))
    if HAS_VALID or MASKED:
        visible = _visible(valid, key, num_keys, HAS_VALID)[None, :]
        score1, score2 = tl.where(visible, score1, MASKED_SCORE), tl.where(visible, score2, MASKED_SCORE)
    d_score1 = tl.exp2(score1 * factor - lse1[:, None]) * (d_probability - delta1[:, None])
    d_query1 = tl.dot(d_score1.to(key1_SD.dtype), key1_SD, d_query1)
    d_score2 = tl.exp2(score2 * factor - lse2[:, None]) * (delta2[:, None] - d_probability)
    d_query2 = tl.dot(d_score2.to(key2_SD.dtype), key2_SD, d_query2)
    return d_query1, d_query2


@triton.jit(do_not_specialize=["num_queries", "num_keys", "heads"])
def _d_query_kernel(
    d_out, query, key, value, valid, out, first, lse, d_query, delta,
    num_queries, num_keys, heads, factor, scale,
    HAS_VALID: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    map1, map2 = batch * 2 * heads + head, (batch * 2 + 1) * heads + head
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    place, stride = batch * num_queries * heads * WIDTH + head * WIDTH, heads * WIDTH
    d_out_ND = _load_rows(d_out + place, row, num_queries, stride, WIDTH, True)
    wide = d_out_ND.to(tl.float32)
    delta1 = tl.sum(wide * _load_rows(first + place, row, num_queries, stride, WIDTH, True).to(tl.float32), axis=1)
    delta2 = delta1 - tl.sum(
        wide * _load_rows(out + place, row, num_queries, stride, WIDTH, True).to(tl.float32), axis=1
    )
    pair_start = 2 * (batch * heads + head) * num_queries
    _store_pair(delta + pair_start, row, num_queries, delta1, delta2)
    lse1, lse2 = _load_pair(lse + pair_start, row, num_queries)
    query1 = _load_rows(query + map1 * num_queries * WIDTH, row, num_queries, WIDTH, WIDTH, True)
    query2 = _load_rows(query + map2 * num_queries * WIDTH, row, num_queries, WIDTH, WIDTH, True)
    key1, key2 = key + map1 * num_keys * WIDTH, key + map2 * num_keys * WIDTH
    value += (batch * heads + head) * num_keys * WIDTH
    if HAS_VALID:
        valid += batch * num_keys
    d_query1, d_query2 = tl.zeros((QUERIES, WIDTH), tl.float32), tl.zeros((QUERIES, WIDTH), tl.float32)
    last = (num_keys - 1) // KEYS * KEYS
    for start in range(0, last, KEYS):
        d_query1, d_query2 = _d_query_step(
            start, query1, query2, d_out_ND, key1, key2, value, valid, num_keys, factor,
            lse1, lse2, delta1, delta2, d_query1, d_query2, HAS_VALID, False, KEYS, WIDTH,
        )  # fmt: skip
    for start in tl.range(last, num_keys, KEYS, num_stages=1):
        d_query1, d_query2 = _d_query_step(
            start, query1, query2, d_out_ND, key1, key2, value, valid, num_keys, factor,
            lse1, lse2, delta1, delta2, d_query1, d_query2, HAS_VALID, True, KEYS, WIDTH,
        )  # fmt: skip
    _store_rows(d_query + map1 * num_queries * WIDTH, row, num_queries, WIDTH, d_query1 * scale, WIDTH)
    _store_rows(d_query + map2 * num_queries * WIDTH, row, num_queries, WIDTH, d_query2 * scale, WIDTH)


@triton.jit
def _d_key_step(
    start, key1, key2, value, query1, query2, d_out, lse, delta, num_queries, stride, factor,
    d_key1, d_key2, d_value,
    QUERIES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Accumulates one block of queries. Rows past the last query load zeros, d_out included, and so add nothing."""
    row = start + tl.arange(0, QUERIES)
    query1_ND = _load_rows(query1, row, num_queries, WIDTH, WIDTH, True)
    query2_ND = _load_rows(query2, row, num_queries, WIDTH, WIDTH, True)
    d_out_ND = _load_rows(d_out, row, num_queries, stride, WIDTH, True)
    score1, score2 = tl.dot(key1, tl.trans(query1_ND)), tl.dot(key2, tl.trans(query2_ND))
    lse1, lse2 = _load_pair(lse, row, num_queries)
    probability1 = tl.exp2(score1 * factor - lse1[None, :])
    probability2 = tl.exp2(score2 * factor - lse2[None, :])
    d_value = tl.dot((probability1 - probability2).to(d_out_ND.dtype), d_out_ND, d_value)
    d_probability = tl.dot(value, tl.trans(d_out_ND))
    delta1, delta2 = _load_pair(delta, row, num_queries)
    d_score1 = probability1 * (d_probability - delta1[None, :])
    d_key1 = tl.dot(d_score1.to(query1_ND.dtype), query1_ND, d_key1)
    d_score2 = probability2 * (delta2[None, :] - d_probability)
    d_key2 = tl.dot(d_score2.to(query2_ND.dtype), query2_ND, d_key2)
    return d_key1, d_key2, d_value


@triton.jit(do_not_specialize=["num_queries", "num_keys", "heads"])
def _d_key_kernel(
    d_out, query, key, value, valid, lse, delta, d_key, d_value,
    num_queries, num_keys, heads, factor, scale,
    HAS_VALID: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    map1, map2, both = batch * 2 * heads + head, (batch * 2 + 1) * heads + head, batch * heads + head
    at = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    key1 = _load_rows(key + map1 * num_keys * WIDTH, at, num_keys, WIDTH, WIDTH, True)
    key2 = _load_rows(key + map2 * num_keys * WIDTH, at, num_keys, WIDTH, WIDTH, True)
    value_SD = _load_rows(value + both * num_keys * WIDTH, at, num_keys, WIDTH, WIDTH, True)
    query1, query2 = query + map1 * num_queries * WIDTH, query + map2 * num_queries * WIDTH
    lse, delta = lse + 2 * both * num_queries, delta + 2 * both * num_queries
    d_out += batch * num_queries * heads * WIDTH + head * WIDTH
    d_key1, d_key2 = tl.zeros((KEYS, WIDTH), tl.float32), tl.zeros((KEYS, WIDTH), tl.float32)
    d_value_SD = tl.zeros((KEYS, WIDTH), tl.float32)
    for start in range(0, num_queries, QUERIES):
        d_key1, d_key2, d_value_SD = _d_key_step(
            start, key1, key2, value_SD, query1, query2, d_out, lse, delta,
            num_queries, heads * WIDTH, factor, d_key1, d_key2, d_value_SD, QUERIES, WIDTH,
        )  # fmt: skip
    if HAS_VALID:
        # Rows of different keys never mix, so masking once at the end is enough; sums of masked keys may be infinite.
        visible = _visible(valid + batch * num_keys, at, num_keys, True)[:, None]
        d_key1, d_key2 = tl.where(visible, d_key1, 0.0), tl.where(visible, d_key2, 0.0)
        d_value_SD = tl.where(visible, d_value_SD, 0.0)
    _store_rows(d_key + map1 * num_keys * WIDTH, at, num_keys, WIDTH, d_key1 * scale, WIDTH)
    _store_rows(d_key + map2 * num_keys * WIDTH, at, num_keys, WIDTH, d_key2 * scale, WIDTH)
    _store_rows(d_value + both * num_keys * WIDTH, at, num_keys, WIDTH, d_value_SD, WIDTH)


def _launch_options(query_BGND: Tensor, valid: Tensor | None, tiles: TileSizes) -> dict[str, int | bool]:
    """Keyword arguments that all kernels take."""
    return {"HAS_VALID": valid is not None, "WIDTH": query_BGND.shape[-1], **tiles}


def forward(
    query_BGND: Tensor, key_BGSD: Tensor, value_BHSD: Tensor, valid: Tensor | None, tiles: TileSizes | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, N, W), output of the first map alone, and lse (B, H, N, 2). All inputs contiguous."""
    batch, maps, num_queries, width = query_BGND.shape
    tiles = tiles or FORWARD[width > NARROW_HEAD_WIDTH]
    out_BNW = query_BGND.new_empty(batch, num_queries, maps // 2 * width)
    first_BNW = torch.empty_like(out_BNW)
    lse_BHN2 = query_BGND.new_empty(batch, maps // 2, num_queries, 2, dtype=torch.float32)
    _forward_kernel[(triton.cdiv(num_queries, tiles["QUERIES"]), batch * maps // 2)](
        query_BGND, key_BGSD, value_BHSD, valid, out_BNW, first_BNW, lse_BHN2,
        num_queries, key_BGSD.shape[2], maps // 2, LOG2_E / width**0.5,
        **_launch_options(query_BGND, valid, tiles),
    )  # fmt: skip
    return out_BNW, first_BNW, lse_BHN2


def d_query(
    d_out_BNW: Tensor,
    query_BGND: Tensor,
    key_BGSD: Tensor,
    value_BHSD: Tensor,
    valid: Tensor | None,
    saved: tuple[Tensor, Tensor, Tensor],
    tiles: TileSizes | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient of the queries, and delta (B, H, N, 2): the row sums of `d_out` times the output of each map."""
    batch, maps, num_queries, width = query_BGND.shape
    tiles = tiles or D_QUERY[width > NARROW_HEAD_WIDTH]
    out_BNW, first_BNW, lse_BHN2 = saved
    d_query_BGND, delta_BHN2 = torch.empty_like(query_BGND), torch.empty_like(lse_BHN2)
    _d_query_kernel[(triton.cdiv(num_queries, tiles["QUERIES"]), batch * maps // 2)](
        d_out_BNW, query_BGND, key_BGSD, value_BHSD, valid, out_BNW, first_BNW, lse_BHN2, d_query_BGND, delta_BHN2,
        num_queries, key_BGSD.shape[2], maps // 2, LOG2_E / width**0.5, width**-0.5,
        **_launch_options(query_BGND, valid, tiles),
    )  # fmt: skip
    return d_query_BGND, delta_BHN2


def d_key_value(
    d_out_BNW: Tensor,
    query_BGND: Tensor,
    key_BGSD: Tensor,
    value_BHSD: Tensor,
    valid: Tensor | None,
    lse_BHN2: Tensor,
    delta_BHN2: Tensor,
    tiles: TileSizes | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the keys and values."""
    batch, maps, num_queries, width = query_BGND.shape
    num_keys = key_BGSD.shape[2]
    tiles = tiles or D_KEY[width > NARROW_HEAD_WIDTH]
    d_key_BGSD, d_value_BHSD = torch.empty_like(key_BGSD), torch.empty_like(value_BHSD)
    _d_key_kernel[(triton.cdiv(num_keys, tiles["KEYS"]), batch * maps // 2)](
        d_out_BNW, query_BGND, key_BGSD, value_BHSD, valid, lse_BHN2, delta_BHN2, d_key_BGSD, d_value_BHSD,
        num_queries, num_keys, maps // 2, LOG2_E / width**0.5, width**-0.5,
        **_launch_options(query_BGND, valid, tiles),
    )  # fmt: skip
    return d_key_BGSD, d_value_BHSD


def backward(
    d_out_BNW: Tensor,
    query_BGND: Tensor,
    key_BGSD: Tensor,
    value_BHSD: Tensor,
    valid: Tensor | None,
    saved: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values. All inputs contiguous; `saved` is what `forward` returned."""
    heads = (query_BGND, key_BGSD, value_BHSD, valid)
    d_query_BGND, delta_BHN2 = d_query(d_out_BNW, *heads, saved)
    return d_query_BGND, *d_key_value(d_out_BNW, *heads, saved[2], delta_BHN2)
