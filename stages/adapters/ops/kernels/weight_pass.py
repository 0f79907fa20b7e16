"""Triton kernels that read a stack of weights once: M F and sums of M^2 f in one pass, or the sums alone.

A pass is bound by memory bandwidth, so computing both in one saves the other. Sums have a fixed order. Imported on CUDA
only.
Letters: L layers of one shape, O rows of M, I its columns, R columns of F, J rows of its pieces, Z parts of a sum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.adapters.ops.kernels.norms import _load_tile, _store_tile, tile_width

TILES = {"ROWS": 64, "COLUMNS": 64, "num_warps": 4, "num_stages": 4}
"""For either layout of M. They use at most 82 KB of a multiprocessor's shared memory, which smaller devices have."""
TARGET_PROGRAMS = 2048
"""Programs to aim for: some sixteen for each multiprocessor of a large device, so that enough loads are in flight and
the last programs do not run alone for long."""
MAX_PARTS = 8
MIN_TILES_PER_PART = 4
"""Fewest tiles per part: loads of one tile then overlap with the products of others."""
MAX_RANK = 32
"""Above it the sums of three pieces exceed the registers of a multiprocessor."""


@triton.jit
def _pass_kernel(
    matrix, pieces, factor, products, squares, num_rows, num_columns, rank, columns_each, step,
    matrix_l, matrix_o, matrix_i,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    rows, thin = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    first, offset = part * columns_each, rank * num_columns
    last = tl.minimum(first + columns_each, num_columns)
    here, there = matrix + layer * matrix_l, pieces + layer * 3 * offset
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    ahead = first + tl.arange(0, COLUMNS)
    weight = tl.load(factor + layer * num_columns + ahead, mask=ahead < last, other=0.0)
    for start in range(first, last, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        values = _load_tile(here, matrix_o, matrix_i, rows, columns, num_rows, num_columns)
        large = tl.dot(values, _load_tile(there, 1, num_columns, columns, thin, num_columns, rank))
        small = tl.dot(values, _load_tile(there + offset, 1, num_columns, columns, thin, num_columns, rank))
        least = tl.dot(values, _load_tile(there + 2 * offset, 1, num_columns, columns, thin, num_columns, rank))
        # Summed here, not by the accumulator of tl.dot, which would still read the tile while the next is loaded.
        total += (least * step + small) * step + large
        # Triton prefetches only operands of tl.dot by itself.
        ahead = columns + COLUMNS
        following = tl.load(factor + layer * num_columns + ahead, mask=ahead < last, other=0.0)
        sums += values.to(tl.float32) * values.to(tl.float32) * weight[None, :]
        weight = following
    place = layer * tl.num_programs(1) + part
    _store_tile(products + place * num_rows * rank, 1, num_rows, rows, thin, num_rows, rank, total)
    tl.store(squares + place * num_rows + rows, tl.sum(sums, axis=1), mask=rows < num_rows)


class ProductAndSquares(NamedTuple):
    """M F and sum over i of M_oi^2 f_i, both in Z parts of M's columns, to be summed by the reader."""

    products_LZOR: Tensor
    squares_LZO: Tensor


def num_parts(programs: int, num_tiles: int) -> int:
    """Number of parts to split sums into, for this many programs and tiles per sum."""
    parts = 1
    while parts < MAX_PARTS and 2 * parts * programs <= TARGET_PROGRAMS and num_tiles >= 2 * parts * MIN_TILES_PER_PART:
        parts *= 2
    return parts


def product_and_squares(matrix_LOI: Tensor, pieces_LJI: Tensor, factor_LI: Tensor, step: float) -> ProductAndSquares:
    """M F and sum over i of M_oi^2 f_i, in parts; M may be a transposed view.

    Args:
        pieces_LJI: three 16-bit pieces of F, one below the other, contiguous (J = 3 R).
        step: factor from a piece's scale to the next (`frozen_matmul.pieces_of`).
    """
    (layers, num_rows, num_columns), rank = matrix_LOI.shape, pieces_LJI.shape[1] // 3
    blocks, num_tiles = triton.cdiv(num_rows, TILES["ROWS"]), triton.cdiv(num_columns, TILES["COLUMNS"])
    each = triton.cdiv(num_tiles, num_parts(blocks * layers, num_tiles)) * TILES["COLUMNS"]
    parts = triton.cdiv(num_columns, each)
    products_LZRO = torch.empty(layers, parts, rank, num_rows, device=matrix_LOI.device)
    squares_LZO = torch.empty(layers, parts, num_rows, device=matrix_LOI.device)
    _pass_kernel[(blocks, parts, layers)](
        matrix_LOI, pieces_LJI, factor_LI, products_LZRO, squares_LZO, num_rows, num_columns, rank, each, step,
        *matrix_LOI.stride(), WIDTH=tile_width(rank), **TILES,
    )  # fmt: skip
    return ProductAndSquares(products_LZRO.mT, squares_LZO)


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
        values = _load_tile(matrix + layer * matrix_l, matrix_o, matrix_i, rows, columns, num_rows, num_columns)
        weight = tl.load(factor + layer * num_columns + columns, mask=columns < num_columns, other=0.0)
        sums += values.to(tl.float32) * values.to(tl.float32) * weight[None, :]
    place = parts + (layer * tl.num_programs(1) + part) * num_rows + rows
    tl.store(place, tl.sum(sums, axis=1), mask=rows < num_rows)


def weighted_squares(matrix_LOI: Tensor, factor_LI: Tensor) -> Tensor:
    """Sum over i of M_oi^2 F_i, (L, O), in one pass over the matrix, which may be a transposed view."""
    layers, num_rows, num_columns = matrix_LOI.shape
    along: Any = matrix_LOI.stride(-1) == 1
    rows, columns = (16, 256) if along else (128, 32)
    blocks = triton.cdiv(num_rows, rows)
    parts = max(1, min(TARGET_PROGRAMS // (blocks * layers), triton.cdiv(num_columns, columns)))
    each = triton.cdiv(triton.cdiv(num_columns, parts), columns) * columns
    parts = triton.cdiv(num_columns, each)
    sums_LZO = torch.empty(layers, parts, num_rows, device=matrix_LOI.device)
    _squares_kernel[(blocks, parts, layers)](
        matrix_LOI, factor_LI.contiguous(), sums_LZO, num_rows, num_columns, each, *matrix_LOI.stride(),
        ROWS=rows, COLUMNS=columns,
    )  # fmt: skip
    return sums_LZO.sum(1)
