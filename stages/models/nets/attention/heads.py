"""Query, key and value heads from a fused projection: split, QK-norm, rotary embedding, the maps side by side.

Two implementations: `eager_heads` of PyTorch ops, for any norm and device; and `fused_heads` for RMSNorm, a custom op
with its own backward, which on CUDA is one Triton kernel each way and opaque to torch.compile.

O: output features of the fused projection, all its parts side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stages.models.nets.attention.rotary import RotaryAngles, rotated
from stages.models.nets.norms import RMSNorm

QUERY, KEY, VALUE = range(3)
NAME = "sa3_trainer::heads"


class HeadsFunction(Protocol):
    """Queries, keys and values, (B, maps * H, N, D) each, from a fused projection; None where no part has that role.

    Args:
        roles: QUERY, KEY or VALUE of each part of the projection, in its order.
        rotary: rotary angles of queries and keys; None = no position embedding.
        value_copies: how often the value heads are repeated side by side: once per map, or once for all maps.
    """

    def __call__(
        self,
        projected_BNO: Tensor,
        roles: Sequence[int],
        num_heads: int,
        query_norm: nn.Module,
        key_norm: nn.Module,
        rotary: RotaryAngles | None,
        value_copies: int,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]: ...


def eager_heads(
    projected_BNO: Tensor,
    roles: Sequence[int],
    num_heads: int,
    query_norm: nn.Module,
    key_norm: nn.Module,
    rotary: RotaryAngles | None,
    value_copies: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """A `HeadsFunction` of PyTorch ops."""
    parts = split_heads(projected_BNO, len(roles), num_heads)
    queries, keys, values = (
        [p for p, r in zip(parts, roles, strict=True) if r == role] for role in (QUERY, KEY, VALUE)
    )
    values = values * value_copies
    query, key, value = (_side_by_side(maps) for maps in (queries, keys, values))
    query = None if query is None else _rotated(query_norm(query), rotary)
    return query, None if key is None else _rotated(key_norm(key), rotary), value


def _rotated(normed_BHND: Tensor, rotary: RotaryAngles | None) -> Tensor:
    return normed_BHND if rotary is None else rotated(normed_BHND, rotary).to(normed_BHND.dtype)


def _side_by_side(maps: Sequence[Tensor]) -> Tensor | None:
    """The heads of several maps concatenated, so that one attention call computes all of them."""
    if len(maps) < 2:
        return maps[0] if maps else None
    return torch.cat(list(maps), dim=1)


def split_heads(projected_BNO: Tensor, num_parts: int, num_heads: int) -> list[Tensor]:
    """The parts of a fused projection, (B, H, N, D) each; the features of a part are head-major."""
    batch, num_tokens, _ = projected_BNO.shape
    parts = projected_BNO.view(batch, num_tokens, num_parts, num_heads, -1).unbind(dim=2)
    return [part.transpose(1, 2) for part in parts]


def fused_heads(
    projected_BNO: Tensor,
    roles: Sequence[int],
    num_heads: int,
    query_norm: nn.Module,
    key_norm: nn.Module,
    rotary: RotaryAngles | None,
    value_copies: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """A `HeadsFunction` for RMSNorm with frozen gains: gradients flow to the projection only."""
    query_gamma, key_gamma, eps = norm_gains(query_norm, key_norm)
    cos_ND, sin_ND = (None, None) if rotary is None else rotary
    outputs = torch.ops.sa3_trainer.heads(
        projected_BNO.contiguous(), query_gamma, key_gamma, cos_ND, sin_ND, num_heads, list(roles), eps, value_copies
    )
    query, key, value = (one if role in roles else None for role, one in enumerate(outputs))
    return query, key, value


def norm_gains(query_norm: nn.Module, key_norm: nn.Module) -> tuple[Tensor, Tensor, float]:
    """The gains of the RMSNorms of queries and keys, and their common eps."""
    assert isinstance(query_norm, RMSNorm) and isinstance(key_norm, RMSNorm), "only RMSNorm is fused"
    return query_norm.gamma, key_norm.gamma, query_norm.eps


def _forward(
    features: Tensor,
    query_gamma: Tensor,
    key_gamma: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    num_heads: int,
    roles: Sequence[int],
    eps: float,
    value_copies: int,
) -> tuple[Tensor, Tensor, Tensor]:
    if features.is_cuda:
        from stages.models.nets.attention import (
            heads_kernels as kernels,  # deferred: Triton comes with CUDA builds only
        )

        return kernels.heads(features, query_gamma, key_gamma, cos, sin, num_heads, roles, eps, value_copies)
    rotary = None if cos is None or sin is None else RotaryAngles(cos, sin)
    norms = [lambda x, gamma=gamma: _normed(x, gamma, eps)[0] for gamma in (query_gamma, key_gamma)]
    outputs = eager_heads(features, roles, num_heads, norms[0], norms[1], rotary, value_copies)  # type: ignore[arg-type]
    query, key, value = (_own_memory(features.new_empty(0) if one is None else one) for one in outputs)
    return query, key, value


def _own_memory(tensor: Tensor) -> Tensor:
    """A contiguous copy, as the kernel would allocate it: a custom op must not return a view of its input."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _normed(x: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """RMSNorm of x: in its dtype; in at least float32 before the gains; and 1 / rms."""
    wide_x = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse_rms = torch.rsqrt(wide_x.square().mean(dim=-1, keepdim=True) + eps)
    return (wide_x * inverse_rms * gamma).to(x.dtype), wide_x * inverse_rms, inverse_rms


def _backward(
    d_query: Tensor,
    d_key: Tensor,
    d_value: Tensor,
    features: Tensor,
    query_gamma: Tensor,
    key_gamma: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    num_heads: int,
    roles: Sequence[int],
    eps: float,
    value_copies: int,
) -> Tensor:
    if features.is_cuda:
        from stages.models.nets.attention import heads_kernels as kernels  # deferred, as above

        d_query, d_key, d_value = d_query.contiguous(), d_key.contiguous(), d_value.contiguous()
        return kernels.heads_backward(
            d_query, d_key, d_value, features, query_gamma, key_gamma, cos, sin, num_heads, roles, eps, value_copies
        )
    rotary = None if cos is None or sin is None else RotaryAngles(cos, sin)
    d_heads = {
        QUERY: list(d_query.split(num_heads, dim=1)) if QUERY in roles else [],
        KEY: list(d_key.split(num_heads, dim=1)) if KEY in roles else [],
    }
    d_parts = []
    for part, role in zip(split_heads(features, len(roles), num_heads), roles, strict=True):
        if role == VALUE:
            d_parts.append(sum(d_value.split(num_heads, dim=1)))
        else:
            gamma = query_gamma if role == QUERY else key_gamma
            d_parts.append(_norm_backward(_unrotated(d_heads[role].pop(0), rotary), part, gamma, eps))
    stacked = torch.stack([d_part.to(features.dtype).transpose(1, 2) for d_part in d_parts], dim=2)
    return stacked.reshape(features.shape)


def _unrotated(d_out: Tensor, rotary: RotaryAngles | None) -> Tensor:
    """Backward of the rotary embedding: the rotation by the opposite angle."""
    return d_out if rotary is None else rotated(d_out, RotaryAngles(rotary.cos_ND, -rotary.sin_ND))


def _norm_backward(d_out: Tensor, x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    """Gradient of RMSNorm by its input."""
    _, normed, inverse_rms = _normed(x, gamma, eps)
    weighted = d_out.to(normed.dtype) * gamma
    return inverse_rms * (weighted - normed * (normed * weighted).mean(dim=-1, keepdim=True))


_INPUTS = (
    "Tensor features, Tensor query_gamma, Tensor key_gamma, Tensor? cos, Tensor? sin, "
    "int num_heads, int[] roles, float eps, int value_copies"
)
_forward_op = torch.library.custom_op(
    NAME, _forward, mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor)"
)
_backward_op = torch.library.custom_op(
    f"{NAME}_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor d_query, Tensor d_key, Tensor d_value, {_INPUTS}) -> Tensor",
)


@_forward_op.register_fake
def _forward_shapes(features: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    num_heads, roles, value_copies = rest[4], rest[5], rest[7]
    batch, num_tokens, num_features = features.shape
    width = num_features // (num_heads * len(roles))
    counts = (list(roles).count(QUERY), list(roles).count(KEY), value_copies if VALUE in roles else 0)
    outputs = [features.new_empty((batch, n * num_heads, num_tokens, width) if n else 0) for n in counts]
    return outputs[0], outputs[1], outputs[2]


@_backward_op.register_fake
def _backward_shapes(d_query: Tensor, d_key: Tensor, d_value: Tensor, features: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(features)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.num_heads, ctx.roles, ctx.eps, ctx.value_copies = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, d_query: Tensor, d_key: Tensor, d_value: Tensor) -> tuple[Tensor | None, ...]:
    rest = (*ctx.saved_tensors, ctx.num_heads, list(ctx.roles), ctx.eps, ctx.value_copies)
    return _backward_op(d_query, d_key, d_value, *rest), *(None,) * 8


_forward_op.register_autograd(_gradients, setup_context=_save_for_backward)
