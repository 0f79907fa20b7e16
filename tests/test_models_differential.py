"""Fused differential attention against two separate attentions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.models.nets.attention.attention import difference, masked_attention, merged_heads
from stages.models.nets.attention.differential import differential_attention, has_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
Case = tuple[list[Tensor], Tensor | None, Tensor]


def case(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, masked: bool) -> Case:
    """Heads, mask of valid keys, gradient of the output; sizes are B, H, N, S, D."""
    batch, heads, num_queries, num_keys, width = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    shapes = [(batch, 2 * heads, num_queries, width), (batch, 2 * heads, num_keys, width)]
    shapes += [(batch, heads, num_keys, width), (batch, num_queries, heads * width)]
    *made, d_out = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    valid = torch.rand(batch, num_keys, generator=generator) < 0.6
    valid[:, -3:] = True
    valid[0, :-3] = False  # whole blocks of masked keys come first
    return [one.requires_grad_() for one in made], valid.to(device) if masked else None, d_out


def two_attentions(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None) -> Tensor:
    return merged_heads(difference(masked_attention(query, key, torch.cat([value, value], dim=1), valid)))


def computed_and_expected(
    heads: list[Tensor], valid: Tensor | None, d_out: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of the custom op, and the expected ones in float64."""
    out = differential_attention(*heads, valid)
    wide = [one.detach().double().requires_grad_() for one in heads]
    wanted = two_attentions(*wide, valid)
    found = [out.detach(), *torch.autograd.grad(out, heads, d_out)]
    return found, [wanted.detach(), *torch.autograd.grad(wanted, wide, d_out.double())]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(2, 3, 11, 11, 16), (1, 2, 9, 33, 40), (2, 1, 40, 7, 64)], ids=str)
def test_output_and_gradients_equal_those_of_two_separate_attentions(sizes, masked):
    heads, valid, d_out = case(sizes, torch.float32, CPU, masked=masked)
    for found, wanted in zip(*computed_and_expected(heads, valid, d_out), strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ULP, ids=str)
def test_16_bit_heads_are_rounded_once(dtype, masked):
    heads, valid, d_out = case((2, 3, 37, 29, 32), dtype, CPU, masked=masked)
    for found, wanted in zip(*computed_and_expected(heads, valid, d_out), strict=True):
        assert found.dtype == dtype and relative_error(found, wanted) < ULP[dtype]


def test_masked_keys_influence_neither_output_nor_gradients():
    (query, key, value), valid, d_out = case((2, 2, 8, 13, 16), torch.float32, CPU, masked=True)
    out = differential_attention(query, key, value, valid)
    masked_keys = ~valid[:, None, :, None]
    changed = (torch.where(masked_keys, 7.0, one.detach()) for one in (key, value))
    assert torch.equal(differential_attention(query, *changed, valid), out)
    for gradient in torch.autograd.grad(out, (key, value), d_out):
        assert not gradient.masked_select(masked_keys).any()


@pytest.mark.parametrize("masked", [False, True])
def test_the_custom_op_passes_opcheck(masked):
    heads, valid, _ = case((2, 2, 5, 7, 16), torch.float32, CPU, masked=masked)
    torch.library.opcheck(torch.ops.sa3_trainer.differential_attention.default, (*heads, valid))


def test_strides_of_the_heads_do_not_matter():
    heads, valid, _ = case((2, 2, 6, 9, 16), torch.float32, CPU, masked=True)
    turned = [one.detach().transpose(1, 2).contiguous().transpose(1, 2) for one in heads]
    assert torch.equal(differential_attention(*turned, valid), differential_attention(*heads, valid))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_are_for_16_bit_heads_on_cuda(dtype):
    assert not has_kernels(torch.zeros(1, 2, 3, 64, dtype=dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ULP, ids=str)
@pytest.mark.parametrize(
    "sizes",
    [(2, 3, 77, 77, 64), (1, 24, 172, 257, 64), (1, 24, 1356, 1356, 64), (2, 2, 129, 1, 64), (8, 24, 320, 320, 64)]
    + [(2, 2, 63, 130, width) for width in (16, 32, 128)],
    ids=str,
)
def test_kernels_are_as_exact_as_their_dtype(sizes, dtype, masked):
    heads, valid, d_out = case(sizes, dtype, CUDA, masked=masked)
    assert has_kernels(heads[0])
    found, wanted = computed_and_expected(heads, valid, d_out)
    for one, other in zip(found, wanted, strict=True):
        # Where one key is all there is, the maps are the same and nothing is left of them.
        scale = other.norm() if sizes[3] > 1 else heads[2].detach().double().norm()
        assert (one.double() - other).norm() <= 1.5 * ULP[dtype] * scale


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(1, 24, 172, 172, 64), (2, 24, 1088, 257, 64), (1, 4, 4155, 4155, 64)], ids=str)
def test_kernels_give_the_same_bits_every_time(sizes, masked):
    heads, valid, d_out = case(sizes, torch.bfloat16, CUDA, masked=masked)

    def made() -> list[Tensor]:
        out = differential_attention(*heads, valid)
        return [out.detach(), *torch.autograd.grad(out, heads, d_out)]

    first = made()
    for _ in range(4):
        assert all(torch.equal(one, other) for one, other in zip(made(), first, strict=True))


@pytest.mark.gpu
def test_kernels_are_stable_for_large_scores():
    heads, valid, d_out = case((1, 2, 100, 100, 64), torch.bfloat16, CUDA, masked=True)
    with torch.no_grad():
        heads[0].fill_(3.0)
        heads[1].sub_(30.0)  # every score lies hundreds below zero, where an empty place of a tile would be zero
    found, wanted = computed_and_expected(heads, valid, d_out)
    assert all(one.isfinite().all() for one in found)
    assert relative_error(found[3], wanted[3]) < 4 * ULP[torch.bfloat16]
