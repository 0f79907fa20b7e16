"""Captured steps on CUDA against eager ones: outputs, gradients, twenty steps, for every kind and precision.

Eager: layer by layer, operation by operation, nothing stacked. In float32 the two must agree tightly. In 16 bits both
round, differently; captured steps may not be farther from the same network in float32 than eager ones are.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stages import catalogue
from stages.bench import cases
from stages.bench.cases import Case, new_batch
from stages.models.device import dtype_named
from stages.train.cuda_graph.compiled_blocks import compiled
from stages.train.cuda_graph.graph_steps import GraphSteps
from stages.train.dataset.length_buckets import LengthBuckets
from stages.train.determinism import deterministic_algorithms
from stages.train.training import Training
from tests.dense_adapters import shake
from tests.small_networks import config

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
NO_FARTHER = 1.25
"""How much farther from float32 captured steps may be than eager ones: both are sums of random roundings."""
STEPS = 20


def case(**changes) -> Case:
    return replace(Case(model="tiny-base", num_frames=24, rank=4, base_precision="fp32", batch_size=8), **changes)


def network_config(head_width: int) -> dict:
    """Two heads of so many features; kernels take both maps of a differential attention at once for some."""
    read = config(differential=True)
    read["model"]["diffusion"]["config"]["embed_dim"] = 2 * head_width
    return read


def training(one: Case, *, stacked: bool, head_width: int = 64) -> Training:
    """A training before its first step, every adapter tensor moved away from its initial value."""
    made = cases.new_training(one, network_config(head_width), CUDA, stacked=stacked)
    made.network.train(True)
    shaken = {key: value.cpu().clone() for key, value in made.network.adapter.state().items()}
    shake(shaken, torch.Generator().manual_seed(5))
    start = made.network.adapter.state()
    made.network.adapter.load({key: start[key] + 0.1 * (shaken[key] - start[key]) for key in start}, "test")
    return made


def in_float32(one: Case, monkeypatch: pytest.MonkeyPatch, **sizes: int) -> Training:
    """The case's network with the weights that its precision rounds them to, computed in float32."""
    rounded = cases.random_network
    narrow = dtype_named(one.base_precision)
    monkeypatch.setattr(cases, "random_network", lambda net, device, dtype: rounded(net, device, narrow).float())
    made = training(replace(one, base_precision="fp32"), stacked=False, **sizes)
    monkeypatch.undo()
    return made


def batches(one: Case, like: Training, count: int) -> list:
    """Batches with timesteps that every precision represents exactly: the network rounds them to its own."""
    made = [new_batch(one, like, step) for step in range(count)]
    return [replace(batch, timestep_B=(batch.timestep_B * 128).round().clamp(1, 127) / 128) for batch in made]


Found = dict[str, Tensor]


def plainly(made: Training, through: list) -> Found:
    seen = output(made, through[0])
    made.advance(through[0])
    first = gradient(made)
    for batch in through[1:]:
        made.advance(batch)
    return found(made, first, seen)


def captured(made: Training, through: list, lengths: list[int], **options) -> Found:
    with compiled(made.network.denoiser, made.network.layers, **options):
        steps = GraphSteps(made, LengthBuckets(lengths), lambda line: None)
        seen = output(made, through[0])
        steps.advance(through[0])
        first = gradient(made)
        for batch in through[1:]:
            steps.advance(batch)
        result = found(made, first, seen)
    del steps
    gc.collect()
    return result


def gradient(made: Training) -> Tensor:
    """The gradient of the last step, all tensors in a row."""
    stacks = made.optimizer.stacks
    parts = {}
    for stack, one in zip(stacks, made.optimizer.gradients, strict=True):
        parts.update(zip(stack.keys, [one] if stack.unstacked else one.unbind(0), strict=True))
    return torch.cat([parts[key].flatten().cpu() for key in sorted(parts)])


def output(made: Training, batch) -> Tensor:
    """The velocity, with gradients enabled, as the compiled block is the one used in training."""
    placed = batch.to(CUDA)
    with made.network.precomputed_weights():
        seen = made.network.velocity(placed, placed.noise_BCT).detach().float().cpu()
    return seen


def found(made: Training, first: Tensor, seen: Tensor) -> Found:
    made.history.flush()
    figures = torch.from_numpy(made.history.clip_figures[:, 1:])
    return {
        "output": seen,
        "gradient": first,
        "losses": figures,
        "adapter": torch.cat([value.flatten() for _, value in sorted(made.network.adapter.state().items())]),
    }


def distance(one: Found, other: Found) -> Mapping[str, float]:
    """Mean absolute differences: where a gradient is almost zero, an update of AdamW is random anyway."""
    return {name: float((one[name] - other[name]).abs().mean() / other[name].abs().mean()) for name in one}


