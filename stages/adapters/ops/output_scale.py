"""Outputs of a layer with adapted row norms, p (W x) + b, from W x + b.

The gradient of p is sum(G (y - b)), y being W x + b: where a layer is fed zeros, y is b to the bit and the gradient is
exactly zero. The difference of sum(G y) and b sum(G), which autograd would compute, leaves rounding noise, and AdamW
makes steps as long as the learning rate from noise of any size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def output_scaled(out: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """p (W x) + b in the dtype of `out`, rounded once; with p = 1 it is `out` to the bit.

    Args:
        out: W x + b, such as (..., O), the bias rounded to its dtype.
        scale: p, at least float32, shaped to broadcast over `out`.
        bias: b, shaped as `scale`; it has no gradient.
    """
    if bias is None:
        return (out * scale).to(out.dtype)
    scaled: Tensor = _OutputScaled.apply(out, scale, bias.to(out.dtype))
    return scaled


class _OutputScaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(out, scale, bias)
        return (out * scale + bias * (1 - scale)).to(out.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        out, scale, bias = ctx.saved_tensors
        needs_out, needs_scale, _ = ctx.needs_input_grad
        d_out = (grads[0] * scale).to(out.dtype) if needs_out else None
        d_scale = (grads[0] * (out.to(scale.dtype) - bias)).sum_to_size(scale.shape) if needs_scale else None
        return d_out, d_scale, None
