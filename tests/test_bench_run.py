"""The grid of measurements, on the smallest model."""

from __future__ import annotations

import json

import pytest
import torch

from stages.bench.cases import Case, config_of, new_batch, new_training
from stages.bench.measuring import counted
from stages.bench.run import COLUMNS, Grid, bench


def test_every_combination_is_measured_once():
    grid = Grid(models=["a", "b"], frames=[8, 16], adapter_types=["lora", "bora"], batch_sizes=[1, 2])
    assert len({(c.model, c.num_frames, c.adapter_type, c.batch_size) for c in grid.cases()}) == 16


def test_a_row_holds_both_paths_and_how_far_their_losses_differ(tmp_path):
    grid = Grid(models=["tiny-base"], frames=[8], precisions=["fp32"], rank=2, steps=2)
    text = bench(grid, "cpu", 1, tmp_path / "bench.json", lambda line: None)
    heading, row = text.splitlines()
    assert [heading.find(name) >= 0 for name, _, _ in COLUMNS] == [True] * len(COLUMNS)
    written = json.loads((tmp_path / "bench.json").read_text("utf-8"))
    assert written["rows"][0]["plain_ms"] > 0 and written["rows"][0]["fast_ms"] > 0
    assert written["rows"][0]["largest_loss_difference"] < 1e-5
    assert "tiny-base" in row


def test_work_is_counted_from_the_sizes_of_what_flows():
    case = Case(model="tiny-base", num_frames=8, base_precision="fp32", rank=2)
    training = new_training(case, config_of("tiny-base"), torch.device("cpu"), stacked=False)
    one = counted(training, new_batch(case, training))
    longer = counted(training, new_batch(Case(**{**case.__dict__, "batch_size": 2}), training))
    # Twice the clips are twice the work, in layers and in attention.
    assert longer == pytest.approx((2 * one[0], 2 * one[1]))
