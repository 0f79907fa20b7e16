"""Heads from a fused projection on CUDA in one pass each way: what `heads` writes in torch. Imported on CUDA only.

B batch, N tokens, P parts of H heads of D features, R rotated features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 32
QUERY, KEY, VALUE = range(3)


@triton.jit
def _row(pointer, stride, token, feature, num_tokens, num_features):
    inside = (token[:, None] < num_tokens) & (feature[None, :] < num_features)
    values = tl.load(pointer + token[:, None] * stride + feature[None, :], mask=inside, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _partner(feature, rotated):
    """Where the other of a rotated pair lies, and the sign it is added with."""
    half = rotated // 2
    first = feature < half
    return tl.where(first, feature + half, feature - half), tl.where(first, -1.0, 1.0)


@triton.jit(do_not_specialize=["num_tokens"])
def _heads_kernel(
    features, query_gamma, key_gamma, cos, sin, query, key, value,
    num_tokens, heads, width, rotated, eps, roles, maps, num_queries, num_keys, num_values,
    HAS_TURN: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    batch, slot = tl.program_id(2).to(tl.int64), tl.program_id(1)
    token, feature = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    part, head, stride = slot // heads, slot % heads, tl.num_programs(1) * width
    role, which = (roles >> (2 * part)) & 3, (maps >> part) & 1
    here = features + batch * num_tokens * stride + slot * width
    there = token[:, None] * width + feature[None, :]
    inside = (token[:, None] < num_tokens) & (feature[None, :] < width)
    if role == 2:
        values = tl.load(here + token[:, None] * stride + feature[None, :], mask=inside, other=0.0)
        for copy in range(num_values):
            place = value + ((batch * num_values + copy) * heads + head) * num_tokens * width
            tl.store(place + there, values, mask=inside)
    else:
        gamma, target, count = query_gamma, query, num_queries
        if role == 1:
            gamma, target, count = key_gamma, key, num_keys
        given = _row(here, stride, token, feature, num_tokens, width)
        size = tl.rsqrt(tl.sum(given * given, axis=1) / width + eps)
        scale = tl.load(gamma + feature, mask=feature < width, other=0.0).to(tl.float32)
        narrow = features.dtype.element_ty
        out = (given * size[:, None] * scale[None, :]).to(narrow)
        if HAS_TURN:
            other, sign = _partner(feature, rotated)
            turning = feature < rotated
            across = _row(here, stride, token, tl.where(turning, other, feature), num_tokens, width)
            other_scale = tl.load(gamma + other, mask=turning, other=0.0).to(tl.float32)
            across = (across * size[:, None] * other_scale[None, :]).to(narrow).to(tl.float32)
            angle = token[:, None] * rotated + feature[None, :]
            known = (token[:, None] < num_tokens) & turning[None, :]
            cosine = tl.load(cos + angle, mask=known, other=1.0)
            sine = tl.load(sin + angle, mask=known, other=0.0)
            out = (out.to(tl.float32) * cosine + sign[None, :] * across * sine).to(narrow)
        place = target + ((batch * count + which) * heads + head) * num_tokens * width
        tl.store(place + there, out, mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def _heads_backward_kernel(
    d_query, d_key, d_value, features, query_gamma, key_gamma, cos, sin, d_features,
    num_tokens, heads, width, rotated, eps, roles, maps, num_queries, num_keys, num_values,
    HAS_TURN: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    batch, slot = tl.program_id(2).to(tl.int64), tl.program_id(1)
    token, feature = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    part, head, stride = slot // heads, slot % heads, tl.num_programs(1) * width
    role, which = (roles >> (2 * part)) & 3, (maps >> part) & 1
    inside = (token[:, None] < num_tokens) & (feature[None, :] < width)
    total = tl.zeros((TOKENS, WIDTH), dtype=tl.float32)
    if role == 2:
        for copy in range(num_values):
            place = d_value + ((batch * num_values + copy) * heads + head) * num_tokens * width
            total += _row(place, width, token, feature, num_tokens, width)
    else:
        gamma, source, count = query_gamma, d_query, num_queries
        if role == 1:
            gamma, source, count = key_gamma, d_key, num_keys
        place = source + ((batch * count + which) * heads + head) * num_tokens * width
        given = _row(place, width, token, feature, num_tokens, width)
        if HAS_TURN:
            other, sign = _partner(feature, rotated)
            turning = feature < rotated
            across = _row(place, width, token, tl.where(turning, other, feature), num_tokens, width)
            known = (token[:, None] < num_tokens) & turning[None, :]
            angle = token[:, None] * rotated
            cosine = tl.load(cos + angle + feature[None, :], mask=known, other=1.0)
            sine = tl.load(sin + angle + other[None, :], mask=known, other=0.0)
            given = given * cosine - sign[None, :] * across * sine
        scale = tl.load(gamma + feature, mask=feature < width, other=0.0).to(tl.float32)
        before = features + batch * num_tokens * stride + slot * width
        values = _row(before, stride, token, feature, num_tokens, width)
        size = tl.rsqrt(tl.sum(values * values, axis=1) / width + eps)
        normed, weighted = values * size[:, None], given * scale[None, :]
        mean = tl.sum(normed * weighted, axis=1) / width
        total = size[:, None] * (weighted - normed * mean[:, None])
    there = d_features + batch * num_tokens * stride + slot * width
    values = total.to(d_features.dtype.element_ty)
    tl.store(there + token[:, None] * stride + feature[None, :], values, mask=inside)


def _codes(roles: Sequence[int]) -> tuple[int, int, int, int]:
    """Roles and maps of all parts as bits, how many queries there are and how many keys."""
    seen: list[int] = []
    code = maps = 0
    for part, role in enumerate(roles):
        code |= role << (2 * part)
        maps |= seen.count(role) << part
        seen.append(role)
    return code, maps, seen.count(QUERY), seen.count(KEY)


def heads(
    projected_BNO: Tensor,
    query_gamma: Tensor,
    key_gamma: Tensor,
    cos_ND: Tensor | None,
    sin_ND: Tensor | None,
    num_heads: int,
    roles: Sequence[int],
    eps: float,
    value_copies: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values (B, maps * H, N, D); empty where there are none."""
    batch, num_tokens, _ = projected_BNO.shape
    width = projected_BNO.shape[-1] // (num_heads * len(roles))
    roles_code, maps, queries, keys = _codes(roles)
    counts = [queries, keys, value_copies if VALUE in roles else 0]
    shapes = [(batch, count * num_heads, num_tokens, width) if count else (0,) for count in counts]
    outs = [projected_BNO.new_empty(shape) for shape in shapes]
    _heads_kernel[(triton.cdiv(num_tokens, TOKENS), num_heads * len(roles), batch)](
        projected_BNO, query_gamma, key_gamma, cos_ND, sin_ND, *outs,
        num_tokens, num_heads, width, 0 if cos_ND is None else cos_ND.shape[-1], eps,
        roles_code, maps, queries, keys, value_copies,
        HAS_TURN=cos_ND is not None, TOKENS=TOKENS, WIDTH=triton.next_power_of_2(width),
    )  # fmt: skip
    return outs[0], outs[1], outs[2]


