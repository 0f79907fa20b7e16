"""Attaching, stacking, loading, merging and detaching adapters."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from stages.adapters.attach import attach
from stages.errors import (
    AdapterMismatch,
    AdapterNotWritable,
    FilterMatchesNothing,
    InvalidAdapterState,
    LayerNotAdaptable,
)
from stages.records import AdapterSpec
from tests.dense_adapters import NET_LAYERS, Net, dense, dense_forward, leaves_of, shake

LORA = AdapterSpec(kind="lora", rank=2, alpha=2.0)
DORA = AdapterSpec(kind="dora-rows", rank=3, alpha=3.0)


class Wrapped(nn.Module):
    """A network inside another, as the denoiser is."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, Net())


def tokens() -> torch.Tensor:
    return torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(3))


def shaken(net: nn.Module, spec: AdapterSpec, seed: int = 5):
    generator = torch.Generator().manual_seed(seed)
    adapter = attach([net], spec, generator=generator)
    shake(adapter.named_parameters(), generator)
    return adapter


def test_parameters_follow_the_roots_and_then_the_order_of_registration():
    roots = [Wrapped("model"), Wrapped("conditioners")]
    adapter = attach(roots, DORA)
    assert list(adapter.named_parameters()) == [
        f"{root}.{layer}.parametrizations.weight.0.{leaf}"
        for root in ("model", "conditioners")
        for layer in NET_LAYERS
        for leaf in ("lora_A", "lora_B", "magnitude")
    ]
    assert adapter.layer_names()[:3] == [f"model.{layer}" for layer in NET_LAYERS]


def test_base_weights_keep_their_names_and_their_storage():
    net = Net()
    before = {name: parameter.data_ptr() for name, parameter in net.named_parameters()}
    attach([net], DORA)
    after = {name: parameter.data_ptr() for name, parameter in net.named_parameters()}
    assert before.items() <= after.items()
    assert next(iter(after)) == "inner.0.weight"


def test_with_a_generator_initial_values_do_not_depend_on_the_global_one():
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        adapter = attach([Wrapped("model")], LORA, generator=torch.Generator().manual_seed(9))
        states.append(adapter.state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_is_uniform_within_one_over_the_root_of_its_input_width():
    net = nn.Sequential(nn.Linear(100, 8))
    A = attach([net], AdapterSpec(kind="lora", rank=200, alpha=1.0)).state()["0.parametrizations.weight.0.lora_A"]
    assert A.abs().max() <= 0.1
    assert A.abs().max() > 0.0999
    assert A.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)


def test_include_and_exclude_choose_the_layers():
    net = Net()
    adapter = attach([net], AdapterSpec(kind="lora", rank=2, alpha=2.0, include=("inner",), exclude=("inner.2",)))
    assert adapter.layer_names() == ["inner.0"]
    assert type(net.conv) is nn.Conv1d


def test_a_filter_that_matches_nothing_leaves_the_network_unchanged():
    net = Net()
    modules = dict(net.named_modules())
    with pytest.raises(FilterMatchesNothing, match=r"inner\[0-1\]"):
        attach([net], AdapterSpec(kind="lora", rank=2, alpha=2.0, include=("inner[0-1]",)))
    assert dict(net.named_modules()) == modules


@pytest.mark.parametrize(
    ("conv", "what"),
    [
        (nn.Conv1d(6, 6, 3, padding=1), "kernel and padding"),
        (nn.Conv1d(6, 6, 1, groups=2), "groups"),
        (nn.Conv1d(6, 6, 1, stride=2), "stride"),
    ],
)
def test_a_convolution_that_is_not_one_product_per_frame_is_refused_unless_excluded(conv, what):
    net = nn.ModuleDict({"fine": nn.Linear(4, 4), "odd": conv})
    with pytest.raises(LayerNotAdaptable, match=f"odd cannot carry an adapter.*{what}"):
        attach([net], LORA)
    assert type(net["fine"]) is nn.Linear
    attach([net], AdapterSpec(kind="lora", rank=2, alpha=2.0, exclude=("odd",)))


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (AdapterSpec(kind="loha", rank=2, alpha=2.0), "adapter_type must be one of bora, "),
        (AdapterSpec(kind="lora", rank=0, alpha=2.0), "rank must be at least 1"),
    ],
)
def test_an_invalid_spec_is_refused(spec, what):
    with pytest.raises(ValueError, match=what):
        attach([Net()], spec)


def test_roots_that_share_a_layer_name_are_refused():
    with pytest.raises(ValueError, match=r"inner\.0"):
        attach([Net(), Net()], LORA)


def test_each_adapter_has_its_own_strength():
    net = Net().double()
    bare = deepcopy(net)
    first, second = shaken(net, LORA, 1), shaken(net, DORA, 2)
    first.set_strength(0.3)
    second.set_strength(0.8)

    weights = {}
    for layer in NET_LAYERS:
        base_OI = bare.get_submodule(layer).weight.flatten(1)
        below_OI = dense("lora", base_OI, leaves_of(first.named_parameters(), layer), 0.3)
        weights[layer] = dense("dora-rows", below_OI, leaves_of(second.named_parameters(), layer), 0.8)
    x = tokens().double()
    torch.testing.assert_close(net(x), dense_forward(bare, x, weights), rtol=0, atol=1e-10)

    second.set_strength(0.0)
    first.set_strength(0.0)
    assert torch.equal(net(x), bare(x))