@pytest.mark.parametrize("kind", catalogue.adapter_kinds())
def test_in_float32_twenty_captured_steps_are_the_plain_ones(kind):
    one = case(adapter_type=kind)
    with deterministic_algorithms(CUDA):
        plain, fast = training(one, stacked=False), training(one, stacked=True)
        through = batches(one, plain, STEPS)
        apart = distance(captured(fast, through, [24]), plainly(plain, through))
    print(kind, apart)
    assert apart["output"] < 1e-5 and apart["gradient"] < 1e-5, apart
    assert apart["losses"] < 1e-5 and apart["adapter"] < 1e-6, apart


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", catalogue.adapter_kinds())
def test_in_16_bits_captured_steps_are_as_near_to_float32_as_plain_ones(kind, precision, monkeypatch):
    one = case(adapter_type=kind, base_precision=precision)
    with deterministic_algorithms(CUDA):
        exact, plain, fast = in_float32(one, monkeypatch), training(one, stacked=False), training(one, stacked=True)
        through = batches(one, plain, STEPS)
        wanted = plainly(exact, through)
        allowed, seen = (distance(way, wanted) for way in (plainly(plain, through), captured(fast, through, [24])))
    print(kind, precision, {name: (seen[name], allowed[name]) for name in seen})
    assert all(seen[name] <= NO_FARTHER * allowed[name] for name in seen), (seen, allowed)


def test_heads_that_no_joint_kernel_takes_are_as_near_to_float32(monkeypatch):
    one, sizes = case(base_precision="bf16"), {"head_width": 40}
    with deterministic_algorithms(CUDA):
        exact = in_float32(one, monkeypatch, **sizes)
        plain, fast = (training(one, stacked=stacked, **sizes) for stacked in (False, True))
        through = batches(one, plain, STEPS)
        wanted = plainly(exact, through)
        allowed, seen = (distance(way, wanted) for way in (plainly(plain, through), captured(fast, through, [24])))
    assert all(seen[name] <= NO_FARTHER * allowed[name] for name in seen), (seen, allowed)


def test_a_batch_rounded_up_to_a_bucket_makes_the_step_of_the_batch():
    """Each step from the eager training's own state: updates of AdamW would amplify another order of summation."""
    one = case(adapter_type="dora-rows")
    with deterministic_algorithms(CUDA):
        plain, fast = training(one, stacked=False), training(one, stacked=True)
        through = [batches(replace(one, num_frames=20 + step % 3), plain, step + 1)[step] for step in range(12)]
        with compiled(fast.network.denoiser, fast.network.layers):
            for step, batch in enumerate(through):
                fast.restore(plain.as_checkpoint())
                steps = GraphSteps(fast, LengthBuckets([24]), lambda line: None)
                steps.advance(batch)
                plain.advance(batch)
                nothing = torch.ones(1)
                apart = distance(found(fast, gradient(fast), nothing), found(plain, gradient(plain), nothing))
                assert apart["gradient"] < 1e-5 and apart["losses"] < 1e-5 and apart["adapter"] < 1e-5, (step, apart)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_and_plain_steps_go_on_from_each_other(precision):
    one = case(base_precision=precision)
    with deterministic_algorithms(CUDA):
        plain, fast, mixed = (training(one, stacked=stacked) for stacked in (False, True, True))
        through = batches(one, plain, 9)
        wanted, other = plainly(plain, through), captured(fast, through, [24])
        captured(mixed, through[:3], [24])
        for batch in through[3:6]:
            mixed.advance(batch)
        apart = distance(captured(mixed, through[6:], [24]), wanted)
    allowed = 1e-5 if precision == "fp32" else 2 * distance(other, wanted)["adapter"]
    assert apart["adapter"] < allowed


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_captured_steps_repeat_to_the_bit_also_from_the_middle(precision):
    one = case(base_precision=precision)
    with deterministic_algorithms(CUDA):
        whole, stopped, resumed = (training(one, stacked=True) for _ in range(3))
        through = batches(one, whole, 8)
        captured(whole, through, [24])
        captured(stopped, through[:3], [24])
        resumed.restore(stopped.as_checkpoint())
        captured(resumed, through[3:], [24])
    wanted, seen = whole.as_checkpoint(), resumed.as_checkpoint()
    for part in ("adapter", "optimizer", "history"):
        left, right = getattr(wanted, part), getattr(seen, part)
        assert all(torch.equal(left[key], right[key]) for key in left), part


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_blocks_make_the_same_steps(precision):
    one = case(base_precision=precision)
    with deterministic_algorithms(CUDA):
        kept, recomputed = (training(replace(one, checkpointing=on), stacked=True) for on in (False, True))
        through = batches(one, kept, 4)
        apart = distance(captured(recomputed, through, [24]), captured(kept, through, [24]))
    assert max(apart.values()) < 1e-5, apart


def test_without_repeatable_kernels_steps_are_as_near_to_float32(monkeypatch):
    one = case(base_precision="bf16")
    exact, plain, fast = in_float32(one, monkeypatch), training(one, stacked=False), training(one, stacked=True)
    through = batches(one, plain, STEPS)
    wanted = plainly(exact, through)
    seen = distance(captured(fast, through, [24], deterministic=False), wanted)
    allowed = distance(plainly(plain, through), wanted)
    assert all(seen[name] <= NO_FARTHER * allowed[name] for name in seen), (seen, allowed)
