"""The algebra of adapted weights without building them: W' = diag(p) W diag(q) + sum of L R.

Every kind, and every sequence of adapters on one layer, stays in this form: a low-rank update adds a term, row
magnitudes scale p and the L, column magnitudes scale q and the R. Applying it costs the base product and two thin ones;
the norms expand into products with W that are at most rank wide:

    row j:  n_j^2 = p_j^2 sum_k W_jk^2 q_k^2  +  2 p_j L_j . (W diag(q) R^T)_j  +  L_j (R R^T) L_j^T

and a column is a row of the transpose. All of it in the dtype of the adapter's parameters (float32), whatever W's is.

Letters: O output features, I input features, R rank (of one term, or of all concatenated). Every tensor may have the
same leading dimensions: the matrices of several layers of one shape, computed as a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.adapters.ops.frozen_matmul import (
    MAX_KERNEL_RANK,
    frozen_product,
    gram,
    kernels_enabled,
    row_quadratics,
    weighted_squares,
)
from stages.adapters.ops.row_scale import EPS, row_scale


@dataclass(frozen=True, kw_only=True)
class LowRankTerm:
    """A low-rank product diag(p) L R diag(q), and its products with W where those are known without a pass over W."""

    left_OR: Tensor
    right_RI: Tensor
    weight_right_OR: Tensor | None = None
    """W R^T."""
    left_weight_RI: Tensor | None = None
    """L^T W."""
    p_O: Tensor | None = None
    q_I: Tensor | None = None
    """None stands for ones. Kept apart for CUDA kernels only, which multiply as they read; else folded into L and R."""

    def left(self) -> Tensor:
        """diag(p) L."""
        return rows_scaled(self.left_OR, self.p_O)

    def right(self) -> Tensor:
        """R diag(q)."""
        return columns_scaled(self.right_RI, self.q_I)

    def with_rows_scaled(self, scale_O: Tensor) -> LowRankTerm:
        """diag(scale) times this term."""
        if self.p_O is None and fits_kernels(self.left_OR):
            return replace(self, p_O=scale_O, left_weight_RI=None)
        return replace(self, left_OR=rows_scaled(self.left(), scale_O), p_O=None, left_weight_RI=None)

    def transposed(self) -> LowRankTerm:
        """The transposed term; views only."""
        return LowRankTerm(
            left_OR=self.right_RI.mT,
            right_RI=self.left_OR.mT,
            weight_right_OR=None if self.left_weight_RI is None else self.left_weight_RI.mT,
            left_weight_RI=None if self.weight_right_OR is None else self.weight_right_OR.mT,
            p_O=self.q_I,
            q_I=self.p_O,
        )


@dataclass(frozen=True, kw_only=True)
class FactoredWeight:
    """diag(p) W diag(q) + sum of L R; None for p or q stands for ones.

    The squared norms are those of W itself, None where not needed.
    """

    weight_OI: Tensor
    row_squares_O: Tensor | None = None
    column_squares_I: Tensor | None = None
    p_O: Tensor | None = None
    q_I: Tensor | None = None
    terms: tuple[LowRankTerm, ...] = ()

    def plus(self, term: LowRankTerm) -> FactoredWeight:
        """This weight with one more low-rank term."""
        return replace(self, terms=(*self.terms, term))

    def with_row_magnitudes(self, magnitude_O: Tensor) -> FactoredWeight:
        """This weight with every row scaled by magnitude / (its norm + eps)."""
        scale_O = self._row_scale(magnitude_O)
        terms = tuple(term.with_rows_scaled(scale_O) for term in self.terms)
        return replace(self, p_O=scaled(scale_O, self.p_O), terms=terms)

    def with_column_magnitudes(self, magnitude_I: Tensor) -> FactoredWeight:
        """This weight with every column scaled by magnitude / (its norm + eps)."""
        return self.transposed().with_row_magnitudes(magnitude_I).transposed()

    def transposed(self) -> FactoredWeight:
        """The transposed weight; views only."""
        return FactoredWeight(
            weight_OI=self.weight_OI.mT,
            row_squares_O=self.column_squares_I,
            column_squares_I=self.row_squares_O,
            p_O=self.q_I,
            q_I=self.p_O,
            terms=tuple(term.transposed() for term in self.terms),
        )

    def row_norms(self) -> Tensor:
        """2-norms of the rows (O,); 0 with gradient 0 where the square is 0 or, by cancellation, negative."""
        squares_O = self._squares_of_scaled_weight()
        if self.terms:
            left_OR, weight_right_OR, gram_RR = self._products()
            cross_O = scaled((left_OR * weight_right_OR).sum(dim=-1), self.p_O)
            squares_O = squares_O + 2 * cross_O + row_quadratics(left_OR, gram_RR)
        return guarded_sqrt(squares_O)

    def _row_scale(self, magnitude_O: Tensor) -> Tensor:
        """magnitude / (norm + eps) of every row, (O,)."""
        if not self._fits_kernels():
            return magnitude_O / (self.row_norms() + EPS)
        (term,) = self.terms
        return row_scale(
            self.weight_OI,
            term.left_OR,
            term.right_RI,
            magnitude_O,
            q_LI=self.q_I,
            squares_LO=self.row_squares_O,
            product_LOR=term.weight_right_OR if self.q_I is None else None,
        )

    def _fits_kernels(self) -> bool:
        """Whether this is (W + L R) diag(q) of a stack of layers whose row scales a Triton kernel computes."""
        if len(self.terms) != 1 or self.p_O is not None:
            return False
        (term,) = self.terms
        return term.p_O is None and term.q_I is self.q_I and fits_kernels(term.left_OR)

    def _products(self) -> tuple[Tensor, Tensor, Tensor]:
        """L, W diag(q) R^T and R R^T of all terms concatenated."""
        left_OR, right_RI = self.low_rank()
        parts = [self._weight_times(term) for term in self.terms]
        return left_OR, parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1), gram(right_RI)

    def _squares_of_scaled_weight(self) -> Tensor:
        """Squared row norms of diag(p) W diag(q)."""
        if self.q_I is not None:
            squares_O = weighted_squares(self.weight_OI, self.q_I.square())
        else:
            assert self.row_squares_O is not None, "a slot with magnitudes keeps the squares of its weight"
            squares_O = self.row_squares_O
        return squares_O if self.p_O is None else self.p_O.square() * squares_O

    def _weight_times(self, term: LowRankTerm) -> Tensor:
        """W diag(q) R^T."""
        if self.q_I is None and term.weight_right_OR is not None:
            return term.weight_right_OR
        return frozen_product(self.weight_OI, columns_scaled(term.right(), self.q_I))

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """All terms concatenated into one: L (O, R) and R (R, I), scales folded in."""
        if len(self.terms) == 1:
            return self.terms[0].left(), self.terms[0].right()
        left_OR = torch.cat([term.left() for term in self.terms], dim=-1)
        return left_OR, torch.cat([term.right() for term in self.terms], dim=-2)

    def dense(self) -> Tensor:
        """W' itself (O, I), at least in float32: for merging only."""
        whole_OI = columns_scaled(self.weight_OI.to(wide_dtype(self.weight_OI)), self.q_I)
        whole_OI = whole_OI if self.p_O is None else whole_OI * self.p_O[..., None]
        for term in self.terms:
            whole_OI = whole_OI + term.left() @ term.right()
        return whole_OI


