"""Products with frozen 16-bit weights in float32 accuracy, without a float32 copy of the weight.

Autograd alone would widen W for the product and keep that copy, of every weight of the network, until the backward.
Letters: O output features, I input features, K rows of the second factor, R rank; any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from stages.adapters.ops.onednn_linear import is_faster, stacked_product

NUM_PIECES = 3
"""16-bit pieces that a float32 factor is split into: 24 bits of mantissa in bfloat16, 33 in float16."""

ROWS_PER_CHUNK = 256
"""Rows of a tall factor that are multiplied at a time on CUDA."""

MAX_KERNEL_RANK = 64
"""Largest rank of the Triton kernels for stacks of layers; above it torch's operations are used."""

_HALF_BITS = 11
"""Bits of float16's mantissa, the hidden bit included."""


@cache
def has_triton() -> bool:
    """Whether Triton is installed, which the kernels are written in; torch depends on it where it supports it."""
    return find_spec("triton") is not None


_KERNELS = {"enabled": False}
"""One for all threads: autograd runs the backward pass in a thread of its own."""


def kernels_enabled() -> bool:
    """Whether stacks of layers on CUDA use the hand-written Triton kernels instead of torch's operations."""
    return _KERNELS["enabled"] and has_triton()


@contextmanager
def enable_kernels() -> Iterator[None]:
    """Context in which hand-written kernels are used. Backward passes belong inside as well."""
    before, _KERNELS["enabled"] = _KERNELS["enabled"], True
    try:
        yield
    finally:
        _KERNELS["enabled"] = before


def frozen_product(weight_OI: Tensor, factor_KI: Tensor) -> Tensor:
    """W F^T (O, K), computed in the dtype of F; only F has a gradient."""
    product: Tensor = _FrozenProduct.apply(weight_OI, factor_KI)
    return product


def weighted_squares(weight_OI: Tensor, factor_I: Tensor) -> Tensor:
    """Sum over k of W_jk^2 F_k, (O,), in the dtype of F; only F has a gradient."""
    sums: Tensor = _WeightedSquares.apply(weight_OI, factor_I)
    return sums


def gram(factor_KI: Tensor) -> Tensor:
    """F F^T (K, K) in the dtype of F."""
    product: Tensor = _Gram.apply(factor_KI)
    return product


def row_quadratics(left_OR: Tensor, gram_RR: Tensor) -> Tensor:
    """L_j G L_j^T for every row j of L, (O,); G is symmetric."""
    quadratics: Tensor = _RowQuadratics.apply(left_OR, gram_RR)
    return quadratics


class _RowQuadratics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left_OR: Tensor, gram_RR: Tensor) -> Tensor:
        product_OR = left_OR @ gram_RR
        ctx.save_for_backward(left_OR, product_OR)
        return (product_OR * left_OR).sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        left_OR, product_OR = ctx.saved_tensors
        weighted_OR = grads[0][..., None] * left_OR
        return 2 * grads[0][..., None] * product_OR, tall_inner_product(weighted_OR, left_OR)


def frozen_tall_product(tall_OR: Tensor, core_RR: Tensor) -> Tensor:
    """T C (O, R) of a frozen tall factor T; only the core C has a gradient."""
    product: Tensor = _FrozenTallProduct.apply(tall_OR, core_RR)
    return product


class _FrozenTallProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tall_OR: Tensor, core_RR: Tensor) -> Tensor:
        ctx.save_for_backward(tall_OR)
        return tall_OR @ core_RR

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (tall_OR,) = ctx.saved_tensors
        return None, tall_inner_product(tall_OR, grads[0])


def tall_inner_product(first_OR: Tensor, second_OR: Tensor) -> Tensor:
    """F^T S (R, R) of tall factors: on CUDA in chunks of rows, which keeps more than one multiprocessor busy."""
    if first_OR.is_cuda and first_OR.shape[-2] % ROWS_PER_CHUNK == 0:
        chunks = (-1, ROWS_PER_CHUNK)
        return (first_OR.unflatten(-2, chunks).mT @ second_OR.unflatten(-2, chunks)).sum(dim=-3)
    return first_OR.mT @ second_OR


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factor_KI: Tensor) -> Tensor:
        ctx.save_for_backward(factor_KI)
        if factor_KI.is_cuda and factor_KI.dtype == torch.float32:
            return _gram_in_pieces(factor_KI)
        return factor_KI @ factor_KI.mT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (factor_KI,) = ctx.saved_tensors
        return (grads[0] + grads[0].mT) @ factor_KI


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_OI: Tensor, factor_KI: Tensor) -> Tensor:
        ctx.save_for_backward(weight_OI)
        return wide_product(weight_OI, factor_KI.mT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (weight_OI,) = ctx.saved_tensors
        return None, wide_product(weight_OI.mT, grads[0]).mT


class _WeightedSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_OI: Tensor, factor_I: Tensor) -> Tensor:
        ctx.save_for_backward(weight_OI)
        return _weighted_squares(weight_OI, factor_I)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (weight_OI,) = ctx.saved_tensors
        return None, _weighted_squares(weight_OI.mT, grads[0])


