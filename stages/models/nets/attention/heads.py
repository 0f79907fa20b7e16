"""Queries, keys and values from a fused projection: split into heads, normed, turned, several maps side by side.

Two ways: of small operations, for any norm and device; and as one operation each way, with its gradient written out,
for RMS norms (`fused_heads`), which on CUDA is one kernel and opaque to torch's compiler.

B batch, N tokens, F features of all parts, H heads, D features of a head, R rotated features.
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
    """Queries, keys and values (B, maps * H, N, D) of those parts; None where no part has that role.

    Args:
        roles: of each part of the projection.
        value_copies: how often the values stand side by side: once for every map of the keys, or once in all.
        rotary: how queries and keys are rotated; None leaves them.
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
    """A `HeadsFunction` of small operations."""
    parts = split_heads(projected_BNO, len(roles), num_heads)
    queries, keys, values = ([p for p, r in zip(parts, roles, strict=True) if r == role] for role in range(3))
    values = values * value_copies
    query, key, value = (_side_by_side(maps) for maps in (queries, keys, values))
    query = None if query is None else _turned(query_norm(query), rotary)
    return query, None if key is None else _turned(key_norm(key), rotary), value


def _turned(normed_BHND: Tensor, rotary: RotaryAngles | None) -> Tensor:
    return normed_BHND if rotary is None else rotated(normed_BHND, rotary).to(normed_BHND.dtype)


def _side_by_side(maps: Sequence[Tensor]) -> Tensor | None:
    """Several maps as heads side by side, so that one call attends for all."""
    if len(maps) < 2:
        return maps[0] if maps else None
    return torch.cat(list(maps), dim=1)


def split_heads(token_BNF: Tensor, num_parts: int, num_heads: int) -> list[Tensor]:
    """A fused projection as `num_parts` tensors (B, H, N, D); features of one part are head-major."""
    batch, num_tokens, _ = token_BNF.shape
    parts = token_BNF.view(batch, num_tokens, num_parts, num_heads, -1).unbind(dim=2)
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
    """A `HeadsFunction` for RMS norms with frozen gains; gradients reach the features only."""
    query_gamma, key_gamma, eps = norm_gains(query_norm, key_norm)
    cos_ND, sin_ND = (None, None) if rotary is None else rotary
    made = torch.ops.sa3_trainer.heads(
        projected_BNO.contiguous(), query_gamma, key_gamma, cos_ND, sin_ND, num_heads, list(roles), eps, value_copies
    )
    query, key, value = (one if role in roles else None for role, one in enumerate(made))
    return query, key, value


def norm_gains(query_norm: nn.Module, key_norm: nn.Module) -> tuple[Tensor, Tensor, float]:
    """What two RMS norms multiply by, and their eps."""
    assert isinstance(query_norm, RMSNorm) and isinstance(key_norm, RMSNorm), "only RMS norms are fused"
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
            heads_kernels as kernels,  # deferred: Triton comes with CUDA builds of torch
        )

        return kernels.heads(features, query_gamma, key_gamma, cos, sin, num_heads, roles, eps, value_copies)
    rotary = None if cos is None or sin is None else RotaryAngles(cos, sin)
    norms = [lambda x, gamma=gamma: _normed(x, gamma, eps)[0] for gamma in (query_gamma, key_gamma)]
    made = eager_heads(features, roles, num_heads, norms[0], norms[1], rotary, value_copies)  # type: ignore[arg-type]
    query, key, value = (_laid_out(features.new_empty(0) if one is None else one) for one in made)
    return query, key, value


def _laid_out(made: Tensor) -> Tensor:
    """In memory of its own, as the kernel leaves it: an operation may not hand out what it was given."""
    return made.clone(memory_format=torch.contiguous_format)


def _normed(x: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of x in its dtype; before its gains in a wide one; and the factor that brought it there."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    size = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * size * gamma).to(x.dtype), wide * size, size


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
    waiting = {
        QUERY: list(d_query.split(num_heads, dim=1)) if QUERY in roles else [],
        KEY: list(d_key.split(num_heads, dim=1)) if KEY in roles else [],
    }
    d_parts = []
    for part, role in zip(split_heads(features, len(roles), num_heads), roles, strict=True):
        if role == VALUE:
            d_parts.append(sum(d_value.split(num_heads, dim=1)))
        else:
            gamma = query_gamma if role == QUERY else key_gamma
            d_parts.append(_before_norm(_turned_back(waiting[role].pop(0), rotary), part, gamma, eps))
    stacked = torch.stack([d_part.to(features.dtype).transpose(1, 2) for d_part in d_parts], dim=2)
    return stacked.reshape(features.shape)


def _turned_back(d_out: Tensor, rotary: RotaryAngles | None) -> Tensor:
    """The transpose of a rotation is the rotation by the opposite angle."""
    return d_out if rotary is None else rotated(d_out, RotaryAngles(rotary.cos_ND, -rotary.sin_ND))


def _before_norm(d_out: Tensor, x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    _, normed, size = _normed(x, gamma, eps)
    weighted = d_out.to(normed.dtype) * gamma
    return size * (weighted - normed * (normed * weighted).mean(dim=-1, keepdim=True))


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
    made = [features.new_empty((batch, n * num_heads, num_tokens, width) if n else 0) for n in counts]
    return made[0], made[1], made[2]


@_backward_op.register_fake
def _backward_shapes(d_query: Tensor, d_key: Tensor, d_value: Tensor, features: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(features)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.num_heads, ctx.roles, ctx.eps, ctx.value_copies = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, d_query: Tensor, d_key: Tensor, d_value: Tensor) -> tuple[Tensor | None, ...]:
    rest = (*ctx.saved_tensors, ctx.num_heads, list(ctx.roles), ctx.eps, ctx.value_copies)
    return _backward_op(d_query, d_key, d_value, *rest), *(None,) * 8


_forward_op.register_autograd(_gradients, setup_context=_keep)