def fits_kernels(left_OR: Tensor) -> bool:
    """Whether the Triton kernels take a stack of layers with this left factor (L, O, R)."""
    fits = left_OR.dim() == 3 and left_OR.dtype == torch.float32 and left_OR.shape[-1] <= MAX_KERNEL_RANK
    return left_OR.is_cuda and fits and kernels_enabled()


def scaled(value: Tensor, scale: Tensor | None) -> Tensor:
    """`value * scale`; None stands for ones."""
    return value if scale is None else value * scale


def columns_scaled(matrix_OI: Tensor, scale_I: Tensor | None) -> Tensor:
    """M diag(scale); None stands for ones."""
    return matrix_OI if scale_I is None else matrix_OI * scale_I[..., None, :]


def rows_scaled(matrix_OR: Tensor, scale_O: Tensor | None) -> Tensor:
    """diag(scale) M; None stands for ones."""
    return matrix_OR if scale_O is None else matrix_OR * scale_O[..., None]


def guarded_sqrt(square: Tensor) -> Tensor:
    """sqrt where positive, else 0 with gradient 0, where the gradient of sqrt would be infinite."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def wide_dtype(weight: Tensor) -> torch.dtype:
    """Dtype of adapter parameters and norms for this weight: float32, unless the weight itself is wider."""
    return torch.promote_types(weight.dtype, torch.float32)


def squares(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of W_jk^2 over each row (O,) and each column (I,), in the wide dtype of W."""
    dtype = wide_dtype(weight_OI)
    rows_O = torch.linalg.vector_norm(weight_OI, dim=-1, dtype=dtype).square()
    columns_I = torch.linalg.vector_norm(weight_OI, dim=-2, dtype=dtype).square()
    return rows_O, columns_I
