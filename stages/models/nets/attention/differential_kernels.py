"""Differential attention on CUDA, one launch forward and two back: what `differential` writes in torch.

Both maps are taken in one pass over the keys (or queries), so the values and the gradient of the result are read once,
and of the 14 products that two separate attentions take in their backward 11 are left: the gradients of the two maps
by their scores share dO V^T, and dV is (P1 - P2)^T dO. Two launches instead of one that splits its programs between
the jobs: each has the tiles and registers that suit it, and the first makes the row sums that the second needs.

Every sum is taken in a fixed order by one program. Scores are exponents of two: `factor` is log2(e) / sqrt(D). What is
kept for the backward is the first map's result beside the whole, and lse, log2 of the sum of exponents, of both maps.
The last block of keys, which may be a part, has a loop for itself: written behind the loop of whole blocks, or as a
branch within, it makes ptxas run the tensor cores' instructions one after the other, in both.

B batch, H heads, N queries, S keys, D features of a head, W = H * D. Imported on CUDA only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

UNSEEN = tl.constexpr(-float("inf"))
"""The score of a key that may not be seen."""
LOWEST = tl.constexpr(-1e30)
"""Where a row's maximum starts: finite, as a block of nothing but unseen keys would make inf - inf of it."""

LOG2_E = 1.4426950408889634

Tiles = Mapping[str, int]
NARROW = 64
"""Features of a head up to which the first of these is taken."""
FORWARD: tuple[Tiles, Tiles] = (
    {"QUERIES": 64, "KEYS": 64, "num_warps": 4, "num_stages": 3},
    {"QUERIES": 64, "KEYS": 32, "num_warps": 4, "num_stages": 2},
)
D_QUERY: tuple[Tiles, Tiles] = (
    {"QUERIES": 64, "KEYS": 64, "num_warps": 4, "num_stages": 3},
    {"QUERIES": 64, "KEYS": 32, "num_warps": 4, "num_stages": 2},
)
D_KEY: tuple[Tiles, Tiles] = (
    {"QUERIES": 64, "KEYS": 64, "num_warps": 4, "num_stages": 3},
    {"QUERIES": 32, "KEYS": 64, "num_warps": 8, "num_stages": 2},
)
"""The first of each was the fastest of some ten on an H200, or near it, from 172 to 4155 tokens."""


