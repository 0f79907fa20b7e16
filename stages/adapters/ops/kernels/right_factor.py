"""Triton kernels for the right factor in norms: prepares it for its product with W, and computes its gradient.

See `ops.row_scale`. Imported on CUDA only.
Letters: L layers of one shape, I rows of the factor, R rank, J columns of its pieces, Z parts of a sum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.adapters.ops.kernels.norms import (
    PartialSums,
    Pieces,
    RowChunks,
    _load_tile,
    _store_pieces,
    _store_tile,
    _sum_grams,
    _sum_parts,
)


@triton.jit
def _prepared_kernel(
    factor, scale, largest, pieces, gram, squared, num_rows, rank, rows_each, step,
    factor_l, factor_i, factor_r, pieces_l, pieces_i, pieces_r,
    HAS_SCALE: tl.constexpr, HAS_LARGEST: tl.constexpr, HAS_GRAM: tl.constexpr, PIECES: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    columns, gram_RR = tl.arange(0, WIDTH), tl.zeros((WIDTH, WIDTH), dtype=tl.float32)
    first = part * rows_each
    for start in range(first, tl.minimum(first + rows_each, num_rows), ROWS):
        rows = start + tl.arange(0, ROWS)
        scaled = _load_tile(factor + layer * factor_l, factor_i, factor_r, rows, columns, num_rows, rank)
        whole = scaled
        if HAS_SCALE:
            scale_I = tl.load(scale + layer * num_rows + rows, mask=rows < num_rows, other=0.0)
            scaled = scaled * scale_I[:, None]
            whole = scaled * scale_I[:, None]
            tl.store(squared + layer * num_rows + rows, scale_I * scale_I, mask=rows < num_rows)
        if HAS_GRAM:
            gram_RR += tl.dot(tl.trans(scaled), scaled, input_precision="ieee")
        if HAS_LARGEST:
            whole = tl.div_rn(whole, tl.zeros_like(whole) + tl.load(largest + layer))
        there = pieces + layer * pieces_l
        _store_pieces(there, pieces_i, pieces_r, rows, columns, num_rows, rank, whole, step, PIECES)
    if HAS_GRAM:
        place = gram + (layer * tl.num_programs(0) + part) * rank * rank
        _store_tile(place, rank, 1, columns, columns, rank, rank, gram_RR)


class Prepared(NamedTuple):
    """What norms need of the right factor besides its pieces."""

    gram_LZRR: Tensor
    """Gram matrix of q F, in Z parts."""
    squared_LI: Tensor | None
    """q^2; None if q is None."""


def prepared(factor_LIR: Tensor, scale_LI: Tensor | None, pieces: Pieces | None) -> Prepared:
    """Gram matrix of q F and q^2 for a right factor F and its scale q; writes q^2 F into the pieces, if given."""
    layers, num_rows, rank = factor_LIR.shape
    gram_LZRR = factor_LIR.new_empty(layers, RowChunks.of(num_rows, rank).number, rank, rank)
    squared_LI = None if scale_LI is None else torch.empty_like(scale_LI)
    _prepare(factor_LIR, scale_LI, pieces, gram_LZRR, squared_LI)
    return Prepared(gram_LZRR, squared_LI)


def fill_pieces(factor_LIR: Tensor, pieces: Pieces) -> None:
    """Write F into the pieces."""
    _prepare(factor_LIR, None, pieces, None, None)


def _prepare(
    factor: Tensor, scale: Tensor | None, pieces: Pieces | None, gram: Tensor | None, squared: Tensor | None
) -> None:
    layers, num_rows, rank = factor.shape
    chunks = RowChunks.of(num_rows, rank)
    into, number, step, largest = (factor, 0, 1.0, None) if pieces is None else pieces
    _prepared_kernel[(chunks.number, layers)](
        factor, scale, largest, into, gram, squared, num_rows, rank, chunks.rows_each, step,
        *factor.stride(), *into.stride(), HAS_SCALE=scale is not None, HAS_LARGEST=largest is not None,
        HAS_GRAM=gram is not None, PIECES=number, **chunks.sizes,
    )  # fmt: skip


@triton.jit(do_not_specialize=["parts", "square_parts", "gram_parts"])
def _factor_gradients_kernel(
    product, largest, d_gram, factor, scale, squares, d_factor, d_scale,
    num_rows, rank, rows_each, step, parts, square_parts, gram_parts,
    product_l, product_z, product_i, product_r, factor_l, factor_i, factor_r,
    HAS_PRODUCT: tl.constexpr, HAS_LARGEST: tl.constexpr, HAS_SCALE: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    columns = tl.arange(0, WIDTH)
    gram_RR = _sum_grams(d_gram + layer * gram_parts * rank * rank, gram_parts, rank, WIDTH)
    both_RR = gram_RR + tl.trans(gram_RR)
    first = part * rows_each
    for start in range(first, tl.minimum(first + rows_each, num_rows), ROWS):
        rows = start + tl.arange(0, ROWS)
        inside, place = rows < num_rows, layer * num_rows + rows
        factor_IR = _load_tile(factor + layer * factor_l, factor_i, factor_r, rows, columns, num_rows, rank)
        through = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
        if HAS_PRODUCT:
            here = product + layer * product_l
            through = _sum_parts(here, product_z, product_i, product_r, parts, step, rows, columns, num_rows, rank)
            if HAS_LARGEST:
                through = through * tl.load(largest + layer)
        scaled = factor_IR
        if HAS_SCALE:
            scale_I = tl.load(scale + place, mask=inside, other=0.0)
            scaled = factor_IR * scale_I[:, None]
        around = tl.dot(scaled, both_RR, input_precision="ieee")
        d_factor_IR = through + around
        if HAS_SCALE:
            here = squares + layer * square_parts * num_rows
            square = _sum_parts(here, num_rows, 1, 1, square_parts, 1.0, rows, tl.arange(0, 1), num_rows, 1)
            d_scale_I = tl.sum(factor_IR * (2.0 * scale_I[:, None] * through + around), axis=1)
            tl.store(d_scale + place, d_scale_I + 2.0 * scale_I * tl.sum(square, axis=1), mask=inside)
            d_factor_IR = scale_I[:, None] * (scale_I[:, None] * through + around)
        _store_tile(d_factor + layer * factor_l, factor_i, factor_r, rows, columns, num_rows, rank, d_factor_IR)


def factor_gradients(
    through: PartialSums | None,
    d_gram_LZRR: Tensor,
    factor_LIR: Tensor,
    scale_LI: Tensor | None,
    squares_LZI: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of a right factor F, in its layout, and of its scale q: the backward of `prepared`.

    Args:
        through: gradient of q^2 F from its product with W; None: the product was known.
        squares_LZI: parts of the gradient of q^2 from the squares of W.
    """
    layers, num_rows, rank = factor_LIR.shape
    chunks = RowChunks.of(num_rows, rank)
    d_factor_LIR = torch.empty_like(factor_LIR)
    assert d_factor_LIR.stride() == factor_LIR.stride(), "a factor is a matrix or a transposed one"
    d_scale_LI = None if scale_LI is None else torch.empty_like(scale_LI)
    values, step, largest_L = (d_gram_LZRR, 1.0, None) if through is None else through
    _factor_gradients_kernel[(chunks.number, layers)](
        values, largest_L, d_gram_LZRR, factor_LIR, scale_LI, squares_LZI, d_factor_LIR, d_scale_LI,
        num_rows, rank, chunks.rows_each, step, values.shape[1], 0 if squares_LZI is None else squares_LZI.shape[1],
        d_gram_LZRR.shape[1], *values.stride(), *factor_LIR.stride(),
        HAS_PRODUCT=through is not None, HAS_LARGEST=largest_L is not None, HAS_SCALE=scale_LI is not None,
        **chunks.sizes,
    )  # fmt: skip
    return d_factor_LIR, d_scale_LI
