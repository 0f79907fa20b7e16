"""Unstacks adapted weights per layer; backward concatenates the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stages.adapters.layer import AdaptedWeight
from stages.adapters.ops.side_streams import wait_for_gradients

LayerSlice = int | slice
"""Index of one layer in a stack, or of several neighbours that are used as a batch."""


def unstacked(whole: AdaptedWeight, slices: Sequence[LayerSlice]) -> list[AdaptedWeight]:
    """The adapted weight of each slice of the stack; slices are in order, without overlap, and cover every layer."""
    columns = [_sliced(tensor, slices) for tensor in (whole.p_O, whole.q_I, whole.left_OR, whole.right_RI)]
    frozen = [_views(tensor, slices) for tensor in (whole.joined_JI, whole.bias_J)]
    return [
        AdaptedWeight(p, q, L, R, whole.scales_folded, W, b) for p, q, L, R, W, b in zip(*columns, *frozen, strict=True)
    ]


def _sliced(stacked: Tensor | None, slices: Sequence[LayerSlice]) -> Sequence[Tensor | None]:
    if stacked is None or not stacked.requires_grad:
        return _views(stacked, slices)
    views: tuple[Tensor, ...] = _Unstack.apply(stacked, slices)
    return views


def _views(stacked: Tensor | None, slices: Sequence[LayerSlice]) -> Sequence[Tensor | None]:
    return [None if stacked is None else stacked[one] for one in slices]


class _Unstack(torch.autograd.Function):
    """Views of a stack. Backward is one concatenation; that of plain indexing fills a whole stack with zeros per slice.

    Where one slice is the whole stack, its gradient is the stack's.
    """

    @staticmethod
    def forward(ctx: Any, stacked: Tensor, slices: Sequence[LayerSlice]) -> tuple[Tensor, ...]:
        ctx.slices = slices
        return tuple(stacked[one] for one in slices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        wait_for_gradients(grads)
        parts = [grad[None] if isinstance(one, int) else grad for grad, one in zip(grads, ctx.slices, strict=True)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)), None
