"""Products with a frozen weight that leave no wide copy of it behind: float32 results from 16-bit weights.

Autograd alone would widen W for the product and keep that copy, of every weight of the network, until the backward.
Letters: O out features, I in features, K rows of the other factor; any leading dimensions.
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
"""16-bit pieces of a float32 factor: 24 bits of mantissa in bfloat16, 33 in float16."""

ROWS_AT_ONCE = 256

WIDEST = 64
"""Largest rank that the kernels for stacks of layers take; beyond, the same is done in more launches."""

_HALF_BITS = 11
"""Mantissa of float16, the hidden bit included."""


@cache
def can_have_kernels() -> bool:
    """Whether Triton is there, in which the kernels are written; torch brings it along where it supports it."""
    return find_spec("triton") is not None


_KERNELS = {"wanted": False}
"""One for all threads: the backward pass runs in one of its own."""


def uses_kernels() -> bool:
    """Whether stacks of layers on CUDA are worked on by hand-written kernels, or by torch's own operations."""
    return _KERNELS["wanted"] and can_have_kernels()


@contextmanager
def kernels_used() -> Iterator[None]:
    """Within, they are. Backward passes belong inside as well."""
    before, _KERNELS["wanted"] = _KERNELS["wanted"], True
    try:
        yield
    finally:
        _KERNELS["wanted"] = before


def frozen_product(weight_OI: Tensor, factor_KI: Tensor) -> Tensor:
    """W F^T (O, K) in the dtype of F, accumulated in it; only F has a gradient."""
    product: Tensor = _FrozenProduct.apply(weight_OI, factor_KI)
    return product


def weighted_squares(weight_OI: Tensor, factor_I: Tensor) -> Tensor:
    """(O,): sum over k of W_jk^2 F_k, in the dtype of F; only F has a gradient."""
    sums: Tensor = _WeightedSquares.apply(weight_OI, factor_I)
    return sums


def gram(factor_KI: Tensor) -> Tensor:
    """F F^T (K, K) in the dtype of F."""
    product: Tensor = _Gram.apply(factor_KI)
    return product


def row_quadratics(left_OR: Tensor, gram_RR: Tensor) -> Tensor:
    """(O,): L_j G L_j^T for every row j of L, G symmetric."""
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
        return 2 * grads[0][..., None] * product_OR, tall_product(weighted_OR, left_OR)


def tall_times(tall_OR: Tensor, core_RR: Tensor) -> Tensor:
    """T C (O, R) of a frozen tall factor; only the core has a gradient, T^T dY in stretches."""
    product: Tensor = _TallTimes.apply(tall_OR, core_RR)
    return product


class _TallTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tall_OR: Tensor, core_RR: Tensor) -> Tensor:
        ctx.save_for_backward(tall_OR)
        return tall_OR @ core_RR

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (tall_OR,) = ctx.saved_tensors
        return None, tall_product(tall_OR, grads[0])


def tall_product(first_OR: Tensor, second_OR: Tensor) -> Tensor:
    """F^T S (R, R) of tall, narrow factors: in stretches of rows, lest one small corner of the device do it all."""
    if first_OR.is_cuda and first_OR.shape[-2] % ROWS_AT_ONCE == 0:
        stretches = (-1, ROWS_AT_ONCE)
        return (first_OR.unflatten(-2, stretches).mT @ second_OR.unflatten(-2, stretches)).sum(dim=-3)
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
        return _squares_times(weight_OI, factor_I)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (weight_OI,) = ctx.saved_tensors
        return None, _squares_times(weight_OI.mT, grads[0])


def wide_product(matrix_OI: Tensor, wide_IK: Tensor) -> Tensor:
    """M F (O, K) in the dtype of F, whose products with a 16-bit M are exact to that dtype's rounding.

    On CUDA the float32 factor is cut into 16-bit pieces whose sum it is: tensor cores read M as it is stored and add up
    in float32. Elsewhere M is widened, a matrix at a time.
    """
    if matrix_OI.dtype == wide_IK.dtype:
        # A stack is of a step, where `_on_cpu` may be used; a single layer's weight is what files are read back with.
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
    # The sum of a piece's products is float32 already inside the tensor core; it must not be rounded on the way out.
    parts = multiply(matrix_OI, right, out_dtype=torch.float32).chunk(len(pieces), dim=-1)
    total = parts[-1] * scales[-1]
    for part, scale in zip(parts[-2::-1], scales[-2::-1], strict=True):
        total = total + part * scale
    return total


def near_one(wide: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, float]:
    """float16 spans few powers of two: what brings each matrix near 1 first, and each remainder again."""
    if dtype != torch.float16:
        return None, 1.0
    largest = wide.abs().amax(dim=(-2, -1), keepdim=True)
    exponent = torch.frexp(torch.where(largest > 0, largest, 1.0)).exponent
    return torch.ldexp(torch.ones_like(largest), exponent), 2.0**-_HALF_BITS


def _gram_in_pieces(wide_KI: Tensor) -> Tensor:
    """Few rows and long ones are the worst shape for a float32 product; in pieces, tensor cores do it."""
    count, rows = wide_KI.shape[-2], torch.cat(pieces_of(wide_KI, torch.bfloat16)[0], dim=-2)
    multiply = torch.mm if rows.dim() == 2 else torch.bmm
    whole = multiply(rows, rows.mT, out_dtype=torch.float32)
    squared = whole.unflatten(-1, (NUM_PIECES, count)).unflatten(-3, (NUM_PIECES, count))
    return squared.sum(dim=(-4, -2))


def pieces_of(wide: Tensor, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor | float]]:
    """16-bit tensors and their scales: the sum of piece * scale is `wide`, to float32 rounding."""
    first, step = near_one(wide, dtype)
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


def _squares_times(matrix_OI: Tensor, factor_I: Tensor) -> Tensor:
    """(O,) sum over k of M_jk^2 F_k."""
    if matrix_OI.is_cuda and factor_I.dtype == torch.float32 and uses_kernels():
        from stages.adapters.ops.kernels import (
            weight_pass as kernels,  # deferred: Triton comes with CUDA builds of torch
        )

        sums_LO = kernels.weighted_squares(matrix_OI[None].flatten(0, -3), factor_I[None].flatten(0, -2))
        return sums_LO.view(matrix_OI.shape[:-1])
    if matrix_OI.dim() > 2:
        return torch.stack([_squares_times(one, other) for one, other in zip(matrix_OI, factor_I, strict=True)])
    return matrix_OI.to(factor_I.dtype).square() @ factor_I
