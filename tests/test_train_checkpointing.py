"""Gradient checkpointing: the same bits in less memory, on request or when memory is short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.bench.cases import Case, new_batch, new_training
from stages.contract import Resources
from stages.models.nets.dit.transformer import TransformerBlock
from stages.train.cuda_graph.stepper import Stepper
from stages.train.training import Training
from tests.small_networks import config
from tests.small_training import Bench

ROOT = Path(__file__).parents[1]


def bench_with(tmp_path: Path, setting: str) -> Bench:
    resources = Resources(device="cpu", checkpoint_every=2, log_every=2, gradient_checkpointing=setting)
    return Bench.of_latents(tmp_path).at(setting, resources=resources)


@pytest.mark.parametrize(
    "options",
    [{}, {"adapter_dropout": 0.3}, {"adapter_dropout": 0.3, "base_quantization": "int8"}, {"adapter_type": "bora-xs"}],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_kept_activations_to_the_bit(tmp_path, options):
    kept, again = (bench_with(tmp_path, setting) for setting in ("off", "on"))
    for one in (kept, again):
        one.train(include=None, batch_size=2, number_of_steps=2, **options)
    assert again.results() == kept.results()
    assert [line for line in again.said if "gradient checkpointing is on" in line]
    assert not [line for line in kept.said if "gradient checkpointing is on" in line]


@pytest.fixture
def runs(monkeypatch) -> list[bool]:
    """Every run of a block, and whether autograd recorded it."""
    seen: list[bool] = []
    real = TransformerBlock.forward

    def forward(block: TransformerBlock, tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return real(block, tokens, *rest)

    monkeypatch.setattr(TransformerBlock, "forward", forward)
    return seen


@pytest.mark.parametrize(("setting", "times"), [("off", 1), ("auto", 1), ("on", 2)])
def test_a_block_runs_twice_a_step_only_with_gradient_checkpointing(tmp_path, runs, setting, times):
    bench_with(tmp_path, setting).train(number_of_steps=1)
    blocks = config()["model"]["diffusion"]["config"]["depth"]
    assert sum(runs) == blocks * times


class ShortOfMemory(Training):
    """Memory for a step is enough only with gradient checkpointing."""

    def advance(self, batch) -> None:
        if not self.network.denoiser.model.transformer.checkpointing:
            raise torch.OutOfMemoryError("no memory")
        super().advance(batch)


def short_of_memory() -> ShortOfMemory:
    training = new_training(CASE, config(), torch.device("cpu"))
    return ShortOfMemory(**{name: getattr(training, name) for name in training.__dataclass_fields__})


CASE = Case(model="tiny-base", num_frames=24, rank=4, base_precision="fp32", batch_size=2)


def test_where_memory_is_short_the_step_is_repeated_with_gradient_checkpointing():
    training, said = short_of_memory(), []
    batch = new_batch(CASE, training)
    with Stepper(training, None, Path("unused"), said.append) as stepper:
        stepper.advance(batch)
    assert training.step == 1
    assert said == ["device memory is short: gradient checkpointing is on from now (slower, same results)"]
    plain = new_training(CASE, config(), torch.device("cpu"))
    plain.advance(batch)
    assert all(
        torch.equal(found, plain.network.adapter.state()[key])
        for key, found in training.network.adapter.state().items()
    )


def test_off_means_off_also_where_memory_is_short():
    training = short_of_memory()
    stepper = Stepper(training, None, Path("unused"), print, may_recompute=False)
    with stepper, pytest.raises(torch.OutOfMemoryError):
        stepper.advance(new_batch(CASE, training))
    assert not training.network.denoiser.model.transformer.checkpointing


MEASURED = """
import torch
from dataclasses import replace
from pathlib import Path
from stages.bench.cases import Case, config_of, new_batch, new_training

def most_kib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

torch.set_num_threads(1)
case = Case(model="tiny-base", num_frames=500, rank=4, base_precision="fp32", batch_size=2)
for checkpointing in (True, False):  # what takes less first: the system only tells the most there ever was
    one = replace(case, checkpointing=checkpointing)
    training = new_training(one, config_of("tiny-base"), torch.device("cpu"))
    before = most_kib()
    training.advance(new_batch(one, training))
    print(most_kib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the most memory a process had is told by Linux")
def test_peak_memory_of_a_process_is_lower():
    done = subprocess.run([sys.executable, "-c", MEASURED], cwd=ROOT, capture_output=True, text=True, check=True)
    again_kib, further_kib = map(int, done.stdout.split())
    # 50 MiB here; nearly nothing where both steps take as much.
    assert further_kib > 20_000, (again_kib, further_kib)
