"""Triton kernels that split a fused projection into heads with QK-norm and rotary embedding in one pass each way.

The same in PyTorch ops: `heads`. Imported on CUDA only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 32
"""Tokens per program."""
QUERY, KEY, VALUE = range(3)


@triton.jit
def _load_rows(pointer, stride, token, feature, num_tokens, num_features):
    """Loads (tokens, features) as float32; zeros outside."""
    inside = (token[:, None] < num_tokens) & (feature[None, :] < num_features)
    values = tl.load(pointer + token[:, None] * stride + feature[None, :], mask=inside, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _partner(feature, rotated):
    """The other feature of a rotated pair, and the sign its sine term is added with."""
    half = rotated // 2
    first = feature < half
    return tl.where(first, feature + half, feature - half), tl.where(first, -1.0, 1.0)


@triton.jit(do_not_specialize=["num_tokens"])
def _heads_kernel(
    features, query_gamma, key_gamma, cos, sin, query, key, value,
    num_tokens, heads, width, rotated, eps, roles, maps, num_queries, num_keys, num_values,
    HAS_ROTARY: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    batch, slot = tl.program_id(2).to(tl.int64), tl.program_id(1)
    token, feature = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    part, head, stride = slot // heads, slot % heads, tl.num_programs(1) * width
    role, map_index = (roles >> (2 * part)) & 3, (maps >> part) & 1
    origin = features + batch * num_tokens * stride + slot * width
    destination = token[:, None] * width + feature[None, :]
    inside = (token[:, None] < num_tokens) & (feature[None, :] < width)
    if role == 2:
        values = tl.load(origin + token[:, None] * stride + feature[None, :], mask=inside, other=0.0)
        for copy in range(num_values):
            head_start = value + ((batch * num_values + copy) * heads + head) * num_tokens * width
            tl.store(head_start + destination, values, mask=inside)
    else:
        gamma, target, count = query_gamma, query, num_queries
        if role == 1:
            gamma, target, count = key_gamma, key, num_keys
        head_value = _load_rows(origin, stride, token, feature, num_tokens, width)
        inverse_rms = tl.rsqrt(tl.sum(head_value * head_value, axis=1) / width + eps)
        gain = tl.load(gamma + feature, mask=feature < width, other=0.0).to(tl.float32)
        out_dtype = features.dtype.element_ty
        out = (head_value * inverse_rms[:, None] * gain[None, :]).to(out_dtype)
        if HAS_ROTARY:
            other, sign = _partner(feature, rotated)
            is_rotated = feature < rotated
            partner_value = _load_rows(origin, stride, token, tl.where(is_rotated, other, feature), num_tokens, width)
            partner_gain = tl.load(gamma + other, mask=is_rotated, other=0.0).to(tl.float32)
            partner_value = (partner_value * inverse_rms[:, None] * partner_gain[None, :]).to(out_dtype).to(tl.float32)
            angle = token[:, None] * rotated + feature[None, :]
            has_angle = (token[:, None] < num_tokens) & is_rotated[None, :]
            cosine = tl.load(cos + angle, mask=has_angle, other=1.0)
            sine = tl.load(sin + angle, mask=has_angle, other=0.0)
            out = (out.to(tl.float32) * cosine + sign[None, :] * partner_value * sine).to(out_dtype)
        head_start = target + ((batch * count + map_index) * heads + head) * num_tokens * width
        tl.store(head_start + destination, out, mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def _heads_backward_kernel(
    d_query, d_key, d_value, features, query_gamma, key_gamma, cos, sin, d_features,
    num_tokens, heads, width, rotated, eps, roles, maps, num_queries, num_keys, num_values,
    HAS_ROTARY: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    batch, slot = tl.program_id(2).to(tl.int64), tl.program_id(1)
    token, feature = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    part, head, stride = slot // heads, slot % heads, tl.num_programs(1) * width
    role, map_index = (roles >> (2 * part)) & 3, (maps >> part) & 1
    inside = (token[:, None] < num_tokens) & (feature[None, :] < width)
    total = tl.zeros((TOKENS, WIDTH), dtype=tl.float32)
    if role == 2:
        for copy in range(num_values):
            head_start = d_value + ((batch * num_values + copy) * heads + head) * num_tokens * width
            total += _load_rows(head_start, width, token, feature, num_tokens, width)
    else:
        gamma, source, count = query_gamma, d_query, num_queries
        if role == 1:
            gamma, source, count = key_gamma, d_key, num_keys
        head_start = source + ((batch * count + map_index) * heads + head) * num_tokens * width
        head_value = _load_rows(head_start, width, token, feature, num_tokens, width)
        if HAS_ROTARY:
            other, sign = _partner(feature, rotated)
            is_rotated = feature < rotated
            partner_value = _load_rows(
                head_start, width, token, tl.where(is_rotated, other, feature), num_tokens, width
            )
            has_angle = (token[:, None] < num_tokens) & is_rotated[None, :]
            angle = token[:, None] * rotated
            cosine = tl.load(cos + angle + feature[None, :], mask=has_angle, other=1.0)
            sine = tl.load(sin + angle + other[None, :], mask=has_angle, other=0.0)
            head_value = head_value * cosine - sign[None, :] * partner_value * sine
        gain = tl.load(gamma + feature, mask=feature < width, other=0.0).to(tl.float32)
        before = features + batch * num_tokens * stride + slot * width
        values = _load_rows(before, stride, token, feature, num_tokens, width)
        inverse_rms = tl.rsqrt(tl.sum(values * values, axis=1) / width + eps)
        normed, weighted = values * inverse_rms[:, None], head_value * gain[None, :]
        mean = tl.sum(normed * weighted, axis=1) / width
        total = inverse_rms[:, None] * (weighted - normed * mean[:, None])
    destination = d_features + batch * num_tokens * stride + slot * width
    values = total.to(d_features.dtype.element_ty)
    tl.store(destination + token[:, None] * stride + feature[None, :], values, mask=inside)


def _packed_roles(roles: Sequence[int]) -> tuple[int, int, int, int]:
    """Roles (two bits each) and map indices (one bit each) of all parts, numbers of query and of key parts."""
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
    """Queries, keys and values, (B, maps * H, N, D) each; empty where no part has that role."""
    batch, num_tokens, _ = projected_BNO.shape
    width = projected_BNO.shape[-1] // (num_heads * len(roles))
    roles_code, maps, queries, keys = _packed_roles(roles)
    counts = [queries, keys, value_copies if VALUE in roles else 0]
    shapes = [(batch, count * num_heads, num_tokens, width) if count else (0,) for count in counts]
    outs = [projected_BNO.new_empty(shape) for shape in shapes]
    _heads_kernel[(triton.cdiv(num_tokens, TOKENS), num_heads * len(roles), batch)](
        projected_BNO, query_gamma, key_gamma, cos_ND, sin_ND, *outs,
        num_tokens, num_heads, width, 0 if cos_ND is None else cos_ND.shape[-1], eps,
        roles_code, maps, queries, keys, value_copies,
        HAS_ROTARY=cos_ND is not None, TOKENS=TOKENS, WIDTH=triton.next_power_of_2(width),
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
    """Gradient of the fused projection, (B, N, O). The gradients of the heads must be contiguous."""
    batch, num_tokens, _ = projected_BNO.shape
    width = projected_BNO.shape[-1] // (num_heads * len(roles))
    roles_code, maps, queries, keys = _packed_roles(roles)
    d_features_BNF = torch.empty_like(projected_BNO)
    _heads_backward_kernel[(triton.cdiv(num_tokens, TOKENS), num_heads * len(roles), batch)](
        d_query, d_key, d_value, projected_BNO, query_gamma, key_gamma, cos_ND, sin_ND, d_features_BNF,
        num_tokens, num_heads, width, 0 if cos_ND is None else cos_ND.shape[-1], eps,
        roles_code, maps, queries, keys, value_copies,
        HAS_ROTARY=cos_ND is not None, TOKENS=TOKENS, WIDTH=triton.next_power_of_2(width),
    )  # fmt: skip
    return d_features_BNF
