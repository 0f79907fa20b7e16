"""CUDA graphs of steps, as far as a CPU can test them: when they are used, and fallbacks."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stages.bench.cases import Case, new_batch, new_training
from stages.train.cuda_graph.compiled_blocks import compile_caches, compile_options
from stages.train.cuda_graph.graph_steps import ALIGNMENT, GraphSteps, pack, views_into
from stages.train.cuda_graph.stepper import Stepper
from stages.train.dataset.batch import tensor_fields
from stages.train.dataset.length_buckets import LengthBuckets
from stages.train.training import Training
from tests.small_networks import config


def case(**changes) -> Case:
    return replace(Case(model="tiny-base", num_frames=24, rank=4, base_precision="fp32", batch_size=2), **changes)


class Failing:
    """CUDA graphs that cannot be captured."""

    def __init__(self, error: Exception) -> None:
        self.error, self.buckets = error, LengthBuckets([24])

    def reset(self) -> None:
        pass

    def advance(self, batch) -> None:
        raise self.error


def on_cpu(error: Exception) -> tuple[Stepper, Training, list[str]]:
    said: list[str] = []
    training = new_training(case(), config(), torch.device("cpu"))
    stepper = Stepper(training, LengthBuckets([24]), Path("unused"), said.append)
    assert stepper.__enter__().graph_steps is None
    stepper.graph_steps = Failing(error)
    return stepper, training, said


def test_a_step_that_cannot_be_captured_is_made_eagerly_and_reported():
    stepper, training, said = on_cpu(RuntimeError("operation not permitted\nand a long trace"))
    for step in range(2):
        stepper.advance(new_batch(case(), training, step))
    assert training.step == 2
    assert said == ["training without the fast path (RuntimeError: operation not permitted)"]


def test_short_memory_leads_to_gradient_checkpointing_before_eager_steps():
    stepper, training, said = on_cpu(torch.OutOfMemoryError("no memory"))
    stepper.advance(new_batch(case(), training))
    assert training.step == 1
    assert training.network.denoiser.model.transformer.checkpointing
    assert len(said) == 2 and "gradient checkpointing is on" in said[0] and "without the fast path" in said[1]


def test_an_interrupt_is_not_retried():
    stepper, training, _ = on_cpu(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        stepper.advance(new_batch(case(), training))


@pytest.mark.slow
def test_compile_options_reach_the_thread_of_the_backward_pass(monkeypatch, tmp_path):
    """That thread compiles its half by itself; a buffer reused there may still be read by other streams."""
    import torch._inductor.config as inductor_config
    from torch._inductor.graph import GraphLowering

    seen = []
    build = GraphLowering.__init__

    def looked_at(graph, *args, **named) -> None:
        asked = compile_options(deterministic=True)
        seen.append((bool(named.get("is_backward")), {name: getattr(inductor_config, name) for name in asked} == asked))
        build(graph, *args, **named)

    monkeypatch.setattr(GraphLowering, "__init__", looked_at)
    compiled = torch.compile(
        lambda x, weight: torch.sin(x @ weight).sum(), dynamic=False, options=compile_options(deterministic=True)
    )
    x = torch.randn(8, 8, requires_grad=True)
    # A setting that turns the cache off might not reach that thread either: nothing is in this one.
    with compile_caches(tmp_path):
        loss = compiled(x, torch.randn(8, 8))
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    assert x.grad is not None
    assert seen == [(False, True), (True, True)]


def test_this_torch_has_every_compile_option_that_side_streams_rely_on():
    assert {"allow_buffer_reuse", "inplace_buffers"} <= compile_options(deterministic=True).keys()


class Repeating(GraphSteps):
    """Runs the captured function again at every replay, in place of a graph, which only CUDA has."""

    def _capture_step(self, inputs, *, with_update):
        self.last = inputs
        return super()._capture_step(inputs, with_update=with_update)

    def capture(self, work):
        found = work()
        results, inputs = found if isinstance(found, tuple) else (found,), getattr(self, "last", None)

        def again() -> None:
            if inputs is not None:
                self.training.network.layers.set_dropout_masks(inputs.masks)
            made = work()
            for result, again_made in zip(results, made if isinstance(made, tuple) else (made,), strict=True):
                if result is not None:
                    result.data.copy_(again_made.detach())

        return SimpleNamespace(replay=again), found


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("parts", "dropout"), [((), 0.0), ((1, 2), 0.0), ((1, 1, 1), 0.3), ((), 0.3)])
def test_replayed_graphs_make_the_same_steps_as_eager_ones(precision, parts, dropout):
    one = case(base_precision=precision, batch_size=3, adapter_type="bora")
    made = [new_training(one, config(), torch.device("cpu")) for _ in range(2)]
    for training in made:
        changed = {"adapter_dropout": dropout, "gradient_accumulation": max(len(parts), 1)}
        training.params = replace(training.params, **changed)
        for group in training.network.layers.groups:
            group.slot.basis.dropout = dropout
        training.network.train(True)
    steps = Repeating(made[1], LengthBuckets([24]), lambda line: None)
    for step in range(3):
        batch = replace(new_batch(one, made[0], step), microbatch_sizes=parts)
        made[0].advance(batch)
        assert steps.advance(batch)
    plain, recorded = (training.as_checkpoint() for training in made)
    assert len(steps.graphs) == len(set(parts) or {3})
    for ours, theirs in ((recorded.adapter, plain.adapter), (recorded.optimizer, plain.optimizer)):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(recorded.history["figures_N3"], plain.history["figures_N3"])


def test_a_graph_reads_each_batch_where_it_read_the_first():
    training = new_training(case(), config(), torch.device("cpu"))
    steps, (first, other) = (
        Repeating(training, LengthBuckets([24]), str),
        [new_batch(case(), training, n) for n in (0, 1)],
    )
    inputs = steps.static_inputs(first)
    lies_at = {name: one.data_ptr() for name, one in tensor_fields(inputs.batch).items()}
    steps.copy_inputs(inputs, other, 0.25)
    found = tensor_fields(inputs.batch)
    assert {name: one.data_ptr() for name, one in found.items()} == lies_at
    assert all(torch.equal(found[name], one) for name, one in tensor_fields(other).items())
    assert inputs.weight.item() == 0.25
    assert torch.equal(inputs.prompts_BPE, training.network.padded_prompts(other))


def test_packed_tensors_are_found_again_aligned():
    given = [torch.tensor(0.5), torch.arange(6).view(2, 3).T, torch.tensor([True]), torch.randn(3, 5).bfloat16()]
    memory = pack(given)
    found = views_into(memory, given)
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(found, given, strict=True))
    assert all((one.data_ptr() - memory.data_ptr()) % ALIGNMENT == 0 for one in found)