def wide_product(matrix_OI: Tensor, wide_IK: Tensor) -> Tensor:
    """M F (O, K) in the dtype of F and to its rounding, for a 16-bit M.

    On CUDA the float32 factor is split into 16-bit pieces that sum to it (as in BF16x3 emulation): tensor cores read M
    as it is stored and accumulate in float32. Elsewhere M is widened, a matrix at a time.
    """
    if matrix_OI.dtype == wide_IK.dtype:
        # Stacks occur in training steps only, where oneDNN may be used; files are read back with single layers.
        if matrix_OI.dim() == 3 and is_faster(wide_IK[0].mT, matrix_OI[0]):
            return stacked_product(wide_IK.mT, matrix_OI).mT
        return matrix_OI @ wide_IK
    if matrix_OI.is_cuda and wide_IK.dtype == torch.float32:
        return _product_in_pieces(matrix_OI, wide_IK)
    if matrix_OI.dim() == 2:
        return matrix_OI.to(wide_IK.dtype) @ wide_IK
    return torch.stack([wide_product(one, other) for one, other in zip(matrix_OI, wide_IK, strict=True)])


def _product_in_pieces(matrix_OI: Tensor, wide_IK: Tensor) -> Tensor:
    pieces, scales = pieces_of(wide_IK, matrix_OI.dtype)
    right = torch.cat(pieces, dim=-1)
    multiply = torch.mm if matrix_OI.dim() == 2 else torch.bmm
    # Tensor cores accumulate a piece's products in float32; the result must not be rounded to 16 bits.
    parts = multiply(matrix_OI, right, out_dtype=torch.float32).chunk(len(pieces), dim=-1)
    total = parts[-1] * scales[-1]
    for part, scale in zip(parts[-2::-1], scales[-2::-1], strict=True):
        total = total + part * scale
    return total


def power_of_two_scale(wide: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, float]:
    """Scale of each matrix, and of each next piece, that keeps pieces within the few powers of two of float16.

    Returns:
        (scale, step): a power of two (..., 1, 1) to divide each matrix by, None for one; and the next piece's scale
        over this one's.
    """
    if dtype != torch.float16:
        return None, 1.0
    largest = wide.abs().amax(dim=(-2, -1), keepdim=True)
    exponent = torch.frexp(torch.where(largest > 0, largest, 1.0)).exponent
    return torch.ldexp(torch.ones_like(largest), exponent), 2.0**-_HALF_BITS


def _gram_in_pieces(wide_KI: Tensor) -> Tensor:
    """F F^T from bfloat16 pieces on tensor cores: a float32 product of few, long rows is slow."""
    count, rows = wide_KI.shape[-2], torch.cat(pieces_of(wide_KI, torch.bfloat16)[0], dim=-2)
    multiply = torch.mm if rows.dim() == 2 else torch.bmm
    whole = multiply(rows, rows.mT, out_dtype=torch.float32)
    squared = whole.unflatten(-1, (NUM_PIECES, count)).unflatten(-3, (NUM_PIECES, count))
    return squared.sum(dim=(-4, -2))


def pieces_of(wide: Tensor, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor | float]]:
    """16-bit pieces of a float32 tensor and their scales: the sum of piece * scale is `wide`, to float32 rounding."""
    first, step = power_of_two_scale(wide, dtype)
    scale: Tensor | float = 1.0 if first is None else first
    wide = wide if first is None else wide / first
    pieces: list[Tensor] = []
    scales: list[Tensor | float] = []
    for _ in range(NUM_PIECES):
        piece = wide.to(dtype)
        pieces.append(piece)
        scales.append(scale)
        wide, scale = (wide - piece.float()) / step, scale * step
    return pieces, scales


def _weighted_squares(matrix_OI: Tensor, factor_I: Tensor) -> Tensor:
    """Sum over k of M_jk^2 F_k, (O,)."""
    if matrix_OI.is_cuda and factor_I.dtype == torch.float32 and kernels_enabled():
        from stages.adapters.ops.kernels import (
            weight_pass as kernels,  # deferred: Triton comes with CUDA builds of torch
        )

        sums_LO = kernels.weighted_squares(matrix_OI[None].flatten(0, -3), factor_I[None].flatten(0, -2))
        return sums_LO.view(matrix_OI.shape[:-1])
    if matrix_OI.dim() > 2:
        return torch.stack([_weighted_squares(one, other) for one, other in zip(matrix_OI, factor_I, strict=True)])
    return matrix_OI.to(factor_I.dtype).square() @ factor_I
