"""The right factor of norms on CUDA, before its product with W and after the gradient's: see `_row_scale`.

L layers of one shape, I rows of the factor, K rank, J columns of its pieces, N parts of a sum. Imported on CUDA only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.adapters.ops.kernels.norms import Parts, Pieces, Stretches, _added, _gram, _put, _put_pieces, _tile


@triton.jit
def _prepared_kernel(
    factor, scale, largest, pieces, gram, squared, num_rows, rank, rows_each, step,
    factor_l, factor_i, factor_k, pieces_l, pieces_i, pieces_k,
    HAS_SCALE: tl.constexpr, HAS_LARGEST: tl.constexpr, HAS_GRAM: tl.constexpr, PIECES: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    columns, gram_KK = tl.arange(0, WIDTH), tl.zeros((WIDTH, WIDTH), dtype=tl.float32)
    first = part * rows_each
    for start in range(first, tl.minimum(first + rows_each, num_rows), ROWS):
        rows = start + tl.arange(0, ROWS)
        scaled = _tile(factor + layer * factor_l, factor_i, factor_k, rows, columns, num_rows, rank)
        whole = scaled
        if HAS_SCALE:
            scale_I = tl.load(scale + layer * num_rows + rows, mask=rows < num_rows, other=0.0)
            scaled = scaled * scale_I[:, None]
            whole = scaled * scale_I[:, None]
            tl.store(squared + layer * num_rows + rows, scale_I * scale_I, mask=rows < num_rows)
        if HAS_GRAM:
            gram_KK += tl.dot(tl.trans(scaled), scaled, input_precision="ieee")
        if HAS_LARGEST:
            whole = tl.div_rn(whole, tl.zeros_like(whole) + tl.load(largest + layer))
        there = pieces + layer * pieces_l
        _put_pieces(there, pieces_i, pieces_k, rows, columns, num_rows, rank, whole, step, PIECES)
    if HAS_GRAM:
        place = gram + (layer * tl.num_programs(0) + part) * rank * rank
        _put(place, rank, 1, columns, columns, rank, rank, gram_KK)


class Prepared(NamedTuple):
    """What norms need of the right factor besides its pieces."""

    gram_LNKK: Tensor
    """Parts of the Gram of q F."""
    squared_LI: Tensor | None
    """q^2; None as q is."""


def prepared(factor_LIK: Tensor, scale_LI: Tensor | None, pieces: Pieces | None) -> Prepared:
    """What is needed of a right factor F and its scale q before its product with W. Fills the pieces, of q^2 F."""
    layers, num_rows, rank = factor_LIK.shape
    gram_LNKK = factor_LIK.new_empty(layers, Stretches.of(num_rows, rank).number, rank, rank)
    squared_LI = None if scale_LI is None else torch.empty_like(scale_LI)
    _prepare(factor_LIK, scale_LI, pieces, gram_LNKK, squared_LI)
    return Prepared(gram_LNKK, squared_LI)


def cut(factor_LIK: Tensor, pieces: Pieces) -> None:
    """Fill the pieces, of F."""
    _prepare(factor_LIK, None, pieces, None, None)


def _prepare(
    factor: Tensor, scale: Tensor | None, pieces: Pieces | None, gram: Tensor | None, squared: Tensor | None
) -> None:
    layers, num_rows, rank = factor.shape
    over = Stretches.of(num_rows, rank)
    into, number, step, largest = (factor, 0, 1.0, None) if pieces is None else pieces
    _prepared_kernel[(over.number, layers)](
        factor, scale, largest, into, gram, squared, num_rows, rank, over.rows_each, step,
        *factor.stride(), *into.stride(), HAS_SCALE=scale is not None, HAS_LARGEST=largest is not None,
        HAS_GRAM=gram is not None, PIECES=number, **over.sizes,
    )  # fmt: skip


@triton.jit(do_not_specialize=["parts", "square_parts", "gram_parts"])
def _gathered_kernel(
    product, largest, d_gram, factor, scale, squares, d_factor, d_scale,
    num_rows, rank, rows_each, step, parts, square_parts, gram_parts,
    product_l, product_n, product_i, product_k, factor_l, factor_i, factor_k,
    HAS_PRODUCT: tl.constexpr, HAS_LARGEST: tl.constexpr, HAS_SCALE: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    columns = tl.arange(0, WIDTH)
    gram_KK = _gram(d_gram + layer * gram_parts * rank * rank, gram_parts, rank, WIDTH)
    both_KK = gram_KK + tl.trans(gram_KK)
    first = part * rows_each
    for start in range(first, tl.minimum(first + rows_each, num_rows), ROWS):
        rows = start + tl.arange(0, ROWS)
        inside, place = rows < num_rows, layer * num_rows + rows
        factor_IK = _tile(factor + layer * factor_l, factor_i, factor_k, rows, columns, num_rows, rank)
        through = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
        if HAS_PRODUCT:
            here = product + layer * product_l
            through = _added(here, product_n, product_i, product_k, parts, step, rows, columns, num_rows, rank)
            if HAS_LARGEST:
                through = through * tl.load(largest + layer)
        scaled = factor_IK
        if HAS_SCALE:
            scale_I = tl.load(scale + place, mask=inside, other=0.0)
            scaled = factor_IK * scale_I[:, None]
        around = tl.dot(scaled, both_KK, input_precision="ieee")
        d_factor_IK = through + around
        if HAS_SCALE:
            here = squares + layer * square_parts * num_rows
            square = _added(here, num_rows, 1, 1, square_parts, 1.0, rows, tl.arange(0, 1), num_rows, 1)
            d_scale_I = tl.sum(factor_IK * (2.0 * scale_I[:, None] * through + around), axis=1)
            tl.store(d_scale + place, d_scale_I + 2.0 * scale_I * tl.sum(square, axis=1), mask=inside)
            d_factor_IK = scale_I[:, None] * (scale_I[:, None] * through + around)
        _put(d_factor + layer * factor_l, factor_i, factor_k, rows, columns, num_rows, rank, d_factor_IK)


def gathered(
    through: Parts | None, d_gram_LNKK: Tensor, factor_LIK: Tensor, scale_LI: Tensor | None, squares_LNI: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of a right factor F, laid out as it is, and of its scale q: the way back through `prepared`.

    Args:
        through: gradient of q^2 F, from the product with W; None: that was known.
        squares_LNI: parts of the gradient of q^2 from the squares of W.
    """
    layers, num_rows, rank = factor_LIK.shape
    over = Stretches.of(num_rows, rank)
    d_factor_LIK = torch.empty_like(factor_LIK)
    assert d_factor_LIK.stride() == factor_LIK.stride(), "a factor is a matrix or a transposed one"
    d_scale_LI = None if scale_LI is None else torch.empty_like(scale_LI)
    values, step, largest_L = (d_gram_LNKK, 1.0, None) if through is None else through
    _gathered_kernel[(over.number, layers)](
        values, largest_L, d_gram_LNKK, factor_LIK, scale_LI, squares_LNI, d_factor_LIK, d_scale_LI,
        num_rows, rank, over.rows_each, step, values.shape[1], 0 if squares_LNI is None else squares_LNI.shape[1],
        d_gram_LNKK.shape[1], *values.stride(), *factor_LIK.stride(),
        HAS_PRODUCT=through is not None, HAS_LARGEST=largest_L is not None, HAS_SCALE=scale_LI is not None,
        **over.sizes,
    )  # fmt: skip
    return d_factor_LIK, d_scale_LI
