"""Joined products [W; A] x give the values and gradients of separate ones. The kernels: `test_gpu_kernels`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages import catalogue
from stages.adapters.attach import attach
from stages.adapters.ops.fused_linear import joined_product, joined_products, num_factor_rows, padded_length
from stages.adapters.stacked.stacked_adapter import stack_adapter
from stages.models.nets.feed_forward import GatedProjection
from stages.records import AdapterSpec
from tests.dense_adapters import shake
from tests.test_adapters_stacked_adapter import gradients, tokens, tower


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("rank", [1, 5, 16, 17])
@pytest.mark.parametrize(("scaled", "biased"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("gated", [False, True])
def test_the_joined_product_and_its_gradients_are_those_of_the_formula(rank, scaled, biased, gated):
    layers, count, num_in, num_out = 3, 7, 6, 10
    x, left, right = drawn(layers, count, num_in), drawn(layers, num_out, rank), drawn(layers, rank, num_in)
    weight, bias = drawn(layers, num_out, num_in, seed=4), drawn(layers, num_out, seed=5) if biased else None
    p = drawn(layers, num_out, seed=6) if scaled else None
    leaves = [one.requires_grad_() for one in (x, left, right, p) if one is not None]
    spare = num_factor_rows(rank) - rank
    joined = torch.cat([weight, right.detach(), torch.zeros(layers, spare, num_in, dtype=x.dtype)], dim=1)
    beside = None if bias is None else torch.nn.functional.pad(bias, (0, num_factor_rows(rank)))

    found = joined_products(x, joined, left, right, p, beside, gated=gated)

    moved = x @ (weight + left @ right).mT
    wanted = moved if p is None else moved * p[:, None]
    wanted = wanted if bias is None else wanted + bias[:, None]
    if gated:
        value, gate = wanted.chunk(2, dim=-1)
        wanted = value * torch.nn.functional.silu(gate)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    d_out = drawn(*found.shape, seed=7)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, d_out), torch.autograd.grad(wanted, leaves, d_out), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_gradients_that_are_not_needed_are_not_computed():
    x, left, right = drawn(1, 4, 6), drawn(1, 9, 2).requires_grad_(), drawn(1, 2, 6)
    joined = torch.cat([drawn(1, 9, 6, seed=3), right, torch.zeros(1, num_factor_rows(2) - 2, 6).double()], dim=1)
    out = joined_product(x[0].view(2, 2, 6), joined[0], left[0], right[0], None, None)
    assert out.shape == (2, 2, 9)
    out.sum().backward()
    assert left.grad is not None and x.grad is None and right.grad is None


@pytest.mark.parametrize("is_expanded", [True, False])
def test_padded_rows_change_no_value_and_no_gradient(is_expanded):
    layers, num_in, num_out, rank = 3, 13, 9, 2
    x = drawn(1 if is_expanded else layers, 7, num_in).requires_grad_()
    left, right = drawn(layers, num_out, rank).requires_grad_(), drawn(layers, rank, num_in).requires_grad_()
    spare = torch.zeros(layers, num_factor_rows(rank) - rank, num_in, dtype=x.dtype)
    joined = torch.cat([drawn(layers, num_out, num_in, seed=4), right.detach(), spare], dim=1)
    longer = torch.nn.functional.pad(joined, (0, padded_length(num_in) - num_in))
    assert longer.shape[-1] == 16

    wanted, found = (
        joined_products(x.expand(layers, -1, -1), one, left, right, None, None) for one in (joined, longer)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)
    d_out = drawn(*found.shape, seed=7)
    ours, theirs = (torch.autograd.grad(one, [x, left, right], d_out) for one in (found, wanted))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", catalogue.adapter_kinds())
def test_layers_with_joined_products_give_the_same_as_without(kind):
    net, adapter = tower(kind)
    plain = net(tokens())
    wanted = torch.autograd.grad(plain.square().sum(), list(adapter.named_parameters().values()))
    by_key = dict(zip(adapter.named_parameters(), wanted, strict=True))
    all_layers = stack_adapter(adapter, spare_rows=True)
    all_layers.joins_products, net.each = True, all_layers.run_each

    with all_layers.precomputed():
        assert any(place.layer.precomputed.joined_JI is not None for place in adapter.attachments())
        ours = net(tokens())
        found = gradients(all_layers, ours.square().sum())

    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    for key, one in found.items():
        torch.testing.assert_close(one, by_key[key], rtol=1e-10, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("gated", [True, False])
def test_the_fake_implementation_has_the_shapes_and_devices_of_the_real_one(gated):
    rank, num_out = 2, 10
    joined = drawn(1, num_out + num_factor_rows(rank), 6)
    factors = (drawn(1, num_out, rank), drawn(1, rank, 6), drawn(1, num_out), drawn(1, joined.shape[1]))
    operation = torch.ops.sa3_trainer.joined_product.default
    torch.library.opcheck(
        operation, (drawn(1, 7, 6), joined, *factors, gated), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("joins", [True, False])
@pytest.mark.parametrize("kind", ["dora-rows", "dora-cols", "bora", "lora"])
def test_an_adapted_gated_projection_is_value_times_silu_of_the_gate(joins, kind):
    net = GatedProjection(6, 5, torch.nn.functional.silu).double()
    adapter = attach([net], AdapterSpec(kind=kind, rank=3, alpha=4.0), generator=torch.Generator())
    shake(adapter.named_parameters(), torch.Generator().manual_seed(5))
    x = drawn(2, 4, 6).requires_grad_()
    value, gate = net.proj(x).chunk(2, dim=-1)
    wanted = value * torch.nn.functional.silu(gate)
    (d_wanted,) = torch.autograd.grad(wanted.square().sum(), x)
    wholes = []
    net.proj.register_forward_hook(lambda *_: wholes.append("values and gates, written down"))

    all_layers = stack_adapter(adapter, spare_rows=True)
    all_layers.joins_products = joins
    with all_layers.precomputed():
        found = net(x)
        (d_found,) = torch.autograd.grad(found.square().sum(), x)
    assert bool(wholes) != joins
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(d_found, d_wanted, rtol=1e-10, atol=1e-10)


def test_spare_rows_behind_the_weights_change_no_weight_and_no_name():
    net, adapter = tower("dora-rows")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    all_layers = stack_adapter(adapter, spare_rows=True)
    all_layers.joins_products = True
    with all_layers.precomputed():
        net(tokens())
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_convolution_with_joined_products_gives_the_same():
    net, adapter = tower("dora-rows", include=("conv",))
    tokens_BIN = drawn(2, 6, 7).requires_grad_()
    plain = net.conv(tokens_BIN)
    (wanted,) = torch.autograd.grad(plain.square().sum(), tokens_BIN)
    all_layers = stack_adapter(adapter, spare_rows=True)
    all_layers.joins_products = True
    with all_layers.precomputed():
        assert net.conv.precomputed.joined_JI is not None
        ours = net.conv(tokens_BIN)
        (found,) = torch.autograd.grad(ours.square().sum(), tokens_BIN)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
