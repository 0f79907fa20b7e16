"""Adapted weights of a stack of layers handed out to those who use them, and their gradients put together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stages.adapters.layer import Ready
from stages.adapters.ops.side_streams import meet

Share = int | slice
"""One layer of a stack, or several side by side that are used at once."""


def handed_out(whole: Ready, shares: Sequence[Share]) -> list[Ready]:
    """What each share of the stack uses; shares do not overlap, are in order, and leave no layer out."""
    columns = [_shared(tensor, shares) for tensor in (whole.p_O, whole.q_I, whole.left_OR, whole.right_RI)]
    frozen = [_views(tensor, shares) for tensor in (whole.joined_JI, whole.bias_J)]
    return [Ready(p, q, L, R, whole.outside, W, b) for p, q, L, R, W, b in zip(*columns, *frozen, strict=True)]


def _shared(stacked: Tensor | None, shares: Sequence[Share]) -> Sequence[Tensor | None]:
    if stacked is None or not stacked.requires_grad:
        return _views(stacked, shares)
    given: tuple[Tensor, ...] = _HandedOut.apply(stacked, shares)
    return given


def _views(stacked: Tensor | None, shares: Sequence[Share]) -> Sequence[Tensor | None]:
    return [None if stacked is None else stacked[share] for share in shares]


class _HandedOut(torch.autograd.Function):
    """Views of a stack. Backward is one concatenation: slices of their own would each fill a whole stack with zeros.

    Where one share is the whole stack, its gradient is the stack's.
    """

    @staticmethod
    def forward(ctx: Any, stacked: Tensor, shares: Sequence[Share]) -> tuple[Tensor, ...]:
        ctx.shares = shares
        return tuple(stacked[share] for share in shares)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        meet(grads)
        parts = [grad[None] if isinstance(share, int) else grad for grad, share in zip(grads, ctx.shares, strict=True)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)), None
