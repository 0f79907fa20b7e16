"""Triton kernels for norms of adapted weights: scales of all rows of a stack of layers, forward and backward.

They compute what `factored_weight` and `frozen_matmul` write in torch. With torch's operations a step would launch
thousands of small kernels for it; torch.compile took most of a minute before the first step. These compile in seconds
and are cached on disk. Imported on CUDA only.

Letters: L layers of one shape, O output features, I input features, R rank, Z parts of a sum. Sums have a fixed order:
within parts first, then over the parts, by the kernel that needs the sum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_CHUNKS = 32
"""Chunks of the rows of a thin factor, at most: that many small Gram matrices are then added up."""


def tile_width(rank: int) -> int:
    """Columns of a tile that holds a factor of this rank; 16 is the least a tensor core takes."""
    return max(16, int(triton.next_power_of_2(rank)))


class RowChunks(NamedTuple):
    """How the rows of a thin factor are divided among programs."""

    number: int
    rows_each: int
    sizes: dict[str, int]
    """Tile sizes and launch options. Wide tiles have fewer rows, without pipelining, or they exceed the registers."""

    @classmethod
    def of(cls, num_rows: int, rank: int) -> RowChunks:
        width = tile_width(rank)
        rows = 1024 // width
        each = triton.cdiv(triton.cdiv(num_rows, rows), MAX_CHUNKS) * rows
        sizes = {"ROWS": rows, "WIDTH": width, "num_warps": 8, "num_stages": 1}
        return cls(triton.cdiv(num_rows, each), each, sizes)


@triton.jit
def _load_tile(pointer, stride_row, stride_column, rows, columns, num_rows, num_columns):
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    return tl.load(pointer + rows[:, None] * stride_row + columns[None, :] * stride_column, mask=inside, other=0.0)


@triton.jit
def _store_tile(pointer, stride_row, stride_column, rows, columns, num_rows, num_columns, values):
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    tl.store(pointer + rows[:, None] * stride_row + columns[None, :] * stride_column, values, mask=inside)


@triton.jit
def _sum_parts(parts, stride_part, stride_row, stride_column, count, step, rows, columns, num_rows, num_columns):
    """Sum of part n * step^n, from the last part to the first; four are read at a time."""
    total = tl.zeros((rows.shape[0], columns.shape[0]), dtype=tl.float32)
    blocks = tl.cdiv(count, 4)
    for block in range(blocks):
        for number in tl.static_range(4):
            part = (blocks - block) * 4 - 1 - number
            bound = tl.where(part < count, num_rows, 0)
            there = parts + part.to(tl.int64) * stride_part
            total = total * step + _load_tile(there, stride_row, stride_column, rows, columns, bound, num_columns)
    return total


@triton.jit
def _sum_grams(parts, count, rank, WIDTH: tl.constexpr):
    """Sum of (R, R) parts, many read at a time, so that loads overlap."""
    PARTS_PER_LOAD: tl.constexpr = 4096 // (WIDTH * WIDTH)
    around, total = tl.arange(0, WIDTH), tl.zeros((WIDTH, WIDTH), dtype=tl.float32)
    places = (around[:, None] * rank + around[None, :])[None]
    inside = ((around[:, None] < rank) & (around[None, :] < rank))[None]
    for first in range(0, count, PARTS_PER_LOAD):
        part = (first + tl.arange(0, PARTS_PER_LOAD))[:, None, None]
        total += tl.sum(tl.load(parts + part * rank * rank + places, mask=inside & (part < count), other=0.0), axis=0)
    return total


@triton.jit
def _store_pieces(
    pieces, stride_row, stride_column, rows, columns, num_rows, num_columns, values, step, COUNT: tl.constexpr
):
    """Splits values into pieces of the pointer's dtype, side by side: see `frozen_matmul.pieces_of`."""
    for number in tl.static_range(COUNT):
        piece = values.to(pieces.dtype.element_ty)
        place = pieces + number * num_columns * stride_column
        _store_tile(place, stride_row, stride_column, rows, columns, num_rows, num_columns, piece)
        values = (values - piece.to(tl.float32)) / step


class Pieces(NamedTuple):
    """A factor F split for products with a 16-bit weight: the sum of piece n * step^n * largest."""

    values_LIJ: Tensor
    """The pieces side by side, J = number * R columns."""
    number: int
    step: float
    largest_L: Tensor | None


class PartialSums(NamedTuple):
    """A product in parts that are still to be summed: part n * step^n * largest."""

    values_LZOR: Tensor
    step: float
    largest_L: Tensor | None


