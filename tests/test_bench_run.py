"""Benchmarks of training steps, on the smallest model."""

from __future__ import annotations

import json

import pytest
import torch

from stages.bench.cases import Case, config_of, new_batch, new_training
from stages.bench.measure import BenchEnvironment, timed, timed_in_isolation
from stages.bench.memory import PeakMemory
from stages.bench.run import COLUMNS, Grid, bench, estimate_accuracy, table
from stages.bench.timing import product_flops_per_second, seconds
from stages.bench.useful_flops import attention_flops, product_flops, useful_flops
from stages.models.nets.attention.attention import masked_attention, replace_attention
from stages.train.forecast.network_size import BatchSize, network_size

CPU = torch.device("cpu")


def test_every_combination_is_measured_once():
    grid = Grid(
        models=["a", "b"],
        frames=[8, 16],
        adapter_types=["lora", "bora"],
        batch_sizes=[1, 2],
        checkpointing=[False, True],
        deterministic=[True, False],
    )
    assert len(set(grid.cases())) == 64


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[str, dict]:
    """The table and the file of one case, with blocks kept and recomputed."""
    target = tmp_path_factory.mktemp("bench") / "bench.json"
    grid = Grid(models=["tiny-base"], frames=[8], precisions=["fp32"], checkpointing=[False, True], rank=2, steps=2)
    text = bench(grid, "cpu", 1, target, lambda line: None, isolated=False)
    return text, json.loads(target.read_text("utf-8"))


def test_a_row_holds_both_paths_and_how_far_their_losses_differ(measured):
    text, written = measured
    heading, row, *_ = text.splitlines()
    assert [heading.find(name) >= 0 for name, _, _ in COLUMNS] == [True] * len(COLUMNS)
    assert "tiny-base" in row
    assert written["rows"][0]["plain_ms"] > 0 and written["rows"][0]["fast_ms"] > 0
    assert written["rows"][0]["largest_loss_difference"] < 1e-5


def test_a_row_holds_the_estimated_memory_as_well(measured):
    text, written = measured
    for row in written["rows"]:
        assert row["plain_gib_estimated"] > 0 and row["fast_gib_estimated"] > 0
        assert not [key for key in row if "ms_estimated" in key]
    assert "time estimated" not in text


def test_recomputed_blocks_are_another_row(measured):
    _, written = measured
    assert [row["checkpointing"] for row in written["rows"]] == [False, True]
    kept, again = (row["tflops_per_second"] * row["fast_ms"] for row in written["rows"])
    assert kept == pytest.approx(again), "what is computed again is no useful work"


def test_the_last_lines_say_how_far_the_estimates_lie_from_the_measurements():
    rows = [
        {"plain_peak_gib": None, "plain_gib_estimated": 1.0, "fast_peak_gib": peak, "fast_gib_estimated": 1.0}
        for peak in (2.0, 0.8)
    ]
    assert estimate_accuracy(rows) == ["memory estimated, fast: 0.50 to 1.25 of the memory measured"]


def test_an_unknown_value_is_a_dash():
    row = dict.fromkeys((key for _, key, _ in COLUMNS), None)
    assert set(table([row]).splitlines()[1].split()) == {"-"}


def test_prompts_are_no_longer_than_the_model_sees():
    case = Case(model="tiny-base", num_frames=8, base_precision="fp32", rank=2)
    training = new_training(case, config_of("tiny-base"), CPU, stacked=False)
    training.network.conditioner.max_length = 5
    batch = new_batch(case, training)
    assert training.network.conditioner.padded_prompts(batch.hidden).shape[1] == 5


def test_useful_work_is_that_of_real_layers_and_real_attention():
    case = Case(model="tiny-base", num_frames=8, base_precision="fp32", rank=2, batch_size=2)
    training = new_training(case, config_of("tiny-base"), CPU, stacked=False)
    network, attended, products = training.network, [], []
    batch = new_batch(case, training)

    def attend(query, key, value, valid):
        attended.append(4 * query.numel() * key.shape[-2])
        return masked_attention(query, key, value, valid)

    def multiplied(layer, inputs, output):
        products.append(2 * output.numel() * layer.weight[0].numel())

    replace_attention(network.denoiser, attend)
    for root in (network.denoiser, network.conditioner):
        for module in root.modules():
            if isinstance(getattr(module, "weight", None), torch.nn.Parameter):
                module.register_forward_hook(multiplied)
    with torch.no_grad():
        network.velocity(batch, batch.noise_BCT)
    size, shape = network_size(config_of("tiny-base")), BatchSize(num_clips=2, num_frames=8)
    assert (product_flops(size, shape), attention_flops(size, shape)) == (sum(products), sum(attended))
    assert useful_flops(size, shape) == 2 * sum(products) + 3.5 * sum(attended)


def test_the_speed_of_this_machine_is_measured_in_sensible_units():
    assert 1e8 < product_flops_per_second(CPU, torch.float32) < 1e14
    assert 0 <= seconds(CPU, lambda: None) < 1


def test_an_unknown_model_is_an_error():
    with pytest.raises(StopIteration):
        config_of("huge-base")


def test_on_the_cpu_a_case_is_measured_in_a_new_process(tmp_path):
    held = torch.ones(1 << 29, dtype=torch.uint8)  # of this process: no other has it
    environment = BenchEnvironment(device=CPU, memory=PeakMemory(CPU), say=print, steps=1, caches=tmp_path)
    case = Case(model="tiny-base", num_frames=8, base_precision="fp32", rank=2)
    found, here = timed_in_isolation(case, environment, stacked=True), timed(case, environment, stacked=True)
    assert found.losses.tolist() == pytest.approx(here.losses.tolist())
    if found.peak_gib is not None:
        assert 0 < found.peak_gib < held.nbytes / 2**30


def test_start_resets_the_peak_memory():
    memory = PeakMemory(CPU)
    if memory.before is None:
        pytest.skip("only Linux tells")
    memory.start()
    held = torch.ones(1 << 26, dtype=torch.uint8)
    most = memory.gib()
    del held
    memory.start()
    after = memory.gib()
    assert most is not None and after is not None
    assert most - after > 0.05


@pytest.mark.gpu
def test_on_cuda_a_case_measured_again_holds_no_more_than_at_first(tmp_path):
    device = torch.device("cuda")
    environment = BenchEnvironment(device=device, memory=PeakMemory(device), say=print, steps=2, caches=tmp_path)
    case = Case(model="tiny-base", num_frames=24, base_precision="bf16", rank=4)
    first, second, third = (timed(case, environment, stacked=True).peak_gib for _ in range(3))
    assert first is not None and second is not None and third is not None
    assert second < first + 2e-3 and third < first + 2e-3
