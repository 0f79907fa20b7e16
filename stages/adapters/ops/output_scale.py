"""Outputs of a layer with adapted row norms, p (W x) + b, from W x + b.

Computed as y + (y - b) (p - 1), y being W x + b, so that the gradient of p is sum(G (y - b)): where a layer is fed
zeros, y is b to the bit and the gradient is exactly zero. From y p + b (1 - p) autograd takes the difference of
sum(G y) and b sum(G), which leaves rounding noise, and AdamW makes steps as long as the learning rate from noise of any
size.
"""

from __future__ import annotations

from torch import Tensor


def output_scaled(out: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """p (W x) + b in the dtype of `out`, rounded once; with p = 1 it is `out` to the bit.

    Args:
        out: W x + b, such as (..., O), the bias rounded to its dtype.
        scale: p, at least float32, shaped to broadcast over `out`.
        bias: b, shaped as `scale`; it has no gradient.
    """
    if bias is None:
        return (out * scale).to(out.dtype)
    # Plain operations, not an autograd function of our own: torch.compile gave that one gradients of zero.
    rounded = bias.to(out.dtype)
    return (out + (out - rounded.to(scale.dtype)) * (scale - 1)).to(out.dtype)
