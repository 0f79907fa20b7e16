"""Norms of adapted weights on CUDA: what `_factored` and `_frozen` write in torch, in few kernels for a whole stack.

Operation by operation a step would launch thousands of small kernels for them; handed to torch's compiler they took
most of a minute before the first step. These are compiled in seconds and remembered on disk. Imported on CUDA only.

L layers of one shape, O out features, I in features, K rank or columns of a factor. Sums are taken in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

EPS = 1e-12
PROGRAMS = 2048
"""Pieces of work for a pass over a stack of matrices: some sixteen for each multiprocessor of a large device, so that
enough of the matrix is under way at once."""


def tile_width(rank: int) -> int:
    """Columns of a tile that holds so many; 16 is the least a matrix unit takes."""
    return max(16, int(triton.next_power_of_2(rank)))


@triton.jit
def _tile(pointer, stride_row, stride_column, rows, columns, num_rows, num_columns):
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    return tl.load(pointer + rows[:, None] * stride_row + columns[None, :] * stride_column, mask=inside, other=0.0)


@triton.jit
def _put(pointer, stride_row, stride_column, rows, columns, num_rows, num_columns, values):
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    tl.store(pointer + rows[:, None] * stride_row + columns[None, :] * stride_column, values, mask=inside)


@triton.jit
def _scale_kernel(
    left, product, gram, squares, before, length, scale, norm,
    num_rows, rank, eps,
    left_l, left_o, left_r, product_l, product_o, product_r,
    HAS_BEFORE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(1).to(tl.int64)
    rows, columns, around = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, WIDTH)
    left_OR = _tile(left + layer * left_l, left_o, left_r, rows, columns, num_rows, rank)
    product_OR = _tile(product + layer * product_l, product_o, product_r, rows, columns, num_rows, rank)
    gram_RR = _tile(gram + layer * rank * rank, rank, 1, around, columns, rank, rank)
    inside = rows < num_rows
    cross = 2.0 * tl.sum(left_OR * product_OR, axis=1)
    if HAS_BEFORE:
        cross = cross * tl.load(before + layer * num_rows + rows, mask=inside, other=0.0)
    quadratic = tl.sum(tl.dot(left_OR, gram_RR, input_precision="ieee") * left_OR, axis=1)
    square = tl.load(squares + layer * num_rows + rows, mask=inside, other=0.0) + cross + quadratic
    found = tl.where(square > 0, tl.sqrt_rn(tl.where(square > 0, square, 1.0)), 0.0)
    wanted = tl.load(length + layer * num_rows + rows, mask=inside, other=0.0)
    tl.store(scale + layer * num_rows + rows, tl.div_rn(wanted, found + eps), mask=inside)
    tl.store(norm + layer * num_rows + rows, found, mask=inside)


@triton.jit
def _scale_backward_kernel(
    d_scale, left, product, gram, before, scale, norm,
    d_left, d_product, d_gram, d_squares, d_before, d_length,
    num_rows, rank, eps,
    left_l, left_o, left_r, product_l, product_o, product_r,
    HAS_BEFORE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    rows, columns, around = block * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, WIDTH)
    left_OR = _tile(left + layer * left_l, left_o, left_r, rows, columns, num_rows, rank)
    product_OR = _tile(product + layer * product_l, product_o, product_r, rows, columns, num_rows, rank)
    gram_RR = _tile(gram + layer * rank * rank, rank, 1, around, columns, rank, rank)
    inside, place = rows < num_rows, layer * num_rows + rows
    found = tl.load(norm + place, mask=inside, other=0.0)
    d_length_O = tl.div_rn(tl.load(d_scale + place, mask=inside, other=0.0), found + eps)
    d_norm = -d_length_O * tl.load(scale + place, mask=inside, other=0.0)
    d_square = tl.where(found > 0, tl.div_rn(d_norm, 2.0 * tl.where(found > 0, found, 1.0)), 0.0)
    times = 2.0 * d_square
    if HAS_BEFORE:
        before_O = tl.load(before + place, mask=inside, other=0.0)
        tl.store(d_before + place, times * tl.sum(left_OR * product_OR, axis=1), mask=inside)
        times = times * before_O
    left_gram_OR = tl.dot(left_OR, gram_RR, input_precision="ieee")
    d_left_OR = times[:, None] * product_OR + (2.0 * d_square)[:, None] * left_gram_OR
    _put(d_left + layer * left_l, left_o, left_r, rows, columns, num_rows, rank, d_left_OR)
    d_product_OR = times[:, None] * left_OR
    _put(d_product + layer * product_l, product_o, product_r, rows, columns, num_rows, rank, d_product_OR)
    d_gram_RR = tl.dot(tl.trans(d_square[:, None] * left_OR), left_OR, input_precision="ieee")
    part = d_gram + (layer * tl.num_programs(0) + block) * rank * rank
    _put(part, rank, 1, around, columns, rank, rank, d_gram_RR)
    tl.store(d_squares + place, d_square, mask=inside)
    tl.store(d_length + place, d_length_O, mask=inside)


ROWS = 64


def row_scale(
    left_LOR: Tensor,
    product_LOR: Tensor,
    gram_LRR: Tensor,
    squares_LO: Tensor,
    before_LO: Tensor | None,
    length_LO: Tensor,
) -> tuple[Tensor, Tensor]:
    """Scale and norm of every row: see `_factored.row_scale`, whose twin this is. Vectors and gram contiguous."""
    layers, num_rows, rank = left_LOR.shape
    scale_LO, norm_LO = torch.empty_like(length_LO), torch.empty_like(length_LO)
    _scale_kernel[(triton.cdiv(num_rows, ROWS), layers)](
        left_LOR, product_LOR, gram_LRR, squares_LO, before_LO, length_LO, scale_LO, norm_LO,
        num_rows, rank, EPS, *left_LOR.stride(), *product_LOR.stride(),
        HAS_BEFORE=before_LO is not None, ROWS=ROWS, WIDTH=tile_width(rank),
    )  # fmt: skip
    return scale_LO, norm_LO


def row_scale_backward(
    d_scale_LO: Tensor,
    left_LOR: Tensor,
    product_LOR: Tensor,
    gram_LRR: Tensor,
    before_LO: Tensor | None,
    scale_LO: Tensor,
    norm_LO: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of left, product, gram, squares, before and length."""
    layers, num_rows, rank = left_LOR.shape
    # Wide tiles with fewer rows, or they do not fit the registers.
    rows = ROWS if rank <= 16 else ROWS // 2
    blocks = triton.cdiv(num_rows, rows)
    d_left_LOR, d_product_LOR = torch.empty_like(left_LOR), torch.empty_like(product_LOR)
    assert d_left_LOR.stride() == left_LOR.stride(), "a factor is a matrix or the transpose of one"
    assert d_product_LOR.stride() == product_LOR.stride(), "a product is a matrix or the transpose of one"
    d_gram_LNRR = left_LOR.new_empty(layers, blocks, rank, rank)
    d_squares_LO, d_length_LO = torch.empty_like(scale_LO), torch.empty_like(scale_LO)
    d_before_LO = None if before_LO is None else torch.empty_like(before_LO)
    _scale_backward_kernel[(blocks, layers)](
        d_scale_LO, left_LOR, product_LOR, gram_LRR, before_LO, scale_LO, norm_LO,
        d_left_LOR, d_product_LOR, d_gram_LNRR, d_squares_LO, d_before_LO, d_length_LO,
        num_rows, rank, EPS, *left_LOR.stride(), *product_LOR.stride(),
        HAS_BEFORE=before_LO is not None, ROWS=rows, WIDTH=tile_width(rank), num_warps=4 if rank <= 32 else 8,
    )  # fmt: skip
    return d_left_LOR, d_product_LOR, d_gram_LNRR.sum(1), d_squares_LO, d_before_LO, d_length_LO