@triton.jit
def _rows(base, row, limit, stride, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """(rows, WIDTH); with MASKED, zeros from row `limit` on."""
    place = base + row[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    if MASKED:
        return tl.load(place, mask=row[:, None] < limit, other=0.0)
    return tl.load(place)


@triton.jit
def _both(base, row, limit):
    """The numbers of both maps, which lie side by side: read as one of 64 bits, in half the loads; zeros at the end."""
    pair = tl.load(base.to(tl.pointer_type(tl.int64)) + row, mask=row < limit, other=0)
    return pair.to(tl.int32).to(tl.float32, bitcast=True), (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _put_both(base, row, limit, one, other):
    tl.store(base + 2 * row, one, mask=row < limit)
    tl.store(base + 2 * row + 1, other, mask=row < limit)


@triton.jit
def _put(base, row, limit, stride, values, WIDTH: tl.constexpr):
    place = base + row[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    tl.store(place, values.to(base.dtype.element_ty), mask=row[:, None] < limit)


@triton.jit
def _seen(valid, key, num_keys, HAS_VALID: tl.constexpr):
    """True where a key exists and may be seen."""
    if HAS_VALID:
        return tl.load(valid + key, mask=key < num_keys, other=0) != 0
    return key < num_keys


@triton.jit
def _softmaxed(score, factor, most, total):
    """Exponents of a block of scores under a running maximum and their running sum; what older ones shrink by."""
    now = tl.maximum(most, tl.max(score, axis=1) * factor)
    shrink = tl.exp2(most - now)
    exponent = tl.exp2(score * factor - now[:, None])
    return exponent, shrink, now, total * shrink + tl.sum(exponent, axis=1)


@triton.jit
def _forward_step(
    start, query1, query2, key1, key2, value, valid, num_keys, factor,
    out1, out2, most1, most2, total1, total2,
    HAS_VALID: tl.constexpr, MASKED: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One block of keys; MASKED where it may reach beyond the last."""
    key = start + tl.arange(0, KEYS)
    score1 = tl.dot(query1, tl.trans(_rows(key1, key, num_keys, WIDTH, WIDTH, MASKED)))
    score2 = tl.dot(query2, tl.trans(_rows(key2, key, num_keys, WIDTH, WIDTH, MASKED)))
    value_SD = _rows(value, key, num_keys, WIDTH, WIDTH, MASKED)
    if HAS_VALID or MASKED:
        seen = _seen(valid, key, num_keys, HAS_VALID)[None, :]
        score1, score2 = tl.where(seen, score1, UNSEEN), tl.where(seen, score2, UNSEEN)
    exponent1, shrink1, most1, total1 = _softmaxed(score1, factor, most1, total1)
    out1 = tl.dot(exponent1.to(value_SD.dtype), value_SD, out1 * shrink1[:, None])
    exponent2, shrink2, most2, total2 = _softmaxed(score2, factor, most2, total2)
    out2 = tl.dot(exponent2.to(value_SD.dtype), value_SD, out2 * shrink2[:, None])
    return out1, out2, most1, most2, total1, total2


@triton.jit(do_not_specialize=["num_queries", "num_keys", "heads"])
def _forward_kernel(
    query, key, value, valid, out, first, lse, num_queries, num_keys, heads, factor,
    HAS_VALID: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    map1, map2 = batch * 2 * heads + head, (batch * 2 + 1) * heads + head
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    query1 = _rows(query + map1 * num_queries * WIDTH, row, num_queries, WIDTH, WIDTH, True)
    query2 = _rows(query + map2 * num_queries * WIDTH, row, num_queries, WIDTH, WIDTH, True)
    key1, key2 = key + map1 * num_keys * WIDTH, key + map2 * num_keys * WIDTH
    value += (batch * heads + head) * num_keys * WIDTH
    if HAS_VALID:
        valid += batch * num_keys
    out1, out2 = tl.zeros((QUERIES, WIDTH), tl.float32), tl.zeros((QUERIES, WIDTH), tl.float32)
    most1, most2 = tl.full((QUERIES,), LOWEST, tl.float32), tl.full((QUERIES,), LOWEST, tl.float32)
    total1, total2 = tl.zeros((QUERIES,), tl.float32), tl.zeros((QUERIES,), tl.float32)
    last = (num_keys - 1) // KEYS * KEYS
    for start in range(0, last, KEYS):
        out1, out2, most1, most2, total1, total2 = _forward_step(
            start, query1, query2, key1, key2, value, valid, num_keys, factor,
            out1, out2, most1, most2, total1, total2, HAS_VALID, False, KEYS, WIDTH,
        )  # fmt: skip
    for start in tl.range(last, num_keys, KEYS, num_stages=1):
        out1, out2, most1, most2, total1, total2 = _forward_step(
            start, query1, query2, key1, key2, value, valid, num_keys, factor,
            out1, out2, most1, most2, total1, total2, HAS_VALID, True, KEYS, WIDTH,
        )  # fmt: skip
    out1, out2 = out1 / total1[:, None], out2 / total2[:, None]
    place, stride = batch * num_queries * heads * WIDTH + head * WIDTH, heads * WIDTH
    _put(out + place, row, num_queries, stride, out1 - out2, WIDTH)
    _put(first + place, row, num_queries, stride, out1, WIDTH)
    numbers = lse + 2 * (batch * heads + head) * num_queries
    _put_both(numbers, row, num_queries, most1 + tl.log2(total1), most2 + tl.log2(total2))


@triton.jit
def _d_query_step(
    start, query1, query2, d_out, key1, key2, value, valid, num_keys, factor,
    lse1, lse2, delta1, delta2, d_query1, d_query2,
    HAS_VALID: tl.constexpr, MASKED: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One block of keys; MASKED where it may reach beyond the last."""
    key = start + tl.arange(0, KEYS)
    key1_SD = _rows(key1, key, num_keys, WIDTH, WIDTH, MASKED)
    key2_SD = _rows(key2, key, num_keys, WIDTH, WIDTH, MASKED)
    score1, score2 = tl.dot(query1, tl.trans(key1_SD)), tl.dot(query2, tl.trans(key2_SD))
    d_share = tl.dot(d_out, tl.trans(_rows(value, key, num_keys, WIDTH, WIDTH, MASKED)))
    if HAS_VALID or MASKED:
        seen = _seen(valid, key, num_keys, HAS_VALID)[None, :]
        score1, score2 = tl.where(seen, score1, UNSEEN), tl.where(seen, score2, UNSEEN)
    d_score1 = tl.exp2(score1 * factor - lse1[:, None]) * (d_share - delta1[:, None])
    d_query1 = tl.dot(d_score1.to(key1_SD.dtype), key1_SD, d_query1)
    d_score2 = tl.exp2(score2 * factor - lse2[:, None]) * (delta2[:, None] - d_share)
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
    d_out_ND = _rows(d_out + place, row, num_queries, stride, WIDTH, True)
    wide = d_out_ND.to(tl.float32)
    delta1 = tl.sum(wide * _rows(first + place, row, num_queries, stride, WIDTH, True).to(tl.float32), axis=1)
    delta2 = delta1 - tl.sum(wide * _rows(out + place, row, num_queries, stride, WIDTH, True).to(tl.float32), axis=1)
    numbers = 2 * (batch * heads + head) * num_queries
    _put_both(delta + numbers, row, num_queries, delta1, delta2)
    lse1, lse2 = _both(lse + numbers, row, num_queries)
    query1 = _rows(query + map1 * num_queries * WIDTH, row, num_queries, WIDTH, WIDTH, True)
    query2 = _rows(query + map2 * num_queries * WIDTH, row, num_queries, WIDTH, WIDTH, True)
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
    _put(d_query + map1 * num_queries * WIDTH, row, num_queries, WIDTH, d_query1 * scale, WIDTH)
    _put(d_query + map2 * num_queries * WIDTH, row, num_queries, WIDTH, d_query2 * scale, WIDTH)


@triton.jit
def _d_key_step(
    start, key1, key2, value, query1, query2, d_out, lse, delta, num_queries, stride, factor,
    d_key1, d_key2, d_value,
    QUERIES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One block of queries. Those beyond the last are zeros as is their d_out, and so is what they would add."""
    row = start + tl.arange(0, QUERIES)
    query1_ND = _rows(query1, row, num_queries, WIDTH, WIDTH, True)
    query2_ND = _rows(query2, row, num_queries, WIDTH, WIDTH, True)
    d_out_ND = _rows(d_out, row, num_queries, stride, WIDTH, True)
    score1, score2 = tl.dot(key1, tl.trans(query1_ND)), tl.dot(key2, tl.trans(query2_ND))
    lse1, lse2 = _both(lse, row, num_queries)
    share1 = tl.exp2(score1 * factor - lse1[None, :])
    share2 = tl.exp2(score2 * factor - lse2[None, :])
    d_value = tl.dot((share1 - share2).to(d_out_ND.dtype), d_out_ND, d_value)
    d_share = tl.dot(value, tl.trans(d_out_ND))
    delta1, delta2 = _both(delta, row, num_queries)
    d_score1 = share1 * (d_share - delta1[None, :])
    d_key1 = tl.dot(d_score1.to(query1_ND.dtype), query1_ND, d_key1)
    d_score2 = share2 * (delta2[None, :] - d_share)
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
    key1 = _rows(key + map1 * num_keys * WIDTH, at, num_keys, WIDTH, WIDTH, True)
    key2 = _rows(key + map2 * num_keys * WIDTH, at, num_keys, WIDTH, WIDTH, True)
    value_SD = _rows(value + both * num_keys * WIDTH, at, num_keys, WIDTH, WIDTH, True)
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
        # A key's row meets no other row on its way here, so one look at the end is enough; its sums may be infinite.
        seen = _seen(valid + batch * num_keys, at, num_keys, True)[:, None]
        d_key1, d_key2 = tl.where(seen, d_key1, 0.0), tl.where(seen, d_key2, 0.0)
        d_value_SD = tl.where(seen, d_value_SD, 0.0)
    _put(d_key + map1 * num_keys * WIDTH, at, num_keys, WIDTH, d_key1 * scale, WIDTH)
    _put(d_key + map2 * num_keys * WIDTH, at, num_keys, WIDTH, d_key2 * scale, WIDTH)
    _put(d_value + both * num_keys * WIDTH, at, num_keys, WIDTH, d_value_SD, WIDTH)


def _named(query_BGND: Tensor, valid: Tensor | None, tiles: Tiles) -> dict[str, int | bool]:
    """What all kernels are told by name."""
    return {"HAS_VALID": valid is not None, "WIDTH": query_BGND.shape[-1], **tiles}


def forward(
    query_BGND: Tensor, key_BGSD: Tensor, value_BHSD: Tensor, valid: Tensor | None, tiles: Tiles | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `differential`; everything contiguous."""
    batch, maps, num_queries, width = query_BGND.shape
    tiles = tiles or FORWARD[width > NARROW]
    out_BNW = query_BGND.new_empty(batch, num_queries, maps // 2 * width)
    first_BNW = torch.empty_like(out_BNW)
    lse_BHN2 = query_BGND.new_empty(batch, maps // 2, num_queries, 2, dtype=torch.float32)
    _forward_kernel[(triton.cdiv(num_queries, tiles["QUERIES"]), batch * maps // 2)](
        query_BGND, key_BGSD, value_BHSD, valid, out_BNW, first_BNW, lse_BHN2,
        num_queries, key_BGSD.shape[2], maps // 2, LOG2_E / width**0.5,
        **_named(query_BGND, valid, tiles),
    )  # fmt: skip
    return out_BNW, first_BNW, lse_BHN2


def d_query(
    d_out_BNW: Tensor,
    query_BGND: Tensor,
    key_BGSD: Tensor,
    value_BHSD: Tensor,
    valid: Tensor | None,
    made: tuple[Tensor, Tensor, Tensor],
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient of the queries, and delta (B, H, N, 2): the products of `d_out` and each map's result, row by row."""
    batch, maps, num_queries, width = query_BGND.shape
    tiles = tiles or D_QUERY[width > NARROW]
    out_BNW, first_BNW, lse_BHN2 = made
    d_query_BGND, delta_BHN2 = torch.empty_like(query_BGND), torch.empty_like(lse_BHN2)
    _d_query_kernel[(triton.cdiv(num_queries, tiles["QUERIES"]), batch * maps // 2)](
        d_out_BNW, query_BGND, key_BGSD, value_BHSD, valid, out_BNW, first_BNW, lse_BHN2, d_query_BGND, delta_BHN2,
        num_queries, key_BGSD.shape[2], maps // 2, LOG2_E / width**0.5, width**-0.5,
        **_named(query_BGND, valid, tiles),
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
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the keys and values."""
    batch, maps, num_queries, width = query_BGND.shape
    num_keys = key_BGSD.shape[2]
    tiles = tiles or D_KEY[width > NARROW]
    d_key_BGSD, d_value_BHSD = torch.empty_like(key_BGSD), torch.empty_like(value_BHSD)
    _d_key_kernel[(triton.cdiv(num_keys, tiles["KEYS"]), batch * maps // 2)](
        d_out_BNW, query_BGND, key_BGSD, value_BHSD, valid, lse_BHN2, delta_BHN2, d_key_BGSD, d_value_BHSD,
        num_queries, num_keys, maps // 2, LOG2_E / width**0.5, width**-0.5,
        **_named(query_BGND, valid, tiles),
    )  # fmt: skip
    return d_key_BGSD, d_value_BHSD


def backward(
    d_out_BNW: Tensor,
    query_BGND: Tensor,
    key_BGSD: Tensor,
    value_BHSD: Tensor,
    valid: Tensor | None,
    made: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; everything contiguous."""
    heads = (query_BGND, key_BGSD, value_BHSD, valid)
    d_query_BGND, delta_BHN2 = d_query(d_out_BNW, *heads, made)
    return d_query_BGND, *d_key_value(d_out_BNW, *heads, made[2], delta_BHN2)
