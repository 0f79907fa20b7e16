"""The algebra of adapted weights, without ever building one: W' = diag(p) W diag(q) + sum of L R.

Every kind, and every stack of kinds, stays in this form: a low-rank move adds a term, row lengths scale p and the L,
column lengths scale q and the R. Applying it costs the base product and two thin ones; the norms expand into products
with W that are at most rank wide:

    row j:  n_j^2 = p_j^2 sum_k W_jk^2 q_k^2  +  2 p_j L_j . (W diag(q) R^T)_j  +  L_j (R R^T) L_j^T

and a column is a row of the transpose. All of it in the dtype of the adapter's parameters (float32), whatever W's is.

Letters: O out features, I in features, R rank (of one term, or of all together). Every tensor may carry the same
leading dimensions: the matrices of many layers of one shape, taken at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.adapters.ops.frozen_matmul import (
    WIDEST,
    frozen_product,
    gram,
    row_quadratics,
    uses_kernels,
    weighted_squares,
)
from stages.adapters.ops.row_scale import row_scale

EPS = 1e-12
"""Added to a norm before dividing by it."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """A low-rank product diag(p) L R diag(q), with its products with W where those are known without a pass over W."""

    left_OR: Tensor
    right_RI: Tensor
    weight_right_OR: Tensor | None = None
    """W R^T."""
    left_weight_RI: Tensor | None = None
    """L^T W."""
    p_O: Tensor | None = None
    q_I: Tensor | None = None
    """Ones if None, and always where no kernels multiply with them as they read: there L and R have them in them."""

    def left(self) -> Tensor:
        """diag(p) L."""
        return rows_scaled(self.left_OR, self.p_O)

    def right(self) -> Tensor:
        """R diag(q)."""
        return columns_scaled(self.right_RI, self.q_I)

    def with_rows_scaled(self, scale_O: Tensor) -> Term:
        """diag(scale) times this."""
        if self.p_O is None and fits_kernels(self.left_OR):
            return replace(self, p_O=scale_O, left_weight_RI=None)
        return replace(self, left_OR=rows_scaled(self.left(), scale_O), p_O=None, left_weight_RI=None)

    def transposed(self) -> Term:
        """The same, transposed; views only."""
        return Term(
            left_OR=self.right_RI.mT,
            right_RI=self.left_OR.mT,
            weight_right_OR=None if self.left_weight_RI is None else self.left_weight_RI.mT,
            left_weight_RI=None if self.weight_right_OR is None else self.weight_right_OR.mT,
            p_O=self.q_I,
            q_I=self.p_O,
        )


@dataclass(frozen=True, kw_only=True)
class Factored:
    """diag(p) W diag(q) + sum of L R; None for p or q is ones. The squares are of W alone, None where not needed."""

    weight_OI: Tensor
    row_squares_O: Tensor | None = None
    column_squares_I: Tensor | None = None
    p_O: Tensor | None = None
    q_I: Tensor | None = None
    terms: tuple[Term, ...] = ()

    def moved(self, term: Term) -> Factored:
        """This plus a low-rank term."""
        return replace(self, terms=(*self.terms, term))

    def with_row_lengths(self, length_O: Tensor) -> Factored:
        """This, every row scaled by length / (its norm + eps)."""
        scale_O = self._row_scale(length_O)
        terms = tuple(term.with_rows_scaled(scale_O) for term in self.terms)
        return replace(self, p_O=scaled(scale_O, self.p_O), terms=terms)

    def with_column_lengths(self, length_I: Tensor) -> Factored:
        """This, every column scaled by length / (its norm + eps)."""
        return self.transposed().with_row_lengths(length_I).transposed()

    def transposed(self) -> Factored:
        """The same matrix, transposed; views only."""
        return Factored(
            weight_OI=self.weight_OI.mT,
            row_squares_O=self.column_squares_I,
            column_squares_I=self.row_squares_O,
            p_O=self.q_I,
            q_I=self.p_O,
            terms=tuple(term.transposed() for term in self.terms),
        )

    def row_norms(self) -> Tensor:
        """(out,) 2-norms; 0 with gradient 0 where the square is 0 or, by cancellation, below."""
        squares_O = self._squares_of_scaled_weight()
        if self.terms:
            left_OR, weight_right_OR, gram_RR = self._products()
            cross_O = scaled((left_OR * weight_right_OR).sum(dim=-1), self.p_O)
            squares_O = squares_O + 2 * cross_O + row_quadratics(left_OR, gram_RR)
        return guarded_sqrt(squares_O)

    def _row_scale(self, length_O: Tensor) -> Tensor:
        """length / (norm + eps) of every row."""
        if not self._fits_kernels():
            return length_O / (self.row_norms() + EPS)
        (term,) = self.terms
        return row_scale(
            self.weight_OI,
            term.left_OR,
            term.right_RI,
            length_O,
            q_LI=self.q_I,
            squares_LO=self.row_squares_O,
            product_LOK=term.weight_right_OR if self.q_I is None else None,
        )

    def _fits_kernels(self) -> bool:
        """Whether it is (W + L R) diag(q) of a stack of layers that has kernels of its own."""
        if len(self.terms) != 1 or self.p_O is not None:
            return False
        (term,) = self.terms
        return term.p_O is None and term.q_I is self.q_I and fits_kernels(term.left_OR)

    def _products(self) -> tuple[Tensor, Tensor, Tensor]:
        """L, W diag(q) R^T and R R^T of all terms."""
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

    def _weight_times(self, term: Term) -> Tensor:
        """W diag(q) R^T."""
        if self.q_I is None and term.weight_right_OR is not None:
            return term.weight_right_OR
        return frozen_product(self.weight_OI, columns_scaled(term.right(), self.q_I))

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """All terms as one: L (out, rank) and R (rank, in)."""
        if len(self.terms) == 1:
            return self.terms[0].left(), self.terms[0].right()
        left_OR = torch.cat([term.left() for term in self.terms], dim=-1)
        return left_OR, torch.cat([term.right() for term in self.terms], dim=-2)

    def dense(self) -> Tensor:
        """W' itself (out, in), at least in float32: for merging only."""
        whole_OI = columns_scaled(self.weight_OI.to(wide_dtype(self.weight_OI)), self.q_I)
        whole_OI = whole_OI if self.p_O is None else whole_OI * self.p_O[..., None]
        for term in self.terms:
            whole_OI = whole_OI + term.left() @ term.right()
        return whole_OI


def fits_kernels(left_OR: Tensor) -> bool:
    """Whether a stack of layers on CUDA with this factor has kernels of its own."""
    fits = left_OR.dim() == 3 and left_OR.dtype == torch.float32 and left_OR.shape[-1] <= WIDEST
    return left_OR.is_cuda and fits and uses_kernels()


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
    """sqrt where positive, else 0; the gradient is 0 there too, where that of sqrt is infinite."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def wide_dtype(weight: Tensor) -> torch.dtype:
    """Of adapter parameters and norms beside this weight: float32, unless the weight itself is wider."""
    return torch.promote_types(weight.dtype, torch.float32)


def squares(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of W_jk^2 over each row (out,) and each column (in,), from W as it is stored, in its wide dtype."""
    dtype = wide_dtype(weight_OI)
    rows_O = torch.linalg.vector_norm(weight_OI, dim=-1, dtype=dtype).square()
    columns_I = torch.linalg.vector_norm(weight_OI, dim=-2, dtype=dtype).square()
    return rows_O, columns_I
