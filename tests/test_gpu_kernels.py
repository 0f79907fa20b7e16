"""Hand-written Triton kernels compared with the same computation in torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.adapters.factored_weight import FactoredWeight, LowRankTerm, fits_kernels
from stages.adapters.layer import narrowed
from stages.adapters.ops import fused_linear
from stages.adapters.ops.frozen_matmul import (
    NUM_PIECES,
    enable_kernels,
    pieces_of,
    power_of_two_scale,
    weighted_squares,
)
from stages.adapters.ops.input_scale import scaled_inputs
from stages.models.nets.attention import heads
from stages.models.nets.attention.rotary import RotaryEmbedding

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def kernels():
    with enable_kernels():
        yield


CUDA = torch.device("cuda")
NARROW = [torch.bfloat16, torch.float16]
ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(CUDA, dtype)


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30))


def scales_of(whole: FactoredWeight, magnitude: Tensor, columns: bool) -> Tensor:
    scaled = whole.with_column_magnitudes(magnitude) if columns else whole.with_row_magnitudes(magnitude)
    scale = scaled.q_I if columns else scaled.p_O
    assert scale is not None
    return scale


@pytest.mark.parametrize("rank", [1, 4, 16, 33, 64])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_scales_and_their_gradients_are_those_of_float64(rank, columns, dtype):
    layers, num_out, num_in = 3, 90, 70
    weight = drawn(layers, num_out, num_in, dtype=dtype)
    left, right = 0.3 * drawn(layers, num_out, rank), drawn(layers, rank, num_in)
    length, d_scale = drawn(layers, num_in if columns else num_out).abs(), drawn(layers, num_in if columns else num_out)

    def scales(wide: torch.dtype) -> list[Tensor]:
        leaves = [one.to(wide).detach().requires_grad_() for one in (left, right, length)]
        matrix = weight if wide == torch.float32 else weight.double()
        squares = weight.to(wide).square()
        whole = FactoredWeight(weight_OI=matrix, row_squares_O=squares.sum(-1), column_squares_I=squares.sum(-2))
        whole = whole.plus(LowRankTerm(left_OR=leaves[0], right_RI=leaves[1]))
        assert fits_kernels(leaves[0]) == (wide == torch.float32)
        scale = scales_of(whole, leaves[2], columns)
        return [scale, *torch.autograd.grad(scale, leaves, d_scale.to(wide))]

    for found, wanted in zip(scales(torch.float32), scales(torch.float64), strict=True):
        assert apart(found, wanted) < 2e-6


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("rank", [1, 8, 16, 20, 64])
@pytest.mark.parametrize(("num_out", "num_in"), [(96, 80), (301, 1155)])
@pytest.mark.parametrize("columns_first", [False, True])
def test_scales_of_rows_then_columns_are_those_of_float64(dtype, rank, num_out, num_in, columns_first):
    layers = 2
    weight = drawn(layers, num_out, num_in, dtype=dtype)
    drawings = (0.3 * drawn(layers, num_out, rank), drawn(layers, rank, num_in))
    lengths_of = (drawn(layers, num_out).abs(), drawn(layers, num_in).abs())

    def scales(wide: torch.dtype) -> list[Tensor]:
        leaves = [one.to(wide).detach().requires_grad_() for one in (*drawings, *lengths_of)]
        squares = weight.to(wide).square()
        whole = FactoredWeight(
            weight_OI=weight if wide == torch.float32 else weight.double(),
            row_squares_O=squares.sum(-1),
            column_squares_I=squares.sum(-2),
        )
        whole = whole.plus(LowRankTerm(left_OR=leaves[0], right_RI=leaves[1]))
        if columns_first:
            whole = whole.with_column_magnitudes(leaves[3]).with_row_magnitudes(leaves[2])
        else:
            whole = whole.with_row_magnitudes(leaves[2]).with_column_magnitudes(leaves[3])
        assert whole.p_O is not None and whole.q_I is not None
        d_p, d_q = (drawn(*one.shape, seed=3).to(wide) for one in (whole.p_O, whole.q_I))
        return [whole.p_O, whole.q_I, *torch.autograd.grad([whole.p_O, whole.q_I], leaves, [d_p, d_q])]

    ours, again = scales(torch.float32), scales(torch.float32)
    for found, twice, wanted in zip(ours, again, scales(torch.float64), strict=True):
        assert apart(found, wanted) < 5e-6 and torch.equal(found, twice)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("rank", [1, 8, 16, 32])
@pytest.mark.parametrize(("layers", "num_rows", "num_columns"), [(3, 200, 333), (2, 1536, 1536), (1, 65, 4099)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_one_pass_gives_products_and_weighted_squares(dtype, rank, layers, num_rows, num_columns, is_transposed):
    from stages.adapters.ops.kernels import weight_pass as kernels

    shape = (layers, num_columns, num_rows) if is_transposed else (layers, num_rows, num_columns)
    matrix = drawn(*shape, dtype=dtype).mT if is_transposed else drawn(*shape, dtype=dtype)
    factor, weights = drawn(layers, num_columns, rank), drawn(layers, num_columns)
    pieces, scales = pieces_of(factor, dtype)
    below = torch.cat(pieces, dim=-1).mT.contiguous()
    step = power_of_two_scale(factor, dtype)[1]
    found, again = (kernels.product_and_squares(matrix, below, weights, step) for _ in range(2))
    assert apart(found.products_LZOR.sum(1) * scales[0], matrix.double() @ factor.double()) < 1e-6
    wanted = (matrix.double().square() @ weights.double()[..., None])[..., 0]
    assert apart(found.squares_LZO.sum(1), wanted) < 1e-6
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("trains_product", [False, True])
def test_a_known_product_is_not_recomputed_and_has_its_own_gradient(dtype, trains_product):
    weight, length = drawn(2, 90, 70, dtype=dtype), drawn(2, 90).abs()
    left, right = 0.3 * drawn(2, 90, 16), drawn(2, 16, 70)

    def scales(wide: torch.dtype) -> list[Tensor]:
        leaves = [one.to(wide).detach().requires_grad_() for one in (left, right, weight.double() @ right.mT.double())]
        leaves[1 if not trains_product else 0].requires_grad_(False)
        leaves[2].requires_grad_(trains_product)
        squares = weight.to(wide).square()
        whole = FactoredWeight(
            weight_OI=weight.to(weight if wide == torch.float32 else squares), row_squares_O=squares.sum(-1)
        )
        whole = whole.plus(LowRankTerm(left_OR=leaves[0], right_RI=leaves[1], weight_right_OR=leaves[2]))
        scale = scales_of(whole, length.to(wide), False)
        trained = [one for one in leaves if one.requires_grad]
        return [scale, *torch.autograd.grad(scale, trained, drawn(*scale.shape, seed=3).to(wide))]

    for found, wanted in zip(scales(torch.float32), scales(torch.float64), strict=True):
        assert apart(found, wanted) < 2e-6


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_factor_and_its_narrow_copy_share_a_gradient(dtype):
    factor, d_wide, d_narrow = drawn(2, 30, 8).requires_grad_(), drawn(2, 30, 8, seed=1), drawn(2, 30, 8, dtype=dtype)
    wide, narrow = narrowed(factor, dtype)
    assert torch.equal(wide, factor) and torch.equal(narrow, factor.to(dtype))
    for outs, d_outs in (([wide, narrow], [d_wide, d_narrow]), ([wide], [d_wide]), ([narrow], [d_narrow])):
        (found,) = torch.autograd.grad(outs, [factor], d_outs, retain_graph=True)
        assert found.dtype == torch.float32 and torch.equal(found, sum(one.float() for one in d_outs))


def test_a_row_of_zeros_keeps_scale_and_gradients_finite():
    weight = torch.zeros(1, 64, 32, device=CUDA, dtype=torch.bfloat16)
    left, right = torch.zeros(1, 64, 4, device=CUDA, requires_grad=True), drawn(1, 4, 32)
    squares = weight.float().square()
    whole = FactoredWeight(weight_OI=weight, row_squares_O=squares.sum(-1), column_squares_I=squares.sum(-2))
    scale = scales_of(whole.plus(LowRankTerm(left_OR=left, right_RI=right)), torch.zeros(1, 64, device=CUDA), False)
    (gradient,) = torch.autograd.grad(scale.sum(), [left])
    assert torch.equal(scale, torch.zeros_like(scale)) and torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("layers", [1, 5])
def test_weighted_squares_accept_either_layout(dtype, layers):
    weight = drawn(layers, 200, 333, dtype=dtype)
    for matrix in (weight, weight.mT):
        factor = drawn(layers, matrix.shape[-1]).abs().requires_grad_()
        found = weighted_squares(matrix, factor)
        wanted = (matrix.double().square() * factor[:, None].double()).sum(-1)
        d_out = drawn(*found.shape)
        (gradient,) = torch.autograd.grad(found, [factor], d_out)
        assert apart(found, wanted) < 1e-6
        assert apart(gradient, (matrix.double().square() * d_out[..., None].double()).sum(-2)) < 1e-6


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("columns", [5, 16, 48])
@pytest.mark.parametrize("by_rows", [False, True])
def test_pieces_made_by_the_kernel_are_those_of_torch(dtype, columns, by_rows):
    from stages.adapters.ops.kernels import norms
    from stages.adapters.ops.kernels import right_factor as kernels

    wide = 1e-3 * drawn(3, 77, columns)
    for one in (wide, wide.mT.contiguous().mT):
        largest, step = power_of_two_scale(one, dtype)
        into = norms.empty_pieces(one, NUM_PIECES, dtype, by_rows=by_rows)
        kernels.fill_pieces(one, norms.Pieces(into, NUM_PIECES, step, largest))
        assert torch.equal(into, torch.cat(pieces_of(one, dtype)[0], dim=-1))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("rank", [1, 16, 20, 64])
@pytest.mark.parametrize(("scaled", "biased"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(("layers", "tokens"), [(1, 1), (1, 172), (3, 1300)])
@pytest.mark.parametrize("gated", [False, True])
def test_joined_products_are_those_of_torch(dtype, rank, scaled, biased, layers, tokens, gated):
    assert_joined_products_are_those_of_torch(dtype, rank, scaled, biased, layers, tokens, gated)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("tokens", [172, 1300])
def test_joined_products_with_many_parts_are_those_of_torch(tokens, gated):
    assert_joined_products_are_those_of_torch(torch.bfloat16, 16, True, True, 1, tokens, gated, num_out=20 * 1024 + 16)


def assert_joined_products_are_those_of_torch(dtype, rank, scaled, biased, layers, tokens, gated, num_out=144):
    width = fused_linear.num_factor_rows(rank)
    product = drawn(layers, tokens, num_out + width, dtype=dtype)
    product[..., num_out + rank :] = 0
    left = 0.2 * drawn(layers, num_out, rank, dtype=dtype)
    p = 1 + 0.1 * drawn(layers, num_out) if scaled else None
    bias = torch.nn.functional.pad(drawn(layers, num_out, dtype=dtype), (0, width)) if biased else None
    from stages.adapters.ops.kernels import fused_linear as kernels

    given = product.clone()
    found = kernels.combined_output(given, left, p, bias if scaled else None, width, gated=gated)
    assert (
        apart(found, (fused_linear.gated_silu if gated else fused_linear.combined_output)(product, left, p, bias))
        < ULP[dtype] / 2
    )
    assert apart(given, product) < ULP[dtype] / 2  # gated, both have the sums in them now
    d_out = drawn(*found.shape, dtype=dtype, seed=9)
    parts = kernels.output_gradients(d_out, product, left, p, bias, width, gated=gated)
    d_left, d_p = torch.empty_like(left), None if p is None else torch.empty_like(p)
    kernels.sum_parts(parts, d_left, d_p)
    wanted = fused_linear.output_gradients(d_out, product, left, p, bias, gated=gated)
    for ours, theirs in zip((parts.d_joined_LMJ, d_left, d_p), wanted, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or (apart(ours, theirs) < ULP[dtype] and ours.dtype == theirs.dtype)


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [1, 77, 1300])
@pytest.mark.parametrize(("num_in", "is_expanded"), [(257, True), (96, False)])
def test_scaled_inputs_are_those_of_torch(dtype, tokens, num_in, is_expanded):
    x = drawn(1 if is_expanded else 3, tokens, num_in, dtype=dtype).requires_grad_()
    scale = (1 + 0.1 * drawn(3, num_in)).requires_grad_()
    wanted = (x * scale[:, None]).to(dtype)
    d_out = drawn(*wanted.shape, dtype=dtype, seed=3)
    (d_x,) = torch.autograd.grad(wanted, [x], d_out)
    found = scaled_inputs(x.expand(3, -1, -1), scale)
    ours = torch.autograd.grad(found, [x, scale], d_out)
    (alone,) = torch.autograd.grad(scaled_inputs(x.detach().expand(3, -1, -1), scale), [scale], d_out)
    assert torch.equal(found, wanted) and torch.equal(alone, ours[1])
    # Of one for all, gradients are added up: before they are rounded, or after.
    assert torch.equal(ours[0], d_x) if not is_expanded else apart(ours[0], d_x) < 2 * ULP.get(dtype, 1e-6)
    assert apart(ours[1], (d_out.double() * x.double()).sum(1)) < 1e-6


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("roles", [(0, 1, 2, 0, 1), (0, 1, 2), (0, 0), (1, 1, 2), (1, 2)])
@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("width", [40, 64])
@pytest.mark.parametrize("value_copies", [1, 2])
def test_heads_are_those_of_torch(dtype, roles, rotated, width, value_copies):
    features = drawn(2, 77, len(roles) * 3 * width, dtype=dtype)
    gammas = [(1 + 0.2 * drawn(width, seed=seed)).to(dtype) for seed in range(2)]
    angles = RotaryEmbedding(32).to(CUDA)(77) if rotated else (None, None)
    rest = (*gammas, *angles, 3, list(roles), 1e-6, value_copies)
    from stages.models.nets.attention import heads_kernels as kernels

    wanted = [
        one.to(CUDA)
        for one in heads._forward(*(one.cpu() if isinstance(one, Tensor) else one for one in (features, *rest)))
    ]
    found = kernels.heads(features, *rest)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape and (ours.numel() == 0 or apart(ours, theirs) < ULP[dtype] / 2)
    d_outs = [drawn(*one.shape, dtype=dtype, seed=place) for place, one in enumerate(found)]
    inputs = (*d_outs, features, *rest)
    theirs = heads._backward(*(one.cpu() if isinstance(one, Tensor) else one for one in inputs)).to(CUDA)
    assert apart(kernels.heads_backward(*inputs), theirs) < ULP[dtype]
