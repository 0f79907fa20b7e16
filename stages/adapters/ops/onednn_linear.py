"""Linear layers with a frozen float32 weight on a CPU, computed by oneDNN where that is faster than MKL.

MKL, which torch multiplies float32 matrices with, uses slower code on processors that are not Intel's. On a Zen 5 one
thread of it does some 97 GFLOP/s, and one of oneDNN, which torch includes as well, 200. Nothing was measured on Intel
processors, nor without AVX-512: there, and for shapes that did not gain, torch's default is used.

Letters: M tokens, I input features, O output features, R rank, L layers of one shape.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_OPERATION = "_linear_pointwise"
"""Operator of `torch.ops.mkldnn` that torch's compiler calls; it is private, so it may disappear or be renamed."""

MIN_FEATURES = 65
"""Fewest input or output features that gain."""
MIN_TOKENS = 16
"""Fewest tokens that gain."""
MIN_MULTIPLICATIONS = 2**20
"""Multiplications below which the cost of a call (some 10 us) exceeds the gain."""


def has_operation() -> bool:
    """Whether this torch can compute a product by oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, _OPERATION)


@cache
def cpu_vendor() -> str | None:
    """Vendor string of the processor, such as AuthenticAMD; None where the system does not tell."""
    return cpu_vendor_in(Path("/proc/cpuinfo"))


def cpu_vendor_in(cpuinfo: Path) -> str | None:
    """`vendor_id` of the first processor in a file like Linux's /proc/cpuinfo; None if there is none."""
    try:
        found = re.search(r"^vendor_id\s*:\s*(\w+)", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    return None if found is None else found[1]


def is_faster_on_this_cpu() -> bool:
    """Whether this is a processor on which oneDNN was measured to be faster."""
    known = cpu_vendor() not in (None, "GenuineIntel")
    return known and torch.backends.cpu.get_cpu_capability() == "AVX512" and has_operation()


def is_faster(tokens_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> bool:
    """Whether `frozen_linear` and `adapted_linear` can compute this product, and are faster."""
    if not _is_float32_on_cpu(tokens_MI) or not _is_float32_on_cpu(weight_OI):
        return False
    trained = weight_OI.requires_grad or (bias_O is not None and bias_O.requires_grad)
    wide = min(weight_OI.shape) >= MIN_FEATURES and _gains_by_shape(tokens_MI, weight_OI)
    # Neither autocast nor torch.compile supports the operator.
    eager = not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    return wide and not trained and eager and is_faster_on_this_cpu()


def _is_float32_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _gains_by_shape(tokens_MI: Tensor, matrix_OI: Tensor) -> bool:
    """Whether oneDNN gains for these shapes and this layout: with gaps between rows it is a hundred times slower."""
    count = tokens_MI.numel() // matrix_OI.shape[1]
    much = count >= MIN_TOKENS and count * matrix_OI.numel() >= MIN_MULTIPLICATIONS
    return much and (matrix_OI.is_contiguous() or matrix_OI.t().is_contiguous())


def onednn_product(tokens_MI: Tensor, matrix_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """F.linear by oneDNN, without a gradient."""
    product: Tensor = getattr(torch.ops.mkldnn, _OPERATION)(tokens_MI, matrix_OI, bias_O, "none", [], "")
    return product


def _thin_product(tokens_MI: Tensor, matrix_OI: Tensor) -> Tensor:
    """Product with a thin factor of the update, of any shape and layout, without a gradient."""
    multiply = onednn_product if _gains_by_shape(tokens_MI, matrix_OI) else F.linear
    return multiply(tokens_MI, matrix_OI)


def frozen_linear(tokens: Tensor, matrix_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """W x + b (..., O), for shapes that pass `is_faster`; only the tokens have a gradient."""
    out_MO: Tensor = _FrozenLinear.apply(tokens.reshape(-1, tokens.shape[-1]), matrix_OI, bias_O)
    return out_MO.view(*tokens.shape[:-1], len(matrix_OI))


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight_OI)
        return onednn_product(tokens_MI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (weight_OI,) = ctx.saved_tensors
        return onednn_product(grads[0].contiguous(), weight_OI.t()) if ctx.needs_input_grad[0] else None, None, None


def adapted_linear(
    tokens: Tensor, weight_OI: Tensor, bias_O: Tensor | None, left_OR: Tensor, right_RI: Tensor, p_O: Tensor
) -> Tensor:
    """p (W x + b + L R x) + (1 - p) b (..., O), for shapes that pass `is_faster`; weight and bias have no gradient.

    With p = 1 and L = 0 the result is the base product, to the bit.
    """
    flat_MI = tokens.reshape(-1, tokens.shape[-1])
    out_MO: Tensor = _AdaptedLinear.apply(flat_MI, weight_OI, bias_O, left_OR, right_RI, p_O)
    return out_MO.view(*tokens.shape[:-1], len(weight_OI))


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, left_OR: Tensor, right_RI: Tensor, p_O: Tensor
    ) -> Tensor:
        thin_MR = _thin_product(x_MI, right_RI)
        whole_MO = onednn_product(x_MI, weight_OI, bias_O).addmm_(thin_MR, left_OR.t())
        ctx.save_for_backward(x_MI, thin_MR, whole_MO, weight_OI, bias_O, left_OR, right_RI, p_O)
        return whole_MO * p_O if bias_O is None else torch.addcmul(bias_O * (1 - p_O), whole_MO, p_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_MI, thin_MR, whole_MO, weight_OI, bias_O, left_OR, right_RI, p_O = ctx.saved_tensors
        needs_x, _, _, needs_left, needs_right, needs_p = ctx.needs_input_grad
        d_out_MO = grads[0].contiguous()
        d_whole_MO = d_out_MO * p_O
        d_x = onednn_product(d_whole_MO, weight_OI.t()) if needs_x else None
        d_right = None
        if needs_x or needs_right:
            d_thin_MR = _thin_product(d_whole_MO, left_OR.t())
            d_x = d_x if d_x is None else d_x.addmm_(d_thin_MR, right_RI)
            d_right = d_thin_MR.t() @ x_MI if needs_right else None
        d_left = (thin_MR.t() @ d_whole_MO).t() if needs_left else None
        return d_x, None, None, d_left, d_right, _scale_gradient(d_out_MO, whole_MO, bias_O) if needs_p else None


def _scale_gradient(d_out_MO: Tensor, whole_MO: Tensor, bias_O: Tensor | None) -> Tensor:
    """Gradient of p, (O,); the bias is subtracted before the sum, as in `output_scale`."""
    return torch.linalg.vecdot(d_out_MO, whole_MO if bias_O is None else whole_MO - bias_O, dim=0)


def stacked_product(tokens_LMI: Tensor, weight_LOI: Tensor) -> Tensor:
    """W x (L, M, O) of every layer, for shapes that pass `is_faster`; no gradient."""
    return torch.stack([onednn_product(tokens, weight) for tokens, weight in zip(tokens_LMI, weight_LOI, strict=True)])
