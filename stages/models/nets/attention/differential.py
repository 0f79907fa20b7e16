"""Fused differential attention: a custom op that computes both maps at once, with its own backward.

out = softmax(q1 k1^T / sqrt(D)) v - softmax(q2 k2^T / sqrt(D)) v (after Ye et al. 2024, arXiv:2410.05258, with
lambda 1), the values stored once for both maps and the output with its heads concatenated, ready for the output
projection. On CUDA in 16 bits: three deterministic Triton kernels, opaque to torch.compile; elsewhere PyTorch ops.

G = 2 H: heads of the first map, then of the second. W = H * D.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

NAME = "sa3_trainer::differential_attention"
LOG_2 = math.log(2)
HEAD_WIDTHS = (16, 32, 64, 128)
"""Features of a head that the kernels support: their tiles are powers of two."""


def has_kernels_for_width(width: int) -> bool:
    """Whether the kernels support heads of `width` features."""
    return width in HEAD_WIDTHS


def has_kernels(query: Tensor) -> bool:
    """Whether the kernels support these query heads (B, G, N, D) on their device and in their dtype."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and has_kernels_for_width(query.shape[-1])


def differential_attention(
    query_BGND: Tensor, key_BGSD: Tensor, value_BHSD: Tensor, valid_BS: Tensor | None = None
) -> Tensor:
    """(B, N, W): a `DifferentialAttentionFunction` through the custom op.

    Args:
        query_BGND, key_BGSD: heads of the first map, then of the second, after QK-norm and rotary embedding.
        valid_BS: bool, True where a key may be attended to, at least one per row; None = everywhere.
    """
    valid = None if valid_BS is None else valid_BS.contiguous()
    heads = (query_BGND.contiguous(), key_BGSD.contiguous(), value_BHSD.contiguous())
    out_BNW: Tensor = torch.ops.sa3_trainer.differential_attention(*heads, valid)[0]
    return out_BNW


def _forward(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the output of the first map alone, and each map's log2-sum-exp of scores (B, H, N, 2)."""
    if has_kernels(query):
        from stages.models.nets.attention import (
            differential_kernels as kernels,  # deferred: Triton comes with CUDA builds only
        )

        return kernels.forward(query, key, value, valid)
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = [_scores(map_query, map_key, valid, wide) for map_query, map_key in _maps(query, key)]
    first, second = (_merged(score.softmax(dim=-1) @ value.to(wide)) for score in scores)
    lse_BHN2 = torch.stack([score.logsumexp(dim=-1) for score in scores], dim=-1) / LOG_2
    return (first - second).to(query.dtype), first.to(query.dtype), lse_BHN2


def _maps(query_BGND: Tensor, key_BGSD: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(queries, keys) of the first and of the second map."""
    return list(zip(query_BGND.chunk(2, dim=1), key_BGSD.chunk(2, dim=1), strict=True))


def _scores(query_BHND: Tensor, key_BHSD: Tensor, valid_BS: Tensor | None, wide: torch.dtype) -> Tensor:
    """Scaled scores (B, H, N, S), -inf where masked."""
    score_BHNS = query_BHND.to(wide) @ key_BHSD.to(wide).mT * query_BHND.shape[-1] ** -0.5
    return score_BHNS if valid_BS is None else score_BHNS.masked_fill(~valid_BS[:, None, None], -torch.inf)


def _merged(head_BHND: Tensor) -> Tensor:
    """Heads concatenated: (B, N, W)."""
    return head_BHND.transpose(1, 2).flatten(2)


def _backward(
    d_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    out: Tensor,
    first: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, from stored log-sum-exps as in FlashAttention (Dao et al. 2022,
    arXiv:2205.14135, algorithm 4): delta is the row sum of d_out times the output of a map.
    """
    if has_kernels(query):
        from stages.models.nets.attention import differential_kernels as kernels  # deferred, as above

        return kernels.backward(d_out.contiguous(), query, key, value, valid, (out, first, lse))
    wide = lse.dtype
    d_out, first, out = (
        tensor.to(wide).unflatten(-1, (value.shape[1], -1)).transpose(1, 2) for tensor in (d_out, first, out)
    )
    d_probability = d_out @ value.to(wide).mT
    d_queries, d_keys, probabilities = [], [], []
    signed = ((1, first), (-1, first - out))
    for (map_query, map_key), (sign, map_out), map_lse in zip(_maps(query, key), signed, lse.unbind(-1), strict=True):
        probability = torch.exp2(_scores(map_query, map_key, valid, wide) / LOG_2 - map_lse[..., None])
        delta = (d_out * map_out).sum(dim=-1, keepdim=True)
        d_score = sign * probability * (d_probability - delta) * map_query.shape[-1] ** -0.5
        d_queries.append(d_score @ map_key.to(wide))
        d_keys.append(d_score.mT @ map_query.to(wide))
        probabilities.append(probability)
    d_value = (probabilities[0] - probabilities[1]).mT @ d_out
    return (
        torch.cat(d_queries, dim=1).to(query.dtype),
        torch.cat(d_keys, dim=1).to(key.dtype),
        d_value.to(value.dtype),
    )


_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? valid"
_forward_op = torch.library.custom_op(
    NAME, _forward, mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor)"
)
_backward_op = torch.library.custom_op(
    f"{NAME}_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor d_out, {_INPUTS}, Tensor out, Tensor first, Tensor lse) -> (Tensor, Tensor, Tensor)",
)


@_forward_op.register_fake
def _forward_shapes(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    batch, maps, num_queries, width = query.shape
    merged = (batch, num_queries, maps // 2 * width)
    wide = torch.promote_types(query.dtype, torch.float32)
    lse = query.new_empty(batch, maps // 2, num_queries, 2, dtype=wide)
    return query.new_empty(merged), query.new_empty(merged), lse


@_backward_op.register_fake
def _backward_shapes(
    d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_out: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_backward_op(d_out, *ctx.saved_tensors), None


_forward_op.register_autograd(_gradients, setup_context=_save_for_backward)