def heads_backward(
    d_query: Tensor,
    d_key: Tensor,
    d_value: Tensor,
    projected_BNO: Tensor,
    query_gamma: Tensor,
    key_gamma: Tensor,
    cos_ND: Tensor | None,
    sin_ND: Tensor | None,
    num_heads: int,
    roles: Sequence[int],
    eps: float,
    value_copies: int,
) -> Tensor:
    """(B, N, F) gradient of the projection; the gradients of heads are contiguous."""
    batch, num_tokens, _ = projected_BNO.shape
    width = projected_BNO.shape[-1] // (num_heads * len(roles))
    roles_code, maps, queries, keys = _codes(roles)
    d_features_BNF = torch.empty_like(projected_BNO)
    _heads_backward_kernel[(triton.cdiv(num_tokens, TOKENS), num_heads * len(roles), batch)](
        d_query, d_key, d_value, projected_BNO, query_gamma, key_gamma, cos_ND, sin_ND, d_features_BNF,
        num_tokens, num_heads, width, 0 if cos_ND is None else cos_ND.shape[-1], eps,
        roles_code, maps, queries, keys, value_copies,
        HAS_TURN=cos_ND is not None, TOKENS=TOKENS, WIDTH=triton.next_power_of_2(width),
    )  # fmt: skip
    return d_features_BNF
