"""One pass over a stack of weights for what norms of adapted rows need: of 16-bit ones both M F and sums of M^2 f.

A pass takes as long as the weights take to come from memory, so one for both saves the other. L layers of one shape, O
rows of M, I its columns, K columns of F, N parts of a sum. Every sum is taken in a fixed order. Imported on CUDA only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.adapters.ops.kernels.norms import _put, _tile, tile_width

TILES = {"ROWS": 64, "COLUMNS": 64, "num_warps": 4, "num_stages": 4}
"""However M lies. They take 82 KB of a multiprocessor's memory at most, so that smaller devices have room, too."""
PROGRAMS = 2048
"""Pieces of work to come near to: some sixteen for each multiprocessor of a large device, so that enough of the matrix
is under way at once, and the last ones do not run alone for long."""
MOST_PARTS = 8
FEWEST_TILES = 4
"""Of a part, so that loads of one are under way while others are worked on."""
WIDEST = 32
"""Largest rank: the sums of three pieces fill the registers of a multiprocessor beyond."""


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
        values = _tile(here, matrix_o, matrix_i, rows, columns, num_rows, num_columns)
        large = tl.dot(values, _tile(there, 1, num_columns, columns, thin, num_columns, rank))
        small = tl.dot(values, _tile(there + offset, 1, num_columns, columns, thin, num_columns, rank))
        least = tl.dot(values, _tile(there + 2 * offset, 1, num_columns, columns, thin, num_columns, rank))
        # Added up here, not within the products: those would still read the tile while the next takes its place.
        total += (least * step + small) * step + large
        # Triton loads ahead by itself only what goes into products.
        ahead = columns + COLUMNS
        following = tl.load(factor + layer * num_columns + ahead, mask=ahead < last, other=0.0)
        sums += values.to(tl.float32) * values.to(tl.float32) * weight[None, :]
        weight = following
    place = layer * tl.num_programs(1) + part
    _put(products + place * num_rows * rank, 1, num_rows, rows, thin, num_rows, rank, total)
    tl.store(squares + place * num_rows + rows, tl.sum(sums, axis=1), mask=rows < num_rows)


class Passed(NamedTuple):
    """Sums over parts of M's columns, to be added up by who reads them."""

    products_LNOK: Tensor
    squares_LNO: Tensor


def num_parts(programs: int, num_tiles: int) -> int:
    """Into how many parts the sums of so many programs are cut."""
    parts = 1
    while parts < MOST_PARTS and 2 * parts * programs <= PROGRAMS and num_tiles >= 2 * parts * FEWEST_TILES:
        parts *= 2
    return parts


def passed(matrix_LOI: Tensor, pieces_LJI: Tensor, factor_LI: Tensor, step: float) -> Passed:
    """Parts of M F and of sum over i of M_oi^2 f_i; M may be a transposed view.

    Args:
        pieces_LJI: three 16-bit pieces of F, one below the other, contiguous (J = 3 K).
        step: of a piece to the next (`_frozen.pieces_of`).
    """
    (layers, num_rows, num_columns), rank = matrix_LOI.shape, pieces_LJI.shape[1] // 3
    blocks, num_tiles = triton.cdiv(num_rows, TILES["ROWS"]), triton.cdiv(num_columns, TILES["COLUMNS"])
    each = triton.cdiv(num_tiles, num_parts(blocks * layers, num_tiles)) * TILES["COLUMNS"]
    parts = triton.cdiv(num_columns, each)
    products_LNKO = torch.empty(layers, parts, rank, num_rows, device=matrix_LOI.device)
    squares_LNO = torch.empty(layers, parts, num_rows, device=matrix_LOI.device)
    _pass_kernel[(blocks, parts, layers)](
        matrix_LOI, pieces_LJI, factor_LI, products_LNKO, squares_LNO, num_rows, num_columns, rank, each, step,
        *matrix_LOI.stride(), WIDTH=tile_width(rank), **TILES,
    )  # fmt: skip
    return Passed(products_LNKO.mT, squares_LNO)


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
