"""Stacked adapters give the same values and gradients as layer by layer, for every kind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy

import pytest
import torch
from torch import nn

from stages import catalogue
from stages.adapters.attach import Adapter, attach
from stages.adapters.ops import fused_linear
from stages.adapters.ops.frozen_matmul import pieces_of
from stages.adapters.ops.side_streams import (
    NUM_BLOCK_STREAMS,
    NUM_PRIORITY_STREAMS,
    DeferredWork,
    defer_or_run,
    use_side_streams,
)
from stages.adapters.stacked.layer_group import StepPhase, adapted_weight
from stages.adapters.stacked.stacked_adapter import StackedAdapter, assigned_streams, before_blocks, stack_adapter
from stages.errors import InvalidAdapterState
from stages.records import AdapterSpec
from tests.dense_adapters import shake

every_kind = pytest.mark.parametrize("kind", catalogue.adapter_kinds())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 6, bias=False))


class Tower(nn.Module):
    """Three equal blocks between two single layers, one of them a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.conv = nn.Conv1d(6, 6, 1, bias=False)
        self.each = lambda modules, tokens: [module(tokens) for module in modules]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(tokens)
        for out in self.each([block.mix for block in self.blocks], hidden):
            hidden = hidden + out
        return self.conv(hidden.mT).mT


def tower(
    kind: str, dtype: torch.dtype = torch.float64, dropout: float = 0.0, include: tuple[str, ...] | None = None
) -> tuple[Tower, Adapter]:
    torch.manual_seed(0)
    net = Tower().to(dtype)
    spec = AdapterSpec(kind=kind, rank=3, alpha=4.0, dropout=dropout, include=include)
    adapter = attach([net], spec, generator=torch.Generator())
    shake(adapter.named_parameters(), torch.Generator().manual_seed(5))
    return net, adapter


def tokens(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(3)).to(dtype)


def gradients(all_layers: StackedAdapter, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    stacks = all_layers.stacked_parameters()
    grads = torch.autograd.grad(loss, [stack.parameter for stack in stacks])
    return {
        key: one for stack, grad in zip(stacks, grads, strict=True) for key, one in zip(stack.keys, grad, strict=True)
    }


def batched_blocks(name: str) -> StepPhase:
    """Phases of the tower's layers: those of its blocks are run as a batch."""
    return StepPhase.BATCHED_BLOCKS if name.startswith("blocks.") else StepPhase.BEFORE_BLOCKS


def assert_same_as_layer_by_layer(
    net: Tower, adapter: Adapter, phase_of=before_blocks, *, at_once: bool = False
) -> StackedAdapter:
    plain = net(tokens())
    parameters = adapter.named_parameters()
    wanted = dict(zip(parameters, torch.autograd.grad(plain.square().sum(), list(parameters.values())), strict=True))
    all_layers = stack_adapter(adapter, phase_of)
    all_layers.batches_blocks, net.each = at_once, all_layers.run_each

    with all_layers.precomputed():
        ours = net(tokens())
        grads = gradients(all_layers, ours.square().sum())

    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    assert grads.keys() == wanted.keys()
    for key, grad in grads.items():
        torch.testing.assert_close(
            grad, wanted[key], rtol=1e-10, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}"
        )
    return all_layers


@every_kind
def test_outputs_and_gradients_equal_those_layer_by_layer(kind):
    assert_same_as_layer_by_layer(*tower(kind))


@every_kind
def test_layers_batched_over_blocks_give_the_same(kind):
    net, adapter = tower(kind)
    runs = []
    for block in net.blocks:
        for layer in (block.mix[0], block.mix[2]):
            layer.register_forward_hook(lambda *seen: runs.append(1))
    all_layers = assert_same_as_layer_by_layer(net, adapter, batched_blocks, at_once=True)
    assert len(runs) == 2 * 3, "one by one before they were stacked, and never after"
    assert [one for group in all_layers.groups for one in group.slices] == [slice(0, 3), slice(0, 3), 0, 0]


FILTERS = [("conv",), ("blocks.0",), ("blocks.1",), ("mix.0",), ("mix.2",), ("blocks.[1-2].mix.2", "enter")]


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("include", FILTERS, ids=str)
def test_layers_left_out_by_a_filter_keep_their_own_weights(include, at_once):
    assert_same_as_layer_by_layer(*tower("dora-rows", include=include), batched_blocks, at_once=at_once)


