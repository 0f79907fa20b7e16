"""The algebra of diag(p) W diag(q) + L R, compared with the dense matrix."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.adapters.factored_weight import FactoredWeight, LowRankTerm, squares
from stages.adapters.ops.frozen_matmul import frozen_product, weighted_squares

sizes = st.integers(1, 7)


@st.composite
def factored_weights(draw):
    """Any mixture of scales and terms, some terms with known products with W, others with scales of their own."""
    num_out, num_in = draw(sizes), draw(sizes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight_OI = values(num_out, num_in)
    rows_O, columns_I = squares(weight_OI)
    terms = []
    for _ in range(draw(st.integers(0, 3))):
        left_OR, right_RI = values(num_out, 2), values(2, num_in)
        known = draw(st.booleans())
        weight_right_OR = weight_OI @ right_RI.T if known else None
        terms.append(
            LowRankTerm(
                left_OR=left_OR,
                right_RI=right_RI,
                weight_right_OR=weight_right_OR,
                left_weight_RI=left_OR.T @ weight_OI if known else None,
                p_O=values(num_out) if not known and draw(st.booleans()) else None,
                q_I=values(num_in) if not known and draw(st.booleans()) else None,
            )
        )
    return FactoredWeight(
        weight_OI=weight_OI,
        row_squares_O=rows_O,
        column_squares_I=columns_I,
        p_O=values(num_out) if draw(st.booleans()) else None,
        q_I=values(num_in) if draw(st.booleans()) else None,
        terms=tuple(terms),
    )


@given(whole=factored_weights())
@settings(max_examples=120, deadline=None)
def test_row_norms_are_those_of_the_dense_matrix(whole):
    torch.testing.assert_close(whole.row_norms(), whole.dense().norm(dim=1), rtol=1e-6, atol=1e-6)


@given(whole=factored_weights())
@settings(max_examples=60, deadline=None)
def test_transposing_transposes_and_twice_restores(whole):
    torch.testing.assert_close(whole.transposed().dense(), whole.dense().T)
    torch.testing.assert_close(whole.transposed().transposed().dense(), whole.dense())


@given(whole=factored_weights(), seed=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_rescaled_rows_and_columns_have_the_magnitudes_as_norms(whole, seed):
    num_out, num_in = whole.weight_OI.shape
    generator = torch.Generator().manual_seed(seed)
    length_O = torch.rand(num_out, generator=generator, dtype=torch.float64) + 0.5
    length_I = torch.rand(num_in, generator=generator, dtype=torch.float64) + 0.5
    rows = whole.with_row_magnitudes(length_O)
    torch.testing.assert_close(rows.dense().norm(dim=1), length_O, rtol=1e-5, atol=1e-5)
    both = rows.with_column_magnitudes(length_I)
    torch.testing.assert_close(both.dense().norm(dim=0), length_I, rtol=1e-5, atol=1e-5)


def test_products_with_a_frozen_weight_have_the_gradients_of_the_plain_product():
    weight_OI = torch.randn(5, 4, dtype=torch.float64)
    factor_KI = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda factor: frozen_product(weight_OI, factor), factor_KI)
    assert torch.autograd.gradcheck(lambda factor: weighted_squares(weight_OI, factor[0]), factor_KI)


def test_a_16_bit_weight_is_multiplied_in_float32():
    weight_OI, factor_KI = torch.randn(6, 50).bfloat16(), torch.randn(2, 50)
    product = frozen_product(weight_OI, factor_KI)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), weight_OI.double() @ factor_KI.double().T, rtol=0, atol=1e-5)
