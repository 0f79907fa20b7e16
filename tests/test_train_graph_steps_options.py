"""Options of a step on CUDA: captured steps against eager ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stages.bench.cases import Case, new_batch, new_training
from stages.train.cuda_graph.compiled_blocks import CompiledNetwork, compiled
from stages.train.cuda_graph.graph_steps import GraphSteps
from stages.train.cuda_graph.stepper import Stepper
from stages.train.dataset.length_buckets import LengthBuckets
from stages.train.determinism import deterministic_algorithms
from stages.train.record.layer_norms import NormRecorder
from stages.train.setup import new_optimizer
from stages.train.training import Training
from tests.small_networks import config
from tests.small_training import Bench

CUDA = torch.device("cuda")

OPTIONS = {
    "accumulated": {"gradient_accumulation": 2},
    "clipped": {"gradient_clip": 1e-2},
    "averaged": {"ema_decay": 0.9},
    "scheduled": {"schedule": "cosine", "warmup_steps": 3},
    "undecayed magnitudes": {"decay_magnitudes": False, "weight_decay": 0.5},
    "dropped": {"adapter_dropout": 0.3},
    "all": {
        **{"gradient_accumulation": 2, "gradient_clip": 1e-2, "ema_decay": 0.9, "schedule": "cosine"},
        **{"decay_magnitudes": False, "adapter_dropout": 0.3},
    },
}


def training_with(device: torch.device, precision: str = "fp32", **changes) -> Training:
    case = Case(model="tiny-base", num_frames=24, rank=4, base_precision=precision, batch_size=2)
    made = new_training(case, config(), device)
    made.params = replace(made.params, number_of_steps=12, **changes)
    made.optimizer = new_optimizer(made.network, made.params)
    made.network.train(True)
    return made


def batches(training: Training, count: int) -> list:
    case = Case(model="tiny-base", num_frames=24, batch_size=2)
    parts = (1, 1) if training.params.gradient_accumulation == 2 else ()
    return [replace(new_batch(case, training, step), microbatch_sizes=parts) for step in range(count)]


def stepped(training: Training, made: list, *, fast: bool) -> dict[str, torch.Tensor]:
    """Adapter, EMA and metrics after these batches."""
    if fast:
        with compiled(training.network.denoiser, training.network.layers):
            steps = GraphSteps(training, LengthBuckets([24]), lambda line: None)
            for batch in made:
                steps.advance(batch)
            torch.cuda.synchronize()
    else:
        for batch in made:
            training.advance(batch)
    state = training.as_checkpoint()
    averaged = {name: tensor for name, tensor in state.optimizer.items() if name.startswith("average.")}
    return {**state.adapter, **averaged, **state.history}


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_captured_steps_apply_every_option_as_eager_ones_do(name, precision):
    changes = OPTIONS[name]
    tolerance = 2e-3 if precision == "fp32" else 5e-2
    with deterministic_algorithms(CUDA):
        plain, fast = (training_with(CUDA, precision, **changes) for _ in range(2))
        made = batches(plain, 12)
        wanted, found = stepped(plain, made, fast=False), stepped(fast, made, fast=True)
    assert wanted.keys() == found.keys()
    for key, tensor in wanted.items():
        assert (found[key] - tensor).double().norm() <= tolerance * tensor.double().norm().clamp(min=1e-3), key


@pytest.mark.gpu
def test_captured_steps_with_every_option_resume_from_an_eager_checkpoint_and_the_other_way_round():
    changes = OPTIONS["all"]
    with deterministic_algorithms(CUDA):
        whole, plain, first, second = (training_with(CUDA, **changes) for _ in range(4))
        made = batches(whole, 8)
        wanted = stepped(whole, made, fast=True)
        stepped(first, made[:4], fast=True)
        stepped(plain, made[:4], fast=False)
        second.restore(first.as_checkpoint())
        found = stepped(second, made[4:], fast=True)
        second.restore(plain.as_checkpoint())
        mixed = stepped(second, made[4:], fast=True)
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    for key, tensor in wanted.items():
        assert (mixed[key] - tensor).double().norm() <= 2e-3 * tensor.double().norm().clamp(min=1e-3), key


@pytest.mark.gpu
@pytest.mark.parametrize("parts", [(3, 1), (1,) * 16], ids=str)
def test_captured_microbatches_of_any_number_and_size_count_as_eager_ones_do(parts):
    case = Case(model="tiny-base", num_frames=24, rank=4, base_precision="fp16", batch_size=sum(parts))
    with deterministic_algorithms(CUDA):
        plain, fast = (training_with(CUDA, "fp16", gradient_accumulation=len(parts)) for _ in range(2))
        made = [replace(new_batch(case, plain, step), microbatch_sizes=parts) for step in range(6)]
        wanted, found = stepped(plain, made, fast=False), stepped(fast, made, fast=True)
    for key, tensor in wanted.items():
        assert (found[key] - tensor).double().norm() <= 5e-2 * tensor.double().norm().clamp(min=1e-3), key


@pytest.mark.gpu
def test_a_training_on_cuda_takes_the_fast_path(tmp_path):
    bench = Bench.of_latents(tmp_path)
    bench.resources = replace(bench.resources, device="cuda")
    bench.train(number_of_steps=6, base_precision="bf16")
    assert any("fast path for" in line and "ready" in line for line in bench.said)
    assert not any("without the fast path" in line for line in bench.said)


def test_the_loop_makes_its_steps_through_the_stepper(tmp_path, monkeypatch):
    made = []
    advance = Stepper.advance
    monkeypatch.setattr(Stepper, "advance", lambda self, batch: (made.append(batch), advance(self, batch)))
    Bench.of_latents(tmp_path).train(number_of_steps=3)
    assert len(made) == 3


@pytest.mark.parametrize(
    ("change", "why"),
    [({"optimizer": "lion"}, "optimizer lion needs the CPU in every step"), ({}, "its layers run one by")],
)
def test_what_cannot_be_captured_is_stepped_eagerly_and_reported(monkeypatch, tmp_path, change, why):
    training = training_with(torch.device("cpu"), **change)
    if not change:
        training.network = replace(training.network, layers=None)
    training.device, said = CUDA, []
    with Stepper(training, LengthBuckets([24]), tmp_path, said.append) as stepper:
        assert stepper.graph_steps is None
    assert said[0].startswith(f"training without the fast path: {why}")


class Full:
    """CUDA graphs of as many shapes as are allowed."""

    def __init__(self) -> None:
        self.buckets = LengthBuckets([24])

    def reset(self) -> None:
        pass

    def advance(self, batch) -> bool:
        return False


def test_a_batch_of_one_shape_too_many_is_stepped_eagerly_and_reported_once(tmp_path):
    training, said = training_with(torch.device("cpu")), []
    with Stepper(training, LengthBuckets([24]), tmp_path, said.append) as stepper:
        stepper.graph_steps, stepper.compiled = (
            Full(),
            CompiledNetwork(training.network.denoiser, training.network.layers, deterministic=True),
        )
        for batch in batches(training, 3):
            stepper.advance(batch)
    assert training.step == 3
    assert said == ["batches of more than 16 shapes: further ones take the slower path"]


def test_a_torch_without_what_graphs_need_is_stepped_eagerly_and_reported(tmp_path, monkeypatch):
    def missing(*given, **options):
        raise TypeError("from_kv_blocks() got an unexpected keyword argument")

    monkeypatch.setattr("stages.train.cuda_graph.stepper.compiled", missing)
    training, said = training_with(torch.device("cpu")), []
    made = batches(training, 1)
    training.device, training.optimizer.rule.capturable = CUDA, True
    with Stepper(training, LengthBuckets([24]), tmp_path, said.append) as stepper:
        training.device = torch.device("cpu")
        stepper.advance(made[0])
    assert training.step == 1
    assert said == ["training without the fast path (TypeError: from_kv_blocks() got an unexpected keyword argument)"]


def test_graphs_are_not_used_when_fast_path_is_off(tmp_path):
    training, said = training_with(torch.device("cpu")), []
    training.device = CUDA
    with Stepper(training, LengthBuckets([24]), tmp_path, said.append, wanted=False) as stepper:
        assert stepper.graph_steps is None
    assert said == ["training without the fast path: fast_path is off"]


def test_an_update_is_not_repeated_when_recording_its_norms_fails(tmp_path, monkeypatch):
    training = training_with(torch.device("cpu"))

    def out_of_memory(look):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(NormRecorder, "norms", out_of_memory)
    with Stepper(training, None, tmp_path, lambda line: None) as stepper, pytest.raises(torch.OutOfMemoryError):
        stepper.advance(batches(training, 1)[0])
    assert training.optimizer.num_updates == 1


def test_gradient_checkpointing_for_short_memory_stays_on_after_a_stop(tmp_path):
    training = training_with(torch.device("cpu"))
    with Stepper(training, None, tmp_path, lambda line: None) as stepper:
        stepper.recover(torch.OutOfMemoryError("no memory"))
    resumed = training_with(torch.device("cpu"))
    resumed.restore(training.as_checkpoint())
    with Stepper(resumed, None, tmp_path, lambda line: None):
        assert resumed.network.denoiser.model.transformer.checkpointing