def empty_pieces(like_LIR: Tensor, count: int, dtype: torch.dtype, *, by_rows: bool) -> Tensor:
    """Memory (L, I, J) for so many pieces of a factor (L, I, R), row-major or column-major."""
    layers, num_rows, columns = *like_LIR.shape[:2], count * like_LIR.shape[2]
    shape = (layers, num_rows, columns) if by_rows else (layers, columns, num_rows)
    made = torch.empty(shape, dtype=dtype, device=like_LIR.device)
    return made if by_rows else made.mT


@triton.jit(do_not_specialize=["parts", "square_parts", "gram_parts"])
def _scale_kernel(
    left, product, largest, gram, squares, magnitude, whole_product, whole_gram, scale, norm,
    num_rows, rank, rows_each, eps, step, parts, square_parts, gram_parts,
    left_l, left_o, left_r, product_l, product_z, product_o, product_r, whole_l, whole_o, whole_r,
    HAS_LARGEST: tl.constexpr, IS_KNOWN: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    columns = tl.arange(0, WIDTH)
    gram_RR = _sum_grams(gram + layer * gram_parts * rank * rank, gram_parts, rank, WIDTH)
    if part == 0:
        _store_tile(whole_gram + layer * rank * rank, rank, 1, columns, columns, rank, rank, gram_RR)
    first = part * rows_each
    for start in range(first, tl.minimum(first + rows_each, num_rows), ROWS):
        rows = start + tl.arange(0, ROWS)
        inside, place = rows < num_rows, layer * num_rows + rows
        left_OR = _load_tile(left + layer * left_l, left_o, left_r, rows, columns, num_rows, rank)
        here = product + layer * product_l
        product_OR = _sum_parts(here, product_z, product_o, product_r, parts, step, rows, columns, num_rows, rank)
        if HAS_LARGEST:
            product_OR = product_OR * tl.load(largest + layer)
        if not IS_KNOWN:
            _store_tile(whole_product + layer * whole_l, whole_o, whole_r, rows, columns, num_rows, rank, product_OR)
        here = squares + layer * square_parts * num_rows
        square = tl.sum(_sum_parts(here, num_rows, 1, 1, square_parts, 1.0, rows, tl.arange(0, 1), num_rows, 1), axis=1)
        square += 2.0 * tl.sum(left_OR * product_OR, axis=1)
        square += tl.sum(tl.dot(left_OR, gram_RR, input_precision="ieee") * left_OR, axis=1)
        found = tl.where(square > 0, tl.sqrt_rn(tl.where(square > 0, square, 1.0)), 0.0)
        wanted = tl.load(magnitude + place, mask=inside, other=0.0)
        tl.store(scale + place, tl.div_rn(wanted, found + eps), mask=inside)
        tl.store(norm + place, found, mask=inside)


class RowScales(NamedTuple):
    """magnitude / (norm + eps) of every row, and what its gradient needs."""

    scale_LO: Tensor
    norm_LO: Tensor
    product_LOR: Tensor
    gram_LRR: Tensor


def row_scale(
    left_LOR: Tensor, product: PartialSums, gram_LZRR: Tensor, squares_LZO: Tensor, magnitude_LO: Tensor, eps: float
) -> RowScales:
    """`FactoredWeight._row_scale` of a stack. Vectors must be contiguous; one part is the product itself."""
    layers, num_rows, rank = left_LOR.shape
    chunks, values = RowChunks.of(num_rows, rank), product.values_LZOR
    is_known = values.shape[1] == 1 and product.largest_L is None
    whole_LOR = values[:, 0] if is_known else empty_pieces(left_LOR, 1, torch.float32, by_rows=values.stride(-1) == 1)
    gram_LRR = gram_LZRR.new_empty(layers, rank, rank)
    scale_LO, norm_LO = torch.empty_like(magnitude_LO), torch.empty_like(magnitude_LO)
    _scale_kernel[(chunks.number, layers)](
        left_LOR, values, product.largest_L, gram_LZRR, squares_LZO, magnitude_LO, whole_LOR, gram_LRR,
        scale_LO, norm_LO, num_rows, rank, chunks.rows_each, eps, product.step,
        values.shape[1], squares_LZO.shape[1], gram_LZRR.shape[1],
        *left_LOR.stride(), *values.stride(), *whole_LOR.stride(),
        HAS_LARGEST=product.largest_L is not None, IS_KNOWN=is_known, **chunks.sizes,
    )  # fmt: skip
    return RowScales(scale_LO, norm_LO, whole_LOR, gram_LRR)


@triton.jit
def _scale_backward_kernel(
    d_scale, left, product, gram, scale, norm,
    d_left, d_product, d_gram, d_squares, d_magnitude, num_rows, rank, rows_each, eps,
    left_l, left_o, left_r, product_l, product_o, product_r, pieces_l, pieces_o, pieces_r,
    HAS_LEFT: tl.constexpr, HAS_GRAM: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    columns, d_gram_RR = tl.arange(0, WIDTH), tl.zeros((WIDTH, WIDTH), dtype=tl.float32)
    gram_RR = _load_tile(gram + layer * rank * rank, rank, 1, columns, columns, rank, rank)
    first = part * rows_each
    for start in range(first, tl.minimum(first + rows_each, num_rows), ROWS):
        rows = start + tl.arange(0, ROWS)
        inside, place = rows < num_rows, layer * num_rows + rows
        left_OR = _load_tile(left + layer * left_l, left_o, left_r, rows, columns, num_rows, rank)
        found = tl.load(norm + place, mask=inside, other=0.0)
        d_magnitude_O = tl.div_rn(tl.load(d_scale + place, mask=inside, other=0.0), found + eps)
        d_norm = -d_magnitude_O * tl.load(scale + place, mask=inside, other=0.0)
        d_square = tl.where(found > 0, tl.div_rn(d_norm, 2.0 * tl.where(found > 0, found, 1.0)), 0.0)
        times = (2.0 * d_square)[:, None]
        if HAS_LEFT:
            product_OR = _load_tile(product + layer * product_l, product_o, product_r, rows, columns, num_rows, rank)
            d_left_OR = times * (product_OR + tl.dot(left_OR, gram_RR, input_precision="ieee"))
            _store_tile(d_left + layer * left_l, left_o, left_r, rows, columns, num_rows, rank, d_left_OR)
        there = d_product + layer * pieces_l
        _store_pieces(there, pieces_o, pieces_r, rows, columns, num_rows, rank, times * left_OR, 1.0, PIECES)
        if HAS_GRAM:
            d_gram_RR += tl.dot(tl.trans(d_square[:, None] * left_OR), left_OR, input_precision="ieee")
        tl.store(d_squares + place, d_square, mask=inside)
        tl.store(d_magnitude + place, d_magnitude_O, mask=inside)
    if HAS_GRAM:
        there = d_gram + (layer * tl.num_programs(0) + part) * rank * rank
        _store_tile(there, rank, 1, columns, columns, rank, rank, d_gram_RR)


class ScaleGradients(NamedTuple):
    """Gradients of the inputs of `row_scale`; None where not needed."""

    d_left_LOR: Tensor | None
    d_gram_LZRR: Tensor | None
    """Gradient of the Gram matrix, in Z parts."""
    d_squares_LO: Tensor
    d_magnitude_LO: Tensor


def row_scale_backward(
    d_scale_LO: Tensor,
    left_LOR: Tensor,
    found: RowScales,
    d_product: Pieces | None,
    eps: float,
    *,
    has_left: bool,
    has_gram: bool,
) -> ScaleGradients:
    """Gradients of the inputs of `row_scale`; that of the product is written into `d_product`."""
    layers, num_rows, rank = left_LOR.shape
    chunks = RowChunks.of(num_rows, rank)
    d_left_LOR = torch.empty_like(left_LOR) if has_left else None
    assert d_left_LOR is None or d_left_LOR.stride() == left_LOR.stride(), "a factor is a matrix or a transposed one"
    d_gram_LZRR = left_LOR.new_empty(layers, chunks.number, rank, rank) if has_gram else None
    d_squares_LO, d_magnitude_LO = torch.empty_like(found.scale_LO), torch.empty_like(found.scale_LO)
    count, into = (0, left_LOR) if d_product is None else (d_product.number, d_product.values_LIJ)
    _scale_backward_kernel[(chunks.number, layers)](
        d_scale_LO, left_LOR, found.product_LOR, found.gram_LRR, found.scale_LO, found.norm_LO,
        d_left_LOR, into, d_gram_LZRR, d_squares_LO, d_magnitude_LO, num_rows, rank, chunks.rows_each, eps,
        *left_LOR.stride(), *found.product_LOR.stride(), *into.stride(),
        HAS_LEFT=has_left, HAS_GRAM=has_gram, PIECES=count, **chunks.sizes,
    )  # fmt: skip
    return ScaleGradients(d_left_LOR, d_gram_LZRR, d_squares_LO, d_magnitude_LO)