def test_an_adapter_keeps_its_tensors_on_layers_that_an_earlier_one_left_out():
    net = Net()
    shaken(net, AdapterSpec(kind="lora", rank=2, alpha=2.0, include=("conv",)))
    second = attach([net], DORA)
    values = {key: torch.full_like(tensor, 0.25) for key, tensor in second.state().items()}

    second.load(values, "second.safetensors")

    assert net.inner[0].slots[0].basis.lora_A.eq(0.25).all()
    assert net.conv.slots[1].basis.lora_A.eq(0.25).all()
    assert not net.conv.slots[0].basis.lora_A.eq(0.25).any()


def test_an_adapter_on_top_of_another_starts_from_the_frozen_weight():
    net = Net()
    norms = net.conv.weight.flatten(1).norm(dim=1)
    shaken(net, LORA)
    adapter = attach([net], DORA)
    torch.testing.assert_close(adapter.state()["conv.parametrizations.weight.0.magnitude"], norms)


@pytest.mark.parametrize("first_off", [0, 1])
def test_stacked_adapters_can_be_detached_in_any_order(first_off):
    net = Net()
    modules, output = dict(net.named_modules()), net(tokens())
    adapters = [shaken(net, LORA, 1), shaken(net, DORA, 2)]
    alone = deepcopy(net)
    adapters[1 - first_off].set_strength(1.0)

    adapters[first_off].detach()
    rest = shaken_alone(alone, first_off)
    torch.testing.assert_close(net(tokens()), rest, rtol=0, atol=1e-5)
    adapters[1 - first_off].detach()

    assert dict(net.named_modules()) == modules
    assert torch.equal(net(tokens()), output)


def shaken_alone(net: nn.Module, off: int) -> torch.Tensor:
    """The network's output with one of its two slots at strength 0."""
    for layer in NET_LAYERS:
        net.get_submodule(layer).slots[off].strength = 0.0
    return net(tokens())


def test_state_is_a_copy_and_can_be_loaded_again():
    net = Net()
    adapter = shaken(net, DORA)
    state, output = adapter.state(), net(tokens())
    shake(adapter.named_parameters(), torch.Generator().manual_seed(77))
    assert not torch.equal(net(tokens()), output)

    adapter.load(state, "state")

    assert torch.equal(net(tokens()), output)


def test_loading_lists_every_difference_and_changes_nothing():
    adapter = shaken(Net(), DORA)
    before = adapter.state()
    wrong = adapter.state()
    wrong.pop("conv.parametrizations.weight.0.magnitude")
    wrong["inner.0.parametrizations.weight.0.lora_A"] = torch.ones(9, 7)
    wrong["inner.2.parametrizations.weight.0.lora_B"] = torch.full((6, 3), torch.inf)
    wrong["elsewhere.parametrizations.weight.0.lora_A"] = torch.ones(1, 1)

    with pytest.raises(AdapterMismatch) as caught:
        adapter.load(wrong, "other.safetensors")

    assert caught.value.differences == (
        "extra: elsewhere.parametrizations.weight.0.lora_A (1, 1)",
        "misshapen: inner.0.parametrizations.weight.0.lora_A is (9, 7), expected (3, 7)",
        "missing: conv.parametrizations.weight.0.magnitude (5,)",
        "not finite: inner.2.parametrizations.weight.0.lora_B",
    )
    assert "other.safetensors" in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in adapter.state().items())


def test_the_later_adapter_cannot_be_merged_first():
    net = Net()
    _, second = shaken(net, LORA, 1), shaken(net, DORA, 2)
    weights = [net.get_submodule(layer).weight.clone() for layer in NET_LAYERS]
    with pytest.raises(InvalidAdapterState, match="earlier one first"):
        second.merge()
    for weight, layer in zip(weights, NET_LAYERS, strict=True):
        assert torch.equal(net.get_submodule(layer).weight, weight)


def test_a_merge_beyond_the_range_of_the_base_changes_nothing():
    net = Net().half()
    adapter = shaken(net, LORA)
    adapter.named_parameters()["conv.parametrizations.weight.0.lora_B"].data.fill_(1e6)
    before = net.inner[0].weight.clone()
    with pytest.raises(AdapterNotWritable, match="float16"):
        adapter.merge()
    assert torch.equal(net.inner[0].weight, before)
    assert len(net.inner[0].slots) == 1


def test_merging_in_training_mode_applies_no_dropout():
    net = Net().double()
    adapter = shaken(net, AdapterSpec(kind="dora-rows", rank=2, alpha=2.0, dropout=0.5))
    adapter.train(False)
    output = net(tokens().double())
    adapter.train(True)

    adapter.merge()

    torch.testing.assert_close(net(tokens().double()), output, rtol=0, atol=1e-12)


def test_a_detached_adapter_cannot_be_used():
    adapter = shaken(Net(), LORA)
    adapter.detach()
    for use in (adapter.named_parameters, adapter.detach, adapter.merge, adapter.state):
        with pytest.raises(InvalidAdapterState, match="removed already"):
            use()


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_not_finite_is_refused(strength):
    with pytest.raises(ValueError, match="finite"):
        shaken(Net(), LORA).set_strength(strength)
