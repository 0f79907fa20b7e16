"""Norms of adapted weights on CUDA: what `_factored` and `_frozen` write in torch, in few kernels for a whole stack.

Operation by operation a step would launch thousands of small kernels for them; handed to torch's compiler they took
most of a minute before the first step. These are compiled in seconds and remembered on disk. Imported on CUDA only.

L layers of one shape, O out features, I in features, K rank, N parts of a sum. Sums are taken in a fixed order: parts
first, then the parts, by the kernel that needs the sum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

EPS = 1e-12
MOST_STRETCHES = 32
"""Into how many the rows of a thin factor are cut: as many small Grams are then to be added up."""


def tile_width(rank: int) -> int:
    """Columns of a tile that holds so many; 16 is the least a matrix unit takes."""
    return max(16, int(triton.next_power_of_2(rank)))


class Stretches(NamedTuple):
    """How the rows of a thin factor are dealt out."""

    number: int
    rows_each: int
    sizes: dict[str, int]
    """Of tiles. Wide ones have fewer rows, and none is loaded ahead, or they do not fit the registers."""

    @classmethod
    def of(cls, num_rows: int, rank: int) -> Stretches:
        width = tile_width(rank)
        rows = 1024 // width
        each = triton.cdiv(triton.cdiv(num_rows, rows), MOST_STRETCHES) * rows
        sizes = {"ROWS": rows, "WIDTH": width, "num_warps": 8, "num_stages": 1}
        return cls(triton.cdiv(num_rows, each), each, sizes)


@triton.jit
def _tile(pointer, stride_row, stride_column, rows, columns, num_rows, num_columns):
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    return tl.load(pointer + rows[:, None] * stride_row + columns[None, :] * stride_column, mask=inside, other=0.0)


@triton.jit
def _put(pointer, stride_row, stride_column, rows, columns, num_rows, num_columns, values):
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    tl.store(pointer + rows[:, None] * stride_row + columns[None, :] * stride_column, values, mask=inside)


@triton.jit
def _added(parts, stride_part, stride_row, stride_column, count, step, rows, columns, num_rows, num_columns):
    """Sum of parts, the last one first, each `step` of the one before; four are read at once."""
    total = tl.zeros((rows.shape[0], columns.shape[0]), dtype=tl.float32)
    blocks = tl.cdiv(count, 4)
    for block in range(blocks):
        for number in tl.static_range(4):
            part = (blocks - block) * 4 - 1 - number
            bound = tl.where(part < count, num_rows, 0)
            there = parts + part.to(tl.int64) * stride_part
            total = total * step + _tile(there, stride_row, stride_column, rows, columns, bound, num_columns)
    return total


@triton.jit
def _gram(parts, count, rank, WIDTH: tl.constexpr):
    """Sum of (K, K) parts, many read at once: one after the other each would wait for memory."""
    AT_ONCE: tl.constexpr = 4096 // (WIDTH * WIDTH)
    around, total = tl.arange(0, WIDTH), tl.zeros((WIDTH, WIDTH), dtype=tl.float32)
    places = (around[:, None] * rank + around[None, :])[None]
    inside = ((around[:, None] < rank) & (around[None, :] < rank))[None]
    for first in range(0, count, AT_ONCE):
        part = (first + tl.arange(0, AT_ONCE))[:, None, None]
        total += tl.sum(tl.load(parts + part * rank * rank + places, mask=inside & (part < count), other=0.0), axis=0)
    return total


@triton.jit
def _put_pieces(
    pieces, stride_row, stride_column, rows, columns, num_rows, num_columns, values, step, COUNT: tl.constexpr
):
    """Pieces in the dtype of where they go, side by side, whose sum the values are: see `_frozen.pieces_of`."""
    for number in tl.static_range(COUNT):
        piece = values.to(pieces.dtype.element_ty)
        place = pieces + number * num_columns * stride_column
        _put(place, stride_row, stride_column, rows, columns, num_rows, num_columns, piece)
        values = (values - piece.to(tl.float32)) / step


class Pieces(NamedTuple):
    """A factor F as products with a stored weight take it: the sum of piece n * step^n * largest."""

    values_LIJ: Tensor
    """So many pieces side by side, J columns."""
    number: int
    step: float
    largest_L: Tensor | None


class Parts(NamedTuple):
    """A product, still to be added up: the sum of part n * step^n * largest."""

    values_LNOK: Tensor
    step: float
    largest_L: Tensor | None


def room(like_LIK: Tensor, count: int, dtype: torch.dtype, *, by_rows: bool) -> Tensor:
    """(L, I, J) for so many pieces; memory holds row after row, or column after column."""
    layers, num_rows, columns = *like_LIK.shape[:2], count * like_LIK.shape[2]
    shape = (layers, num_rows, columns) if by_rows else (layers, columns, num_rows)
    made = torch.empty(shape, dtype=dtype, device=like_LIK.device)
    return made if by_rows else made.mT


@triton.jit(do_not_specialize=["parts", "square_parts", "gram_parts"])
def _scale_kernel(
    left, product, largest, gram, squares, length, whole_product, whole_gram, scale, norm,
    num_rows, rank, rows_each, eps, step, parts, square_parts, gram_parts,
    left_l, left_o, left_k, product_l, product_n, product_o, product_k, whole_l, whole_o, whole_k,
    HAS_LARGEST: tl.constexpr, IS_KNOWN: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    columns = tl.arange(0, WIDTH)
    gram_KK = _gram(gram + layer * gram_parts * rank * rank, gram_parts, rank, WIDTH)
    if part == 0:
        _put(whole_gram + layer * rank * rank, rank, 1, columns, columns, rank, rank, gram_KK)
    first = part * rows_each
    for start in range(first, tl.minimum(first + rows_each, num_rows), ROWS):
        rows = start + tl.arange(0, ROWS)
        inside, place = rows < num_rows, layer * num_rows + rows
        left_OK = _tile(left + layer * left_l, left_o, left_k, rows, columns, num_rows, rank)
        here = product + layer * product_l
        product_OK = _added(here, product_n, product_o, product_k, parts, step, rows, columns, num_rows, rank)
        if HAS_LARGEST:
            product_OK = product_OK * tl.load(largest + layer)
        if not IS_KNOWN:
            _put(whole_product + layer * whole_l, whole_o, whole_k, rows, columns, num_rows, rank, product_OK)
        here = squares + layer * square_parts * num_rows
        square = tl.sum(_added(here, num_rows, 1, 1, square_parts, 1.0, rows, tl.arange(0, 1), num_rows, 1), axis=1)
        square += 2.0 * tl.sum(left_OK * product_OK, axis=1)
        square += tl.sum(tl.dot(left_OK, gram_KK, input_precision="ieee") * left_OK, axis=1)
        found = tl.where(square > 0, tl.sqrt_rn(tl.where(square > 0, square, 1.0)), 0.0)
        wanted = tl.load(length + place, mask=inside, other=0.0)
        tl.store(scale + place, tl.div_rn(wanted, found + eps), mask=inside)
        tl.store(norm + place, found, mask=inside)


class Scale(NamedTuple):
    """length / (norm + eps) of every row, and what its gradient needs."""

    scale_LO: Tensor
    norm_LO: Tensor
    product_LOK: Tensor
    gram_LKK: Tensor


def row_scale(left_LOK: Tensor, product: Parts, gram_LNKK: Tensor, squares_LNO: Tensor, length_LO: Tensor) -> Scale:
    """See `_factored.Factored._row_scale`, whose twin this is. Vectors contiguous; one part is the product itself."""
    layers, num_rows, rank = left_LOK.shape
    over, values = Stretches.of(num_rows, rank), product.values_LNOK
    is_known = values.shape[1] == 1 and product.largest_L is None
    whole_LOK = values[:, 0] if is_known else room(left_LOK, 1, torch.float32, by_rows=values.stride(-1) == 1)
    gram_LKK = gram_LNKK.new_empty(layers, rank, rank)
    scale_LO, norm_LO = torch.empty_like(length_LO), torch.empty_like(length_LO)
    _scale_kernel[(over.number, layers)](
        left_LOK, values, product.largest_L, gram_LNKK, squares_LNO, length_LO, whole_LOK, gram_LKK, scale_LO, norm_LO,
        num_rows, rank, over.rows_each, EPS, product.step, values.shape[1], squares_LNO.shape[1], gram_LNKK.shape[1],
        *left_LOK.stride(), *values.stride(), *whole_LOK.stride(),
        HAS_LARGEST=product.largest_L is not None, IS_KNOWN=is_known, **over.sizes,
    )  # fmt: skip
    return Scale(scale_LO, norm_LO, whole_LOK, gram_LKK)


@triton.jit
def _scale_backward_kernel(
    d_scale, left, product, gram, scale, norm,
    d_left, d_product, d_gram, d_squares, d_length, num_rows, rank, rows_each, eps,
    left_l, left_o, left_k, product_l, product_o, product_k, pieces_l, pieces_o, pieces_k,
    HAS_LEFT: tl.constexpr, HAS_GRAM: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    layer, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    columns, d_gram_KK = tl.arange(0, WIDTH), tl.zeros((WIDTH, WIDTH), dtype=tl.float32)
    gram_KK = _tile(gram + layer * rank * rank, rank, 1, columns, columns, rank, rank)
    first = part * rows_each
    for start in range(first, tl.minimum(first + rows_each, num_rows), ROWS):
        rows = start + tl.arange(0, ROWS)
        inside, place = rows < num_rows, layer * num_rows + rows
        left_OK = _tile(left + layer * left_l, left_o, left_k, rows, columns, num_rows, rank)
        found = tl.load(norm + place, mask=inside, other=0.0)
        d_length_O = tl.div_rn(tl.load(d_scale + place, mask=inside, other=0.0), found + eps)
        d_norm = -d_length_O * tl.load(scale + place, mask=inside, other=0.0)
        d_square = tl.where(found > 0, tl.div_rn(d_norm, 2.0 * tl.where(found > 0, found, 1.0)), 0.0)
        times = (2.0 * d_square)[:, None]
        if HAS_LEFT:
            product_OK = _tile(product + layer * product_l, product_o, product_k, rows, columns, num_rows, rank)
            d_left_OK = times * (product_OK + tl.dot(left_OK, gram_KK, input_precision="ieee"))
            _put(d_left + layer * left_l, left_o, left_k, rows, columns, num_rows, rank, d_left_OK)
        there = d_product + layer * pieces_l
        _put_pieces(there, pieces_o, pieces_k, rows, columns, num_rows, rank, times * left_OK, 1.0, PIECES)
        if HAS_GRAM:
            d_gram_KK += tl.dot(tl.trans(d_square[:, None] * left_OK), left_OK, input_precision="ieee")
        tl.store(d_squares + place, d_square, mask=inside)
        tl.store(d_length + place, d_length_O, mask=inside)
    if HAS_GRAM:
        there = d_gram + (layer * tl.num_programs(0) + part) * rank * rank
        _put(there, rank, 1, columns, columns, rank, rank, d_gram_KK)


class ScaleGradients(NamedTuple):
    """What a gradient of the scale gives; None where not asked for."""

    d_left_LOK: Tensor | None
    d_gram_LNKK: Tensor | None
    """Parts."""
    d_squares_LO: Tensor
    d_length_LO: Tensor


def row_scale_backward(
    d_scale_LO: Tensor, left_LOK: Tensor, found: Scale, d_product: Pieces | None, *, has_left: bool, has_gram: bool
) -> ScaleGradients:
    """Gradients of what the scale came from; that of the product as pieces, which are filled."""
    layers, num_rows, rank = left_LOK.shape
    over = Stretches.of(num_rows, rank)
    d_left_LOK = torch.empty_like(left_LOK) if has_left else None
    assert d_left_LOK is None or d_left_LOK.stride() == left_LOK.stride(), "a factor is a matrix or a transposed one"
    d_gram_LNKK = left_LOK.new_empty(layers, over.number, rank, rank) if has_gram else None
    d_squares_LO, d_length_LO = torch.empty_like(found.scale_LO), torch.empty_like(found.scale_LO)
    count, into = (0, left_LOK) if d_product is None else (d_product.number, d_product.values_LIJ)
    _scale_backward_kernel[(over.number, layers)](
        d_scale_LO, left_LOK, found.product_LOK, found.gram_LKK, found.scale_LO, found.norm_LO,
        d_left_LOK, into, d_gram_LNKK, d_squares_LO, d_length_LO, num_rows, rank, over.rows_each, EPS,
        *left_LOK.stride(), *found.product_LOK.stride(), *into.stride(),
        HAS_LEFT=has_left, HAS_GRAM=has_gram, PIECES=count, **over.sizes,
    )  # fmt: skip
    return ScaleGradients(d_left_LOK, d_gram_LNKK, d_squares_LO, d_length_LO)
