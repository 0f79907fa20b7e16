"""Contract of every adapter kind, compared with the dense weight; a new file in `kinds/` is included at once."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from stages import catalogue
from stages.adapters.adapter_file import read, write
from stages.adapters.attach import Adapter, attach
from stages.adapters.kind import INPUT, kind_named
from stages.records import AdapterSpec
from tests.dense_adapters import NET_LAYERS, Net, dense, dense_forward, leaves_of, shake

KINDS = catalogue.adapter_kinds()
SPEC = {kind: AdapterSpec(kind=kind, rank=3, alpha=4.0) for kind in KINDS}

every_kind = pytest.mark.parametrize("kind", KINDS)


def network(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(7)
    return Net().to(dtype)


def some_tokens(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(3)).to(dtype)


def shaken(net: nn.Module, kind: str, seed: int = 5) -> Adapter:
    """A new adapter with random values."""
    generator = torch.Generator().manual_seed(seed)
    adapter = attach([net], SPEC[kind], generator=generator)
    shake(adapter.named_parameters(), generator)
    return adapter


def dense_weights(base: nn.Module, kind: str, parameters: dict[str, torch.Tensor], strength: float = 1.0):
    """W' of every layer of the network without adapters, in the dtype of the parameters."""
    weights = {}
    for layer in NET_LAYERS:
        leaves = leaves_of(parameters, layer)
        weight_OI = base.get_submodule(layer).weight.flatten(1).to(next(iter(leaves.values())).dtype)
        weights[layer] = dense(kind, weight_OI, leaves, strength * SPEC[kind].scaling)
    return weights


@every_kind
def test_its_file_states_the_equation_and_what_is_trained(kind):
    text = catalogue.load("adapters.kinds", kind.replace("-", "_")).__doc__
    assert text.startswith(f"{kind}: ")
    assert "W'" in text or "dora-rows" in text


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_fresh_adapter_does_not_change_the_output(kind, dtype):
    net, tokens = network(dtype), some_tokens(dtype)
    before = net(tokens)

    adapter = attach([net], SPEC[kind])

    if dtype is torch.float32:
        assert (net(tokens) - before).abs().max() <= 4 * torch.finfo(dtype).eps * before.abs().max()
    else:
        # Scales differ from one by float32 rounding at most, which 16 bits do not see.
        assert torch.equal(net(tokens), before)
    assert all(parameter.dtype == torch.float32 for parameter in adapter.named_parameters().values())


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_magnitudes_start_from_float32_norms_of_the_weight_as_the_layer_uses_it(kind, dtype):
    net = network(dtype)
    rows, columns = (
        {layer: net.get_submodule(layer).weight.flatten(1).double().norm(dim=dim) for layer in NET_LAYERS}
        for dim in (1, 0)
    )
    attached = attach([net], SPEC[kind]).named_parameters()
    for layer in NET_LAYERS:
        leaves = leaves_of(attached, layer)
        for name in leaves.keys() & {"magnitude", "magnitude_r", "magnitude_c"}:
            expected = rows if leaves[name].shape == rows[layer].shape and name != "magnitude_c" else columns
            if kind_named(kind).magnitude == INPUT:
                expected = columns
            # bf16 norms would be off by up to 2^-9 of the value.
            torch.testing.assert_close(leaves[name].double(), expected[layer], rtol=2e-6, atol=0)


@every_kind
@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7])
def test_outputs_and_all_gradients_are_those_of_the_dense_weight(kind, strength):
    bare, tokens = network(), some_tokens().requires_grad_()
    net = deepcopy(bare)
    adapter = shaken(net, kind)
    adapter.set_strength(strength)
    parameters = adapter.named_parameters()
    twins = {key: parameter.detach().clone().requires_grad_() for key, parameter in parameters.items()}

    ours = net(tokens)
    wanted = dense_forward(bare, tokens, dense_weights(bare, kind, twins, strength))

    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-10)
    cotangent = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    our_grads = torch.autograd.grad(ours, [tokens, *parameters.values()], cotangent)
    wanted_grads = torch.autograd.grad(wanted, [tokens, *twins.values()], cotangent)
    for name, ours_one, wanted_one in zip(["tokens", *parameters], our_grads, wanted_grads, strict=True):
        torch.testing.assert_close(
            ours_one, wanted_one, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@every_kind
def test_a_bf16_base_stays_within_bf16_rounding_of_the_exact_result(kind):
    bare, tokens = network(torch.bfloat16), some_tokens(torch.bfloat16)
    net = deepcopy(bare)
    adapter = shaken(net, kind)
    exact = {key: parameter.double() for key, parameter in adapter.named_parameters().items()}

    ours = net(tokens)

    wanted = dense_forward(deepcopy(bare).double(), tokens.double(), dense_weights(bare, kind, exact))
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), wanted, rtol=0, atol=0.04 * wanted.abs().max().item())
    torch.testing.assert_close(ours.double().norm(), wanted.norm(), rtol=0.02, atol=0)


@every_kind
def test_float32_gradients_are_close_to_the_exact_ones(kind):
    bare, tokens = network(torch.float32), some_tokens(torch.float32)
    net = deepcopy(bare)
    parameters = shaken(net, kind).named_parameters()
    twins = {key: parameter.detach().double().requires_grad_() for key, parameter in parameters.items()}

    grads = torch.autograd.grad(net(tokens).square().sum(), list(parameters.values()))

    exact = dense_forward(deepcopy(bare).double(), tokens.double(), dense_weights(bare, kind, twins))
    for grad, wanted in zip(grads, torch.autograd.grad(exact.square().sum(), list(twins.values())), strict=True):
        torch.testing.assert_close(grad.double(), wanted, rtol=0, atol=2e-5 * max(1.0, wanted.abs().max().item()))


