"""Row scales of a stack of adapted weights as one autograd operation, with one pass over W each for forward, backward.

The CUDA counterpart of `FactoredWeight.with_row_magnitudes`, by hand-written kernels. Kernels leave sums in parts, and
the kernel that reads a sum adds them up.
Letters: L layers of one shape, O output features, I input features, R rank, Z parts of a sum, J columns of all pieces
of a factor (`norms.Pieces`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.adapters.ops.frozen_matmul import NUM_PIECES, power_of_two_scale

if TYPE_CHECKING:  # Triton comes with CUDA builds of torch
    from stages.adapters.ops.kernels.norms import PartialSums, Pieces, ScaleGradients

EPS = 1e-12
"""Added to a norm before dividing by it."""


def row_scale(
    weight_LOI: Tensor,
    left_LOR: Tensor,
    right_LRI: Tensor,
    magnitude_LO: Tensor,
    *,
    q_LI: Tensor | None,
    squares_LO: Tensor | None,
    product_LOR: Tensor | None,
) -> Tensor:
    """magnitude / (norm + eps) of every row of (W + L R) diag(q); None for q stands for ones.

    Args:
        squares_LO: squared norms of the rows of W; needed where q is None.
        product_LOR: W R^T, where it is known and q is None.

    Returns:
        (L, O), with gradients for all arguments but the weight and the squares.
    """
    scale_LO: Tensor = _RowScale.apply(weight_LOI, left_LOR, right_LRI, magnitude_LO, q_LI, squares_LO, product_LOR)
    return scale_LO


class _RowScale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        left: Tensor,
        right: Tensor,
        magnitude: Tensor,
        q: Tensor | None,
        squares: Tensor | None,
        product: Tensor | None,
    ) -> Tensor:
        from stages.adapters.ops.kernels import norms  # deferred, as above
        from stages.adapters.ops.kernels import right_factor as rights

        q = None if q is None else q.contiguous()
        pieces = (
            None
            if product is not None
            else _empty_pieces(right.mT, weight.dtype, q, *_pieces_scale(right.mT, weight.dtype, q))
        )
        prepared = rights.prepared(right.mT, q, pieces)
        if pieces is not None:
            parts, sums_LZO = _product_and_squares(weight, pieces, prepared.squared_LI)
        else:
            assert product is not None, "or there would be pieces"
            parts, sums_LZO = norms.PartialSums(product[:, None], 1.0, None), None
        if sums_LZO is None:
            assert q is None and squares is not None, "a slot with magnitudes keeps the squares of its weight"
            sums_LZO = squares.contiguous()[:, None]
        found = norms.row_scale(left, parts, prepared.gram_LZRR, sums_LZO, magnitude.contiguous(), EPS)
        ctx.is_known = product is not None
        ctx.save_for_backward(weight, left, right, q, *found)
        return found.scale_LO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from stages.adapters.ops.kernels import norms  # deferred, as above

        weight, left, right, q, *rest = ctx.saved_tensors
        found, passes_back = norms.RowScales(*rest), not ctx.is_known
        _, has_left, has_right, _, has_q, _, has_product = ctx.needs_input_grad
        has_right = has_right or has_q
        d_product = None
        if has_product or (has_right and passes_back):
            # float16 pieces need the gradient's largest value, so they are made in a second step.
            narrow = passes_back and weight.dtype != torch.float16
            d_product = _empty_pieces(found.product_LOR, weight.dtype if narrow else torch.float32, q)
        gradients = norms.row_scale_backward(
            grads[0].contiguous(), left, found, d_product, EPS, has_left=has_left, has_gram=has_right
        )
        d_right, d_q = _right_gradient(weight, right, q, d_product if passes_back else None, gradients)
        d_known = d_product.values_LIJ if has_product and d_product is not None else None
        return None, gradients.d_left_LOR, d_right, gradients.d_magnitude_LO, d_q, None, d_known


def _right_gradient(
    weight: Tensor, right: Tensor, q: Tensor | None, d_product: Pieces | None, gradients: ScaleGradients
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the right factor and of q; None if not trained."""
    from stages.adapters.ops.kernels import right_factor as rights  # deferred, as above

    if gradients.d_gram_LZRR is None:
        return None, None
    parts, sums_LZI = None, None
    if d_product is not None:
        d_squares_LO = None if q is None else gradients.d_squares_LO
        parts, sums_LZI = _product_and_squares(weight.mT, _in_pieces(d_product, weight.dtype, q), d_squares_LO)
    d_factor, d_q = rights.factor_gradients(parts, gradients.d_gram_LZRR, right.mT, q, sums_LZI)
    return d_factor.mT, d_q


