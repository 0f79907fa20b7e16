"""What of the fast path a CPU can show: when it is taken, and what happens where it cannot be."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages import catalogue
from stages.bench.cases import Case, new_batch, new_training
from stages.train.compiling import options
from stages.train.lengths import Buckets
from stages.train.loop import Training
from stages.train.stepper import Stepper
from tests.small_networks import config


def case(**changes) -> Case:
    return replace(Case(model="tiny-base", num_frames=24, rank=4, base_precision="fp32", batch_size=2), **changes)


@pytest.mark.parametrize("model", ["medium-base", "small-music-base", "small-sfx-base"])
def test_the_shipped_configs_are_the_recorded_ones(model):
    shipped = Path(catalogue.__file__).parent / "models" / "published" / f"{model}.json"
    recorded = Path(__file__).parent / "golden" / "published" / f"{model}.json"
    assert json.loads(shipped.read_text("utf-8")) == json.loads(recorded.read_text("utf-8"))


class Failing:
    """A fast path that cannot be prepared."""

    def __init__(self, error: Exception) -> None:
        self.error, self.buckets = error, Buckets([24])

    def forget(self) -> None:
        pass

    def advance(self, batch) -> None:
        raise self.error


def on_cpu(error: Exception) -> tuple[Stepper, Training, list[str]]:
    said: list[str] = []
    training = new_training(case(), config(), torch.device("cpu"))
    stepper = Stepper(training, Buckets([24]), Path("unused"), said.append)
    assert stepper.__enter__().fast is None
    stepper.fast = Failing(error)
    return stepper, training, said


def test_a_step_that_cannot_be_captured_is_made_the_plain_way_and_said():
    stepper, training, said = on_cpu(RuntimeError("operation not permitted\nand a long trace"))
    for step in range(2):
        stepper.advance(new_batch(case(), training, step))
    assert training.step == 2
    assert said == ["stepping without the fast path (RuntimeError: operation not permitted)"]


def test_short_memory_is_met_by_recomputing_blocks_before_giving_up():
    stepper, training, said = on_cpu(torch.OutOfMemoryError("no memory"))
    stepper.advance(new_batch(case(), training))
    assert training.step == 1
    assert training.network.denoiser.model.transformer.checkpointing
    assert len(said) == 2 and "recomputing" in said[0] and "without the fast path" in said[1]


def test_an_interrupt_is_no_reason_to_go_on():
    stepper, training, _ = on_cpu(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        stepper.advance(new_batch(case(), training))


@pytest.mark.slow
def test_what_the_compiler_is_told_reaches_the_thread_of_the_backward_pass(monkeypatch):
    """Which compiles its half by itself; there, a buffer used again would be one that other streams still read."""
    import torch._inductor.config as told
    from torch._inductor.graph import GraphLowering

    seen = []
    build = GraphLowering.__init__

    def looked_at(graph, *args, **named) -> None:
        asked = options(deterministic=True)
        seen.append((bool(named.get("is_backward")), {name: getattr(told, name) for name in asked} == asked))
        build(graph, *args, **named)

    monkeypatch.setattr(GraphLowering, "__init__", looked_at)
    compiled = torch.compile(
        lambda x, weight: torch.sin(x @ weight).sum(), dynamic=False, options=options(deterministic=True)
    )
    x = torch.randn(8, 8, requires_grad=True)
    with told.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False):
        loss = compiled(x, torch.randn(8, 8))
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    assert x.grad is not None
    assert seen == [(False, True), (True, True)]


def test_this_torch_knows_every_setting_that_the_streams_rely_on():
    assert {"allow_buffer_reuse", "inplace_buffers"} <= options(deterministic=True).keys()
