"""Scales of the rows of a stack of adapted weights: one autograd operation, one pass over W each way.

What `_factored` writes in torch, with hand-written kernels: whatever is a sum is added up by the kernel that reads it,
and every gradient comes whole. L layers of one shape, O out features, I in features, K rank, N parts of a sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.adapters.ops.frozen_matmul import NUM_PIECES, near_one

if TYPE_CHECKING:  # Triton comes with CUDA builds of torch
    from stages.adapters.ops.kernels.norms import Parts, Pieces, ScaleGradients


def row_scale(
    weight_LOI: Tensor,
    left_LOK: Tensor,
    right_LKI: Tensor,
    length_LO: Tensor,
    *,
    q_LI: Tensor | None,
    squares_LO: Tensor | None,
    product_LOK: Tensor | None,
) -> Tensor:
    """length / (norm + eps) of every row of (W + L R) diag(q); None for q is ones.

    Args:
        squares_LO: of the rows of W; needed where q is ones.
        product_LOK: W R^T, where it is known and q is ones.
    """
    scale_LO: Tensor = _RowScale.apply(weight_LOI, left_LOK, right_LKI, length_LO, q_LI, squares_LO, product_LOK)
    return scale_LO


class _RowScale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        left: Tensor,
        right: Tensor,
        length: Tensor,
        q: Tensor | None,
        squares: Tensor | None,
        product: Tensor | None,
    ) -> Tensor:
        from stages.adapters.ops.kernels import norms  # deferred, as above
        from stages.adapters.ops.kernels import right_factor as rights

        q = None if q is None else q.contiguous()
        pieces = (
            None if product is not None else _room(right.mT, weight.dtype, q, *_near_one(right.mT, weight.dtype, q))
        )
        prepared = rights.prepared(right.mT, q, pieces)
        if pieces is not None:
            parts, sums_LNO = _passed(weight, pieces, prepared.squared_LI)
        else:
            assert product is not None, "or there would be pieces"
            parts, sums_LNO = norms.Parts(product[:, None], 1.0, None), None
        if sums_LNO is None:
            assert q is None and squares is not None, "a slot with magnitudes keeps the squares of its weight"
            sums_LNO = squares.contiguous()[:, None]
        found = norms.row_scale(left, parts, prepared.gram_LNKK, sums_LNO, length.contiguous())
        ctx.is_known = product is not None
        ctx.save_for_backward(weight, left, right, q, *found)
        return found.scale_LO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from stages.adapters.ops.kernels import norms  # deferred, as above

        weight, left, right, q, *rest = ctx.saved_tensors
        found, passes_back = norms.Scale(*rest), not ctx.is_known
        _, has_left, has_right, _, has_q, _, has_product = ctx.needs_input_grad
        has_right = has_right or has_q
        d_product = None
        if has_product or (has_right and passes_back):
            # float16 pieces are cut once it is known how large the gradient is.
            narrow = passes_back and weight.dtype != torch.float16
            d_product = _room(found.product_LOK, weight.dtype if narrow else torch.float32, q)
        made = norms.row_scale_backward(
            grads[0].contiguous(), left, found, d_product, has_left=has_left, has_gram=has_right
        )
        d_right, d_q = _right_gradient(weight, right, q, d_product if passes_back else None, made)
        d_known = d_product.values_LIJ if has_product and d_product is not None else None
        return None, made.d_left_LOK, d_right, made.d_length_LO, d_q, None, d_known


def _right_gradient(
    weight: Tensor, right: Tensor, q: Tensor | None, d_product: Pieces | None, made: ScaleGradients
) -> tuple[Tensor | None, Tensor | None]:
    """Of the right factor and of q; None of what is not trained."""
    from stages.adapters.ops.kernels import right_factor as rights  # deferred, as above

    if made.d_gram_LNKK is None:
        return None, None
    parts, sums_LNI = None, None
    if d_product is not None:
        d_squares_LO = None if q is None else made.d_squares_LO
        parts, sums_LNI = _passed(weight.mT, _cut(d_product, weight.dtype, q), d_squares_LO)
    d_factor, d_q = rights.gathered(parts, made.d_gram_LNKK, right.mT, q, sums_LNI)
    return d_factor.mT, d_q


def _near_one(factor_LIK: Tensor, dtype: torch.dtype, q_LI: Tensor | None) -> tuple[Tensor | None, float]:
    """Of q^2 F, which is looked at for float16 only."""
    if q_LI is not None and dtype == torch.float16:
        factor_LIK = factor_LIK * q_LI.square()[..., None]
    return near_one(factor_LIK, dtype)


def _room(
    factor_LIK: Tensor, dtype: torch.dtype, q_LI: Tensor | None, largest_L: Tensor | None = None, step: float = 1.0
) -> Pieces:
    """For pieces of a factor, to be filled."""
    from stages.adapters.ops.kernels import norms  # deferred, as above

    number = NUM_PIECES if dtype.itemsize == 2 else 1
    by_rows = number == 1 and q_LI is None and factor_LIK.stride(-1) == 1  # a pass wants pieces by columns
    return norms.Pieces(norms.room(factor_LIK, number, dtype, by_rows=by_rows), number, step, largest_L)


def _cut(whole: Pieces, dtype: torch.dtype, q_LI: Tensor | None) -> Pieces:
    """Pieces in this dtype, of those that are the factor itself if they are in another."""
    from stages.adapters.ops.kernels import right_factor as rights  # deferred, as above

    if whole.values_LIJ.dtype == dtype:
        return whole
    pieces = _room(whole.values_LIJ, dtype, q_LI, *near_one(whole.values_LIJ, dtype))
    rights.cut(whole.values_LIJ, pieces)
    return pieces


def _passed(matrix_LOI: Tensor, pieces: Pieces, squared_LI: Tensor | None) -> tuple[Parts, Tensor | None]:
    """Parts of M F, and of sum over i of M_oi^2 f_i if that f is given; M may be a transposed view."""
    from stages.adapters.ops.kernels import norms  # deferred, as above
    from stages.adapters.ops.kernels import weight_pass as passes

    rank = pieces.values_LIJ.shape[-1] // pieces.number
    if squared_LI is not None and matrix_LOI.itemsize == 2 and rank <= passes.WIDEST:
        found = passes.passed(matrix_LOI, pieces.values_LIJ.mT, squared_LI, pieces.step)
        return norms.Parts(found.products_LNOK, 1.0, pieces.largest_L), found.squares_LNO
    product_LOJ = _product(matrix_LOI, pieces.values_LIJ)
    parts = norms.Parts(product_LOJ.unflatten(-1, (-1, rank)).movedim(-2, 1), pieces.step, pieces.largest_L)
    return parts, None if squared_LI is None else passes.weighted_squares(matrix_LOI, squared_LI)[:, None]


def _product(matrix_LOI: Tensor, factor_LIJ: Tensor) -> Tensor:
    """M F in float32; it lies as the matrix does: by rows, or, of a transpose, by columns."""
    # The sum of a piece's products is float32 already inside the tensor core; it must not be rounded on the way out.
    kept: dict[str, Any] = {"out_dtype": torch.float32} if matrix_LOI.itemsize == 2 else {}
    if matrix_LOI.stride(-1) == 1:
        return torch.bmm(matrix_LOI, factor_LIJ, **kept)
    return torch.bmm(factor_LIJ.mT, matrix_LOI.mT, **kept).mT