def _pieces_scale(factor_LIR: Tensor, dtype: torch.dtype, q_LI: Tensor | None) -> tuple[Tensor | None, float]:
    """`power_of_two_scale` of q^2 F, which is computed for float16 only."""
    if q_LI is not None and dtype == torch.float16:
        factor_LIR = factor_LIR * q_LI.square()[..., None]
    return power_of_two_scale(factor_LIR, dtype)


def _empty_pieces(
    factor_LIR: Tensor, dtype: torch.dtype, q_LI: Tensor | None, largest_L: Tensor | None = None, step: float = 1.0
) -> Pieces:
    """Memory for the pieces of a factor."""
    from stages.adapters.ops.kernels import norms  # deferred, as above

    number = NUM_PIECES if dtype.itemsize == 2 else 1
    by_rows = number == 1 and q_LI is None and factor_LIR.stride(-1) == 1  # `weight_pass` reads pieces by columns
    return norms.Pieces(norms.empty_pieces(factor_LIR, number, dtype, by_rows=by_rows), number, step, largest_L)


def _in_pieces(whole: Pieces, dtype: torch.dtype, q_LI: Tensor | None) -> Pieces:
    """The pieces in this dtype: `whole` is the factor itself, in one piece, if it has another dtype."""
    from stages.adapters.ops.kernels import right_factor as rights  # deferred, as above

    if whole.values_LIJ.dtype == dtype:
        return whole
    pieces = _empty_pieces(whole.values_LIJ, dtype, q_LI, *power_of_two_scale(whole.values_LIJ, dtype))
    rights.fill_pieces(whole.values_LIJ, pieces)
    return pieces


def _product_and_squares(
    matrix_LOI: Tensor, pieces: Pieces, squared_LI: Tensor | None
) -> tuple[PartialSums, Tensor | None]:
    """Parts of M F, and of sum over i of M_oi^2 f_i if that f is given; M may be a transposed view."""
    from stages.adapters.ops.kernels import norms  # deferred, as above
    from stages.adapters.ops.kernels import weight_pass as passes

    rank = pieces.values_LIJ.shape[-1] // pieces.number
    if squared_LI is not None and matrix_LOI.itemsize == 2 and rank <= passes.MAX_RANK:
        found = passes.product_and_squares(matrix_LOI, pieces.values_LIJ.mT, squared_LI, pieces.step)
        return norms.PartialSums(found.products_LZOR, 1.0, pieces.largest_L), found.squares_LZO
    product_LOJ = _product(matrix_LOI, pieces.values_LIJ)
    parts = norms.PartialSums(product_LOJ.unflatten(-1, (-1, rank)).movedim(-2, 1), pieces.step, pieces.largest_L)
    return parts, None if squared_LI is None else passes.weighted_squares(matrix_LOI, squared_LI)[:, None]


def _product(matrix_LOI: Tensor, factor_LIJ: Tensor) -> Tensor:
    """M F (L, O, J) in float32, in the layout of the matrix: row-major, or column-major for a transpose."""
    # Tensor cores accumulate a piece's products in float32; the result must not be rounded to 16 bits.
    kept: dict[str, Any] = {"out_dtype": torch.float32} if matrix_LOI.itemsize == 2 else {}
    if matrix_LOI.stride(-1) == 1:
        return torch.bmm(matrix_LOI, factor_LIJ, **kept)
    return torch.bmm(factor_LIJ.mT, matrix_LOI.mT, **kept).mT
