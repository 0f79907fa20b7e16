"""The fast path on CUDA against the plain one, and what of it a CPU can show."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages import catalogue
from stages.bench.cases import Case, new_batch, new_training
from stages.train.captured import CapturedSteps, Stepper, compiled
from stages.train.lengths import Buckets
from stages.train.loop import Training
from stages.train.repeatable import repeatable
from tests.small_networks import config

CUDA = torch.device("cuda")


def case(**changes) -> Case:
    return replace(Case(model="tiny-base", num_frames=24, rank=4, base_precision="fp32", batch_size=2), **changes)


def plain_losses(training: Training, batches: list) -> torch.Tensor:
    for batch in batches:
        training.advance(batch.to(CUDA))
    return figures(training)


def captured_losses(training: Training, batches: list, lengths: list[int]) -> torch.Tensor:
    with compiled(training.network.denoiser, training.network.layers):
        steps = CapturedSteps(training, Buckets(lengths), lambda line: None)
        for batch in batches:
            steps.advance(batch)
        found = figures(training)
    del steps
    gc.collect()
    return found


def figures(training: Training) -> torch.Tensor:
    training.history.settle()
    return torch.from_numpy(training.history.figures_N3)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", catalogue.adapter_kinds())
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_twenty_captured_steps_give_the_losses_and_the_adapter_of_plain_ones(kind, precision):
    one, read = case(adapter_type=kind, base_precision=precision), config(differential=True)
    with repeatable(CUDA):
        plain, fast = new_training(one, read, CUDA), new_training(one, read, CUDA)
        batches = [new_batch(one, plain, step) for step in range(20)]
        wanted, found = plain_losses(plain, batches), captured_losses(fast, batches, [24])
    tolerance = 2e-5 if precision == "fp32" else 2e-2
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    for key, value in plain.network.adapter.state().items():
        moved = (fast.network.adapter.state()[key] - value).norm() / value.norm().clamp(min=1e-3)
        # In bf16 the two ways round differently, and an update of AdamW hardly depends on the size of a gradient. Not
        # met by three -xs kinds on an H200 (0.063 to 0.066): NOTES.md.
        assert moved < (1e-3 if precision == "fp32" else 0.05), key


@pytest.mark.gpu
def test_rounding_a_batch_up_to_a_bucket_changes_nothing_but_rounding():
    one, read = case(adapter_type="dora-rows"), config(differential=True)
    with repeatable(CUDA):
        plain, fast = new_training(one, read, CUDA), new_training(one, read, CUDA)
        batches = [new_batch(replace(one, num_frames=20 + step % 3), plain, step) for step in range(12)]
        wanted, found = plain_losses(plain, batches), captured_losses(fast, batches, [24])
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    # Masked and unmasked kernels add up in another order, which updates enlarge. Not met from the eleventh batch on, on
    # an H200 (1.4e-4): NOTES.md.
    torch.testing.assert_close(found, wanted, rtol=5e-5, atol=5e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_captured_steps_repeat_to_the_bit_also_from_the_middle(precision):
    one, read = case(base_precision=precision), config(differential=True)
    with repeatable(CUDA):
        whole, stopped, resumed = (new_training(one, read, CUDA) for _ in range(3))
        batches = [new_batch(one, whole, step) for step in range(8)]
        captured_losses(whole, batches, [24])
        captured_losses(stopped, batches[:3], [24])
        resumed.restore(stopped.as_checkpoint())
        captured_losses(resumed, batches[3:], [24])
    wanted, found = whole.as_checkpoint(), resumed.as_checkpoint()
    for part in ("adapter", "optimizer", "history"):
        left, right = getattr(wanted, part), getattr(found, part)
        assert all(torch.equal(left[key], right[key]) for key in left), part


@pytest.mark.gpu
def test_recomputed_blocks_give_the_same_losses():
    read = config(differential=True)
    with repeatable(CUDA):
        kept, recomputed = (new_training(case(checkpointing=on), read, CUDA) for on in (False, True))
        batches = [new_batch(case(), kept, step) for step in range(4)]
        wanted, found = captured_losses(kept, batches, [24]), captured_losses(recomputed, batches, [24])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


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
