"""Phases of a step on the real network: layers are in the phase that runs them, and batching changes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stages.adapters.attach import attach
from stages.adapters.stacked.layer_group import StepPhase
from stages.models.nets.dit.transformer import (
    Denoiser,
    apply_each,
    run_block,
    runs_inside_blocks,
    runs_once_for_all_blocks,
)
from stages.records import AdapterSpec
from stages.train.cuda_graph.compiled_blocks import CompiledNetwork
from stages.train.model.network import stacked_layers, step_phase
from tests.dense_adapters import shake
from tests.small_networks import config, denoiser_inputs, randomised


@pytest.mark.parametrize("differential", [True, False])
def test_the_layers_run_once_for_all_blocks_are_declared_as_such(differential):
    """No others: a layer assigned by mistake would be run by itself, and learn nothing."""
    read = config(differential=differential)
    network = randomised(Denoiser(read))
    tower, seen = network.model.transformer, []

    def noted(modules, tokens):
        seen.extend(layer for module in modules for layer in module.modules())
        return apply_each(modules, tokens)

    tower.apply_each = noted
    network(**denoiser_inputs(read, 1, 5))
    at_once = {module for module in seen if isinstance(module, nn.Linear)}
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    assert at_once and {name for name, module in linear.items() if module in at_once} == {
        name for name in linear if runs_once_for_all_blocks(name)
    }


@pytest.mark.parametrize("differential", [True, False])
def test_the_layers_run_inside_blocks_are_declared_as_such(differential):
    """Any other would run before its weights are computed."""
    read = config(differential=differential)
    network = randomised(Denoiser(read))
    tower, inside, seen = network.model.transformer, [], set()

    def noted(block, *inputs):
        inside.append(block)
        out = run_block(block, *inputs)
        inside.pop()
        return out

    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    for name, module in linear.items():
        module.register_forward_hook(lambda *_, name=name: seen.add((name, bool(inside))))
    tower.run_block = noted
    network(**denoiser_inputs(read, 1, 5))
    assert seen == {(name, runs_inside_blocks(name)) for name in linear}
    assert {step_phase(name) for name in linear} == set(StepPhase)


@pytest.mark.parametrize("kind", ["lora", "dora-rows", "bora"])
@pytest.mark.parametrize("include", [None, ("layers.1",), ("to_kv", "to_out")], ids=str)
def test_gradients_of_a_network_are_the_same_batched_over_blocks_or_layer_by_layer(kind, include):
    read = config(differential=True)
    inputs = denoiser_inputs(read, 2, 9)

    def gradients(stacked: bool) -> dict[str, torch.Tensor]:
        network = randomised(Denoiser(read)).double()
        spec = AdapterSpec(kind=kind, rank=2, alpha=2.0, include=include)
        adapter = attach([network], spec, generator=torch.Generator())
        shake(adapter.named_parameters(), torch.Generator().manual_seed(5))
        if not stacked:
            parameters = adapter.named_parameters()
            loss = network(**inputs).square().sum()
            return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        layers = stacked_layers(adapter)
        layers.batches_blocks, network.model.transformer.apply_each = True, layers.run_each
        stacks = layers.stacked_parameters()
        with layers.precomputed():
            found = torch.autograd.grad(network(**inputs).square().sum(), [stack.parameter for stack in stacks])
        return {
            key: one
            for stack, grad in zip(stacks, found, strict=True)
            for key, one in zip(stack.keys, grad, strict=True)
        }

    wanted, ours = gradients(stacked=False), gradients(stacked=True)
    assert ours.keys() == wanted.keys()
    for key, one in ours.items():
        torch.testing.assert_close(one, wanted[key], rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


def test_a_compiled_block_waits_for_its_weights():
    read = config(differential=True)
    network = Denoiser(read)
    layers = stacked_layers(
        attach([network], AdapterSpec(kind="dora-rows", rank=2, alpha=2.0), generator=torch.Generator())
    )
    seen = []
    layers.side_streams = SimpleNamespace(wait_for_phase=seen.append)
    code = SimpleNamespace(layers=layers, compiled_block=lambda block, *inputs: seen.append(block) or torch.zeros(()))
    block = network.model.transformer.layers[0]
    CompiledNetwork.run_block(code, block)
    assert seen == [StepPhase.IN_BLOCKS, block]