@triton.jit
def _rows_scaled_kernel(
    given, scale, out, matrix, d_scale, num_rows, rank, given_l, given_o, given_r, out_l, out_o, out_r,
    matrix_l, matrix_o, matrix_r, BACKWARD: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(1).to(tl.int64)
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    given_OR = _tile(given + layer * given_l, given_o, given_r, rows, columns, num_rows, rank)
    scale_O = tl.load(scale + layer * num_rows + rows, mask=rows < num_rows, other=0.0)
    _put(out + layer * out_l, out_o, out_r, rows, columns, num_rows, rank, given_OR * scale_O[:, None])
    if BACKWARD:
        matrix_OR = _tile(matrix + layer * matrix_l, matrix_o, matrix_r, rows, columns, num_rows, rank)
        d_scale_O = tl.sum(given_OR * matrix_OR, axis=1)
        tl.store(d_scale + layer * num_rows + rows, d_scale_O, mask=rows < num_rows)


def rows_scaled(given_LOR: Tensor, scale_LO: Tensor) -> Tensor:
    """Every row times its scale, laid out as before."""
    return _rows_scaled(given_LOR, scale_LO, torch.empty_like(given_LOR), given_LOR, None)


def rows_scaled_backward(d_out_LOR: Tensor, matrix_LOR: Tensor, scale_LO: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the matrix, laid out as it is, and of the scale."""
    d_scale_LO = torch.empty_like(scale_LO)
    return _rows_scaled(d_out_LOR, scale_LO, torch.empty_like(matrix_LOR), matrix_LOR, d_scale_LO), d_scale_LO


def _rows_scaled(given: Tensor, scale: Tensor, out: Tensor, matrix: Tensor, d_scale: Tensor | None) -> Tensor:
    layers, num_rows, rank = given.shape
    _rows_scaled_kernel[(triton.cdiv(num_rows, ROWS), layers)](
        given, scale, out, matrix, d_scale, num_rows, rank, *given.stride(), *out.stride(), *matrix.stride(),
        BACKWARD=d_scale is not None, ROWS=ROWS, WIDTH=tile_width(rank),
    )  # fmt: skip
    return out


@triton.jit
def _cut_kernel(
    wide, scale, pieces, num_rows, columns_each, step,
    wide_l, wide_i, wide_k, pieces_l, pieces_i, pieces_k,
    HAS_SCALE: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(1).to(tl.int64)
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    left = _tile(wide + layer * wide_l, wide_i, wide_k, rows, columns, num_rows, columns_each)
    if HAS_SCALE:
        left = tl.div_rn(left, tl.zeros_like(left) + tl.load(scale + layer))
    for number in tl.static_range(PIECES):
        piece = left.to(pieces.dtype.element_ty)
        place = pieces + layer * pieces_l + number * columns_each * pieces_k
        _put(place, pieces_i, pieces_k, rows, columns, num_rows, columns_each, piece)
        left = (left - piece.to(tl.float32)) / step


def cut(wide_LIK: Tensor, dtype: torch.dtype, scale_L: Tensor | None, step: float, count: int) -> Tensor:
    """(L, I, count * K): 16-bit pieces side by side, laid out as the factor is; see `_frozen.pieces_of`."""
    layers, num_rows, columns = wide_LIK.shape
    if wide_LIK.stride(-1) == 1:
        pieces = torch.empty(layers, num_rows, count * columns, dtype=dtype, device=wide_LIK.device)
    else:
        pieces = torch.empty(layers, count * columns, num_rows, dtype=dtype, device=wide_LIK.device).mT
    _cut_kernel[(triton.cdiv(num_rows, ROWS), layers)](
        wide_LIK, scale_L, pieces, num_rows, columns, step, *wide_LIK.stride(), *pieces.stride(),
        HAS_SCALE=scale_L is not None, PIECES=count, ROWS=ROWS, WIDTH=tile_width(columns),
    )  # fmt: skip
    return pieces


@triton.jit
def _added_kernel(
    parts, scale, total, num_rows, columns_each, step,
    parts_l, parts_o, parts_k, total_l, total_o, total_k,
    HAS_SCALE: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(1).to(tl.int64)
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    added = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for number in tl.static_range(PIECES):
        place = parts + layer * parts_l + (PIECES - 1 - number) * columns_each * parts_k
        added = added * step + _tile(place, parts_o, parts_k, rows, columns, num_rows, columns_each)
    if HAS_SCALE:
        added = added * tl.load(scale + layer)
    _put(total + layer * total_l, total_o, total_k, rows, columns, num_rows, columns_each, added)


def added(parts_LOK: Tensor, scale_L: Tensor | None, step: float, count: int) -> Tensor:
    """(L, O, K) from products with the pieces, smallest first, laid out as they are."""
    layers, num_rows, columns = parts_LOK.shape[0], parts_LOK.shape[1], parts_LOK.shape[2] // count
    if parts_LOK.stride(-1) == 1:
        total = torch.empty(layers, num_rows, columns, device=parts_LOK.device)
    else:
        total = torch.empty(layers, columns, num_rows, device=parts_LOK.device).mT
    _added_kernel[(triton.cdiv(num_rows, ROWS), layers)](
        parts_LOK, scale_L, total, num_rows, columns, step, *parts_LOK.stride(), *total.stride(),
        HAS_SCALE=scale_L is not None, PIECES=count, ROWS=ROWS, WIDTH=tile_width(columns),
    )  # fmt: skip
    return total


@triton.jit
def _squares_kernel(
    matrix, factor, parts, num_rows, num_columns, columns_each, matrix_l, matrix_o, matrix_i,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    layer, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = part * columns_each
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(first, tl.minimum(first + columns_each, num_columns), COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        values = _tile(matrix + layer * matrix_l, matrix_o, matrix_i, rows, columns, num_rows, num_columns)
        weight = tl.load(factor + layer * num_columns + columns, mask=columns < num_columns, other=0.0)
        sums += values.to(tl.float32) * values.to(tl.float32) * weight[None, :]
    place = parts + (layer * tl.num_programs(1) + part) * num_rows + rows
    tl.store(place, tl.sum(sums, axis=1), mask=rows < num_rows)


def weighted_squares(matrix_LOI: Tensor, factor_LI: Tensor) -> Tensor:
    """(L, O): sum over i of M_oi^2 F_i, in one pass over the matrix, which may be a transposed view."""
    layers, num_rows, num_columns = matrix_LOI.shape
    along: Any = matrix_LOI.stride(-1) == 1
    rows, columns = (16, 256) if along else (128, 32)
    blocks = triton.cdiv(num_rows, rows)
    parts = max(1, min(PROGRAMS // (blocks * layers), triton.cdiv(num_columns, columns)))
    each = triton.cdiv(triton.cdiv(num_columns, parts), columns) * columns
    parts = triton.cdiv(num_columns, each)
    sums_LNO = torch.empty(layers, parts, num_rows, device=matrix_LOI.device)
    _squares_kernel[(blocks, parts, layers)](
        matrix_LOI, factor_LI.contiguous(), sums_LNO, num_rows, num_columns, each, *matrix_LOI.stride(),
        ROWS=rows, COLUMNS=columns,
    )  # fmt: skip
    return sums_LNO.sum(1)