@every_kind
def test_strength_zero_gives_the_base_to_the_bit(kind):
    net, tokens = network(torch.float32), some_tokens(torch.float32)
    before = net(tokens)
    adapter = shaken(net, kind)
    assert not torch.equal(net(tokens), before)

    adapter.set_strength(0.0)

    assert torch.equal(net(tokens), before)


@every_kind
def test_detach_restores_the_original_modules(kind):
    net, tokens = network(torch.float32), some_tokens(torch.float32)
    before, modules, output = (
        {k: v.clone() for k, v in net.state_dict().items()},
        dict(net.named_modules()),
        net(tokens),
    )
    adapter = shaken(net, kind)
    net(tokens)

    adapter.detach()

    assert dict(net.named_modules()) == modules
    assert torch.equal(net(tokens), output)
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@every_kind
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str
)
def test_merging_keeps_the_output_and_leaves_plain_layers(kind, dtype, tolerance):
    net, tokens = network(dtype), some_tokens(dtype)
    adapter = shaken(net, kind)
    adapter.set_strength(0.8)
    attached = net(tokens)

    adapter.merge()

    merged = net(tokens)
    assert [type(net.get_submodule(name)) for name in NET_LAYERS] == [nn.Linear, nn.Linear, nn.Conv1d]
    assert merged.dtype == dtype
    torch.testing.assert_close(merged, attached, rtol=0, atol=tolerance * attached.abs().max().item())


@every_kind
@pytest.mark.parametrize("below", KINDS)
def test_stacked_adapters_give_the_composed_dense_weight(kind, below):
    bare, tokens = network(), some_tokens()
    net = deepcopy(bare)
    stack = [(below, shaken(net, below, seed=1), 0.6), (kind, shaken(net, kind, seed=2), 1.3)]
    weights = {}
    for layer in NET_LAYERS:
        base_OI = bare.get_submodule(layer).weight.flatten(1)
        whole_OI = base_OI
        for name, adapter, strength in stack:
            adapter.set_strength(strength)
            leaves = leaves_of(adapter.named_parameters(), layer)
            whole_OI = dense(name, whole_OI, leaves, strength * SPEC[name].scaling, base_OI)
        weights[layer] = whole_OI

    torch.testing.assert_close(net(tokens), dense_forward(bare, tokens, weights), rtol=0, atol=1e-10)


@every_kind
def test_merging_below_leaves_the_adapter_above_exact(kind):
    net, tokens = network(), some_tokens()
    lower, _ = shaken(net, "bora", seed=1), shaken(net, kind, seed=2)
    stacked = net(tokens)

    lower.merge()

    torch.testing.assert_close(net(tokens), stacked, rtol=0, atol=1e-10)


@every_kind
def test_a_file_gives_back_the_same_adapter(kind, tmp_path):
    net, tokens = network(torch.float32), some_tokens(torch.float32)
    adapter = shaken(net, kind)
    output = net(tokens)
    write(tmp_path / "exact.safetensors", adapter.state(), SPEC[kind], dtype=torch.float32)
    adapter.detach()

    file = read(tmp_path / "exact.safetensors")
    again = attach([net], file.spec)
    again.load(file.tensors, "exact.safetensors")

    assert torch.equal(net(tokens), output)
    assert file.spec == AdapterSpec(kind="dora-rows" if kind == "dora" else kind, rank=3, alpha=4.0)


@every_kind
def test_zero_rows_and_columns_stay_zero_with_finite_gradients(kind):
    net, tokens = network(torch.float32), some_tokens(torch.float32)
    with torch.no_grad():
        net.conv.weight[1] = 0
        net.inner[2].weight.zero_()
        net.inner[0].weight[:, 2] = 0
    before = net(tokens)
    adapter = attach([net], SPEC[kind])

    output = net(tokens)
    output.square().sum().backward()

    torch.testing.assert_close(output, before, rtol=0, atol=1e-5)
    assert all(parameter.grad.isfinite().all() for parameter in adapter.named_parameters().values())


@every_kind
def test_dropout_is_applied_or_refused(kind):
    net, tokens = network(torch.float32), some_tokens(torch.float32)
    spec = AdapterSpec(kind=kind, rank=3, alpha=4.0, dropout=0.5)
    if kind_named(kind).basis.singular:
        with pytest.raises(ValueError, match="adapter_dropout must be 0"):
            attach([net], spec)
        return
    adapter = attach([net], spec)
    shake(adapter.named_parameters(), torch.Generator().manual_seed(1))

    assert not torch.equal(net(tokens), net(tokens))
    adapter.train(False)
    assert torch.equal(net(tokens), net(tokens))


@every_kind
def test_the_same_seed_gives_the_same_initial_values(kind):
    states = []
    for _ in range(2):
        states.append(attach([network()], SPEC[kind], generator=torch.Generator().manual_seed(11)).state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@every_kind
def test_no_gradient_reaches_the_base(kind):
    net = network(torch.float32).requires_grad_(True)
    adapter = attach([net], SPEC[kind])

    net(some_tokens(torch.float32)).sum().backward()

    trained = {id(parameter) for parameter in adapter.named_parameters().values()}
    assert {id(parameter) for parameter in net.parameters() if parameter.requires_grad} == trained
    assert all(parameter.grad is not None for parameter in adapter.named_parameters().values())