class RecordingStreams:
    """Fake side streams that record calls."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def fork(self) -> None:
        self.seen.append("fork")

    def stream(self, number: int) -> AbstractContextManager[None]:
        return nullcontext(self.seen.append(number))

    def mark_computed(self, phase: StepPhase) -> None:
        self.seen.append(f"all of {phase.name} launched")

    def wait_for_phase(self, phase: StepPhase) -> None:
        self.seen.append(f"wait for {phase.name}")

    def join(self) -> None:
        self.seen.append("join")

    def abandon(self) -> None:
        self.seen.append("abandon")


def test_weights_are_launched_by_phase_and_each_phase_waits_for_its_own():
    net, adapter = tower("dora-rows")
    plain = net(tokens())
    all_layers = stack_adapter(adapter, batched_blocks)
    all_layers.side_streams, net.each = (streams := RecordingStreams()), all_layers.run_each
    with all_layers.precomputed():
        streams.seen.append("layers")
        torch.testing.assert_close(net(tokens()), plain, rtol=0, atol=1e-12)
    marks = [one for one in streams.seen if isinstance(one, str)]
    before, at_once = (f"all of {phase.name} launched" for phase in (StepPhase.BEFORE_BLOCKS, StepPhase.BATCHED_BLOCKS))
    assert marks == ["fork", before, at_once, "wait for BEFORE_BLOCKS", "layers"] + 2 * ["wait for BATCHED_BLOCKS"] + [
        "join"
    ]


class Stack:
    def __init__(self, phase: StepPhase, size: int) -> None:
        self.phase, self.weight_LOI = phase, torch.empty(size, 1, 1)


def test_the_largest_groups_of_a_phase_go_first_to_the_stream_with_the_least_work():
    assert (NUM_PRIORITY_STREAMS, NUM_BLOCK_STREAMS) == (2, 3)
    blocks, before = (
        [Stack(StepPhase.IN_BLOCKS, size) for size in (3, 5, 2)],
        [Stack(StepPhase.BEFORE_BLOCKS, size) for size in (1, 2)],
    )
    given = [*blocks, *before, Stack(StepPhase.BATCHED_BLOCKS, 4)]
    found = [(group.phase, group.weight_LOI.numel(), number) for group, number in assigned_streams(given)]
    assert found == [
        *((StepPhase.BEFORE_BLOCKS, 2, 0), (StepPhase.BEFORE_BLOCKS, 1, 1), (StepPhase.BATCHED_BLOCKS, 4, 3)),
        *((StepPhase.IN_BLOCKS, 5, 4), (StepPhase.IN_BLOCKS, 3, 5), (StepPhase.IN_BLOCKS, 2, 5)),
    ]


def test_a_failed_step_abandons_its_streams_and_clears_its_weights():
    _, adapter = tower("dora-rows")
    all_layers = stack_adapter(adapter)
    all_layers.side_streams = streams = RecordingStreams()
    with pytest.raises(MemoryError), all_layers.precomputed():
        raise MemoryError
    assert streams.seen[-1] == "abandon"
    assert all(place.layer.precomputed is None for place in adapter.attachments())


class LazyStreams:
    """Fake side streams that compute gradients as late as possible: when their reader waits for them."""

    def __init__(self) -> None:
        self.waiting: list[DeferredWork] = []
        self.made = 0

    def defer(self, work: DeferredWork) -> None:
        self.waiting.append(work)

    def wait_for_gradients(self, gradients: Sequence[torch.Tensor]) -> None:
        for work in self.waiting:
            work.run()
        self.made += len(self.waiting)
        self.waiting.clear()


def deferred_gradients(d_out, product, left, p, bias, gated, real=fused_linear.output_gradients):
    """As the kernels: the gradients of L and p are NaN until their deferred work has run."""
    d_product, d_left, d_p = real(d_out, product, left, p, bias, gated=gated)
    places = [torch.full_like(one, float("nan")) for one in (d_left, d_p)]

    def fill() -> None:
        for place, one in zip(places, (d_left, d_p), strict=True):
            place.copy_(one)

    defer_or_run(DeferredWork(run=fill, reads=[], writes=places))
    return d_product, *places


@pytest.mark.parametrize("include", [None, *FILTERS[1:]], ids=str)
def test_gradients_from_side_streams_are_not_read_before_they_are_computed(include, monkeypatch):
    def found(beside: LazyStreams | None) -> dict[str, torch.Tensor]:
        net, adapter = tower("dora-rows", include=include)
        all_layers = stack_adapter(adapter, batched_blocks, spare_rows=True)
        all_layers.batches_blocks = all_layers.joins_products = True
        net.each = all_layers.run_each
        with use_side_streams(beside), all_layers.precomputed():
            return gradients(all_layers, net(tokens()).square().sum())

    wanted = found(None)
    monkeypatch.setattr(fused_linear, "output_gradients", deferred_gradients)
    beside = LazyStreams()
    ours = found(beside)
    assert beside.made > 0 and not beside.waiting
    assert all(torch.equal(ours[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("kind", ["lora", "dora-rows", "bora"])
def test_a_fresh_adapter_on_a_16_bit_base_rounds_a_bias_once(kind):
    torch.manual_seed(0)
    net = Tower().to(torch.bfloat16)
    base = net(tokens(torch.bfloat16))
    adapter = attach([net], AdapterSpec(kind=kind, rank=3, alpha=4.0), generator=torch.Generator())
    all_layers = stack_adapter(adapter)
    net.each = all_layers.run_each
    with all_layers.precomputed():
        assert torch.equal(net(tokens(torch.bfloat16)), base)


@every_kind
def test_stacking_changes_no_name_order_or_value(kind):
    net, adapter = tower(kind)
    before, names, output = adapter.state(), list(net.state_dict()), net(tokens())

    stack_adapter(adapter)

    assert list(adapter.state()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in adapter.state().items())
    assert list(net.state_dict()) == names
    assert torch.equal(net(tokens()), output)


@every_kind
def test_loading_and_training_are_seen_in_stacks_and_layers(kind):
    _, adapter = tower(kind)
    all_layers = stack_adapter(adapter)
    loaded = {key: value + 0.5 for key, value in adapter.state().items()}
    adapter.load(loaded, "test")
    stacked = {
        key: one
        for stack in all_layers.stacked_parameters()
        for key, one in zip(stack.keys, stack.parameter, strict=True)
    }
    assert all(torch.equal(stacked[key].detach(), value) for key, value in loaded.items())

    with torch.no_grad():
        for stack in all_layers.stacked_parameters():
            stack.parameter.mul_(2)

    assert all(torch.equal(value, 2 * loaded[key]) for key, value in adapter.state().items())


@every_kind
def test_norms_are_computed_once_per_step(kind):
    net, adapter = tower(kind)
    all_layers = stack_adapter(adapter)
    calls = []
    all_layers.compute_weight = lambda slot, base: calls.append(1) or adapted_weight(slot, base)

    with all_layers.precomputed():
        for _ in range(3):
            net(tokens())

    assert len(calls) == len(all_layers.groups) == 4


@every_kind
def test_a_detached_adapter_leaves_the_base_as_it_was(kind):
    torch.manual_seed(0)
    bare = Tower().double()
    net, adapter = tower(kind)
    stack_adapter(adapter)

    adapter.detach()

    assert torch.equal(net(tokens()), bare(tokens()))


def test_strength_and_training_mode_follow_the_adapter():
    net, adapter = tower("dora-rows")
    all_layers = stack_adapter(adapter)
    adapter.set_strength(0.3)
    plain = net(tokens())

    with all_layers.precomputed():
        torch.testing.assert_close(net(tokens()), plain, rtol=0, atol=1e-12)


def test_dropout_masks_set_beforehand_are_used():
    net, adapter = tower("dora-rows", dropout=0.5)
    all_layers = stack_adapter(adapter)
    masks = all_layers.dropout_masks(torch.Generator().manual_seed(1))
    assert {float(value) for mask in masks for value in mask.unique()} == {0.0, 2.0}

    outputs = []
    for _ in range(2):
        all_layers.set_dropout_masks(masks)
        with all_layers.precomputed():
            outputs.append(net(tokens()))
    assert torch.equal(*outputs)
    adapter.train(False)
    with all_layers.precomputed():
        assert not torch.equal(net(tokens()), outputs[0])


def test_layers_with_several_adapters_cannot_be_stacked():
    net, adapter = tower("lora")
    attach([net], AdapterSpec(kind="lora", rank=2, alpha=2.0))
    with pytest.raises(InvalidAdapterState, match="another adapter"):
        stack_adapter(adapter)


@pytest.mark.parametrize("kind", ["dora-rows", "bora", "dora-cols-xs"])
def test_a_16_bit_base_gives_the_same_as_layer_by_layer(kind):
    net, adapter = tower(kind, torch.bfloat16)
    plain = net(tokens(torch.bfloat16))
    all_layers = stack_adapter(adapter)
    net.each = all_layers.run_each
    with all_layers.precomputed():
        ours = net(tokens(torch.bfloat16))
    torch.testing.assert_close(ours, plain, rtol=0, atol=0.03 * plain.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-9, 3e4])
def test_16_bit_pieces_sum_to_the_float32_they_were_split_from(dtype, size):
    wide = size * torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(2))
    pieces, scales = pieces_of(wide, dtype)
    whole = sum(piece.double() * scale for piece, scale in zip(pieces, scales, strict=True))
    assert all(piece.dtype == dtype for piece in pieces)
    assert (whole - wide.double()).abs().max() <= 2**-24 * wide.abs().max()


def test_deep_copies_do_not_share_stacks():
    net, adapter = tower("lora")
    twin = deepcopy(net)
    stack_adapter(adapter)
    assert torch.equal(net(tokens()), twin(tokens()))
